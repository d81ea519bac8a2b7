"""Pixel statistics that judges share: background, thresholds, connected components, colours.

Dimension key: H W pixels.
"""

from collections.abc import Mapping, Sequence

import numpy as np

# Colour words and the RGB a reader has in mind; jitter and light move an image around these.
PALETTE: dict[str, tuple[int, int, int]] = {
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

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_RGB_TO_XYZ = np.array(
  [
    [0.4124564, 0.3575761, 0.1804375],
    [0.2126729, 0.7151522, 0.0721750],
    [0.0193339, 0.1191920, 0.9503041],
  ],
  np.float32,
)
_WHITE = np.array([0.95047, 1.0, 1.08883], np.float32)


def background(image_HW3: np.ndarray, rounds: int = 6) -> np.ndarray:
  """A plane per channel through the majority's pixels, float32 [H, W, 3].

  Starts at the commonest colour and reweights: what lies far from the plane loses its say.
  """
  height, width = image_HW3.shape[:2]
  y_HW, x_HW = np.mgrid[0:height, 0:width].astype(np.float32)
  basis = np.stack([np.ones_like(y_HW), y_HW / height - 0.5, x_HW / width - 0.5], -1).reshape(-1, 3)
  pixels = image_HW3.reshape(-1, 3).astype(np.float32)
  ridge = np.diag([1e-3, 1.0, 1.0]).astype(np.float32)  # a plane needs evidence to tilt
  fit, scale = mode(image_HW3)[None, :], 48.0
  for _ in range(rounds):
    weight = np.exp(-np.square(pixels - fit).sum(-1) / (2.0 * scale**2))[:, None]
    weighted = basis * weight
    fit = basis @ np.linalg.solve(basis.T @ weighted + ridge, weighted.T @ pixels)
    scale = max(scale * 0.8, 16.0)
  return fit.reshape(height, width, 3)


def evenly_lit(image_HW3: np.ndarray) -> np.ndarray:
  """The image with its light evened out, uint8: each pixel over the ground's brightness there, 1 at its median.

  For grounds of one colour; two colours that run into each other are no light. Without it a sprite of given colours is
  missed where a light falls on it.
  """
  luma_HW = np.maximum(background(image_HW3) @ LUMA, 1.0)
  light_HW = np.clip(luma_HW / np.median(luma_HW), 0.5, 2.0)
  return np.clip(image_HW3 / light_HW[..., None] + 0.5, 0, 255).astype(np.uint8)


def mode(pixels: np.ndarray) -> np.ndarray:
  """The commonest colour: the mean within the fullest cell of an 8 x 8 x 8 histogram."""
  flat = pixels.reshape(-1, 3)
  cells = (flat >> 5).astype(np.int32) @ np.array([64, 8, 1], np.int32)
  fullest = np.bincount(cells, minlength=512).argmax()
  return flat[cells == fullest].mean(0, dtype=np.float32)


def otsu(values: np.ndarray) -> float:
  """The threshold that best splits values in two classes of small variance (Otsu 1979)."""
  counts, edges = np.histogram(values, bins=64)
  centers = (edges[1:] + edges[:-1]) / 2
  below = np.cumsum(counts)[:-1].astype(np.float64)
  above = values.size - below
  sums = np.cumsum(counts * centers)
  mean_below = sums[:-1] / np.maximum(below, 1)
  mean_above = (sums[-1] - sums[:-1]) / np.maximum(above, 1)
  return float(edges[1:-1][np.argmax(below * above * np.square(mean_above - mean_below))])


def components(mask_HW: np.ndarray) -> np.ndarray:
  """8-connected components: 0 outside, labels 1.. inside."""
  height, width = mask_HW.shape
  labels = np.zeros((height + 2, width + 2), np.int32)
  inside = labels[1:-1, 1:-1]
  inside[mask_HW] = np.arange(1, mask_HW.sum() + 1)
  while True:  # each round carries the largest label one pixel further; strokes are short
    rows = np.maximum(np.maximum(labels[:-2], labels[1:-1]), labels[2:])
    spread = np.maximum(np.maximum(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:]) * mask_HW
    if np.array_equal(spread, inside):
      break
    inside[...] = spread
  _, dense = np.unique(np.append(spread.reshape(-1), 0), return_inverse=True)  # 0 sorts first
  return dense[:-1].reshape(height, width)


def nearest_color(rgb: np.ndarray, palette: Mapping[str, Sequence[int]]) -> str:
  """The palette's name for a colour in 0..255, nearest in CIELAB."""
  names = list(palette)
  lab = to_lab(np.array([palette[name] for name in names], np.float32))
  return names[int(np.square(lab - to_lab(np.asarray(rgb, np.float32))[None, :]).sum(-1).argmin())]


def to_lab(rgb: np.ndarray) -> np.ndarray:
  """sRGB in 0..255 to CIELAB under D65 (IEC 61966-2-1, CIE 15:2004); channels last."""
  x = np.asarray(rgb, np.float32) / 255.0
  linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
  xyz = linear @ _RGB_TO_XYZ.T / _WHITE
  f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
  l, a, b = 116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])
  return np.stack([l, a, b], -1)
