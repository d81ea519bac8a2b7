"""Named colours: one RGB, one English and one Chinese word each, far enough apart to be judged by
pixels.
"""

import functools

# The first eight are the nano world's backgrounds and text colours.
COLORS: dict[str, tuple[int, int, int]] = {
  "white": (246, 246, 242),
  "black": (34, 34, 40),
  "red": (206, 44, 46),
  "yellow": (250, 210, 62),
  "green": (56, 158, 92),
  "blue": (48, 112, 214),
  "purple": (128, 72, 178),
  "pink": (250, 172, 198),
  "orange": (240, 132, 36),
  "brown": (132, 84, 52),
  "gray": (150, 152, 156),
  "cyan": (64, 190, 200),
  "beige": (232, 218, 188),
  "navy": (28, 44, 92),
}
NANO = tuple(COLORS)[:8]
ALL = tuple(COLORS)

ZH = {
  "white": "白色",
  "black": "黑色",
  "red": "红色",
  "yellow": "黄色",
  "green": "绿色",
  "blue": "蓝色",
  "purple": "紫色",
  "pink": "粉色",
  "orange": "橙色",
  "brown": "棕色",
  "gray": "灰色",
  "cyan": "青色",
  "beige": "米色",
  "navy": "藏青色",
}
EN = {name: "navy blue" if name == "navy" else name for name in COLORS}

DARK = ("black", "purple", "blue", "navy")  # where neon glows
LIGHT = (
  "white",
  "yellow",
  "green",
  "pink",
  "orange",
  "gray",
  "cyan",
  "beige",
)  # where ink and pencil show
MIN_CONTRAST = 2.8  # WCAG ratio under which 64 px text stops being legible; ours


def luminance(name: str) -> float:
  """WCAG relative luminance of a named colour."""
  linear = [
    c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
    for c in (v / 255 for v in COLORS[name])
  ]
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
  """WCAG contrast ratio of two named colours, >= 1."""
  low, high = sorted((luminance(a), luminance(b)))
  return (high + 0.05) / (low + 0.05)


@functools.cache
def readable_on(backgrounds: tuple[str, ...], among: tuple[str, ...]) -> tuple[str, ...]:
  """Text colours legible on every one of `backgrounds`."""
  return tuple(
    c for c in among if all(c != b and contrast(c, b) >= MIN_CONTRAST for b in backgrounds)
  )
