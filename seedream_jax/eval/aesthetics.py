"""The aesthetics judge: which of the four VMix axes a poster shows, by pixel statistics with measured thresholds.

Seedream 2.0 tags pictures along colour, lighting, texture and composition (arXiv 2503.07703, Sec. 4.1). What a positive
label does to a poster is known, so it can be measured, whatever the prompt asked:
  colour       the ground is more saturated than the colour that the prompt names
  lighting     the ground's brightness falls off across the picture
  texture      the ground has grain as deep as woven paper's
  composition  a hairline frames the picture
Thresholds lie between what ground truth shows with and without the label; data_pipelines.ceilings prints how often they
are right. H W pixels.
"""

from collections.abc import Mapping

import numpy as np

from seedream_jax.eval import pixels

AXES = ("color", "lighting", "texture", "composition")
THRESHOLDS = {"color": 1.11, "lighting": 0.09, "texture": 2.5, "composition": 12.0}
SUMMED = ("color", "lighting", "composition")  # the nano VAE keeps no grain: texture stands apart
_LEAST_SATURATION = 0.5  # of the colour named: to a pale one, its own jitter does as much
_GROUND = 24.0  # RGB distance from the ground's plane, within which a pixel belongs to it


def measure(image_HW3: np.ndarray, color: str | None) -> dict[str, float]:
  """{axis: statistic} of a uint8 image; `color` of the ground, None or a grey one leaves out "color"."""
  image = image_HW3.astype(np.float32)
  inner = image[2:-2, 2:-2]  # a frame is no ground
  plane = pixels.background(image_HW3[2:-2, 2:-2])
  ground_HW = np.linalg.norm(inner - plane, axis=-1) < _GROUND
  out = {}
  if (
    color is not None
    and (named := _saturation(np.float32(pixels.PALETTE[color]))) > _LEAST_SATURATION
  ):
    out["color"] = _saturation(np.median(plane.reshape(-1, 3), axis=0)) / named
  luma_HW = plane @ pixels.LUMA
  out["lighting"] = float((luma_HW.max() - luma_HW.min()) / max(luma_HW.mean(), 1.0))
  out["texture"] = _grain((inner - plane) @ pixels.LUMA, ground_HW)
  out["composition"] = _frame(image @ pixels.LUMA, luma_HW)
  return out


def outcomes(image_HW3: np.ndarray, scene: Mapping) -> dict[str, tuple[float, float]]:
  """(shown, judged) under "aes", over the axes that a VAE of 8x8 cells keeps, and "aes/AXIS"."""
  ground = scene["background"]
  found = measure(image_HW3, ground["color"] if ground["kind"] == "solid" else None)
  shown = {axis: float(value > THRESHOLDS[axis]) for axis, value in found.items()}
  each = {f"aes/{axis}": (value, 1.0) for axis, value in shown.items()}
  summed = [shown[axis] for axis in SUMMED if axis in shown]
  return {"aes": (sum(summed), float(len(summed))), **each}


def _saturation(rgb: np.ndarray) -> float:
  """Distance from grey of equal luma, in lumas: light that scales all channels does not change it."""
  luma = float(rgb @ pixels.LUMA)
  return float(np.linalg.norm(rgb - luma)) / max(luma, 1.0)


def _grain(residual_HW: np.ndarray, ground_HW: np.ndarray) -> float:
  """Robust deviation of second differences along rows and columns, where all three pixels are ground."""
  found = []
  for x, seen in ((residual_HW, ground_HW), (residual_HW.T, ground_HW.T)):
    second = x[2:] - 2 * x[1:-1] + x[:-2]
    found.append(np.abs(second[seen[2:] & seen[1:-1] & seen[:-2]]))
  values = np.concatenate(found)
  return float(np.median(values)) / 0.6745 / np.sqrt(6.0) if values.size else 0.0


def _frame(luma_HW: np.ndarray, plane_HW: np.ndarray) -> float:
  """How far the outermost ring lies from the ground, the least of its four sides."""
  sides = ((luma_HW[0], plane_HW[0]), (luma_HW[-1], plane_HW[-1]))
  sides += ((luma_HW[:, 0], plane_HW[:, 0]), (luma_HW[:, -1], plane_HW[:, -1]))
  return float(min(np.abs(np.median(ring) - np.median(ground)) for ring, ground in sides))
