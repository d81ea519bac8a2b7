"""Classifier B: a small convnet that says what a poster shows; a judge, and features for its Frechet distance.

Dims: B batch, H W grid height, width, C channels, E feature width, V classes of one head.
Trained by stages/classify.py on renders no generator sees; world.md says who may use it.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from seedream_jax.models import vae, variants


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
  """Sizes.

  Attributes:
    widths: of the residual levels, finest first; each level halves the grid, the stem does before them.
    norm_groups: of every group norm.
    feature_dim: E, of the features that heads and the Frechet distance see.
    heads: (name, number of logits) of each head.
  """

  widths: tuple[int, ...]
  norm_groups: int
  feature_dim: int
  heads: tuple[tuple[str, int], ...] = (("subject", 64), ("color", 8), ("count", 4), ("text", 1))
  image_channels: int = 3
  dtype: str = "float32"


class Block(nnx.Module):
  """A strided residual block: the grid halves, the width changes."""

  def __init__(self, cfg: ClassifierConfig, cin: int, cout: int, *, rngs: nnx.Rngs):
    self.norm1 = vae.GroupNorm(cin, cfg.norm_groups, rngs=rngs)
    self.conv1 = vae.Conv(cin, cout, 3, stride=2, dtype=cfg.dtype, rngs=rngs)
    self.norm2 = vae.GroupNorm(cout, cfg.norm_groups, rngs=rngs)
    self.conv2 = vae.Conv(cout, cout, 3, dtype=cfg.dtype, rngs=rngs)
    self.shortcut = vae.Conv(cin, cout, 1, dtype=cfg.dtype, rngs=rngs)

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """The shortcut plus the branch, on half the grid."""
    h_BHWC = self.conv1(jax.nn.silu(self.norm1(x_BHWC)))
    return self.shortcut(_halve(x_BHWC)) + self.conv2(jax.nn.silu(self.norm2(h_BHWC)))


class Classifier(nnx.Module):
  """Stem, residual levels, a layer over the pooled grid, one linear head a question."""

  def __init__(self, cfg: ClassifierConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.conv_in = vae.Conv(
      cfg.image_channels, cfg.widths[0], 3, stride=2, dtype=cfg.dtype, rngs=rngs
    )
    for i, width in enumerate(cfg.widths):
      setattr(self, f"blocks_{i}", Block(cfg, cfg.widths[max(i - 1, 0)], width, rngs=rngs))
    self.norm_out = vae.GroupNorm(cfg.widths[-1], cfg.norm_groups, rngs=rngs)
    # Mean and maximum: how much of a thing there is, and whether there is any.
    self.project = nnx.Linear(2 * cfg.widths[-1], cfg.feature_dim, dtype=cfg.dtype, rngs=rngs)
    for name, size in cfg.heads:
      setattr(self, f"head_{name}", nnx.Linear(cfg.feature_dim, size, dtype=cfg.dtype, rngs=rngs))

  def features(self, image_BHWC: jax.Array) -> tuple[jax.Array, ...]:
    """The grid after the stem and after each level, finest first."""
    levels = [self.conv_in(image_BHWC)]
    for i in range(len(self.cfg.widths)):
      levels.append(getattr(self, f"blocks_{i}")(levels[-1]))
    return tuple(levels)

  def embedding(self, image_BHWC: jax.Array) -> jax.Array:
    """features_BE, float32: what the Frechet distance compares."""
    x_BHWC = jax.nn.silu(self.norm_out(self.features(image_BHWC)[-1]))
    pooled_BC = jnp.concatenate(
      [jnp.mean(x_BHWC, axis=(1, 2)), jnp.max(x_BHWC, axis=(1, 2))], axis=-1
    )
    return jax.nn.silu(self.project(pooled_BC)).astype(jnp.float32)

  def __call__(self, image_BHWC: jax.Array) -> dict[str, jax.Array]:
    """{head: logits_BV, float32} of images in [-1, 1]."""
    features_BE = self.embedding(image_BHWC)
    return {
      name: getattr(self, f"head_{name}")(features_BE).astype(jnp.float32)
      for name, _ in self.cfg.heads
    }


def _halve(x_BHWC: jax.Array) -> jax.Array:
  """Every second pixel, where the strided conv's windows start; an odd last row or column has none."""
  h, w = (n // 2 * 2 for n in x_BHWC.shape[1:3])
  return x_BHWC[:, :h:2, :w:2]


def make_config(variant: str = "nano", **overrides) -> ClassifierConfig:
  """A row of VARIANTS with fields replaced; an unknown name raises UserError naming the nearest."""
  return variants.make_config(ClassifierConfig, VARIANTS, variant, overrides)


VARIANTS: dict[str, dict] = {
  "nano": dict(widths=(32, 64, 96, 128), norm_groups=8, feature_dim=256),
  "small": dict(widths=(64, 128, 256, 384), norm_groups=32, feature_dim=512),
  # One level more for each doubling of the picture's side.
  "base": dict(widths=(64, 128, 256, 384, 512), norm_groups=32, feature_dim=512),
  "full": dict(widths=(64, 128, 256, 384, 512, 512), norm_groups=32, feature_dim=512),
}
