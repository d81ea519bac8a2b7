"""World presets: what a poster may hold, and how often.

Lengths are in units of 1/64 of the image's shorter side, so one world renders at any size and
aspect ratio.
"""

import dataclasses
import difflib
import functools

from data_pipelines.posters import palette, subjects, words
from seedream_jax import types

STYLES = ("paper_cut", "ink_wash", "neon", "pixel", "sketch")
AXES = (
  "color",
  "lighting",
  "texture",
  "composition",
)  # VMix; said in a caption only where a world says so

FACES = ("sans_bold", "sans", "serif", "kai", "kai_bold")
RESERVED_FACES = ("serif_bold", "kai_light")  # never rendered in a text-to-image split


@dataclasses.dataclass(frozen=True)
class World:
  """One preset of the embedded world. Rates are probabilities per scene."""

  name: str
  subjects: tuple[str, ...]
  colors: tuple[str, ...]
  faces: tuple[str, ...]
  sizes: tuple[str, ...]  # what the builder renders when no --size is given, HxW
  text_rate: float = 0.7
  zh_rate: float = 0.5  # of scenes with text
  bare_text_rate: float = 0.2  # of scenes with text: no subject
  two_char_rate: float = 0.7  # of zh text in nano
  random_text_rate: float = 0.35  # of text: random pairs and letters instead of real words
  few_shot_rate: float = (
    0.015  # of zh text; 12 characters, so about 70 views each in 160,000 images
  )
  rare_rate: float = 0.001
  long_text: bool = False  # phrases, longer words and thousands of characters
  zh_px: tuple[int, int] = (26, 30)  # em
  en_px: tuple[int, int] = (20, 24)  # cap height
  vertical_rate: float = 0.0
  subject_px: tuple[int, int] = (26, 34)  # longer side
  counts: tuple[float, float, float] = (0.4, 0.35, 0.25)  # 1, 2, 3 subjects, in scenes without text
  counts_with_text: tuple[float, float, float] = (1.0, 0.0, 0.0)
  same_rate: float = 0.5  # of scenes with several subjects: all alike
  counterfactual_rate: float = 0.1  # of scenes with several subjects
  style_rate: float = 0.15
  axis_rate: float = 0.25  # each aesthetic axis, independently; CT uses 0.75
  say_axes: bool = False  # captions name the positive axes: what VMix's labels are compared with
  gradient_rate: float = 0.0
  pattern_rate: float = 0.0

  def tilted(self, **changes: float | tuple) -> "World":
    """The same world with other rates."""
    return dataclasses.replace(self, **changes)


@functools.cache
def _presets() -> dict[str, World]:
  wide = tuple(c for c in subjects.everything() if c not in subjects.RESERVED)
  nano = World("nano", subjects.NANO, palette.NANO, ("sans_bold",), ("64x64",))
  small = World(
    "small",
    wide,
    palette.ALL,
    FACES,
    ("128x128", "96x160", "160x96"),
    long_text=True,
    zh_px=(11, 26),
    en_px=(8, 18),
    vertical_rate=0.2,
    subject_px=(16, 34),
    counts_with_text=(0.6, 0.25, 0.15),
    gradient_rate=0.25,
    pattern_rate=0.15,
  )
  base = dataclasses.replace(
    small, name="base", sizes=("256x256", "192x320", "320x192"), zh_px=(8, 26), en_px=(6, 18)
  )
  full = dataclasses.replace(
    base, name="full", sizes=("512x512", "384x640", "640x384"), zh_px=(6, 26), en_px=(5, 18)
  )
  return {w.name: w for w in (nano, small, base, full)}


NAMES = ("nano", "small", "base", "full")


def make_world(name: str = "nano") -> World:
  """The preset called `name`.

  Raises:
    types.UserError: naming the nearest preset.
  """
  if name not in NAMES:
    near = difflib.get_close_matches(name, NAMES, 1) or NAMES[:1]
    raise types.UserError(
      f"world: unknown {name!r}; did you mean {near[0]!r}? expected one of {', '.join(NAMES)}"
    )
  return _presets()[name]


def vocabulary(world: World) -> str:
  """Every Chinese character the world may write."""
  if world.long_text:
    extra = "".join(words.ZH_PHRASES)
    return "".join(
      dict.fromkeys(words.common_chars() + words.uncommon_chars() + words.NANO_CHARS + extra)
    )
  return words.NANO_CHARS + words.FEW_SHOT + words.RARE
