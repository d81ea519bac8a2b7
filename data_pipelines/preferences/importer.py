r"""Turns choices into the records that a reward learns from: two pictures, the preferred first.

  python -m data_pipelines.preferences import --pairs out/pairs.jsonl --dimension text --out out/pairs_text
  python -m data_pipelines.preferences import --pickapic 'DIR/*.parquet' --area 512 --out out/pickapic
  python -m data_pipelines.preferences import --hpd DIR/train.json --images DIR/train --area 512 --out out/hpd

The loader reads the data set as image_BRHWC (R = preferred, rejected), llm_ids_BL, id_B and tag_B, which
is 1 where the prompt asks for rendered text: so tagged by the pair, or, in published data, because it
quotes something. Splits train and heldout are by hash of the scene where one is known, else of the
prompt, so that no prompt is in both. Ties and what has no label are left out and counted. With --area
pictures are later cut to that area's buckets; without, they keep their own size.
"""

import collections
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow_datasets as tfds
import tqdm
from absl import flags

from data_pipelines.posters import splits as posters_splits
from data_pipelines.preferences import asked, candidates, pairs, published
from seedream_jax import types
from seedream_jax.data import buckets, records, tokenizers, transforms
from seedream_jax.run import cli

DATASET = "pairs"
SPLITS = ("train", "heldout")
_OVERALL = "preferred"


def schema() -> tfds.features.FeaturesDict:
  """The loader's schema, and what is known of the choice as JSON: id, rater, scores, models."""
  return records.features("images", extra={"about": tfds.features.Text()})


def own(
  path: str, dimension: str = _OVERALL, pareto: bool = False
) -> Iterator[published.Choice | published.Skipped]:
  """The choices of our JSON lines, by one dimension's scores if asked.

  Args:
    path: the file, as `pairs` documents it.
    dimension: "preferred", or one of `pairs.DIMENSIONS`.
    pareto: only pairs whose preferred picture scores no less in any dimension.

  Raises:
    types.UserError: when a picture is not there, or not the one that was rated.
  """
  readers: dict[str, candidates.Reader] = {}

  @functools.lru_cache(maxsize=2)  # the pairs of a set come one after another
  def candidate_set(spec: str, row: int) -> candidates.CandidateSet | None:
    if spec not in readers:
      readers[spec] = candidates.Reader(candidates.open_sets(spec, f"--pairs {path}: data"))
    return readers[spec][row] if 0 <= row < len(readers[spec]) else None

  for pair in pairs.read(path):
    choice = pair.preferred
    if dimension != _OVERALL:
      if dimension not in pair.scores:
        yield published.Skipped(f"no {dimension}")
        continue
      choice = pairs.preferred({dimension: pair.scores[dimension]}, {dimension: 1.0}, 0.0)
    if choice == pairs.TIE:
      yield published.Skipped("tie")
      continue
    if pareto and any(got[choice] < got[1 - choice] for got in pair.scores.values()):
      yield published.Skipped("not better in every dimension")
      continue
    order = (choice, 1 - choice)
    loaded = [_load(pair.images[k], path, pair.id, candidate_set) for k in order]
    about = {
      "candidates": [pair.images[k].get("candidate") for k in order],
      "models": [pair.images[k].get("model", "") for k in order],
      "damage": [pair.images[k].get("damage", "") for k in order],
      "scores": {name: [got[k] for k in order] for name, got in pair.scores.items()},
      "noise": pair.noise,
    }
    yield published.Choice(
      id=pair.id,
      prompt=pair.prompt,
      images=(loaded[0][0], loaded[1][0]),
      rater=pair.rater,
      tags=pair.tags,
      lang=pair.lang,
      scene=loaded[0][1],
      about=about,
    )


def _load(
  reference: Any,
  path: str,
  pair_id: str,
  candidate_set: Callable[[str, int], candidates.CandidateSet | None],
) -> tuple[bytes, dict | None]:
  """(encoded picture, scene) of a reference."""
  if "file" in reference:
    name = pairs.resolve(reference["file"], path)
    try:
      return pathlib.Path(name).read_bytes(), None
    except OSError as e:
      raise types.UserError(f"--pairs {path}: pair {pair_id}: {name}: {e.strerror}") from e
  spec = pairs.resolve(reference["data"], path)
  row, k = reference["row"], reference["candidate"]
  found = candidate_set(spec, row)
  if found is None or not 0 <= k < len(found.images):
    raise types.UserError(f"--pairs {path}: pair {pair_id}: {spec} has no row {row}, candidate {k}")
  if reference.get("sha256", found.digest(k)) != found.digest(k):
    raise types.UserError(
      f"--pairs {path}: pair {pair_id}: row {row}, candidate {k} of {spec} is another picture now; "
      "expected the candidates that were rated"
    )
  return found.images[k], found.prompt.scene


def example(choice: published.Choice, area: int) -> dict[str, Any]:
  """One record.

  Raises:
    ValueError: saying why a picture cannot be used.
  """
  shapes = [_shape(encoded) for encoded in choice.images]
  try:
    if area:
      size = buckets.assign(*shapes[0][:2], area)
    else:
      size = buckets.parse(buckets.name(shapes[0][:2]))
  except types.UserError as e:
    raise ValueError(f"out of the bucket table: {e}" + ("" if area else "; give --area")) from e
  is_tagged = bool(tokenizers.find_quoted(choice.prompt))
  if choice.tags is not None:
    is_tagged = asked.TEXT in choice.tags
  caption = {
    "text": choice.prompt,
    "lang": choice.lang or asked.language(choice.prompt),
    "kind": "textual" if is_tagged else "short",
    "weight": 1.0,
  }
  about = {"id": choice.id, "rater": choice.rater, **choice.about}
  return {
    "id": _hash(f"{choice.rater}/{choice.id}") >> 2,
    "height": shapes[0][0],
    "width": shapes[0][1],
    "captions": [caption],
    "scene": "" if choice.scene is None else json.dumps(choice.scene, ensure_ascii=False),
    "bucket": buckets.name(size),
    "images": list(choice.images),
    "about": json.dumps(about, ensure_ascii=False),
  }


@functools.lru_cache(maxsize=64)  # a set's pictures come in many pairs
def _shape(encoded: bytes) -> tuple[int, ...]:
  return transforms.decode(encoded).shape


def split_of(choice: published.Choice, percent: int) -> str:
  """heldout for `percent` of scenes and prompts, by hash; a scene's prompts of both languages together."""
  if choice.scene is not None:
    key = posters_splits.content_key(choice.scene)
  else:
    key = " ".join(choice.prompt.split()).casefold()
  return SPLITS[1] if _hash(f"pair split/{key}") % 100 < percent else SPLITS[0]


def _hash(text: str) -> int:
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def build(
  choices: Iterable[published.Choice | published.Skipped],
  directory: str,
  *,
  area: int = 0,
  percent: int = 5,
  shard_size: int = 1024,
  source: dict[str, Any] | None = None,
) -> dict[str, Any]:
  """Writes the splits that have a pair; the data set appears when all of it is written.

  Args:
    choices: what to write, and what was left out why.
    directory: must hold no data set yet.
    area: side of the square of the picture bucket; 0 keeps the preferred picture's size.
    percent: of scenes or prompts held out.
    shard_size: pairs a shard.
    source: what the manifest says of where they are from.

  Returns:
    Counts: of each split, of each reason.

  Raises:
    types.UserError: when no pair can be used, or `directory` holds a data set.
  """
  folder = pathlib.Path(directory)
  if (folder / "dataset_info.json").exists():
    raise types.UserError(f"--out {directory}: holds a data set already; give another folder")
  for stale in folder.glob("*.part*"):  # of a run that was killed
    stale.unlink()
  left_out: collections.Counter[str] = collections.Counter()
  waiting: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
  parts: dict[str, list[tuple[pathlib.Path, int]]] = {name: [] for name in SPLITS}

  def flush(name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{len(parts[name]):05d}.part"
    parts[name].append((path, records.write_shard(str(path), schema(), waiting[name])))
    waiting[name] = []

  for choice in choices:
    if isinstance(choice, published.Skipped):
      left_out[str(choice)] += 1
      continue
    try:
      record = example(choice, area)
    except ValueError as e:
      left_out[str(e).split(":")[0]] += 1
      continue
    name = split_of(choice, percent)
    waiting[name].append(record)
    if len(waiting[name]) == shard_size:
      flush(name)
  for name in SPLITS:
    if waiting[name]:
      flush(name)
  reasons = dict(left_out.most_common())
  if not any(parts.values()):
    raise types.UserError(f"no pair can be used; left out: {reasons or 'none, there were none'}")
  counts = {name: sum(count for _, count in parts[name]) for name in SPLITS}
  about = {**(source or {}), "area": area, "crop": transforms.CROP, "heldout_percent": percent}
  _commit(folder, parts, {**about, "pairs": counts, "left_out": reasons})
  return {"pairs": counts, "left_out": reasons}


def _commit(
  folder: pathlib.Path, parts: dict[str, list[tuple[pathlib.Path, int]]], about: dict[str, Any]
) -> None:
  """Names the shards, then writes the manifest and, last, what makes the folder a data set."""
  shards = {}
  for name in SPLITS:
    for k, (path, count) in enumerate(parts[name]):
      shards.setdefault(name, []).append((count, path.stat().st_size))
      os.replace(path, folder / records.shard_name(DATASET, name, k, len(parts[name])))
  manifest = json.dumps({"dataset": DATASET, **about}, indent=1, ensure_ascii=False) + "\n"
  (folder / records.MANIFEST).write_text(manifest, encoding="utf-8")
  description = "Pairs of pictures, the preferred first; see manifest.json."
  records.write_metadata(str(folder), DATASET, schema(), shards, description)


def define_flags() -> None:
  """Called once, by the program."""
  dimensions = [_OVERALL, *pairs.DIMENSIONS]
  flags.DEFINE_multi_string("pairs", [], "Our JSON lines; may be given several times.")
  flags.DEFINE_string("pickapic", "", "Parquet files in Pick-a-Pic's columns, as 'DIR/*.parquet'.")
  flags.DEFINE_string("hpd", "", "JSON or Parquet file in HPD v2's fields.")
  flags.DEFINE_string("images", "", "Folder that HPD v2's image paths are relative to.")
  flags.DEFINE_enum("dimension", _OVERALL, dimensions, "Of --pairs: which choice counts.")
  flags.DEFINE_boolean("pareto", False, "Of --pairs: only where no dimension speaks against it.")
  flags.DEFINE_integer("area", 0, "Bucket's square side; 0 = own size.", lower_bound=0)
  flags.DEFINE_integer("heldout", 5, "Percent of prompts held out.", lower_bound=0, upper_bound=99)
  flags.DEFINE_integer("shard_size", 1024, "Pairs a shard.", lower_bound=1)
  flags.DEFINE_string("out", None, "Folder of the new data set.", required=True)


def main(argv: list[str]) -> int:
  """Entry point; the last line printed is a JSON object of counts."""
  del argv
  values = flags.FLAGS
  cli.check_out("--out", values.out, folder=True)
  if sum(map(bool, (values.pairs, values.pickapic, values.hpd))) != 1:
    raise types.UserError("--pairs, --pickapic and --hpd: expected one of them")
  if values.area:
    buckets.table(values.area)
  if values.pairs:
    each = (own(path, values.dimension, values.pareto) for path in values.pairs)
    choices: Iterator = itertools.chain.from_iterable(each)
    source = {"pairs": [_sha256(path) for path in values.pairs], "dimension": values.dimension}
    source["pareto"] = values.pareto
  elif values.pickapic:
    choices, source = published.pickapic(values.pickapic), {"pickapic": values.pickapic}
  else:
    choices, source = published.hpd(values.hpd, values.images), {"hpd": values.hpd}
  with tqdm.tqdm(choices, desc="import", unit="pair", dynamic_ncols=True, delay=1) as bar:
    counts = build(
      bar,
      values.out,
      area=values.area,
      percent=values.heldout,
      shard_size=values.shard_size,
      source=source,
    )
  print(json.dumps({**counts, "out": values.out}, ensure_ascii=False))
  return 0


def _sha256(path: str) -> str:
  if not os.path.isfile(path):
    raise types.UserError(f"--pairs {path}: no such file; expected JSON lines of pairs")
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
