r"""Turns a folder of pictures and a JSONL file of captions into a data set.

  python -m data_pipelines.folder --images DIR --captions captions.jsonl --area 512 --out out/mine

A line is {"file_name": "a/b.jpg", "text": "..."}, or with several captions {"file_name": ...,
"captions": [{"text": ..., "lang": "zh", "kind": "long", "weight": 2.0}, ...]}; all but the text has
a default, and lines of one file are joined. Each picture is scaled and cut to the nearest bucket of
the area, never enlarged unless asked. A picture that cannot be used is counted, named in the
manifest and left out; the exit code is 2 only when none can.

H W C height, width, channels of a picture.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import tqdm
from absl import flags, logging

from seedream_jax import types
from seedream_jax.data import buckets, records, tokenizers, transforms
from seedream_jax.run import cli

DATASET = "folder"
_NAMED_BAD = 100  # bad pictures the manifest names
_AHEAD = 4  # pictures decoded ahead, per worker
_CAPTION_FIELDS = ("text", "lang", "kind", "weight")


@dataclasses.dataclass(frozen=True)
class Report:
  """What became of the listed pictures."""

  good: int
  bad: dict[str, str]  # file name -> why

  def summary(self) -> dict[str, Any]:
    """Counts, and how often each reason came."""
    reasons = collections.Counter(reason.split(":")[0] for reason in self.bad.values())
    return {"good": self.good, "bad": len(self.bad), "reasons": dict(reasons)}


def read_captions(path: str) -> dict[str, list[dict[str, Any]]]:
  """{file name: captions} of a JSONL file, in order of appearance; blank lines are skipped.

  Raises:
    types.UserError: naming the line that is not as described above.
  """
  if not os.path.isfile(path):
    raise types.UserError(f"--captions {path}: no such file; expected JSON lines")
  out: dict[str, list[dict[str, Any]]] = {}
  with open(path, "rb") as f:
    for number, line in enumerate(f, 1):
      try:
        if not (text := line.decode("utf-8-sig").strip()):
          continue
        name, captions = _parse_line(json.loads(text))
      except (ValueError, TypeError) as e:
        raise types.UserError(f"--captions {path}: line {number}: {e}") from e
      out.setdefault(name, []).extend(captions)
  if not out:
    raise types.UserError(f"--captions {path}: no lines")
  return out


def _parse_line(line: Any) -> tuple[str, list[dict[str, Any]]]:
  if not isinstance(line, dict) or not isinstance(line.get("file_name"), str):
    raise ValueError('expected an object with "file_name"')
  captions = line.get("captions", [{"text": line["text"]}] if "text" in line else None)
  if not isinstance(captions, list) or not captions:
    raise ValueError('expected "text", or "captions" with at least one')
  return line["file_name"], [_caption(c) for c in captions]


def _caption(given: Any) -> dict[str, Any]:
  """A caption with its defaults: language by script, kind by what it quotes, weight 1."""
  given = {"text": given} if isinstance(given, str) else given
  if unknown := sorted(set(given) - set(_CAPTION_FIELDS)):
    raise ValueError(f"caption has {', '.join(unknown)}; expected {', '.join(_CAPTION_FIELDS)}")
  text = given.get("text")
  if not isinstance(text, str) or not text.strip():
    raise ValueError("caption without text")
  lang = given.get("lang") or ("zh" if any("\u4e00" <= c <= "\u9fff" for c in text) else "en")
  kind = given.get("kind") or ("textual" if tokenizers.find_quoted(text) else "short")
  weight = float(given.get("weight", 1.0))
  for name, value, valid in (("lang", lang, records.LANGS), ("kind", kind, records.KINDS)):
    if value not in valid:
      raise ValueError(f"caption has {name} {value!r}; expected one of {', '.join(valid)}")
  if not 0 <= weight < float("inf"):
    raise ValueError(f"caption has weight {weight}; expected a number of at least 0")
  return {"text": text, "lang": lang, "kind": kind, "weight": weight}


def record_id(name: str) -> int:
  """A picture's id: a hash of its file name, so that order and neighbours do not matter."""
  return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 2


def example(
  images: pathlib.Path,
  name: str,
  captions: list[dict[str, Any]],
  area: int,
  enlarge: bool,
) -> dict[str, Any]:
  """One record.

  Raises:
    ValueError: saying why the picture cannot be used.
  """
  try:
    encoded = (images / name).read_bytes()
  except OSError as e:
    raise ValueError(f"cannot be read: {e.strerror}") from e
  image_HWC = transforms.decode(encoded)
  height, width = image_HWC.shape[:2]
  try:
    size = buckets.assign(height, width, area)
  except types.UserError as e:
    raise ValueError(f"out of the bucket table: {e}") from e
  if not enlarge and (height < size[0] or width < size[1]):
    raise ValueError(f"too small: {height}x{width} for bucket {buckets.name(size)}")
  return {
    "id": record_id(name),
    "image": transforms.encode_png(transforms.fit(image_HWC, size)),
    "height": size[0],
    "width": size[1],
    "captions": captions,
    "scene": "",
    "bucket": buckets.name(size),
  }


def build(
  images: str,
  captions: dict[str, list[dict[str, Any]]],
  directory: str,
  *,
  area: int,
  split: str = "train",
  enlarge: bool = False,
  shard_size: int = 4096,
  workers: int = 2,
  progress: Callable[[int], None] = lambda count: None,
) -> Report:
  """Writes one split into `directory`; the data set appears when all of it is written.

  Args:
    images: folder the file names are relative to.
    captions: as from `read_captions`.
    directory: the data set's folder; must not hold one yet.
    area: side of the square of the picture bucket.
    split: its name.
    enlarge: whether pictures smaller than their bucket are scaled up rather than left out.
    shard_size: records a shard.
    workers: threads that decode.
    progress: told of each picture.

  Raises:
    types.UserError: when no picture can be used, or `directory` holds a data set.
  """
  buckets.table(area)
  folder, root = pathlib.Path(directory), pathlib.Path(images)
  if not root.is_dir():
    raise types.UserError(f"--images {images}: no such folder")
  if (folder / "dataset_info.json").exists():
    raise types.UserError(f"--out {directory}: holds a data set already; give another folder")
  bad: dict[str, str] = {}
  good = _examples(root, captions, area, enlarge, workers, bad, progress)
  parts: list[tuple[pathlib.Path, int]] = []
  for first in good:  # one more record means one more shard
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{split}-{len(parts):05d}.part"
    chunk = itertools.chain((first,), itertools.islice(good, shard_size - 1))
    parts.append((path, records.write_shard(str(path), records.features(), chunk)))
  if not parts:
    name, reason = next(iter(bad.items()))
    raise types.UserError(
      f"--images {images}: none of {len(bad)} pictures is good; {name}: {reason}"
    )
  report = Report(sum(count for _, count in parts), bad)
  shards = []
  for k, (path, count) in enumerate(parts):
    shards.append((count, path.stat().st_size))
    os.replace(path, folder / records.shard_name(DATASET, split, k, len(parts)))
  manifest = {
    "dataset": DATASET,
    "captions_sha256": _digest(captions),
    "crop": transforms.CROP,
    "area": area,
    "enlarge": enlarge,
    **report.summary(),
    "bad_files": dict(itertools.islice(bad.items(), _NAMED_BAD)),
  }
  text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
  (folder / records.MANIFEST).write_text(text, encoding="utf-8")
  records.write_metadata(
    directory,
    DATASET,
    records.features(),
    {split: shards},
    "Pictures of a folder; see manifest.json.",
  )
  return report


def _examples(
  root: pathlib.Path,
  captions: dict[str, list[dict[str, Any]]],
  area: int,
  enlarge: bool,
  workers: int,
  bad: dict[str, str],
  progress: Callable[[int], None],
) -> Iterator[dict[str, Any]]:
  """The good records in the order of `captions`; the others go to `bad`."""
  items, running = iter(captions.items()), collections.deque()
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:

    def start(count: int) -> None:
      for name, texts in itertools.islice(items, count):
        running.append((name, pool.submit(example, root, name, texts, area, enlarge)))

    start(workers * _AHEAD)
    while running:
      name, job = running.popleft()
      try:
        record = job.result()
      except ValueError as e:
        bad[name] = str(e)
        logging.warning("%s: %s", name, e)
      else:
        yield record
      start(1)
      progress(1)


def _digest(captions: dict[str, list[dict[str, Any]]]) -> str:
  return hashlib.sha256(json.dumps(captions, sort_keys=True).encode()).hexdigest()


def define_flags() -> None:
  """Called once, by the program."""
  flags.DEFINE_string("images", None, "Folder that the file names are relative to.", required=True)
  flags.DEFINE_string("captions", None, "JSON lines, as described above.", required=True)
  flags.DEFINE_string("out", None, "Folder of the new data set.", required=True)
  flags.DEFINE_integer("area", 256, f"Side of the bucket's square: one of {buckets.AREAS}.")
  flags.DEFINE_string("split", "train", "Name of the split.")
  flags.DEFINE_boolean("enlarge", False, "Scale pictures up that are smaller than their bucket.")
  flags.DEFINE_integer("shard_size", 4096, "Records a shard.", lower_bound=1)
  flags.DEFINE_integer("workers", 2, "Threads that decode.", lower_bound=1)


def main(argv: list[str]) -> int:
  """Entry point; the last line printed is a JSON object of counts."""
  del argv
  values = flags.FLAGS
  cli.check_out("--out", values.out, folder=True)
  if not re.fullmatch(r"[A-Za-z_]\w*", values.split):
    raise types.UserError(f"--split {values.split!r}: expected a word, such as train")
  captions = read_captions(values.captions)
  with tqdm.tqdm(total=len(captions), desc="folder", unit="img", dynamic_ncols=True) as bar:
    report = build(
      values.images,
      captions,
      values.out,
      area=values.area,
      split=values.split,
      enlarge=values.enlarge,
      shard_size=values.shard_size,
      workers=values.workers,
      progress=bar.update,
    )
  for name, reason in itertools.islice(report.bad.items(), _NAMED_BAD):
    print(f"left out {name}: {reason}")
  print(json.dumps(report.summary()))
  return 0


if __name__ == "__main__":
  define_flags()
  cli.run(main)
