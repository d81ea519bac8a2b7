r"""Draws records of several data sets anew, so that what they show is balanced: a data set for fine-tuning.

  python -m data_pipelines.resample --data CURATED:train --data GENERAL:train --by subjects.0.emoji --num 9000 --out OUT

A curated set that is loved for its looks shows few things; a model tuned on it alone forgets the others. Records of the
union are drawn with weight n^-power, n the number of records whose scene has the same value at --by: power 0 keeps the
union as it is, 1 shows every value equally often. Draws are systematic: a record of expected count 2.3 comes 2 or 3
times. Counts before and after stand in the manifest.
"""

import collections
import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm
from absl import flags

from data_pipelines.posters import builder
from seedream_jax import types
from seedream_jax.data import records
from seedream_jax.run import cli

_FIELDS = ("id", "height", "width", "captions", "scene", "bucket")
_CONTENT = {"image": ("image_png",), "latent": ("latent", "latent_shape")}
NOTHING = ""  # the value of a scene that has none at the path


def value_at(scene: Any, path: str) -> str:
  """The scene's value at a dotted path, as text."""
  for key in path.split("."):
    if isinstance(scene, dict):
      scene = scene.get(key)
    elif isinstance(scene, list) and key.isdigit() and int(key) < len(scene):
      scene = scene[int(key)]
    else:
      return NOTHING
  return NOTHING if scene is None else str(scene)


def draw(values: list[str], num: int, power: float, seed: int) -> np.ndarray:
  """`num` sorted indices into `values`, with weight n^-power, n how often the value occurs.

  Systematic sampling (Madow 1949) over a seeded order: index i comes floor or ceil of its expected number of times.
  """
  counts = collections.Counter(values)
  weight = np.array([float(counts[value]) ** -power for value in values])
  rng = np.random.default_rng(seed)
  order, start = rng.permutation(len(values)), rng.random()
  ends = np.cumsum(weight[order]) * (num / weight.sum())
  picked = np.searchsorted(ends, np.arange(num) + start, side="right")
  return np.sort(order[np.minimum(picked, len(values) - 1)])


def repeated_id(ident: int, times: int) -> int:
  """The id of a record that has been drawn `times` times before; 62 bits, as the other pipelines' ids."""
  if not times:
    return ident
  digest = hashlib.blake2b(f"{ident}/{times}".encode(), digest_size=8).digest()
  return int.from_bytes(digest, "big") >> 2


@dataclasses.dataclass(frozen=True)
class Resampled:
  """The records drawn from several splits, for `builder.build`.

  Attributes:
    splits: what to draw from; all of one content.
    split: name of the split to write.
    by: dotted path in the scene.
    num, power, seed: see `draw`.
  """

  splits: tuple[records.Split, ...]
  split: str
  by: str
  num: int
  power: float
  seed: int

  dataset = "resampled"
  description = "Records drawn anew from other data sets; see manifest.json."

  @functools.cached_property
  def _union(self) -> list[tuple[int, str]]:
    """(id, value) of every record of the union, in order."""
    rows = (record for split in self.splits for record in records.iterate(split, "id", "scene"))
    total = sum(map(len, self.splits))
    bar = tqdm.tqdm(rows, total=total, unit="rec", desc="scenes")
    return [(row["id"], value_at(json.loads(row["scene"] or b"{}"), self.by)) for row in bar]

  @functools.cached_property
  def values(self) -> list[str]:
    """Of every record of the union, in order."""
    return [value for _, value in self._union]

  @functools.cached_property
  def picks(self) -> np.ndarray:
    """Rows of the union."""
    return draw(self.values, self.num, self.power, self.seed)

  @functools.cached_property
  def ids(self) -> list[int]:
    """Of every draw: its source's, and a new one for each repetition, since an id keys the noise."""
    seen: collections.Counter[int] = collections.Counter()
    out = []
    for row in self.picks:
      ident = int(self._union[row][0])
      out.append(repeated_id(ident, seen[ident]))
      seen[ident] += 1
    return out

  @functools.cached_property
  def _open(self) -> list[tuple[Any, Any]]:
    keys = (*_FIELDS, *_CONTENT[self.splits[0].content])
    return [(split.source(), split.parser(*keys)) for split in self.splits]

  @functools.cache  # noqa: B019  it reads every scene
  def describe(self) -> dict[str, Any]:
    """Everything the records depend on, and what is shown how often."""
    after = collections.Counter(self.values[row] for row in self.picks)
    return {
      "sources": [[split.spec, split.fingerprint()] for split in self.splits],
      "content": self.splits[0].content,
      "by": self.by,
      "power": self.power,
      "seed": self.seed,
      "picks_sha256": hashlib.sha256(self.picks.tobytes()).hexdigest(),
      "before": dict(sorted(collections.Counter(self.values).items())),
      "after": dict(sorted(after.items())),
    }

  def schema(self):
    """The TFDS schema of `example`."""
    return records.features(self.splits[0].content)

  def example(self, index: int) -> dict[str, Any]:
    """Draw `index`: a record of the union, under the draw's id."""
    row = int(self.picks[index])
    for split, (files, parse) in zip(self.splits, self._open):
      if row < len(split):
        record = parse(files[row])
        break
      row -= len(split)
    record["id"] = self.ids[index]
    captions = record["captions"]
    record["captions"] = [dict(zip(captions, values)) for values in zip(*captions.values())]
    if "image_png" in record:
      record["image"] = record.pop("image_png")
    return record


def define_flags() -> None:
  """Called once, by the program."""
  flags.DEFINE_multi_string("data", [], "Data set to draw from, FOLDER:SPLIT; several.")
  flags.DEFINE_string("by", "subjects.0.emoji", "What to balance: dotted path in the scene tree.")
  flags.DEFINE_integer("num", 16_000, "Records to draw.", lower_bound=1)
  flags.DEFINE_float("power", 1.0, "0 draws alike, 1 balances fully.", 0.0, 1.0)
  flags.DEFINE_integer("seed", 0, "Of the draw.")
  flags.DEFINE_string("split", "train", "Name of the split written.")
  flags.DEFINE_string("out", None, "Folder of the data set.", required=True)


def open_sources(specs: Sequence[str]) -> tuple[records.Split, ...]:
  """The splits named FOLDER:SPLIT; UserError where their records do not mix."""
  if not specs:
    raise types.UserError("--data: not given; expected FOLDER:SPLIT, once or more")
  splits = tuple(records.open_split(spec) for spec in specs)
  if len({(split.content, str(split.encoders())) for split in splits}) > 1:
    raise types.UserError(
      "--data: pictures and latents, or latents of several VAEs; expected one kind"
    )
  if any(split.text_features for split in splits):
    raise types.UserError("--data: holds LLM features; resample first, then encode with --llm")
  return splits


def plan(source: Resampled) -> builder.Plan:
  """What to build: latents keep the name of their VAE, so that they may be mixed with what they came from."""
  return builder.Plan(source, source.num, encoders=source.splits[0].encoders())


def main(argv: Sequence[str]) -> None:
  """Writes the data set."""
  del argv
  values = flags.FLAGS
  cli.check_out("--out", values.out, folder=True)
  splits = open_sources(values.data)
  source = Resampled(splits, values.split, values.by, values.num, values.power, values.seed)
  with tqdm.tqdm(total=source.num, unit="rec", desc="resample") as bar:
    report = builder.build(plan(source), values.out, progress=bar.update)
  kinds = len(source.describe()["after"])
  print(
    f"{values.out}: {report.records} records, {report.kept} kept, {kinds} values of {values.by}"
  )


if __name__ == "__main__":
  define_flags()
  cli.run(main)
