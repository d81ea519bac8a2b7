"""Raters: what stands in for people where the truth of a scene is known. Never a judge.

They share no weights, code, typeface or training render with the judges of `seedream_jax.eval`:
classifier A says whether the picture shows what was asked, the glyph reader whether it spells it
(experiments/rater.py trains both), and pixel statistics how it looks. A score is None where a rater
has nothing to say. Dims: N pictures, L character slots, V characters.
"""

import collections
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import ml_collections
import numpy as np

from data_pipelines.preferences import aesthetics, asked
from seedream_jax import types
from seedream_jax.data import labels, records
from seedream_jax.engine import checkpoint
from seedream_jax.run import open as open_lib
from seedream_jax.stages import read

_BATCH = 64
_GROUND_WORDS = ("背景", "background")  # in every caption that names the ground's colour
_JUDGES = "judge"  # the split that trains classifier B


class Rater(Protocol):
  """One dimension's scores; higher is better."""

  dimension: str

  def describe(self) -> dict[str, Any]:
    """What the scores depend on, as JSON."""

  def __call__(
    self, images: Sequence[np.ndarray], prompts: Sequence[asked.Prompt]
  ) -> list[float | None]:
    """A score for each uint8 picture and its prompt."""


class Alignment:
  """Classifier A: the mean probability of the subjects, their number, the ground if named, and any text."""

  dimension = "alignment"

  def __init__(self, folder: str):
    """Opens a weights folder of stage `classify`; UserError for a judge's, or anything else."""
    self._net = _Network(folder, "--alignment", "classifier", "logits")
    self._words = labels.vocabulary(self._net.config.data.streams.train.labels)

  def describe(self) -> dict[str, Any]:
    """The weights' sha256."""
    return self._net.describe()

  def __call__(
    self, images: Sequence[np.ndarray], prompts: Sequence[asked.Prompt]
  ) -> list[float | None]:
    """None for a prompt without a scene, or with subjects outside the vocabulary."""
    return self._net.rate(images, prompts, self._can, lambda prompt: [], self._score)

  def _can(self, prompt: asked.Prompt) -> bool:
    scene = prompt.scene
    if scene is None or scene["background"]["color"] not in self._words.colors:
      return False
    known = set(self._words.subjects)
    return len(scene["subjects"]) in self._words.counts and all(
      s["emoji"] in known for s in scene["subjects"]
    )

  def _score(self, logits: Mapping[str, np.ndarray], prompt: asked.Prompt) -> float:
    scene, words = prompt.scene, self._words
    present = 1 / (1 + np.exp(-logits["subject"]))
    wanted = np.isin(words.subjects, [s["emoji"] for s in scene["subjects"]])
    alone = 1 - present[~wanted].max()
    writes = 1 / (1 + np.exp(-float(logits["text"][0])))
    parts = [
      (present[wanted].mean() if wanted.any() else 1.0) * alone,
      _softmax(logits["count"])[words.counts.index(len(scene["subjects"]))],
      writes if scene["text"] is not None else 1 - writes,
    ]
    # What a prompt leaves open is right in any colour; its scene has one all the same.
    if scene["background"]["kind"] == "solid" and any(
      word in prompt.text.lower() for word in _GROUND_WORDS
    ):
      parts.append(_softmax(logits["color"])[words.colors.index(scene["background"]["color"])])
    return float(np.mean(parts))


class Text:
  """The glyph reader: the mean probability of the characters asked for, and of an end after them."""

  dimension = "text"

  def __init__(self, folder: str):
    """Opens a weights folder of stage `read`; UserError for anything else."""
    self._net = _Network(folder, "--text", "glyph_reader", "log_probs")
    *slots, (_, places) = self._net.config.data.streams.train.labels
    self._characters, self._slots, self._places = list(slots[0][1]), len(slots), tuple(places)
    if self._places != read.PLACES:
      raise types.UserError(f"--text {folder}: its config's places are {self._places}")

  def describe(self) -> dict[str, Any]:
    """The weights' sha256."""
    return self._net.describe()

  def __call__(
    self, images: Sequence[np.ndarray], prompts: Sequence[asked.Prompt]
  ) -> list[float | None]:
    """None where no text is asked for, or text that the reader does not know."""

    def columns(prompt: asked.Prompt) -> list[int]:
      return [-1] * self._slots + [self._places.index(prompt.scene["text"]["place"])]

    return self._net.rate(images, prompts, self._can, columns, self._score)

  def _can(self, prompt: asked.Prompt) -> bool:
    if prompt.scene is None or asked.TEXT not in prompt.tags:
      return False
    text = prompt.scene["text"]
    if text is None or text["direction"] != "h" or text["place"] not in self._places:
      return False
    content = text["content"]
    return len(content) <= self._slots and set(content) <= set(self._characters)

  def _score(self, log_probs_LV: np.ndarray, prompt: asked.Prompt) -> float:
    return spelled(
      log_probs_LV, [self._characters.index(c) for c in prompt.scene["text"]["content"]]
    )


class Aesthetic:
  """Pixel statistics; see `aesthetics`."""

  dimension = "aesthetic"

  def describe(self) -> dict[str, Any]:
    """That no weights are in it."""
    return {"statistics": list(aesthetics.AXES)}

  def __call__(
    self, images: Sequence[np.ndarray], prompts: Sequence[asked.Prompt]
  ) -> list[float | None]:
    """Of every picture."""
    return [aesthetics.score(image_HWC) for image_HWC in images]


def spelled(log_probs_LV: np.ndarray, ids: Sequence[int]) -> float:
  """Mean probability of the characters `ids` and, where a slot is left, of "none" after them."""
  want = [*ids, log_probs_LV.shape[1] - 1][: len(log_probs_LV)]
  return float(np.exp(log_probs_LV[range(len(want)), want]).mean())


class _Network:
  """The one part of a weights folder, applied to pictures in padded batches of one size."""

  def __init__(self, folder: str, flag: str, part: str, function: str):
    path = os.path.join(folder, f"{part}.safetensors")
    if not os.path.exists(path):
      raise types.UserError(
        f"{flag} {folder}: holds no {part}.safetensors; see experiments/rater.py"
      )
    self.config = open_lib.read_config(folder)
    _check_sources(self.config, f"{flag} {folder}")
    stage = open_lib.make_stage(self.config)
    if stage.players != (part,):
      raise types.UserError(
        f"{flag} {folder}: its config.json is not of a stage that trains {part}"
      )
    self._params = {part: checkpoint.load_weights(path, stage.parts()[part].abstract)}
    self._path, predict = path, stage.predict_fns()[function]
    self._fn = jax.jit(lambda params, batch: predict(params, {}, {"train": batch}, None))

  def describe(self) -> dict[str, Any]:
    return {"sha256": checkpoint.sha256(self._path)}

  def rate(
    self,
    images: Sequence[np.ndarray],
    prompts: Sequence[asked.Prompt],
    can: Callable[[asked.Prompt], bool],
    columns: Callable[[asked.Prompt], list[int]],
    score: Callable[[Any, asked.Prompt], float],
  ) -> list[float | None]:
    """The score of each picture that `can` be rated; `columns` are the labels the network reads."""
    out: list[float | None] = [None] * len(images)
    by_size = collections.defaultdict(list)
    for i, (image, prompt) in enumerate(zip(images, prompts, strict=True)):
      if can(prompt):
        by_size[image.shape].append(i)
    for members in by_size.values():
      for start in range(0, len(members), _BATCH):
        rows = members[start : start + _BATCH]
        padded = rows + rows[-1:] * (_BATCH - len(rows))
        batch = {
          "image_BHWC": np.stack([images[i] for i in padded]),
          "label_BA": np.array([columns(prompts[i]) for i in padded], np.int32),
        }
        got = jax.device_get(self._fn(self._params, batch))
        for k, i in enumerate(rows):
          out[i] = score(jax.tree.map(lambda x, k=k: x[k], got), prompts[i])
    return out


def _check_sources(config: ml_collections.ConfigDict, where: str) -> None:
  """A judge's training data make a judge of what was trained on them."""
  sources = [records.split_spec(spec)[1] for spec, _ in config.data.streams.train.sources]
  if any(name.split("[")[0] == _JUDGES for name in sources):
    raise types.UserError(
      f"{where}: was trained on split {_JUDGES!r}, so it is a judge, and a judge never rates; "
      "see experiments/rater.py"
    )


def _softmax(logits: np.ndarray) -> np.ndarray:
  weights = np.exp(logits - logits.max())
  return weights / weights.sum()
