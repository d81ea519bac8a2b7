r"""A model's own pictures as a data set of labelled negatives, for fine-tuning (Seedream 2.0, Sec. 4.2).

  python -m data_pipelines.preferences negatives --data out/candidates --out out/sft/negatives

Every picture that a model drew of a candidate set becomes a record of its own, with its prompt as the caption and
`"origin": "generated"` in its scene; renders are left out. Nobody knows a generated picture's aesthetics: its labels
are unknown. experiments/sft.py reads the label.
"""

import dataclasses
import functools
import hashlib
import json
from typing import Any

import tqdm
from absl import flags

from data_pipelines.posters import builder
from data_pipelines.preferences import candidates
from seedream_jax import types
from seedream_jax.data import records
from seedream_jax.run import cli

DATASET = "negatives"
ORIGIN = "generated"


@dataclasses.dataclass(frozen=True)
class Negatives:
  """The generated pictures of candidate sets, for `builder.build`."""

  source: records.Split
  split: str = "train"

  dataset = DATASET
  description = "Pictures that models drew, as negatives; see manifest.json."

  @functools.cached_property
  def _reader(self) -> candidates.Reader:
    return candidates.Reader(self.source)

  @functools.cached_property
  def places(self) -> tuple[tuple[int, int], ...]:
    """(row, candidate) of every generated picture."""
    return tuple(
      (found.row, k)
      for found in self._reader
      for k, origin in enumerate(found.origins)
      if origin["model"] not in candidates.RENDERS
    )

  def describe(self) -> dict[str, Any]:
    """Everything the records depend on, as JSON."""
    return {"source": [self.source.spec, self.source.fingerprint()], "origin": ORIGIN}

  def schema(self):
    """The TFDS schema of `example`."""
    return records.features()

  def example(self, index: int) -> dict[str, Any]:
    """Picture `index`."""
    row, k = self.places[index]
    found = self._reader[row]
    prompt, (height, width) = found.prompt, found.prompt.size
    scene = {**(prompt.scene or {}), "aesthetics": None, "origin": ORIGIN}
    digest = hashlib.sha256(f"{prompt.id}/{k}".encode()).digest()
    return {
      "id": int.from_bytes(digest[:8], "little") >> 2,
      "image": found.images[k],
      "height": height,
      "width": width,
      "captions": [{"text": prompt.text, "lang": prompt.lang, "kind": "long", "weight": 1.0}],
      "scene": json.dumps(scene, ensure_ascii=False),
      "bucket": f"{height}x{width}",
    }


def define_flags() -> None:
  """Called once, by the program."""
  flags.DEFINE_string("data", None, "Candidate sets, FOLDER[:SPLIT].", required=True)
  flags.DEFINE_string("split", "train", "Name of the split written.")
  flags.DEFINE_string("out", None, "Folder of the data set.", required=True)


def main(argv: list[str]) -> None:
  """Writes the data set."""
  del argv
  values = flags.FLAGS
  cli.check_out("--out", values.out, folder=True)
  source = Negatives(candidates.open_sets(values.data), values.split)
  if not source.places:
    raise types.UserError(
      f"--data {values.data}: holds renders alone, no picture that a model drew"
    )
  plan = builder.Plan(source, len(source.places))
  with tqdm.tqdm(total=plan.num, unit="img", desc="negatives") as bar:
    report = builder.build(plan, values.out, progress=bar.update)
  print(f"{values.out}: {report.records} pictures, {report.kept} kept")
