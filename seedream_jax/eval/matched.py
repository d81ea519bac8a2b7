"""Subject, size and place by matched filter: what is drawn where, with no weights to be fooled.

The image minus its background is correlated with every sprite minus that same background, at every
size and place. A score is the normalised correlation over the sprite's own support: 1 is a perfect
copy at any contrast. Of two matches the one with more merit wins, the energy it explains times
score^2, so that a small sprite that fits a part does not beat the whole. A pass at half resolution
proposes, one at full resolution decides; each subject found is taken out of the residual before the
next is sought.

Dimension key: N images, K subjects, H W pixels, Y X window places, 4 premultiplied RGBA.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from seedream_jax.eval import ocr, pixels, templates

BASE = 64  # the judge's own resolution: larger images are averaged down by a whole factor
COARSE = 2
PAD = 4  # a subject may hang over the edge by this many pixels
MAX_PLACES = 4  # examined per scan
MAX_SUBJECTS = 8
FINALISTS = 6  # subjects compared at full resolution per place
LEAST_ENERGY = 3.0  # of a residual worth a scan; the faintest sprite at 20 px holds about 5
MIN_GAIN = 0.3  # least contrast of a match, as a share of the sprite's own
_LEAST = 0.35  # score under which nothing is a match


class Detection(NamedTuple):
  """A subject found; lengths in pixels of the image given."""

  emoji: str
  score: float
  center: tuple[float, float]  # y, x
  size: float  # longer side


class _Layers(NamedTuple):
  """An image as the filter sees it, padded all round with plain background."""

  stack: np.ndarray  # [H, W, 4]: residual d = image - ground (3), -d . ground
  energy: np.ndarray  # [H, W]: |d|^2
  ground: np.ndarray  # [H, W, 3]


class _Bank(NamedTuple):
  """Templates of one size, flattened for matmul."""

  size: int
  colors: np.ndarray  # [size * size * 4, K]: premultiplied colour (3), alpha
  support: np.ndarray  # [size * size, K]: where a match must hold, alpha grown by a rim
  power: np.ndarray  # [K]: |colour|^2
  cross: np.ndarray  # [3, K]: <colour, alpha>
  alpha: np.ndarray  # [K]: |alpha|^2


class _Match(NamedTuple):
  k: int
  merit: float
  score: float
  top: int  # in padded pixels
  left: int
  size: int


_NO_MATCH = _Match(0, 0.0, 0.0, 0, 0, 1)


class MatchedFilter:
  """Finds which of `emojis` stand where."""

  def __init__(self, emojis: Sequence[str], *, sizes: tuple[int, int] = (18, 36)):
    """Sprites are drawn when a style is first asked for.

    Args:
      emojis: the subjects to tell apart.
      sizes: smallest and largest longer side, in pixels at BASE resolution.
    """
    self.emojis = tuple(emojis)
    self._coarse_sizes = range(sizes[0] // COARSE, -(-sizes[1] // COARSE) + 1, 2)
    self._banks = functools.cache(self._make_banks)

  def detect(
    self,
    image_HW3: np.ndarray,
    *,
    style: str = templates.PLAIN,
    text_box: Sequence[int] | None = None,
    least: float = 0.5,
  ) -> list[Detection]:
    """Detections scoring `least` or more, best first.

    Args:
      image_HW3: uint8.
      style: how subjects are drawn, as the prompt says.
      text_box: [y0, x0, y1, x1] where the prompt wants text; ink of one colour there is no subject.
      least: the score to reach.
    """
    height, width = image_HW3.shape[:2]
    factor = max(round(math.sqrt(height * width) / BASE), 1)
    image = _shrink(image_HW3.astype(np.float32), factor)
    ground = pixels.background(np.rint(image).astype(np.uint8))
    residual = image - ground
    if text_box is not None:
      residual = _without_text(residual, [v // factor for v in text_box])
    layers = _layers(residual, ground)
    found: list[_Match] = []
    while layers.energy.sum() >= LEAST_ENERGY and len(found) < MAX_SUBJECTS:
      new = self._round(layers, style, least)
      if not new:
        break
      found += new
    found.sort(key=lambda match: -match.score)
    return [self._report(match, factor) for match in found]

  def _round(self, layers: _Layers, style: str, least: float) -> list[_Match]:
    """Takes out of `layers` the matches that one coarse scan proposes, those of most merit first.

    Lazily greedy: coarse merit stands in for the fine one until its place comes to the head of the
    queue. What a strong subject hid from the scan is for the next round.
    """
    queue = [(merit, None, place) for merit, *place in _peaks(*self._scan(layers, style))]
    found = []
    while queue and layers.energy.sum() >= LEAST_ENERGY:
      queue.sort(key=lambda entry: entry[0])
      _, match, place = queue.pop()
      if match is None:
        match = self._decide(layers, *place, style)
        if match.score >= least:
          queue.append((match.merit, match, place))
        continue
      found.append(match)
      self._take_out(layers, match, style)
      queue = [(merit, None, place) for merit, _, place in queue]
    return found

  def _make_banks(self, style: str) -> tuple[dict[int, _Bank], dict[int, _Bank]]:
    sizes = range(self._coarse_sizes[0] * COARSE - 2, self._coarse_sizes[-1] * COARSE + 3)
    rgba = {size: templates.bank(self.emojis, size, style) for size in sizes}
    coarse = {}
    for size in self._coarse_sizes:
      shrunk = rgba[size * COARSE].reshape(-1, size, COARSE, size, COARSE, 4).mean((2, 4))
      coarse[size] = _bank(shrunk, rim=1)
    return coarse, {size: _bank(x, rim=max(size // 12, 1)) for size, x in rgba.items()}

  def _scan(self, layers: _Layers, style: str) -> tuple[np.ndarray, np.ndarray]:
    """Best merit of each subject centred on each coarse pixel, and the size it has there."""
    layers = _coarser(layers)
    height, width = layers.ground.shape[:2]
    best_KYX = np.zeros((len(self.emojis), height, width), np.float32)
    size_KYX = np.zeros(best_KYX.shape, np.int16)
    for size, bank in self._banks(style)[0].items():
      if size > min(height, width):
        continue
      merit = _correlate(layers, bank)[0].transpose(2, 0, 1) * COARSE**2
      half = size // 2
      view = np.s_[:, half : half + merit.shape[1], half : half + merit.shape[2]]
      np.copyto(size_KYX[view], size, where=merit > best_KYX[view])
      np.maximum(best_KYX[view], merit, out=best_KYX[view])
    return best_KYX, size_KYX

  def _decide(
    self,
    layers: _Layers,
    center: tuple[int, int],
    candidates: Sequence[tuple[int, int]],
    style: str,
  ) -> _Match:
    """The best match near a coarse proposal, at full resolution."""
    by_size: dict[int, list[int]] = {}
    for k, coarse_size in candidates:
      for size in range(coarse_size * COARSE - 2, coarse_size * COARSE + 3):
        by_size.setdefault(size, []).append(k)
    middle = (center[0] * COARSE, center[1] * COARSE)
    best, polished = _NO_MATCH, self._best_of(layers, middle, by_size, style)
    while polished.merit > best.merit:  # the winner alone may still grow or shrink
      best = polished
      middle = (best.top + best.size // 2, best.left + best.size // 2)
      near = {size: [best.k] for size in range(best.size - 2, best.size + 3)}
      polished = self._best_of(layers, middle, near, style)
    return best

  def _best_of(
    self, layers: _Layers, middle: tuple[int, int], by_size: Mapping[int, list[int]], style: str
  ) -> _Match:
    """The match of most merit within two pixels of `middle`, of the subjects listed by size."""
    best, banks = _NO_MATCH, self._banks(style)[1]
    for size, members in by_size.items():
      y0, x0 = (max(c - size // 2 - 2, 0) for c in middle)
      window = np.s_[y0 : y0 + size + 4, x0 : x0 + size + 4]
      patch = _Layers(*(x[window] for x in layers))
      if size not in banks or min(patch.ground.shape[:2]) < size:
        continue
      merit, scores = _correlate(patch, _Bank(size, *(x[..., members] for x in banks[size][1:])))
      at = y, x, member = np.unravel_index(merit.argmax(), merit.shape)
      if merit[at] > best.merit:
        top, left = int(y0 + y), int(x0 + x)
        best = _Match(members[member], float(merit[at]), float(scores[at]), top, left, size)
    return best

  def _take_out(self, layers: _Layers, match: _Match, style: str) -> None:
    """Zeroes the residual under a match, rim included."""
    support = self._banks(style)[1][match.size].support[:, match.k].reshape(match.size, match.size)
    rows, columns = (slice(at, at + match.size) for at in (match.top, match.left))
    layers.stack[rows, columns] *= (1.0 - support)[..., None]
    layers.energy[rows, columns] *= 1.0 - support

  def _report(self, match: _Match, factor: int) -> Detection:
    center = tuple((c + match.size / 2 - PAD) * factor for c in (match.top, match.left))
    return Detection(self.emojis[match.k], match.score, center, match.size * factor)


def _bank(rgba_KHW4: np.ndarray, rim: int) -> _Bank:
  count, size = rgba_KHW4.shape[:2]
  color, alpha = rgba_KHW4[..., :3], rgba_KHW4[..., 3:]
  support = _grow(alpha[..., 0], rim)
  return _Bank(
    size,
    np.ascontiguousarray(rgba_KHW4.reshape(count, -1).T),
    np.ascontiguousarray(support.reshape(count, -1).T),
    np.square(color).sum((1, 2, 3)),
    (color * alpha).sum((1, 2)).T,
    np.square(alpha).sum((1, 2, 3)),
  )


def _layers(residual_HW3: np.ndarray, ground_HW3: np.ndarray) -> _Layers:
  residual, ground = residual_HW3 / 255.0, ground_HW3 / 255.0
  around = ((PAD, PAD), (PAD, PAD), (0, 0))
  tied = -(residual * ground).sum(-1, keepdims=True)
  stack = np.pad(np.concatenate([residual, tied], -1), around).astype(np.float32)
  energy = np.square(stack[..., :3]).sum(-1)
  return _Layers(stack, energy, np.pad(ground, around, mode="edge").astype(np.float32))


def _coarser(layers: _Layers) -> _Layers:
  stack = _shrink(layers.stack, COARSE)
  return _Layers(stack, np.square(stack[..., :3]).sum(-1), _shrink(layers.ground, COARSE))


def _correlate(layers: _Layers, bank: _Bank) -> tuple[np.ndarray, np.ndarray]:
  """(merit, score) of each subject at each place, both [Y, X, K]; 0 where the contrast is too low.

  With alpha a, premultiplied colour c, ground b and residual d, the template is t = c - a b. So
  <d, t> = <d, c> + <-d . b, a> is one matmul, and |t|^2 = |c|^2 - 2 b . <c, a> + |b|^2 |a|^2
  needs only b.
  """
  size = bank.size
  windows = np.lib.stride_tricks.sliding_window_view(layers.stack, (size, size), axis=(0, 1))
  energy = np.lib.stride_tricks.sliding_window_view(layers.energy, (size, size))
  rows, columns = energy.shape[:2]
  middle = layers.ground[size // 2 :, size // 2 :][:rows, :columns]
  square = np.square(middle).sum(-1, keepdims=True)
  power = (
    bank.power[None, None, :] - 2.0 * (middle @ bank.cross) + square * bank.alpha[None, None, :]
  )
  power = np.maximum(power, 1e-3)
  # Cauchy-Schwarz: in a window that holds less energy, no template reaches its contrast.
  busy = energy.sum((2, 3)) >= MIN_GAIN**2 * power.min(-1)
  merit, scores = np.zeros(power.shape, np.float32), np.zeros(power.shape, np.float32)
  if busy.any():
    count, power = int(busy.sum()), power[busy]
    product = windows[busy].transpose(0, 2, 3, 1).reshape(count, -1) @ bank.colors
    held = energy[busy].reshape(count, -1) @ bank.support
    score = product / np.sqrt(np.maximum(held, 1e-3) * power)
    score = np.where((product >= MIN_GAIN * power) & (score >= _LEAST), score, 0.0)
    scores[busy], merit[busy] = score, score**4 * held
  return merit, scores


def _peaks(
  best_KYX: np.ndarray, size_KYX: np.ndarray
) -> Iterator[tuple[float, tuple[int, int], list[tuple[int, int]]]]:
  """Yields (merit, (y, x), [(subject, coarse size)]) of places where subjects match, best first."""
  top_YX = best_KYX.max(0)
  y_YX, x_YX = np.mgrid[0 : top_YX.shape[0], 0 : top_YX.shape[1]]
  for _ in range(MAX_PLACES):
    y, x = np.unravel_index(top_YX.argmax(), top_YX.shape)
    if top_YX[y, x] <= 0:
      return
    leaders = np.argsort(-best_KYX[:, y, x])[:FINALISTS]
    candidates = [(int(k), int(size_KYX[k, y, x])) for k in leaders if best_KYX[k, y, x] > 0]
    yield float(top_YX[y, x]), (int(y), int(x)), candidates
    radius = 0.4 * size_KYX[leaders[0], y, x]
    top_YX = np.where(np.hypot(y_YX - y, x_YX - x) < radius, 0.0, top_YX)


def _without_text(
  residual_HW3: np.ndarray, box: Sequence[int], tolerance: float = 0.15
) -> np.ndarray:
  """The residual without the box's ink of one colour: text, its soft edges included."""
  y0, x0, y1, x1 = box
  zone = residual_HW3[y0:y1, x0:x1]
  ink_HW = ocr.far(np.sqrt(np.square(zone).sum(-1)))
  if not ink_HW.any():
    return residual_HW3
  color = np.median(zone[ink_HW], axis=0)
  length = float(np.linalg.norm(color))
  along_HW = np.clip(zone @ (color / length), 0.0, 1.2 * length)
  off_HW = np.linalg.norm(zone - along_HW[..., None] * (color / length)[None, None, :], axis=-1)
  out = residual_HW3.copy()
  out[y0:y1, x0:x1] = np.where((off_HW < tolerance * length)[..., None], 0.0, zone)
  return out


def _grow(alpha_KHW: np.ndarray, rim: int) -> np.ndarray:
  """Where alpha shows, dilated by a square of `rim` pixels."""
  mask = (alpha_KHW > 0.05).astype(np.float32)
  height, width = mask.shape[1:]
  padded = np.pad(mask, ((0, 0), (rim, rim), (rim, rim)))
  span = range(2 * rim + 1)
  return np.max([padded[:, y : y + height, x : x + width] for y in span for x in span], axis=0)


def _shrink(image_HWC: np.ndarray, factor: int) -> np.ndarray:
  """Averages down by a whole factor; a ragged edge is cut."""
  height, width = (n // factor for n in image_HWC.shape[:2])
  cut = image_HWC[: height * factor, : width * factor]
  return cut.reshape(height, factor, width, factor, -1).mean((1, 3))
