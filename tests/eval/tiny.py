"""A few lines that draw a poster: judges are tested against another renderer than the posters'."""

from collections.abc import Sequence

import numpy as np
from absl.testing import absltest
from PIL import Image, ImageDraw

from seedream_jax import types
from seedream_jax.eval import fonts, pixels, templates

SUBJECTS = ("🐼", "🐉", "🏮", "🥮", "🍄", "⚓", "🚗", "💎", "🎲", "🐳", "🍌")
COLORS = ("white", "black", "red", "yellow", "green", "blue", "purple", "pink")


def require_fonts() -> None:
  """Skips a test module where the fonts are not installed."""
  try:
    fonts.find(templates.FAMILY)
    fonts.find("Noto Sans CJK SC", "Bold")
  except types.UserError as e:
    raise absltest.SkipTest(str(e)) from e


def canvas(color: str, size: tuple[int, int] = (64, 64)) -> np.ndarray:
  """A plain background."""
  return np.full((*size, 3), pixels.PALETTE[color], np.uint8)


def put(
  image: np.ndarray, emoji: str, size: int, center: Sequence[float], style: str = "plain"
) -> np.ndarray:
  """The image with a subject on it; the centre is rounded to what `size` allows."""
  out = image.astype(np.float32)
  top, left = (round(c - size / 2) for c in center)
  rgba = templates.scaled(emoji, size, style)
  y0, x0 = max(-top, 0), max(-left, 0)
  y1, x1 = min(size, image.shape[0] - top), min(size, image.shape[1] - left)
  region, rgba = out[top + y0 : top + y1, left + x0 : left + x1], rgba[y0:y1, x0:x1]
  region[...] = region * (1 - rgba[..., 3:]) + 255 * rgba[..., :3]
  return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def write(
  image: np.ndarray, text: str, color: str, center: Sequence[float], size: int = 28
) -> np.ndarray:
  """The image with a line of bold text."""
  out = Image.fromarray(image)
  y, x = center
  font = fonts.load("Noto Sans CJK SC", size, "Bold")
  ImageDraw.Draw(out).text((x, y), text, font=font, fill=pixels.PALETTE[color], anchor="mm")
  return np.asarray(out)


def scene(
  *,
  color: str = "white",
  subjects: Sequence[tuple[str, int, tuple[float, float], str]] = (),
  text: tuple[str, str, str, str] | None = None,
  size: tuple[int, int] = (64, 64),
) -> dict:
  """A scene: subjects are (emoji, size, centre, place), text is (content, lang, color, place)."""
  keys = ("content", "lang", "color", "place")
  return {
    "size": list(size),
    "background": {"kind": "solid", "color": color, "color2": None},
    "subjects": [
      {"emoji": e, "name": e, "size": s, "center": list(c), "place": p} for e, s, c, p in subjects
    ],
    "text": None
    if text is None
    else dict(zip(keys, text), direction="h", face="sans_bold", box=None),
    "style": "plain",
    "counterfactual": False,
    "count": len(subjects),
  }


def draw(tree: dict) -> np.ndarray:
  """The picture of a `scene`."""
  image = canvas(tree["background"]["color"], tuple(tree["size"]))
  for s in tree["subjects"]:
    image = put(image, s["emoji"], s["size"], s["center"], tree["style"])
  text = tree["text"]
  if text is not None:
    y = {"top": 0.25, "bottom": 0.75}[text["place"]] * tree["size"][0]
    size = 28 if text["lang"] == "zh" else 20
    image = write(image, text["content"], text["color"], (y, tree["size"][1] / 2), size)
  return image
