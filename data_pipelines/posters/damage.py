"""A corruptor: makes what a data funnel must catch, and says what it made.

Pixel damage: blur, JPEG ruin, watermark, logo, sticker, text overlay, mosaic, near-blank. Damage
between records: exact and near duplicates (crop, re-encode, recolour), wrong captions, and a source
that repeats itself. Every record carries its label; undamaged ones are labelled "none".
Dims: H W pixels, C RGB.
"""

import dataclasses
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFilter

from data_pipelines.posters import palette, poster, render, splits, styles, subjects
from data_pipelines.posters import scene as scene_lib
from seedream_jax.data import records

Label = dict[str, Any]  # kind, strength, box [y0, x0, y1, x1] or None, of: the other record's id

_OVERLAYS = ("SAMPLE", "CLICK HERE", "50% OFF", "限时优惠", "版权所有", "扫码关注")
_CAMPAIGN = 12  # posters the over-represented source keeps sending


def blur(image_HWC: np.ndarray, dice: scene_lib.Dice) -> tuple[np.ndarray, Label]:
  """Out of focus: radius 2-5% of the shorter side."""
  radius = dice.uniform(0.02, 0.05) * min(image_HWC.shape[:2])
  blurred = Image.fromarray(image_HWC).filter(ImageFilter.GaussianBlur(radius))
  return np.asarray(blurred), _label("blur", radius)


def jpeg(image_HWC: np.ndarray, dice: scene_lib.Dice) -> tuple[np.ndarray, Label]:
  """JPEG at quality 1 to 6."""
  quality = dice.integer(1, 6)
  return _reencode(image_HWC, quality), _label("jpeg", quality)


def near_blank(image_HWC: np.ndarray, dice: scene_lib.Dice) -> tuple[np.ndarray, Label]:
  """Next to nothing left: the mean colour and a trace of the picture."""
  keep = dice.uniform(0.0, 0.06)
  mean = image_HWC.mean((0, 1), keepdims=True)
  return _to_uint8(mean + keep * (image_HWC - mean)), _label("near_blank", keep)


def mosaic(image_HWC: np.ndarray, dice: scene_lib.Dice) -> tuple[np.ndarray, Label]:
  """A censored rectangle, 40-70% of each side, in fat pixels."""
  height, width = image_HWC.shape[:2]
  y0, x0, y1, x1 = box = _box(dice, height, width, dice.uniform(0.4, 0.7), dice.uniform(0.4, 0.7))
  cell = max(3, round(min(height, width) * dice.uniform(0.09, 0.16)))
  small = (max(1, (x1 - x0) // cell), max(1, (y1 - y0) // cell))
  region = Image.fromarray(image_HWC[y0:y1, x0:x1]).resize(small, Image.Resampling.BOX)
  out = image_HWC.copy()
  out[y0:y1, x0:x1] = np.asarray(region.resize((x1 - x0, y1 - y0), Image.Resampling.NEAREST))
  return out, _label("mosaic", cell, box)


PIXEL_KINDS: dict[str, Callable[[np.ndarray, scene_lib.Dice], tuple[np.ndarray, Label]]] = {
  "blur": blur,
  "jpeg": jpeg,
  "near_blank": near_blank,
  "mosaic": mosaic,
}


@dataclasses.dataclass(frozen=True)
class Stamps:
  """Damage that needs typefaces or sprites."""

  renderer: render.Renderer
  emojis: tuple[str, ...]

  def watermark(self, image_HWC: np.ndarray, dice: scene_lib.Dice) -> tuple[np.ndarray, Label]:
    """One faint line of text tiled over everything."""
    height, width = image_HWC.shape[:2]
    mask = self._line(dice, width // 2, max(6, min(height, width) // 9))
    cover = np.zeros((height, width), np.float32)
    step_y, step_x = mask.shape[0] * 2 + 2, mask.shape[1] + 6
    for row, y in enumerate(range(0, height, step_y)):
      for x in range(-(step_x // 2) * (row % 2), width, step_x):
        rows, columns, from_rows, from_columns = render.window(cover.shape, *mask.shape, y, x)
        cover[rows, columns] = mask[from_rows, from_columns]
    alpha = dice.uniform(0.25, 0.45)
    ink = 255.0 if styles.luma(image_HWC).mean() < 140 else 0.0
    out = image_HWC + (cover * alpha)[..., None] * (ink - image_HWC)
    return _to_uint8(out), _label("watermark", alpha)

  def overlay(self, image_HWC: np.ndarray, dice: scene_lib.Dice) -> tuple[np.ndarray, Label]:
    """A banner with words of its own across the picture."""
    height, width = image_HWC.shape[:2]
    mask = self._line(dice, int(width * 0.9), max(8, min(height, width) // 5))
    tall = min(height, mask.shape[0] + 4)
    y = dice.integer(0, height - tall)
    ground, ink = dice.pick((("red", "white"), ("yellow", "black"), ("black", "yellow")))
    out = image_HWC.astype(np.float32)
    out[y : y + tall] = palette.COLORS[ground]
    top, left = y + (tall - mask.shape[0]) // 2, (width - mask.shape[1]) // 2
    region = out[top : top + mask.shape[0], left : left + mask.shape[1]]
    region += mask[..., None] * (np.float32(palette.COLORS[ink]) - region)
    return _to_uint8(out), _label("overlay", tall / height, [y, 0, y + tall, width])

  def logo(self, image_HWC: np.ndarray, dice: scene_lib.Dice) -> tuple[np.ndarray, Label]:
    """A round corporate badge in a corner."""
    height, width = image_HWC.shape[:2]
    side = max(8, round(min(height, width) * dice.uniform(0.18, 0.26)))
    y, x = dice.pick((0, height - side)), dice.pick((0, width - side))
    badge = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(badge).ellipse((4, 4, 4 * side - 4, 4 * side - 4), fill=255)
    cover = np.asarray(badge.resize((side, side), Image.Resampling.BOX), np.float32) / 255
    out = image_HWC.astype(np.float32)
    region = out[y : y + side, x : x + side]
    ground = np.float32(palette.COLORS[dice.pick(("navy", "red", "green"))])
    region += cover[..., None] * (ground - region)
    room = (round(side * 0.6), round(side * 0.66))
    letters = self.renderer.text_mask("TM", "sans_bold", room[0], "h", room) / np.float32(255)
    top, left = (side - letters.shape[0]) // 2, (side - letters.shape[1]) // 2
    part = region[top : top + letters.shape[0], left : left + letters.shape[1]]
    part += letters[..., None] * (255 - part)
    return _to_uint8(out), _label("logo", side / min(height, width), [y, x, y + side, x + side])

  def sticker(self, image_HWC: np.ndarray, dice: scene_lib.Dice) -> tuple[np.ndarray, Label]:
    """An emoji with a white rim, pasted over whatever was there."""
    height, width = image_HWC.shape[:2]
    px = round(min(height, width) * dice.uniform(0.3, 0.45))
    sprite = np.pad(self.renderer.sprite(dice.pick(self.emojis), px), ((2, 2), (2, 2), (0, 0)))
    rim = np.clip(2.5 * styles.blur(sprite[..., 3], 1.2) / 255, 0, 1)[..., None]
    y = dice.integer(0, max(0, height - sprite.shape[0]))
    x = dice.integer(0, max(0, width - sprite.shape[1]))
    out = image_HWC.astype(np.float32)
    region = out[y : y + sprite.shape[0], x : x + sprite.shape[1]]
    sprite, rim = (
      sprite[: region.shape[0], : region.shape[1]],
      rim[: region.shape[0], : region.shape[1]],
    )
    region += rim * (255 - region)
    region += sprite[..., :3] - region * (sprite[..., 3:] / 255)
    box = [y, x, y + region.shape[0], x + region.shape[1]]
    return _to_uint8(out), _label("sticker", px / min(height, width), box)

  def _line(self, dice: scene_lib.Dice, width: int, px: int) -> np.ndarray:
    content = dice.pick(_OVERLAYS)
    return self.renderer.text_mask(content, "sans_bold", px, "h", (2 * px, width)) / np.float32(255)


STAMP_KINDS = ("watermark", "overlay", "logo", "sticker")
NEAR_KINDS = ("near_duplicate_crop", "near_duplicate_reencode", "near_duplicate_recolor")
RECORD_KINDS = ("duplicate", *NEAR_KINDS, "wrong_caption", "over_represented")
KINDS = (*PIXEL_KINDS, *STAMP_KINDS, *RECORD_KINDS)


def near_duplicate(
  image_HWC: np.ndarray, kind: str, dice: scene_lib.Dice
) -> tuple[np.ndarray, float]:
  """The same picture to an eye, other bytes: (image, strength)."""
  height, width = image_HWC.shape[:2]
  if kind == "near_duplicate_crop":
    keep = dice.uniform(0.86, 0.95)
    y0, x0, y1, x1 = _box(dice, height, width, keep, keep)
    part = Image.fromarray(image_HWC[y0:y1, x0:x1])
    return np.asarray(part.resize((width, height), Image.Resampling.BICUBIC)), keep
  if kind == "near_duplicate_reencode":
    quality = dice.integer(60, 85)
    return _reencode(image_HWC, quality), float(quality)
  gain = 1 + dice.pick((-1, 1)) * dice.uniform(0.06, 0.14)
  shift = np.float32([dice.uniform(-10, 10) for _ in range(3)])
  return _to_uint8(image_HWC * gain + shift), gain


@dataclasses.dataclass(frozen=True)
class Damaged:
  """Posters of which a share `rate` is damaged, all kinds alike; labels stand in field `damage`."""

  base: poster.Posters
  rate: float
  kinds: tuple[str, ...] = KINDS

  dataset = "posters"
  description = "Posters, some damaged on purpose; field damage says how."

  @property
  def split(self) -> str:
    """The base's split."""
    return self.base.split

  def describe(self) -> dict[str, Any]:
    """Everything the records depend on, as JSON."""
    return {
      **self.base.describe(),
      "content": "damaged",
      "damage_rate": self.rate,
      "damage_kinds": list(self.kinds),
    }

  def schema(self) -> tfds.features.FeaturesDict:
    """The shared schema, with the label as JSON and the name of the record's source."""
    extra = {"damage": tfds.features.Text(), "source": tfds.features.Text()}
    return records.features(extra=extra)

  def example(self, index: int) -> dict[str, Any]:
    """Record `index`, damaged or not."""
    dice = scene_lib.Dice("damage", self.base.seed, self.base.split, index)
    image_HWC, scene, said = self.base.draw(index)
    label, source = _label("none", 0.0), f"source{dice.integer(0, 9)}"
    if dice.chance(self.rate):
      kind = dice.pick(self.kinds)
      if kind in RECORD_KINDS:
        image_HWC, scene, said, label = self._relate(kind, index, dice, (image_HWC, scene, said))
        source = "campaign" if kind == "over_represented" else source
      else:
        image_HWC, label = self.damage(image_HWC, kind, dice)
    ident = splits.record_id(self.base.split, index)
    record = poster.as_record(ident, image_HWC, scene, said)
    return {**record, "damage": json.dumps(label), "source": source}

  def damage(
    self, image_HWC: np.ndarray, kind: str, dice: scene_lib.Dice
  ) -> tuple[np.ndarray, Label]:
    """One kind of pixel damage."""
    if kind in PIXEL_KINDS:
      return PIXEL_KINDS[kind](image_HWC, dice)
    emojis = tuple(e for e in subjects.CURATED if e not in subjects.RESERVED)
    return getattr(Stamps(render.shared(self.base.fonts), emojis), kind)(image_HWC, dice)

  def _relate(self, kind: str, index: int, dice: scene_lib.Dice, own: tuple) -> tuple:
    """Damage that is only visible beside another record, which it names."""
    last = _CAMPAIGN - 1 if kind == "over_represented" else max(0, index - 1)
    other = dice.integer(0, last)
    if other == index:  # no earlier record to relate to
      return *own, _label("none", 0.0)
    of = splits.record_id(self.base.split, other)
    image_HWC, scene, said = self.base.draw(other)
    if kind == "wrong_caption":
      if scene_key(scene) == scene_key(own[1]):
        return *own, _label("none", 0.0)
      return own[0], own[1], said, _label(kind, 1.0, of=of)
    if kind in NEAR_KINDS:
      image_HWC, strength = near_duplicate(image_HWC, kind, dice)
      return image_HWC, scene, said, _label(kind, strength, of=of)
    if kind == "over_represented":  # the campaign's poster once more, with other grain
      scene = {**scene, "seed": dice.integer(0, 2**31 - 1)}
      image_HWC, scene = render.shared(self.base.fonts).render(scene)
    return image_HWC, scene, said, _label(kind, 1.0, of=of)


def scene_key(scene: scene_lib.Scene) -> str:
  """What captions can say of a scene."""
  return splits.content_key(scene)


def _label(
  kind: str, strength: float, box: list[int] | None = None, of: int | None = None
) -> Label:
  return {"kind": kind, "strength": round(float(strength), 4), "box": box, "of": of}


def _to_uint8(image_HWC: np.ndarray) -> np.ndarray:
  return np.clip(image_HWC + 0.5, 0, 255).astype(np.uint8)


def _reencode(image_HWC: np.ndarray, quality: int) -> np.ndarray:
  out = io.BytesIO()
  Image.fromarray(image_HWC).save(out, "jpeg", quality=quality)
  return np.asarray(Image.open(out))


def _box(dice: scene_lib.Dice, height: int, width: int, tall: float, wide: float) -> list[int]:
  rows, columns = max(1, round(height * tall)), max(1, round(width * wide))
  y, x = dice.integer(0, height - rows), dice.integer(0, width - columns)
  return [y, x, y + rows, x + columns]
