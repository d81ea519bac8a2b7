"""Classifier B opened to judge: its answers, its features, and what both are on ground truth.

Its folder holds classifier.safetensors and config.json, as `train` or `pack` wrote them, and truth.json and
truth.safetensors, which data_pipelines.ceilings measured.

Dims: N images, E features, V classes, S scenes of the FD-judge's suite, R renders of one scene.
"""

import collections
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from seedream_jax import types
from seedream_jax.data import labels
from seedream_jax.engine import checkpoint
from seedream_jax.eval import frechet, suites
from seedream_jax.eval import judges as judges_lib
from seedream_jax.run import gates

# The one reference shows this suite's kind of scene; for another it would measure the content.
FD_SUITE = "heldout"
WEIGHTS = "classifier.safetensors"
_TRUTH = "truth"
_BATCH = 64


class Truth(NamedTuple):
  """What classifier B says of ground truth."""

  world: str
  ceilings: dict[str, dict[str, dict[str, float]]]  # {suite: {metric: {"value", "n"}}}
  reference: frechet.Moments  # of other scenes drawn as FD_SUITE's are
  clusters: tuple[str, ...]  # FD_SUITE's scenes, as `suites.cluster_of` names them
  render_SRE: np.ndarray  # features of each, what its prompt leaves unsaid drawn anew
  provenance: dict[str, Any]  # fonts


class ClassifierB:
  """The classifier of a weights folder."""

  def __init__(self, folder: str):
    """Reads weights; UserError when the folder holds no classifier."""
    if not os.path.exists(os.path.join(folder, WEIGHTS)):
      raise types.UserError(f"--classifier {folder}: holds no {WEIGHTS}")
    config, stage, self._params = gates.open_players(folder)
    if stage.players != ("classifier",):
      raise types.UserError(f"--classifier {folder}: its config.json is not of a classify stage")
    self.folder, self.vocabulary = folder, labels.vocabulary(config.data.streams.train.labels)
    self._fns = {
      name: jax.jit(lambda params, image, fn=fn: fn(params, {}, {"train": {"image_BHWC": image}}, None))
      for name, fn in stage.predict_fns().items()
      if name in ("logits", "features")
    }  # fmt: skip

  def sha256(self) -> str:
    """Of the weights."""
    return checkpoint.sha256(os.path.join(self.folder, WEIGHTS))

  def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
    """features_NE of uint8 images, of any sizes."""
    return np.stack(self._predict("features", images))

  def answers(self, images: Sequence[np.ndarray]) -> list[judges_lib.Answer]:
    """What it sees in each uint8 image."""
    words = self.vocabulary
    return [
      judges_lib.Answer(
        tuple(words.subjects[i] for i in np.argsort(-logits["subject"])[: words.slots]),
        words.colors[int(np.argmax(logits["color"]))],
        words.counts[int(np.argmax(logits["count"]))],
      )
      for logits in self._predict("logits", images)
    ]

  def _predict(self, name: str, images: Sequence[np.ndarray]) -> list[Any]:
    """One output an image; batches hold one size and are padded, so that each size compiles once."""
    out: list[Any] = [None] * len(images)
    by_size = collections.defaultdict(list)
    for i, image in enumerate(images):
      by_size[image.shape].append(i)
    for members in by_size.values():
      for start in range(0, len(members), _BATCH):
        rows = members[start : start + _BATCH]
        padded = rows + rows[-1:] * (_BATCH - len(rows))
        got = self._fns[name](self._params, np.stack([images[i] for i in padded]))
        got = jax.device_get(got)
        for k, i in enumerate(rows):
          out[i] = jax.tree.map(lambda x, k=k: x[k], got)
    return out


def distribution(
  classifier: ClassifierB,
  truth: Truth,
  prompts: Sequence[Mapping[str, Any]],
  images_per_prompt: int,
) -> suites.Distribution:
  """The FD-judge of FD_SUITE; its floor is ground truth of the same prompts, one render an image.

  The reference differs from a suite in that it holds far more scenes. Real images that share the
  suite's few scenes differ from it as much, so the ratio to them leaves only what the model adds.
  """
  place, drawn, floor = {c: s for s, c in enumerate(truth.clusters)}, collections.Counter(), []
  for prompt in prompts:
    cluster = suites.cluster_of(prompt)
    if cluster not in place:
      raise types.UserError(
        f"--classifier {classifier.folder}: has no ground truth of prompt {prompt['id']}"
      )
    for _ in range(images_per_prompt):
      floor.append(truth.render_SRE[place[cluster], drawn[cluster] % truth.render_SRE.shape[1]])
      drawn[cluster] += 1
  return suites.Distribution(classifier.features, truth.reference, np.stack(floor))


def write_truth(folder: str, truth: Truth) -> None:
  """Writes truth.json and truth.safetensors beside the weights they were measured with."""
  path = os.path.join(folder, _TRUTH)
  mean_E, cov_EE, n = truth.reference
  arrays = {"mean_E": mean_E, "cov_EE": cov_EE, "render_SRE": truth.render_SRE}
  kinds = {"mean_E": "float32", "cov_EE": "float32", "render_SRE": "float16"}  # of a bulky array
  checkpoint.save_weights(
    f"{path}.safetensors", {name: np.asarray(x, kinds[name]) for name, x in arrays.items()}
  )
  said = {
    "world": truth.world,
    "classifier_sha256": checkpoint.sha256(os.path.join(folder, WEIGHTS)),
    "reference_n": n,
    "ceilings": truth.ceilings,
    "clusters": truth.clusters,
    "provenance": truth.provenance,
  }
  with open(f"{path}.json", "w", encoding="utf-8") as f:
    json.dump(said, f, ensure_ascii=False, indent=1)
    f.write("\n")


def read_truth(folder: str, world: str) -> Truth:
  """What `write_truth` wrote; UserError when it is absent, or of other weights or another world."""
  path = os.path.join(folder, _TRUTH)
  remedy = f"python -m data_pipelines.ceilings --world {world} --classifier {folder}"
  if not os.path.exists(f"{path}.json"):
    raise types.UserError(f"--classifier {folder}: no truth.json there; measure it with {remedy}")
  with open(f"{path}.json", encoding="utf-8") as f:
    said = json.load(f)
  if said["world"] != world:
    raise types.UserError(f"--classifier {folder}: of world {said['world']}, asked {world}")
  if said["classifier_sha256"] != checkpoint.sha256(os.path.join(folder, WEIGHTS)):
    raise types.UserError(f"--classifier {folder}: truth.json is of other weights; run {remedy}")
  arrays = checkpoint.load_weights(f"{path}.safetensors")
  reference = frechet.Moments(arrays["mean_E"], arrays["cov_EE"], said["reference_n"])
  return Truth(
    world,
    said["ceilings"],
    reference,
    tuple(said["clusters"]),
    arrays["render_SRE"],
    said["provenance"],
  )
