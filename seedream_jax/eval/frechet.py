"""Frechet distance between Gaussians fitted to features: the FD-judge, on a classifier's features.

Dimension key: N images, F features. Never called FID: that name belongs to Inception features.
Reference: Heusel et al. 2017 (arXiv 1706.08500), eq. 6.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

MIN_IMAGES = 5_000  # per arm; the estimate's bias is of order 1/n, so fewer images inflate it
REFERENCE_IMAGES = 20_000


class Moments(NamedTuple):
  """The Gaussian of a feature set, and how many images it was fitted to."""

  mean_F: np.ndarray
  cov_FF: np.ndarray
  n: int


def moments(features_NF: np.ndarray) -> Moments:
  """Mean and unbiased covariance in float64."""
  features_NF = np.asarray(features_NF, np.float64)
  if features_NF.ndim != 2 or len(features_NF) < 2:
    raise ValueError(f"moments need at least two rows of features; got shape {features_NF.shape}")
  return Moments(
    features_NF.mean(0), np.atleast_2d(np.cov(features_NF, rowvar=False)), len(features_NF)
  )


def distance(a: Moments, b: Moments) -> float:
  """|m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a^1/2 C_b C_a^1/2)^1/2).

  The symmetric form keeps every root real, where sqrtm(C_a C_b) may turn complex on singular
  covariances.
  """
  if a.mean_F.shape != b.mean_F.shape:
    raise ValueError(f"feature sizes differ: {a.mean_F.shape} and {b.mean_F.shape}")
  root_FF = _sqrt(a.cov_FF)
  cross = np.sqrt(np.clip(np.linalg.eigvalsh(root_FF @ b.cov_FF @ root_FF), 0.0, None)).sum()
  shift = np.square(a.mean_F - b.mean_F).sum()
  return float(max(shift + np.trace(a.cov_FF) + np.trace(b.cov_FF) - 2.0 * cross, 0.0))


def features(
  features_fn: Callable[[np.ndarray], np.ndarray], batches: Iterable[np.ndarray]
) -> np.ndarray:
  """Stacks `features_fn` over batches of uint8 images [N, H, W, 3]."""
  return np.concatenate([np.asarray(features_fn(batch), np.float32) for batch in batches])


def fd_judge(
  features_NF: np.ndarray, reference: Moments, *, floor_NF: np.ndarray
) -> dict[str, object]:
  """The distance as a ratio to that of real, held-out images: 1 = as close as real images are.

  Args:
    features_NF: of the images judged.
    reference: moments of the fixed reference set.
    floor_NF: features of real images outside the reference; cut to the same n, for the bias is of
      order 1/n.
  """
  n = min(len(features_NF), len(floor_NF))
  value, floor = (distance(moments(x[:n]), reference) for x in (features_NF, floor_NF))
  return {
    "value": value / floor if floor > 0 else float("inf"),
    "distance": value,
    "floor": floor,
    "n": n,
    "reference_n": reference.n,
    "smoke": n < MIN_IMAGES or reference.n < REFERENCE_IMAGES,
  }


def _sqrt(cov_FF: np.ndarray) -> np.ndarray:
  values_F, vectors_FF = np.linalg.eigh(cov_FF)
  return (vectors_FF * np.sqrt(np.clip(values_F, 0.0, None))[None, :]) @ vectors_FF.T
