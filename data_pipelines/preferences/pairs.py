"""Pairs: which of two pictures of one prompt is preferred, as JSON lines.

A line is one choice by one rater:

  id         names the prompt and the two pictures; the same in the files of every rater
  prompt     what was asked
  lang       zh or en
  tags       ["text"] where the prompt asks for rendered text, else []
  images     two references, in the order shown: {"data", "row", "candidate", "sha256", "model", "seed",
             "damage"} to a picture of a candidate set, or {"file"} to a picture file; data and file are
             relative to the folder of the JSON lines
  scores     {dimension: [of the first, of the second]}, noise included; {} where a person chose
  preferred  0, 1, "tie", or null: an earlier choice withdrawn
  rater      who chose
  noise      {"std": {dimension: s}, "seed": n, "ceiling": {dimension or "preferred": share}}, or null

A file is only ever appended to: of several lines of one id and rater the last one counts.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.preferences import candidates
from seedream_jax import types
from seedream_jax.data import records

DIMENSIONS = ("alignment", "text", "aesthetic")
TIE = "tie"
CHOICES = (0, 1, TIE, None)
_FIELDS = ("id", "prompt", "lang", "tags", "images", "scores", "preferred", "rater", "noise")


@dataclasses.dataclass(frozen=True)
class Pair:
  """One line; the module says what the fields hold."""

  id: str
  prompt: str
  lang: str
  tags: tuple[str, ...]
  images: tuple[Mapping[str, Any], Mapping[str, Any]]
  scores: Mapping[str, Sequence[float]]
  preferred: int | str | None
  rater: str
  noise: Mapping[str, Any] | None = None

  def line(self) -> str:
    """As JSON, with its newline."""
    fields = {name: getattr(self, name) for name in _FIELDS}
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"


def choose(prompt_id: str, num_images: int, num: int, seed: int) -> list[tuple[int, int]]:
  """`num` pairs of a set's pictures, in the order they are shown: a function of the arguments alone.

  Which pairs, and which picture comes first, follow a hash, so that no place favours a model; a
  larger `num` adds pairs to those of a smaller one.
  """
  ranked = []
  for a in range(num_images):
    for b in range(a + 1, num_images):
      value = _hash("pair", seed, prompt_id, a, b)
      ranked.append((value, (a, b) if value % 2 else (b, a)))
  return [pair for _, pair in sorted(ranked)[:num]]


def make(
  found: candidates.CandidateSet, a: int, b: int, data: str, rater: str, **fields: Any
) -> Pair:
  """The pair of pictures `a` and `b` of a set; `data` is the data set, relative to the file."""
  low, high = sorted((a, b))
  return Pair(
    id=f"{found.prompt.id}:{low}-{high}",
    prompt=found.prompt.text,
    lang=found.prompt.lang,
    tags=found.prompt.tags,
    images=tuple(
      {
        "data": data,
        "row": found.row,
        "candidate": k,
        "sha256": found.digest(k),
        **found.origins[k],
      }
      for k in (a, b)
    ),
    rater=rater,
    **fields,
  )


def relative(data: str, path: str) -> str:
  """A data set "folder[:split]" as the pairs in file `path` name it."""
  folder, split = records.split_spec(data)
  return f"{os.path.relpath(folder, os.path.dirname(os.path.abspath(path)))}:{split}"


def resolve(reference: str, path: str) -> str:
  """The inverse of `relative`, for a picture file too."""
  return os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(path)), reference))


def noisy(
  scores: Sequence[float], std: float, pair_id: str, seed: int, dimension: str
) -> list[float]:
  """Two scores plus Gaussian noise of deviation `std`, keyed by (pair, seed, dimension).

  The noise goes with the lower and the higher candidate of the id, so `scores` must be in that
  order: a pair shown the other way round gets the same.
  """
  key = _hash("noise", seed, dimension, pair_id)
  draws = np.random.Generator(np.random.Philox(key)).standard_normal(2)
  return [float(score + std * draw) for score, draw in zip(scores, draws)]


def preferred(scores: Mapping[str, Sequence[float]], weights: Mapping[str, float], margin: float):
  """0, 1 or TIE by the weighted mean of the dimensions that both have; a tie within `margin`."""
  total = sum(weights[name] for name in scores)
  if total <= 0:
    return TIE
  gap = sum(weights[name] * (one - other) for name, (one, other) in scores.items()) / total
  return TIE if abs(gap) <= margin else int(gap < 0)


def ceiling(clean: Iterable[Any], noised: Iterable[Any]) -> dict[str, float | None]:
  """{"value": share of pairs where noise keeps the choice, "n"}; ties without noise are left out."""
  kept = [one == other for one, other in zip(clean, noised, strict=True) if one != TIE]
  return {"value": round(sum(kept) / len(kept), 4) if kept else None, "n": len(kept)}


def write(path: str, many: Iterable[Pair]) -> None:
  """The whole file, or nothing of it."""
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  partial = f"{path}.partial"
  with open(partial, "w", encoding="utf-8") as f:
    f.writelines(pair.line() for pair in many)
  os.replace(partial, path)


def read(path: str, flag: str = "--pairs") -> list[Pair]:
  """The choices of a file that still stand, in the order they were first made.

  A last line without its newline is what a killed writer left, and is passed over.

  Raises:
    types.UserError: naming the line that is no pair.
  """
  if not os.path.isfile(path):
    raise types.UserError(f"{flag} {path}: no such file; expected JSON lines of pairs")
  found: dict[tuple[str, str], Pair] = {}
  for number, line in enumerate(pathlib.Path(path).read_bytes().split(b"\n")[:-1], 1):
    try:
      if line.strip():
        pair = parse(json.loads(line.decode("utf-8-sig")))
        found[pair.id, pair.rater] = pair
    except (ValueError, TypeError) as e:
      raise types.UserError(f"{flag} {path}: line {number}: {e}") from e
  return [pair for pair in found.values() if pair.preferred is not None]


def parse(given: Any) -> Pair:
  """One line's object; ValueError says what is wrong with it."""
  if not isinstance(given, dict):
    raise ValueError("expected an object")
  if missing := [name for name in _FIELDS if name not in given]:
    raise ValueError(f"lacks {missing[0]!r}; a pair has {', '.join(_FIELDS)}")
  pair = Pair(**{name: given[name] for name in _FIELDS})
  for name in ("id", "prompt", "rater"):
    if not isinstance(given[name], str) or not given[name].strip():
      raise ValueError(f"{name} {given[name]!r}; expected some text")
  if pair.lang not in records.LANGS:
    raise ValueError(f"lang {pair.lang!r}; expected one of {', '.join(records.LANGS)}")
  if pair.preferred not in CHOICES or isinstance(pair.preferred, bool | float):
    raise ValueError(f'preferred {pair.preferred!r}; expected 0, 1, "tie" or null')
  if not isinstance(pair.images, list) or len(pair.images) != 2:
    raise ValueError("images: expected two references")
  for reference in pair.images:
    if not isinstance(reference, dict) or not ("file" in reference or "data" in reference):
      raise ValueError('images: expected objects with "data", "row" and "candidate", or "file"')
    if "data" in reference and not {"row", "candidate"} <= set(reference):
      raise ValueError('images: a reference with "data" needs "row" and "candidate"')
  if not isinstance(pair.scores, dict) or any(
    not isinstance(v, list) or len(v) != 2 for v in pair.scores.values()
  ):
    raise ValueError("scores: expected {dimension: [one, other]}")
  if not isinstance(pair.tags, list):
    raise ValueError(f"tags {pair.tags!r}; expected a list")
  return dataclasses.replace(pair, tags=tuple(pair.tags), images=tuple(pair.images))


def counts(many: Iterable[Pair]) -> dict[str, int]:
  """How many choices fell which way."""
  found = collections.Counter(str(pair.preferred) for pair in many)
  return {"first": found["0"], "second": found["1"], "ties": found[TIE]}


def _hash(*parts: Any) -> int:
  text = "/".join(map(str, parts))
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
