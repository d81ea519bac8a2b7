"""The seeded grammar: one scene tree from one seed.

A scene says what a poster shows and where, before any pixel exists; it needs no font. The renderer
fills in what only ink can tell: the text's box and the subjects' exact centres. Lengths are pixels,
points are [y, x].
"""

import hashlib
import itertools
import struct
from collections.abc import Sequence
from typing import Any

from data_pipelines.posters import palette, splits, subjects, words, worlds

GRAMMAR = 4  # raise when the same seed would give another scene

Scene = dict[str, Any]
_MAX_TRIES = 100_000


class Dice:
  """A counter-based stream of uniforms, the same on every Python and numpy, unlike their own."""

  def __init__(self, *seed: int | str):
    self._seed = "/".join(map(str, seed)).encode()
    self._block, self._values = 0, ()

  def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
    """A float in [low, high)."""
    if not self._values:
      raw = hashlib.blake2b(
        self._seed, digest_size=64, salt=struct.pack("<Q", self._block)
      ).digest()
      self._values, self._block = list(struct.unpack("<16I", raw)), self._block + 1
    return low + (high - low) * (self._values.pop() / 2**32)

  def integer(self, low: int, high: int) -> int:
    """An integer in [low, high], both ends included."""
    return low + int(self.uniform() * (high - low + 1))

  def chance(self, rate: float) -> bool:
    """True with probability `rate`."""
    return self.uniform() < rate

  def pick(self, options: Sequence) -> Any:
    """One of `options`, evenly."""
    return options[int(self.uniform() * len(options))]

  def weighted(self, weights: Sequence[float]) -> int:
    """An index, by weight."""
    at = self.uniform() * sum(weights)
    for i, weight in enumerate(weights):
      at -= weight
      if at < 0:
        return i
    return len(weights) - 1


def sample(dice: Dice, world: worlds.World, size: tuple[int, int]) -> Scene:
  """One scene of any split."""
  height, width = size
  style = dice.pick(worlds.STYLES) if dice.chance(world.style_rate) else "plain"
  background = _background(dice, world, style)
  text = _text(dice, world, background, size) if dice.chance(world.text_rate) else None
  count = _count(dice, world, text)
  zone = _subject_zone(text, size)
  axes = {axis: int(dice.chance(world.axis_rate)) for axis in worlds.AXES}
  things, counterfactual = _subjects(
    dice, world, background, count, zone, size, bool(axes["composition"])
  )
  if text is not None:
    _place_text(dice, text, zone, size, bool(axes["composition"]))
  return {
    "size": [height, width],
    "background": background,
    "subjects": things,
    "text": text,
    "style": style,
    "aesthetics": axes,
    "counterfactual": counterfactual,
    "count": len(things),
    "seed": dice.integer(0, 2**31 - 1),  # of the renderer's own small jitters
  }


def sample_in(split: str, dice: Dice, world: worlds.World, size: tuple[int, int]) -> Scene:
  """One scene of `split`, by rejection."""
  for _ in range(_MAX_TRIES):
    scene = sample(dice, world, size)
    if splits.split_of(scene) == split:
      return scene
  raise RuntimeError(f"{split}: no scene in {_MAX_TRIES} tries")


def _background(dice: Dice, world: worlds.World, style: str) -> dict[str, str | None]:
  shows = {"neon": palette.DARK, "ink_wash": palette.LIGHT, "sketch": palette.LIGHT}.get(
    style, world.colors
  )
  colors = [c for c in world.colors if c in shows]
  color, color2, kind = dice.pick(colors), None, "solid"
  roll = dice.uniform()
  if style == "plain" and roll < world.gradient_rate + world.pattern_rate:
    kind = "gradient" if roll < world.gradient_rate else "pattern"
    color2 = dice.pick([c for c in world.colors if c != color and palette.contrast(c, color) < 3.5])
  return {"kind": kind, "color": color, "color2": color2}


def _count(dice: Dice, world: worlds.World, text: dict | None) -> int:
  if text is None:
    return 1 + dice.weighted(world.counts)
  return 0 if dice.chance(world.bare_text_rate) else 1 + dice.weighted(world.counts_with_text)


# Text


def _text(
  dice: Dice, world: worlds.World, background: dict, size: tuple[int, int]
) -> dict[str, Any]:
  lang = "zh" if dice.chance(world.zh_rate) else "en"
  content = _zh_content(dice, world) if lang == "zh" else _en_content(dice, world)
  vertical = lang == "zh" and len(content) > 1 and dice.chance(world.vertical_rate)
  under = tuple(c for c in (background["color"], background["color2"]) if c)
  colors = palette.readable_on(under, world.colors) or palette.readable_on(under[:1], world.colors)
  unit = min(size) / 64
  px = dice.integer(*(world.zh_px if lang == "zh" else world.en_px)) * unit
  if lang == "zh":
    room = (size[0] if vertical else size[1]) - 4 * unit
    px = min(px, room / len(content))
  return {
    "content": content,
    "lang": lang,
    "face": dice.pick(world.faces),
    "color": dice.pick(colors),
    "place": dice.pick(("left", "right") if vertical else ("top", "bottom")),
    "direction": "v" if vertical else "h",
    "px": max(6, round(px)),
    "box": None,
  }


def _zh_content(dice: Dice, world: worlds.World) -> str:
  roll = dice.uniform()
  if roll < world.rare_rate + world.few_shot_rate:
    char = dice.pick(words.RARE if roll < world.rare_rate else words.FEW_SHOT)
    return char + dice.pick(words.NANO_CHARS) if dice.chance(world.two_char_rate) else char
  if world.long_text and dice.chance(0.6):
    if not dice.chance(world.random_text_rate):
      return dice.pick(words.ZH_PHRASES)
    chars = words.common_chars() if dice.chance(0.9) else words.uncommon_chars()
    return "".join(dice.pick(chars) for _ in range(dice.integer(1, 6)))
  if not dice.chance(world.two_char_rate):
    return dice.pick(words.NANO_CHARS)
  if dice.chance(world.random_text_rate):
    return dice.pick(words.NANO_CHARS) + dice.pick(words.NANO_CHARS)
  return dice.pick(words.nano_zh_words())


def _en_content(dice: Dice, world: worlds.World) -> str:
  if dice.chance(world.random_text_rate / 2):
    longest = 8 if world.long_text else 5
    return "".join(dice.pick("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(dice.integer(3, longest)))
  if world.long_text and dice.chance(0.5):
    content = dice.pick(words.EN_PHRASES)
    return content.title() if dice.chance(0.3) else content
  return dice.pick(words.nano_en_words())


def _subject_zone(text: dict | None, size: tuple[int, int]) -> tuple[float, float, float, float]:
  """The part of the image that subjects may use, [y0, x0, y1, x1]; text gets the rest."""
  height, width = size
  if text is None:
    return 0, 0, height, width
  # Half at most, so the zone a prompt names ("the top") holds all of the text and no subject.
  if text["direction"] == "v":
    band = width / 2 if text["px"] > width / 4 else 2 * text["px"]
    return (0, band, height, width) if text["place"] == "left" else (0, 0, height, width - band)
  band = height / 2
  return (band, 0, height, width) if text["place"] == "top" else (0, 0, height - band, width)


def _place_text(dice: Dice, text: dict, zone: tuple, size: tuple[int, int], exact: bool) -> None:
  """Draws the fractions (y, x) of its own zone's slack at which the renderer centres the text."""
  y, x = (0.5, 0.5) if exact else (dice.uniform(0.1, 0.9), dice.uniform(0.2, 0.8))
  height, width = size
  if text["direction"] == "v":
    text["zone"] = (
      [0, 0, height, zone[1]] if text["place"] == "left" else [0, zone[3], height, width]
    )
  else:
    text["zone"] = [0, 0, zone[0], width] if text["place"] == "top" else [zone[2], 0, height, width]
  text["at"] = [round(y, 4), round(x, 4)]


# Subjects

# Cells of (row, column) out of (rows, columns), by the shape of the zone and the count.
_ROW = ((0, 0), (0, 1), (0, 2))
_TRIANGLES = (((0, 0), (0, 2), (2, 1)), ((0, 1), (2, 0), (2, 2)))
_CORNERS = ((0, 0), (0, 2), (2, 0), (2, 2))


def _cells(dice: Dice, count: int, tall: float, wide: float) -> tuple[tuple[int, int], ...]:
  """Cells on a 3x3 grid, one per subject."""
  flat, thin = wide > 1.3 * tall, tall > 1.3 * wide
  if count == 1:
    row = 1 if flat and wide > 1.8 * tall else dice.integer(0, 2)
    return ((row, dice.integer(0, 2)),)
  if count == 2:
    pairs = [((1, 0), (1, 2)), ((0, 1), (2, 1)), ((0, 0), (2, 2)), ((0, 2), (2, 0))]
    return pairs[0] if flat else pairs[1] if thin else dice.pick(pairs)
  if flat:
    return ((1, 0), (1, 1), (1, 2))
  if thin:
    return ((0, 1), (1, 1), (2, 1))
  if dice.chance(0.5):
    return dice.pick(_TRIANGLES)
  skip = dice.integer(0, 3)
  return tuple(c for i, c in enumerate(_CORNERS) if i != skip)


def _subjects(
  dice: Dice,
  world: worlds.World,
  background: dict,
  count: int,
  zone: tuple,
  size: tuple[int, int],
  exact: bool,
) -> tuple[list[dict], bool]:
  if not count:
    return [], False
  y0, x0, y1, x1 = zone
  tall, wide = y1 - y0, x1 - x0
  unit = min(size) / 64
  cells = _cells(dice, count, tall, wide)
  rows = len({row for row, _ in cells})
  columns = max(sum(other == row for other, _ in cells) for row, _ in cells)  # in the fullest row
  gap = max(1.0, unit)
  largest = min((tall - gap * (rows + 1)) / rows, (wide - gap * (columns + 1)) / columns)
  low, high = (v * unit for v in world.subject_px)
  high, low = min(high, largest), min(low, largest)
  kinds, counterfactual = _kinds(dice, world, background, count)
  pixels = [max(4, int(dice.uniform(low, high + 1) if high - low >= 1 else high)) for _ in kinds]
  pixels = [min(p, max(4, int(high))) for p in pixels]
  if counterfactual:  # the thing that is larger in the world is drawn smaller, plainly so
    room = min(tall - 2 * gap, wide - 3 * gap - low)
    big, little = int(min(world.subject_px[1] * unit, room)), int(low)
    pixels = [little, big] if kinds[0].rank > kinds[1].rank else [big, little]
    cells = ((1, 0), (1, 2))

  def centers(exact: bool) -> list[list[float]]:
    spans = (((row, y0, y1), (column, x0, x1)) for row, column in cells)
    return [
      [_along(dice, *span, px, gap, exact) for span in pair] for px, pair in zip(pixels, spans)
    ]

  places = centers(exact)
  if _collide(places, pixels):
    places = centers(True)  # jitter would make neighbours touch
  out = [
    {
      "emoji": kind.emoji,
      "name": kind.en,
      "size": px,
      "center": center,
      "place": place_of(*center, size),
      "scale": _scale(px / unit, world, count),
    }
    for kind, px, center in zip(kinds, pixels, places)
  ]
  return out, counterfactual


def _collide(centers: list[list[float]], pixels: list[int]) -> bool:
  """Whether any two squares overlap, or come within the pixel that rounding may take."""
  for (a, one), (b, two) in itertools.combinations(zip(centers, pixels), 2):
    if max(abs(a[0] - b[0]), abs(a[1] - b[1])) < (one + two) / 2 + 1:
      return True
  return False


def _along(
  dice: Dice, cell: int, low: float, high: float, px: int, gap: float, exact: bool
) -> float:
  """A centre in the first, middle or last part of [low, high] that keeps `px` inside by `gap`."""
  first, last = low + px / 2 + gap, high - px / 2 - gap
  jitter = 0.0 if exact else dice.uniform(0.0, 0.12)
  if cell == 1:
    jitter = 0.5 if exact else 0.44 + jitter
  elif cell == 2:
    jitter = 1 - jitter
  return first + (last - first) * jitter


def _kinds(
  dice: Dice, world: worlds.World, background: dict, count: int
) -> tuple[list[subjects.Subject], bool]:
  def draw() -> subjects.Subject:
    while True:
      kind = subjects.lookup(dice.pick(world.subjects))
      if background["color"] not in kind.avoid and background["color2"] not in kind.avoid:
        return kind

  first = draw()
  if count == 2 and dice.chance(world.counterfactual_rate):
    second = draw()
    for _ in range(20):
      if abs(first.rank - second.rank) >= 2:
        return [first, second], True
      second = draw()
  if count == 1 or dice.chance(world.same_rate):
    return [first] * count, False
  kinds = {first.emoji: first}
  while len(kinds) < count:
    kind = draw()
    kinds[kind.emoji] = kind
  return list(kinds.values()), False


def place_of(y: float, x: float, size: tuple[int, int]) -> str:
  """The word for a point: "top_left", "top", ..., "center", ..., "bottom_right"."""
  row = "top" if y < 0.4 * size[0] else "bottom" if y > 0.6 * size[0] else ""
  column = "left" if x < 0.4 * size[1] else "right" if x > 0.6 * size[1] else ""
  return "_".join(filter(None, (row, column))) or "center"


def _scale(units: float, world: worlds.World, count: int) -> str | None:
  """What a caption may call its size, or None. Only single subjects are called large or small."""
  if count != 1:
    return None
  low, high = world.subject_px
  if units <= low + 0.15 * (high - low):
    return "small"
  return "large" if units >= high - 0.25 * (high - low) else None
