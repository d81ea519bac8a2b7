"""Styles and aesthetics as image operations with known labels.

A style redraws the subjects and leaves text and background colour readable; an aesthetic axis is
mild, so a judge can still name subject and colour. Sprites are premultiplied float RGBA in [0,
255]. Dims: H W pixels, C channels, 4 RGBA.
"""

import functools
import math

import numpy as np
from PIL import Image, ImageFilter

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def blur(x_HW: np.ndarray, radius: float) -> np.ndarray:
  """A Gaussian blur of one float plane in [0, 255]."""
  image = Image.fromarray(np.clip(x_HW, 0, 255).astype(np.uint8))
  return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32)


def luma(x_HWC: np.ndarray) -> np.ndarray:
  """Rec. 601 luma of RGB, or of the first three channels."""
  return x_HWC[..., :3] @ _LUMA


def _straight(sprite_HW4: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  alpha = sprite_HW4[..., 3:] / 255
  return sprite_HW4[..., :3] / np.maximum(alpha, 1e-3), alpha


def _premultiply(rgb_HW3: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
  """Straight RGB in [0, 255] and alpha in [0, 1] to a sprite."""
  alpha = np.clip(alpha_HW, 0, 1)[..., None]
  return np.concatenate([np.clip(rgb_HW3, 0, 255) * alpha, 255 * alpha], axis=-1).astype(np.float32)


def _edges(sprite_HW4: np.ndarray) -> np.ndarray:
  """Outline strength in [0, 1]: the gradient of luma and of coverage."""
  rgb, alpha = _straight(sprite_HW4)
  tone, cover = luma(rgb) * alpha[..., 0], sprite_HW4[..., 3]
  total = np.zeros(tone.shape, np.float32)
  for plane, gain in ((tone, 0.016), (cover, 0.012)):
    padded = np.pad(plane, 1)
    dy = padded[2:, 1:-1] - padded[:-2, 1:-1]
    dx = padded[1:-1, 2:] - padded[1:-1, :-2]
    total += gain / 2 * np.hypot(dy, dx)
  return np.clip(total, 0, 1)


def paper_cut(sprite_HW4: np.ndarray) -> np.ndarray:
  """One sheet of red paper, its light parts cut open and backed with cream."""
  rgb, alpha = _straight(sprite_HW4)
  tone = luma(rgb)
  inside = alpha[..., 0] > 0.5
  middle = np.median(tone[inside]) if inside.any() else 128.0
  cut = np.clip((tone - middle) / 24, 0, 1)[..., None]
  paper = np.float32([178, 18, 28]) * (1 - cut) + np.float32([255, 240, 214]) * cut
  return _premultiply(paper, alpha[..., 0])


def ink_wash(sprite_HW4: np.ndarray) -> np.ndarray:
  """Grey ink: tone only, darker along the contours, edges bled into the paper."""
  rgb, alpha = _straight(sprite_HW4)
  tone = 255 * (luma(rgb) / 255) ** 1.3
  tone = 30 + 0.72 * tone - 90 * _edges(sprite_HW4)
  bleed = (
    0.65 * alpha[..., 0] + 0.35 * blur(sprite_HW4[..., 3], max(0.6, sprite_HW4.shape[0] / 30)) / 255
  )
  return _premultiply(np.repeat(tone[..., None], 3, axis=-1), bleed * (1.05 - 0.45 * tone / 255))


def neon(sprite_HW4: np.ndarray) -> np.ndarray:
  """Glowing contours in the subject's own hue over a dark glass body."""
  rgb, alpha = _straight(sprite_HW4)
  edges = np.clip(1.8 * _edges(sprite_HW4), 0, 1)
  peak = np.maximum(rgb.max(-1, keepdims=True), 1)
  hue = rgb / peak
  hue = np.clip(hue - 0.5 * hue.min(-1, keepdims=True), 0, 1)
  hue = 255 * hue / np.maximum(hue.max(-1, keepdims=True), 1e-3)
  glow = blur(255 * edges, max(1.0, sprite_HW4.shape[0] / 16)) / 255
  body = 0.35 * rgb
  light = np.clip(edges + 0.6 * glow, 0, 1)[..., None]
  return _premultiply(
    body * (1 - light) + (0.75 * hue + 64) * light, np.maximum(0.85 * alpha[..., 0], light[..., 0])
  )


def pixel(sprite_HW4: np.ndarray) -> np.ndarray:
  """About eleven fat pixels across."""
  height, width = sprite_HW4.shape[:2]
  cell = max(2, round(max(height, width) / 11))
  rows, columns = math.ceil(height / cell), math.ceil(width / cell)
  padded = np.zeros((rows * cell, columns * cell, 4), np.float32)
  padded[:height, :width] = sprite_HW4
  small = padded.reshape(rows, cell, columns, cell, 4).mean((1, 3))
  rgb, alpha = _straight(small)
  small = _premultiply(np.round(rgb / 36) * 36, (alpha[..., 0] > 0.4).astype(np.float32))
  return small.repeat(cell, 0).repeat(cell, 1)[:height, :width]


def sketch(sprite_HW4: np.ndarray) -> np.ndarray:
  """Pencil: dark contours over a pale wash of the subject's colours on white."""
  rgb, alpha = _straight(sprite_HW4)
  line = np.clip(1.7 * _edges(sprite_HW4), 0, 1)[..., None]
  pale = 255 - 0.38 * (255 - rgb)
  return _premultiply(
    pale * (1 - line) + 48 * line, np.maximum(0.94 * alpha[..., 0], 0.8 * line[..., 0])
  )


STYLES = {
  "paper_cut": paper_cut,
  "ink_wash": ink_wash,
  "neon": neon,
  "pixel": pixel,
  "sketch": sketch,
}


# Aesthetics. Each takes and returns a float canvas; label 1 = applied.


def richer_color(canvas_HWC: np.ndarray) -> np.ndarray:
  """VMix colour: 30% more saturation."""
  grey = luma(canvas_HWC)[..., None]
  return grey + 1.3 * (canvas_HWC - grey)


@functools.lru_cache(64)
def _key_light(height: int, width: int, side: int) -> np.ndarray:
  y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
  x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
  distance = np.hypot(y - 0.1, x - (0.15 if side == 0 else 0.85))
  return (1.12 - 0.30 * np.clip(distance, 0, 1.1))[..., None]


def key_light(canvas_HWC: np.ndarray, side: int) -> np.ndarray:
  """VMix lighting: a soft light from an upper corner (`side` 0 = left, 1 = right)."""
  return canvas_HWC * _key_light(*canvas_HWC.shape[:2], side)


_TILE = 512


@functools.lru_cache(8)
def _grain(height: int, width: int) -> np.ndarray:
  """Woven paper of unit deviation, a tile larger than asked; numpy froze the legacy stream."""
  noise = np.random.RandomState(20).standard_normal((_TILE, _TILE)).astype(np.float32)
  along = (noise + np.roll(noise, 1, 1) + np.roll(noise, 2, 1)) / 3
  across = (noise + np.roll(noise, 1, 0) + np.roll(noise, 2, 0)) / 3
  tile = along + across
  tile /= tile.std()
  return np.tile(tile, (height // _TILE + 2, width // _TILE + 2))


def grain(canvas_HWC: np.ndarray, offset: int, strength: float = 5.0) -> np.ndarray:
  """VMix texture: woven paper."""
  height, width = canvas_HWC.shape[:2]
  y, x = offset % _TILE, offset // _TILE % _TILE
  return canvas_HWC + strength * _grain(height, width)[y : y + height, x : x + width, None]


def frame(canvas_HWC: np.ndarray, color: np.ndarray) -> np.ndarray:
  """VMix composition: a hairline frame; the grammar also centres everything in its cell."""
  thick = max(1, min(canvas_HWC.shape[:2]) // 64)
  ink = 0.62 * color + 0.38 * (255.0 if luma(color) < 110 else 30.0)
  for part in (
    canvas_HWC[:thick],
    canvas_HWC[-thick:],
    canvas_HWC[:, :thick],
    canvas_HWC[:, -thick:],
  ):
    part[:] = ink
  return canvas_HWC
