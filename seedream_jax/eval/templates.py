"""Sprites the matched filter looks for, drawn here and not by the renderer it judges.

Sprites are premultiplied RGBA float32 in [0, 1]. Dimension key: K subjects, H W pixels, 4 RGBA.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from seedream_jax.eval import fonts

FAMILY = "Noto Color Emoji"
PLAIN = "plain"
_STRIKE = 109  # the only size of the font's bitmaps; they are 136 x 128
_CANVAS = 160
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@functools.cache
def sprite(emoji: str) -> Image.Image:
  """One emoji trimmed to its visible extent, premultiplied."""
  canvas = Image.new("RGBA", (_CANVAS, _CANVAS), (0, 0, 0, 0))
  shown = (
    emoji if "\u200d" in emoji else emoji.replace("\ufe0f", "")
  )  # the selector has no glyph of its own
  font = fonts.load(FAMILY, _STRIKE, shaped="\u200d" in emoji)
  ImageDraw.Draw(canvas).text((8, 8), shown, font=font, embedded_color=True)
  box = canvas.getchannel("A").getbbox()
  if box is None:
    raise ValueError(f"{FAMILY} draws nothing for {emoji!r}")
  return canvas.crop(box).convert("RGBa")


@functools.lru_cache(1 << 14)
def scaled(emoji: str, size: int, style: str = PLAIN) -> np.ndarray:
  """The sprite with its longer side `size` pixels, centred on a square canvas [size, size, 4]."""
  image = sprite(emoji)
  scale = size / max(image.size)
  width, height = (max(round(n * scale), 1) for n in image.size)
  small = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), np.float32) / 255.0
  out = np.zeros((size, size, 4), np.float32)
  top, left = (size - height) // 2, (size - width) // 2
  out[top : top + height, left : left + width] = STYLES[style](small)
  return out


def bank(emojis: Sequence[str], size: int, style: str = PLAIN) -> np.ndarray:
  """Every subject at one size, [K, size, size, 4]."""
  return np.stack([scaled(emoji, size, style) for emoji in emojis])


# What a style does to a subject, as its words define it; a judge needs the look, not the brush.


def _straight(rgba_HW4: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(colour, luma, alpha), none premultiplied."""
  alpha = rgba_HW4[..., 3:]
  rgb = rgba_HW4[..., :3] / np.maximum(alpha, 1e-2)
  return rgb, rgb @ _LUMA, alpha[..., 0]


def _premultiplied(rgb_HW3: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
  alpha = np.clip(alpha_HW, 0, 1)[..., None]
  return np.concatenate([np.clip(rgb_HW3, 0, 1) * alpha, alpha], -1).astype(np.float32)


def _contours(luma_HW: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
  """Where tone or coverage changes within two pixels, in [0, 1]."""
  total = np.zeros_like(luma_HW)
  for plane, gain in ((luma_HW * alpha_HW, 2.0), (alpha_HW, 1.5)):
    padded = np.pad(plane, 1)
    total += gain * np.hypot(
      padded[2:, 1:-1] - padded[:-2, 1:-1], padded[1:-1, 2:] - padded[1:-1, :-2]
    )
  return np.clip(total, 0, 1)


def _paper_cut(rgba_HW4: np.ndarray) -> np.ndarray:
  """Red paper, cut open to cream where the subject is lighter than its own median."""
  _, luma, alpha = _straight(rgba_HW4)
  solid = alpha > 0.5
  middle = np.median(luma[solid]) if solid.any() else 0.5
  open_HW1 = np.clip((luma - middle) * 10, 0, 1)[..., None]
  red, cream = np.float32([0.70, 0.07, 0.11]), np.float32([1.0, 0.94, 0.84])
  return _premultiplied(
    red[None, None, :] * (1 - open_HW1) + cream[None, None, :] * open_HW1, alpha
  )


def _ink_wash(rgba_HW4: np.ndarray) -> np.ndarray:
  """Grey tones with dark contours; light parts let the paper through."""
  _, luma, alpha = _straight(rgba_HW4)
  tone = 0.12 + 0.72 * luma**1.3 - 0.35 * _contours(luma, alpha)
  return _premultiplied(np.repeat(tone[..., None], 3, -1), alpha * (1.05 - 0.45 * tone))


def _neon(rgba_HW4: np.ndarray) -> np.ndarray:
  """Contours glow in the subject's own hue over a darkened body."""
  rgb, luma, alpha = _straight(rgba_HW4)
  lines = np.clip(1.8 * _contours(luma, alpha), 0, 1)
  glow = _blur(lines, max(len(lines) / 16, 1.0))
  hue = rgb - 0.5 * rgb.min(-1, keepdims=True)
  hue = hue / np.maximum(hue.max(-1, keepdims=True), 1e-2)
  light = np.clip(lines + 0.6 * glow, 0, 1)[..., None]
  return _premultiplied(
    0.35 * rgb * (1 - light) + (0.75 * hue + 0.25) * light, np.maximum(0.85 * alpha, light[..., 0])
  )


def _pixel(rgba_HW4: np.ndarray) -> np.ndarray:
  """About eleven fat pixels across."""
  height, width = rgba_HW4.shape[:2]
  cell = max(round(max(height, width) / 11), 2)
  rows, columns = -(-height // cell), -(-width // cell)
  padded = np.pad(rgba_HW4, ((0, rows * cell - height), (0, columns * cell - width), (0, 0)))
  rgb, _, alpha = _straight(padded.reshape(rows, cell, columns, cell, 4).mean((1, 3)))
  fat = _premultiplied(rgb, (alpha > 0.4).astype(np.float32))
  return fat.repeat(cell, 0).repeat(cell, 1)[:height, :width]


def _sketch(rgba_HW4: np.ndarray) -> np.ndarray:
  """Dark pencil contours over a pale wash."""
  rgb, luma, alpha = _straight(rgba_HW4)
  lines = np.clip(1.7 * _contours(luma, alpha), 0, 1)[..., None]
  return _premultiplied(
    (1 - 0.38 * (1 - rgb)) * (1 - lines) + 0.19 * lines,
    np.maximum(0.94 * alpha, 0.8 * lines[..., 0]),
  )


def _blur(plane_HW: np.ndarray, radius: float) -> np.ndarray:
  image = Image.fromarray((np.clip(plane_HW, 0, 1) * 255).astype(np.uint8))
  return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255.0


STYLES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  PLAIN: lambda rgba_HW4: rgba_HW4,
  "paper_cut": _paper_cut,
  "ink_wash": _ink_wash,
  "neon": _neon,
  "pixel": _pixel,
  "sketch": _sketch,
}
