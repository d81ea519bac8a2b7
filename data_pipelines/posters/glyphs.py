"""Glyph sheets: rendered strings among their hard negatives, for aligning ByT5 to what it spells.

A sheet shows J strings, each 1 + K times: the true string, then K that differ by one edit, a
character replaced, repeated, dropped, added, swapped, or taken for its look-alike (Glyph-ByT5
Sec. 3.2 and v2). Cells lie in random order, so place tells nothing of truth. The schema is that of
`seedream_jax.data.glyphs`.
"""

import dataclasses
import functools
import string
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.posters import fonts as fonts_lib
from data_pipelines.posters import palette, poster, render, splits, words, worlds
from data_pipelines.posters import scene as scene_lib
from seedream_jax import types
from seedream_jax.data import glyphs as schema_lib

EDITS = ("look_alike", "replace", "repeat", "drop", "add", "swap")
_EN_LOOK_ALIKES = {
  "O": "QCDG", "Q": "OG", "C": "GO", "G": "CO", "D": "O", "E": "F", "F": "EP", "P": "RF", "R": "PB",
  "B": "RE", "I": "LT", "L": "I", "T": "I", "M": "NW", "N": "MH", "W": "VM", "V": "UYW", "U": "V",
  "Y": "V", "H": "N", "K": "X", "X": "K", "Z": "S", "S": "Z", "A": "V", "J": "U",
}  # fmt: skip
_VAL = 20  # one string in twenty is kept for val


def edit(content: str, kind: str, dice: scene_lib.Dice, alphabet: str) -> str:
  """`content` after one edit of `kind`; may return it unchanged where the edit has no object."""
  at = dice.integer(0, len(content) - 1)
  before, char, after = content[:at], content[at], content[at + 1 :]
  if kind == "look_alike":
    alike = _EN_LOOK_ALIKES.get(char, "") if char.isascii() else words.families().get(char, "")
    return before + dice.pick(alike) + after if alike else content
  if kind == "replace":
    return before + dice.pick(alphabet) + after
  if kind == "repeat":
    return before + char + char + after
  if kind == "drop":
    return before + after
  if kind == "add":
    return before + dice.pick(alphabet) + char + after
  if kind == "swap":
    return before + after[:1] + char + after[1:]
  raise ValueError(f"edit: {kind!r}, expected one of {EDITS}")


def negatives(
  content: str, count: int, dice: scene_lib.Dice, alphabet: str, max_bytes: int
) -> list[str]:
  """`count` strings unlike `content` and each other, one edit away (two where one runs out).

  Raises:
    ValueError: when the alphabet allows no more.
  """
  out: list[str] = []
  for turn in range(200 * count):
    text = content
    for _ in range(1 if turn < 100 * count else 2):
      text = edit(text, EDITS[dice.integer(0, len(EDITS) - 1)], dice, alphabet) or text
    if text != content and text not in out and len(text.encode()) <= max_bytes:
      out.append(text)
      if len(out) == count:
        return out
  raise ValueError(f"{content!r}: only {len(out)} of {count} negatives within {max_bytes} bytes")


@dataclasses.dataclass(frozen=True)
class Sheets:
  """Sheets of one split.

  Attributes:
    world: name of a preset: its characters, words and faces.
    split: train or val (strings by hash), or heldout (held-out pairs and words).
    seed: another seed gives other sheets.
    fonts: resolved font files.
    strings: J.
    negatives: K.
    cell: (height, width) of a cell in pixels.
    max_bytes: longest string in UTF-8; G - 1 of the ByT5 that reads it.
  """

  world: str
  split: str
  seed: int
  fonts: fonts_lib.FontSet
  strings: int = 4
  negatives: int = 7
  cell: tuple[int, int] = (32, 64)
  max_bytes: int = 7

  dataset = "glyphs"
  description = "Glyph sheets: strings and their hard negatives, rendered cell by cell."

  def __post_init__(self):
    if self.split not in ("train", "val", "heldout"):
      raise types.UserError(f"--split: {self.split!r}; glyph sheets have train, val, heldout")
    if self.strings < 1 or self.negatives < 0:
      raise types.UserError(f"--glyphs: {self.strings},{self.negatives}; expected J >= 1, K >= 0")

  def describe(self) -> dict[str, Any]:
    """Everything the records depend on, as JSON."""
    fields = {k: getattr(self, k) for k in ("world", "split", "seed", "strings", "negatives")}
    return {
      **fields,
      "content": "glyphs",
      "cell": list(self.cell),
      "max_bytes": self.max_bytes,
      "grammar": scene_lib.GRAMMAR,
      "provenance": self.fonts.provenance(),
    }

  def schema(self) -> tfds.features.FeaturesDict:
    """The schema the glyph loader reads."""
    return schema_lib.features()

  def example(self, index: int) -> dict[str, Any]:
    """Sheet `index`, as the schema takes it."""
    dice = scene_lib.Dice("glyphs", self.seed, self.world, self.split, index)
    rows = [self._row(dice) for _ in range(self.strings)]
    world = worlds.make_world(self.world)
    image_HWC, boxes = render_sheet(rows, render.shared(self.fonts), dice, world.faces, self.cell)
    size = np.float32([*image_HWC.shape[:2], *image_HWC.shape[:2]])
    record = poster.as_record(splits.record_id(self.split, index), image_HWC, {}, [])
    return {
      **record,
      "boxes": boxes / size[None, :],
      "strings": [text for row in rows for text in row],
      "num_strings": self.strings,
    }

  def _row(self, dice: scene_lib.Dice) -> list[str]:
    """A true string and its negatives."""
    lang = "zh" if dice.chance(0.5) else "en"
    alphabet = _alphabet(self.world, lang)
    while True:
      content = self._string(dice, lang, alphabet)
      if len(content.encode()) <= self.max_bytes and self._is_ours(content, lang):
        return [content, *negatives(content, self.negatives, dice, alphabet, self.max_bytes)]

  def _string(self, dice: scene_lib.Dice, lang: str, alphabet: str) -> str:
    roll, longest = dice.uniform(), max(1, self.max_bytes // (3 if lang == "zh" else 1))
    if lang == "en":
      if roll < 0.6:
        return dice.pick(words.nano_en_words())
      return "".join(dice.pick(alphabet) for _ in range(dice.integer(2, min(6, longest))))
    if roll < 0.35:
      return dice.pick(words.nano_zh_words())
    # Evenly over the vocabulary: few-shot and rare characters are as common here as any.
    return "".join(dice.pick(alphabet) for _ in range(dice.integer(1, min(4, longest))))

  def _is_ours(self, content: str, lang: str) -> bool:
    held = splits.text_is_held_out(content, lang)
    if self.split == "heldout":
      return held
    val = splits.hash_of("glyph", content) % _VAL == 0
    # Single characters are in both: val asks about them in other company.
    return not held and (len(content) == 1 or val == (self.split == "val"))


def render_sheet(
  rows: list[list[str]],
  renderer: render.Renderer,
  dice: scene_lib.Dice,
  faces: tuple[str, ...],
  cell: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
  """Draws every string of every row in a cell of its own.

  Args:
    rows: J rows of 1 + K strings.
    renderer: draws the glyphs.
    dice: colours, faces, sizes and the order of cells.
    faces: typefaces to draw from.
    cell: (height, width) of a cell.

  Returns:
    (image_HWC uint8, boxes float32 [J (1 + K), 4] of ink in pixels, row by row).
  """
  texts = [text for row in rows for text in row]
  height, width = cell
  columns = max(1, round((len(texts) * height / width) ** 0.5))
  ground = dice.pick(palette.NANO)
  image = np.empty((-(-len(texts) // columns) * height, columns * width, 3), np.float32)
  image[:] = palette.COLORS[ground]
  order = sorted(range(len(texts)), key=lambda _: dice.uniform())
  boxes = np.zeros((len(texts), 4), np.float32)
  for place, at in enumerate(order):
    text, face = texts[at], dice.pick(faces)
    share = dice.uniform(0.8, 0.94) if not text.isascii() else dice.uniform(0.62, 0.75)
    mask = renderer.text_mask(text, face, round(share * height), "h", (height - 2, width - 4))
    y = place // columns * height + dice.integer(1, height - mask.shape[0] - 1)
    x = place % columns * width + dice.integer(2, width - mask.shape[1] - 2)
    region = image[y : y + mask.shape[0], x : x + mask.shape[1]]
    color = np.float32(palette.COLORS[dice.pick(palette.readable_on((ground,), palette.NANO))])
    region += mask[..., None] * np.float32(1 / 255) * (color - region)
    boxes[at] = y, x, y + mask.shape[0], x + mask.shape[1]
  return np.clip(image + 0.5, 0, 255).astype(np.uint8), boxes


@functools.cache
def _alphabet(world: str, lang: str) -> str:
  if lang == "en":
    return string.ascii_uppercase
  return worlds.vocabulary(worlds.make_world(world))
