"""The aesthetic measure: plain pixel statistics of the four axes, each in units of its known effect.

On a render, an axis applied (`data_pipelines.posters.styles`) raises its own statistic by about 1 and
leaves the others nearly alone; what a picture shows moves them too, so that only pictures of one
prompt compare. No weights, and no code of a judge. Dims: H W pixels, C RGB, P patches.
"""

import functools
import math

import numpy as np

AXES = ("color", "lighting", "texture", "composition")
MOST = 1.5  # of one axis: beyond it, more is not better

# What an axis adds to its raw statistic on renders of the nano world at 64 px.
_GAIN = math.log(1.3)  # saturation, in the logarithm of chroma
_FALL = 0.30  # of the key light, relative to its middle, over one picture side
_GRAIN = 3.6  # deviation of the high-passed luma
_FRAME = 100.0  # RGB distance of the outermost pixels from those within
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def measure(image_HWC: np.ndarray) -> dict[str, float]:
  """{axis: 0 to MOST, or for colour any number} of a uint8 picture."""
  x_HWC = image_HWC.astype(np.float32)
  found = {
    "lighting": lighting(x_HWC) / _FALL,
    "texture": texture(x_HWC) / _GRAIN,
    "composition": composition(x_HWC) / _FRAME,
  }
  clipped = {axis: float(np.clip(value, 0, MOST)) for axis, value in found.items()}
  return {"color": color(x_HWC) / _GAIN, **clipped}


def score(image_HWC: np.ndarray) -> float:
  """The mean of the four axes."""
  return sum(measure(image_HWC).values()) / len(AXES)


def color(x_HWC: np.ndarray) -> float:
  """Logarithm of the mean chroma; 4 grey levels stand for none."""
  grey_HW1 = (x_HWC @ _LUMA)[..., None]
  return math.log(4 + float(np.linalg.norm(x_HWC - grey_HW1, axis=-1).mean()))


def lighting(x_HWC: np.ndarray) -> float:
  """How much of its brightness the rim loses per side of distance from the brighter upper corner.

  Medians of patches along the rim, so that text and subjects that reach into it count for little.
  """
  luma_HW = x_HWC @ _LUMA
  height, width = luma_HW.shape
  rows, columns = _patches(height, width)
  light_P = np.array([np.median(luma_HW[r, c]) for r, c in zip(rows, columns)]) + 8.0
  light_P /= np.median(light_P)
  y_P = np.array([(r.start + r.stop) / 2 / height for r in rows])
  x_P = np.array([(c.start + c.stop) / 2 / width for c in columns])
  falls = []
  for corner in (0.15, 0.85):
    near_P = np.hypot(y_P - 0.1, x_P - corner)
    # The median over pairs of patches of rise over run (Theil-Sen): a patch full of ink is outvoted.
    run_PP, rise_PP = near_P[:, None] - near_P, light_P[:, None] - light_P
    far = run_PP > 0.2
    falls.append(-float(np.median(rise_PP[far] / run_PP[far])))
  return max(falls)


@functools.lru_cache(16)
def _patches(height: int, width: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
  """Rows and columns of the patches of an 8 x 8 grid that touch the rim, without the outermost pixels."""
  edge = max(2, min(height, width) // 32)
  ys = np.linspace(edge, height - edge, 9).round().astype(int)
  xs = np.linspace(edge, width - edge, 9).round().astype(int)
  cells = [(i, j) for i in range(8) for j in range(8) if {i, j} & {0, 7}]
  rows = tuple(slice(int(ys[i]), int(ys[i + 1])) for i, _ in cells)
  return rows, tuple(slice(int(xs[j]), int(xs[j + 1])) for _, j in cells)


def texture(x_HWC: np.ndarray) -> float:
  """Deviation of the luma from the mean of its 3 x 3 neighbours, in the flatter tiles: grain, no edge."""
  edge = 2 * max(1, min(x_HWC.shape[:2]) // 64)  # a frame is no texture
  luma_HW = (x_HWC @ _LUMA)[edge:-edge, edge:-edge]
  height, width = luma_HW.shape
  sums = np.cumsum(np.cumsum(np.pad(luma_HW, ((1, 0), (1, 0))), axis=0), axis=1)
  mean_HW = (sums[3:, 3:] - sums[:-3, 3:] - sums[3:, :-3] + sums[:-3, :-3]) / 9
  rest_HW = luma_HW[1:-1, 1:-1] - mean_HW
  tile = max(6, min(height, width) // 8)
  starts = [
    (y, x) for y in range(0, height - 1 - tile, tile) for x in range(0, width - 1 - tile, tile)
  ]
  return float(np.quantile([rest_HW[y : y + tile, x : x + tile].std() for y, x in starts], 0.25))


def composition(x_HWC: np.ndarray) -> float:
  """RGB distance of the outermost pixels from those a little further in, on the side where least."""
  thick = max(1, min(x_HWC.shape[:2]) // 64)
  found = []
  for turned in (x_HWC, x_HWC[::-1], x_HWC.swapaxes(0, 1), x_HWC.swapaxes(0, 1)[::-1]):
    rim_LC = turned[:thick].mean(0) - turned[2 * thick : 3 * thick].mean(0)
    # The median keeps the sign: a frame differs alike all along, texture does not.
    found.append(float(np.linalg.norm(np.median(rim_LC, axis=0))))
  return min(found)
