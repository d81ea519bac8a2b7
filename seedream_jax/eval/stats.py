"""Confidence intervals for images clustered by prompt, and paired differences between two arms.

Every metric here is a ratio of sums, value = sum(num) / sum(den): a share has den = 1 per image,
R_a has den = target characters. Images of one prompt share its difficulty, so the bootstrap draws
prompts, not images (Efron & Tibshirani 1993, ch. 8; percentile interval).
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

EVIDENCE_IMAGES = 2_048  # per arm; fewer is a hint, not evidence
SMOKE_IMAGES = 240  # fewer is only a sign that the machine runs
EQUAL_MARGIN = 0.03  # "equal" = the interval of the difference lies inside +- 3 points


class Interval(NamedTuple):
  """An estimate with its confidence bounds; `n` images in `clusters` prompts."""

  value: float
  lo: float
  hi: float
  n: int
  clusters: int


def bootstrap(
  num: np.ndarray,
  den: np.ndarray,
  clusters: Sequence[Hashable],
  *,
  resamples: int = 2_000,
  level: float = 0.95,
  seed: int = 0,
) -> Interval:
  """The ratio sum(num)/sum(den) with a cluster-bootstrap percentile interval.

  When every prompt agrees on 0 or on 1 the bootstrap has no spread; the bound is then the exact
  binomial one (Clopper-Pearson) for that many prompts, so 20 out of 20 reads [0.83, 1] and not [1,
  1].
  """
  num_C, den_C = _cluster_sums(num, den, clusters)
  n, count = len(np.asarray(num)), len(num_C)
  if n == 0 or den_C.sum() == 0:
    return Interval(float("nan"), float("nan"), float("nan"), n, count)
  value = float(num_C.sum() / den_C.sum())
  tail = (1.0 - level) / 2.0
  if np.array_equal(num_C, den_C):
    return Interval(1.0, tail ** (1.0 / count), 1.0, n, count)
  if not num_C.any():
    return Interval(0.0, 0.0, 1.0 - tail ** (1.0 / count), n, count)
  draws_MC = _draws(count, resamples, seed)
  lo, hi = _quantiles(_ratios(draws_MC, num_C, den_C), tail)
  return Interval(value, lo, hi, n, count)


def paired_difference(
  num_a: np.ndarray,
  num_b: np.ndarray,
  den_a: np.ndarray,
  den_b: np.ndarray,
  clusters: Sequence[Hashable],
  *,
  resamples: int = 2_000,
  level: float = 0.95,
  seed: int = 0,
) -> Interval:
  """Value of arm b minus that of arm a; element i of both is the same prompt and the same noise.

  One draw of prompts serves both arms, so what a prompt's difficulty adds to both cancels.
  """
  num_a_C, den_a_C = _cluster_sums(num_a, den_a, clusters)
  num_b_C, den_b_C = _cluster_sums(num_b, den_b, clusters)
  n, count = len(np.asarray(num_a)), len(num_a_C)
  if n == 0 or den_a_C.sum() == 0 or den_b_C.sum() == 0:
    return Interval(float("nan"), float("nan"), float("nan"), n, count)
  value = float(num_b_C.sum() / den_b_C.sum() - num_a_C.sum() / den_a_C.sum())
  draws_MC = _draws(count, resamples, seed)
  differences = _ratios(draws_MC, num_b_C, den_b_C) - _ratios(draws_MC, num_a_C, den_a_C)
  lo, hi = _quantiles(differences, (1.0 - level) / 2.0)
  return Interval(value, lo, hi, n, count)


def verdict(difference: Interval, *, margin: float = EQUAL_MARGIN) -> str:
  """What a paired difference shows: better | worse | equal | undecided.

  A certain difference reads better or worse however small; whether it matters is
  `within(difference)`.
  """
  if difference.lo > 0:
    return "better"
  if difference.hi < 0:
    return "worse"
  return "equal" if within(difference, margin=margin) else "undecided"


def within(difference: Interval, *, margin: float = EQUAL_MARGIN) -> bool:
  """True when the whole interval of the difference lies inside the margin."""
  return difference.lo > -margin and difference.hi < margin


def strength(n: int) -> str:
  """How much weight `n` images per arm can bear: smoke | hint | evidence."""
  if n < SMOKE_IMAGES:
    return "smoke"
  return "evidence" if n >= EVIDENCE_IMAGES else "hint"


def _cluster_sums(
  num: np.ndarray, den: np.ndarray, clusters: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray]:
  num, den = np.asarray(num, np.float64), np.asarray(den, np.float64)
  if not len(num) == len(den) == len(clusters):
    raise ValueError(f"lengths differ: num {len(num)}, den {len(den)}, clusters {len(clusters)}")
  order: dict[Hashable, int] = {}
  index = np.array([order.setdefault(c, len(order)) for c in clusters], np.int64)
  count = len(order)
  return np.bincount(index, num, count), np.bincount(index, den, count)


def _draws(count: int, resamples: int, seed: int) -> np.ndarray:
  """How often each of `count` clusters is drawn in each resample."""
  rng = np.random.default_rng(seed)
  return rng.multinomial(count, np.full(count, 1.0 / count), size=resamples).astype(np.float64)


def _ratios(draws_MC: np.ndarray, num_C: np.ndarray, den_C: np.ndarray) -> np.ndarray:
  num_M, den_M = draws_MC @ num_C, draws_MC @ den_C
  return np.divide(num_M, den_M, out=np.full_like(num_M, np.nan), where=den_M > 0)


def _quantiles(values: np.ndarray, tail: float) -> tuple[float, float]:
  lo, hi = np.nanquantile(values, (tail, 1.0 - tail))
  return float(lo), float(hi)
