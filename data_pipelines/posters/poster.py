"""Posters as records: record i of a split from nothing but (world, seed, split, i, size, fonts)."""

import dataclasses
import io
import json
import zlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.posters import captions, render, slips, splits, worlds
from data_pipelines.posters import fonts as fonts_lib
from data_pipelines.posters import scene as scene_lib
from seedream_jax.data import records


@dataclasses.dataclass(frozen=True)
class Posters:
  """The posters of one split.

  Attributes:
    world: name of a preset.
    split: a name of `splits.NAMES`.
    sizes: (height, width) that records take in turn.
    seed: another seed gives other records of the same split.
    fonts: resolved font files.
    axis_rate: share of records where each aesthetic axis is positive; None takes the world's.
    say_axes: whether captions name the positive axes.
    num_subjects: only the world's first so many are drawn, a set skewed on purpose; 0 = all.
    style_rate: share of records in a style; None takes the world's.
    faces: typefaces of texts; () takes the world's.
    siblings: records that follow one another and differ in one thing each from the first of them, drawn and captioned
      as they are: hard negatives of one another. 1 = none.
  """

  world: str
  split: str
  sizes: tuple[tuple[int, int], ...]
  seed: int
  fonts: fonts_lib.FontSet
  axis_rate: float | None = None
  say_axes: bool = False
  num_subjects: int = 0
  style_rate: float | None = None
  faces: tuple[str, ...] = ()
  siblings: int = 1

  dataset = "posters"
  description = "Posters: emoji and real typefaces on coloured grounds, captioned in zh and en."

  def describe(self) -> dict[str, Any]:
    """Everything the records depend on, as JSON."""
    # Named only where given, so that what was built without them is still what is asked for.
    further = {
      "say_axes": self.say_axes or None,
      "num_subjects": self.num_subjects or None,
      "style_rate": self.style_rate,
      "faces": list(self.faces) or None,
      "siblings": self.siblings if self.siblings > 1 else None,
    }
    return {
      "world": self.world,
      "split": self.split,
      "sizes": [f"{h}x{w}" for h, w in self.sizes],
      "seed": self.seed,
      "axis_rate": self.axis_rate,
      "grammar": scene_lib.GRAMMAR,
      "provenance": self.fonts.provenance(),
      **{key: value for key, value in further.items() if value is not None},
    }

  def schema(self) -> tfds.features.FeaturesDict:
    """The TFDS schema of `example`."""
    return records.features()

  def open_world(self) -> worlds.World:
    """The world with this source's rates."""
    rates = {"axis_rate": self.axis_rate, "style_rate": self.style_rate}
    changes = {key: rate for key, rate in rates.items() if rate is not None}
    if self.faces:
      changes["faces"] = self.faces
    world = worlds.make_world(self.world)
    subjects = world.subjects[: self.num_subjects or None]
    return world.tilted(say_axes=self.say_axes, subjects=subjects, **changes)

  def draw(self, index: int) -> tuple[np.ndarray, scene_lib.Scene, list[captions.Caption]]:
    """(image_HWC, scene, captions) of record `index`."""
    world = self.open_world()
    sibling = index % self.siblings
    first = index - sibling
    dice = scene_lib.Dice(self.seed, self.world, self.split, first)
    size = self.sizes[first // self.siblings % len(self.sizes)]
    scene = scene_lib.sample_in(self.split, dice, world, size)
    if sibling:
      dice = scene_lib.Dice(self.seed, self.world, self.split, "sibling", index)
      scene = self._sibling(scene, sibling, world, dice)
    image_HWC, scene = render.shared(self.fonts).render(scene)
    return image_HWC, scene, captions.all_of(scene, dice, world)

  def _sibling(
    self, scene: scene_lib.Scene, number: int, world: worlds.World, dice: scene_lib.Dice
  ) -> scene_lib.Scene:
    """`scene` with one thing changed, each kind in turn, and its light and grain drawn anew."""
    wrong = slips.slip_in(self.split, scene, number - 1, world, dice)
    axes = {axis: int(dice.chance(world.axis_rate)) for axis in worlds.AXES}
    return {**wrong, "seed": dice.integer(0, 2**31 - 1), "aesthetics": axes}

  def example(self, index: int) -> dict[str, Any]:
    """Record `index`, as the schema takes it."""
    image_HWC, scene, said = self.draw(index)
    return as_record(splits.record_id(self.split, index), image_HWC, scene, said)


def as_record(
  ident: int, image_HWC: np.ndarray, scene: scene_lib.Scene, said: list[captions.Caption]
) -> dict[str, Any]:
  """One record of the shared schema."""
  height, width = image_HWC.shape[:2]
  return {
    "id": ident,
    "image": encode_png(image_HWC),
    "height": height,
    "width": width,
    "captions": said,
    "scene": json.dumps(scene, ensure_ascii=False),
    "bucket": f"{height}x{width}",
  }


def encode_png(image_HWC: np.ndarray) -> io.BytesIO:
  """A PNG as a file object, which a TFDS Image feature takes; RLE is as small here, and faster."""
  out = io.BytesIO()
  Image.fromarray(image_HWC).save(out, "png", compress_level=1, compress_type=zlib.Z_RLE)
  out.seek(0)
  return out
