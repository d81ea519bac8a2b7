"""Choices as they are published: Pick-a-Pic's Parquet columns, and HPD v2's lists of image paths.

Pick-a-Pic (arXiv 2305.01569): caption, jpg_0, jpg_1, label_0, label_1, has_label, ranking_id; a label
of 0.5 is a tie. HPD v2 (arXiv 2306.09341), JSON or Parquet: prompt, image_path (its train file says
file_path), and human_preference (1 for the preferred) or raw_annotations ({"rank", "user_hash"}, rank 1
is best) or rank. Several pictures of one prompt give a pair for every two that the annotators tell apart.
"""

import collections
import dataclasses
import glob
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from seedream_jax import types

_ROWS = 32  # of a Parquet file read at once: pictures are heavy
_PICKAPIC = ("caption", "jpg_0", "jpg_1", "label_0", "label_1")
_PATHS = ("image_path", "file_path")
_CHOICES = ("human_preference", "raw_annotations", "rank")


class Skipped(Exception):
  """A row that gives no pair; its text is the reason that is counted."""


@dataclasses.dataclass(frozen=True)
class Choice:
  """One choice between two encoded pictures, the preferred first."""

  id: str
  prompt: str
  images: tuple[bytes, bytes]
  rater: str
  tags: tuple[str, ...] | None = None  # None: by what the prompt quotes
  lang: str = ""  # "": by script
  scene: Mapping[str, Any] | None = None
  about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def pickapic(pattern: str) -> Iterator[Choice | Skipped]:
  """The choices of every Parquet file that `pattern` matches.

  Raises:
    types.UserError: when there is none, or one lacks a column.
  """
  paths = sorted(glob.glob(pattern))
  if not paths:
    raise types.UserError(f"--pickapic {pattern}: no such file; expected Parquet")
  opened = [(path, open_parquet(path, "--pickapic", _PICKAPIC)) for path in paths]
  for path, file in opened:
    have = set(file.schema_arrow.names)
    columns = [*_PICKAPIC, *sorted({"has_label", "ranking_id", "user_id"} & have)]
    number = itertools.count()
    for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
      for row in batch.to_pylist():
        yield _pickapic(row, f"{os.path.basename(path)}:{next(number)}")


def open_parquet(path: str, flag: str, columns: Sequence[str]) -> pq.ParquetFile:
  """Opens a file that has these columns; UserError names what it lacks."""
  try:
    file = pq.ParquetFile(path)
  except (OSError, pa.ArrowException) as e:
    raise types.UserError(f"{flag} {path}: not a readable Parquet file ({e})") from e
  have = file.schema_arrow.names
  if missing := [name for name in columns if name not in have]:
    raise types.UserError(f"{flag} {path}: no column {missing[0]!r}; it has {', '.join(have)}")
  return file


def _pickapic(row: Mapping[str, Any], where: str) -> Choice | Skipped:
  one, other = row["label_0"], row["label_1"]
  if row.get("has_label") is False or one is None or other is None:
    return Skipped("no label")
  if one == other:
    return Skipped("tie")
  first, second = _bytes(row["jpg_0"]), _bytes(row["jpg_1"])
  if not first or not second:
    return Skipped("no picture")
  if not (row["caption"] or "").strip():
    return Skipped("no prompt")
  ident = row.get("ranking_id")
  return Choice(
    id=f"pickapic:{where if ident is None else ident}",
    prompt=row["caption"].strip(),
    images=(first, second) if one > other else (second, first),
    rater=f"pickapic:{row.get('user_id', '')}".rstrip(":"),
  )


def _bytes(value: Any) -> bytes | None:
  """A picture's bytes, plain or in the struct that Hugging Face's Image column is."""
  return value.get("bytes") if isinstance(value, Mapping) else value


def hpd(path: str, images: str) -> Iterator[Choice | Skipped]:
  """The choices of an HPD v2 file; its image paths are relative to folder `images`.

  Raises:
    types.UserError: when the file or the folder is not there, or a row lacks a field.
  """
  if not os.path.isdir(images):
    raise types.UserError(f"--images {images}: no such folder; expected that of the image paths")
  for number, row in enumerate(_hpd_rows(path)):
    names = next((row[key] for key in _PATHS if row.get(key) is not None), None)
    chosen = next((key for key in _CHOICES if row.get(key) is not None), None)
    has_prompt = isinstance(row.get("prompt"), str)
    for is_there, what in ((names, "image_path"), (has_prompt, "prompt"), (chosen, _CHOICES[0])):
      if not is_there:
        raise types.UserError(f"--hpd {path}: row {number} lacks {what}")
    for pair in _hpd_pairs(row[chosen], chosen, len(names), f"--hpd {path}: row {number}"):
      if pair is None:
        yield Skipped("tie")
        continue
      yield _hpd_choice(row["prompt"], [names[k] for k in pair], images)


def _hpd_rows(path: str) -> Iterator[dict[str, Any]]:
  if path.endswith(".parquet"):
    for batch in open_parquet(path, "--hpd", ("prompt",)).iter_batches(batch_size=_ROWS):
      yield from batch.to_pylist()
    return
  try:
    found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except (OSError, ValueError) as e:
    raise types.UserError(f"--hpd {path}: not a readable JSON file ({e})") from e
  if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
    raise types.UserError(f"--hpd {path}: expected a list of objects")
  yield from found


def _hpd_pairs(
  said: Sequence[Any], kind: str, num: int, where: str
) -> Iterator[tuple[int, int] | None]:
  """(preferred, rejected) of every two pictures; None for two that are level."""
  ranks = [a.get("rank") for a in said] if kind == "raw_annotations" else [said]
  if any(not isinstance(rank, Sequence) or len(rank) != num for rank in ranks):
    raise types.UserError(f"{where}: {kind} does not fit its {num} image paths")
  sign = -1 if kind == "human_preference" else 1  # of two ranks the lower is better
  for i, j in itertools.combinations(range(num), 2):
    votes = collections.Counter((r[i] > r[j]) - (r[i] < r[j]) for r in ranks)
    balance = sign * (votes[-1] - votes[1])
    yield (i, j) if balance > 0 else (j, i) if balance < 0 else None


def _hpd_choice(prompt: str, names: Sequence[str], images: str) -> Choice | Skipped:
  try:
    encoded = [pathlib.Path(images, name).read_bytes() for name in names]
  except OSError as e:
    return Skipped(f"no picture: {e.strerror}")
  if not prompt.strip():
    return Skipped("no prompt")
  return Choice(f"hpd:{names[0]}:{names[1]}", prompt.strip(), tuple(encoded), "hpd")
