"""The vision side of glyph alignment: a sheet of rendered strings to one embedding a box, and its
text twin.

Dims: B batch, H W C pixels or feature grid, J strings a sheet, N = 1 + hard negatives of a string,
Q boxes, R C' bins of a box (rows, columns), G glyph bytes, E ByT5 width, P joint embedding.
Glyph-ByT5 (arXiv 2403.09622, Sec. 3.1) freezes a DINOv2; ours is a small convnet trained together
with ByT5, since nothing pretrained is at hand.  # ours
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from seedream_jax.models import vae, variants


@dataclasses.dataclass(frozen=True)
class GlyphTowerConfig:
  """Sizes.

  Attributes:
    widths: channels of each level; every level halves the grid, then adds one residual block.
    bins: rows and columns into which ROIAlign cuts a box, so that the order of characters survives.
    embed_dim: P.
    text_dim: E, width of the ByT5 features.
    text_hidden: of the MLP that projects text.
    norm_groups: of every group norm.
    init_scale: logits are `scale` cosines; CLIP starts at 1 / 0.07 and stops at 100.
  """

  widths: tuple[int, ...]
  bins: tuple[int, int]
  embed_dim: int
  text_dim: int
  text_hidden: int
  norm_groups: int = 8
  init_scale: float = 1 / 0.07
  max_scale: float = 100.0
  dtype: str = "float32"


# Every initialiser: convolutions as in the VAE, linear layers by fan-in, zero biases.
_INIT = nnx.initializers.lecun_normal()


def unit(x: jax.Array) -> jax.Array:
  """x / |x| over the last dim, float32; its gradient is finite at zero."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.sum(jnp.square(x), axis=-1, keepdims=True) + 1e-12)


def roi_align(map_BHWC: jax.Array, boxes_BQ4: jax.Array, bins: tuple[int, int]) -> jax.Array:
  """Bilinear samples of boxes, averaged in bins (Mask R-CNN, 2 x 2 samples a bin), [B, Q, *bins,
  C].

  Bilinear interpolation is separable, so it is two small matmuls with hat-shaped weights: no
  gather, and no scatter in the gradient.

  Args:
    map_BHWC: features; cell (i, j) is a point at its centre, ((i + 0.5) / H, (j + 0.5) / W).
    boxes_BQ4: y0, x0, y1, x1 as fractions of the map.
    bins: rows and columns.
  """
  rows_BQRH = _hats(boxes_BQ4[..., 0], boxes_BQ4[..., 2], bins[0], map_BHWC.shape[1])
  columns_BQCW = _hats(boxes_BQ4[..., 1], boxes_BQ4[..., 3], bins[1], map_BHWC.shape[2])
  strips = jnp.einsum("bqrh,bhwc->bqrwc", rows_BQRH.astype(map_BHWC.dtype), map_BHWC)
  return jnp.einsum("bqsw,bqrwc->bqrsc", columns_BQCW.astype(map_BHWC.dtype), strips)


def _hats(
  start_BQ: jax.Array, end_BQ: jax.Array, bins: int, cells: int, samples: int = 2
) -> jax.Array:
  """Weights of each bin over the cells of one axis, [B, Q, bins, cells]; a bin's sum to 1."""
  fraction_S = (jnp.arange(bins * samples, dtype=jnp.float32) + 0.5) / (bins * samples)
  at_BQS = start_BQ[..., None] + (end_BQ - start_BQ)[..., None] * fraction_S[None, None, :]
  at_BQS = jnp.clip(at_BQS * cells - 0.5, 0, cells - 1)
  offset = at_BQS[..., None] - jnp.arange(cells, dtype=jnp.float32)[None, None, None, :]
  hat = jnp.maximum(0.0, 1.0 - jnp.abs(offset))
  return hat.reshape(*at_BQS.shape[:2], bins, samples, cells).mean(axis=3)


class Level(nnx.Module):
  """Halves the grid, then one residual block."""

  def __init__(self, cin: int, cout: int, cfg: GlyphTowerConfig, *, rngs: nnx.Rngs):
    self.down = vae.Conv(cin, cout, 3, stride=2, dtype=cfg.dtype, rngs=rngs)
    self.norm1 = vae.GroupNorm(cout, cfg.norm_groups, rngs=rngs)
    self.conv1 = vae.Conv(cout, cout, 3, dtype=cfg.dtype, rngs=rngs)
    self.norm2 = vae.GroupNorm(cout, cfg.norm_groups, rngs=rngs)
    self.conv2 = vae.Conv(cout, cout, 3, dtype=cfg.dtype, rngs=rngs)

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """[B, H, W, C] to [B, H / 2, W / 2, C']."""
    x_BHWC = self.down(x_BHWC)
    h_BHWC = self.conv1(jax.nn.silu(self.norm1(x_BHWC)))
    return x_BHWC + self.conv2(jax.nn.silu(self.norm2(h_BHWC)))


class GlyphTower(nnx.Module):
  """Boxes of a sheet, and ByT5 features, as unit vectors of one space."""

  def __init__(self, cfg: GlyphTowerConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    for i, (cin, cout) in enumerate(zip((3, *cfg.widths), cfg.widths)):
      setattr(self, f"level_{i}", Level(cin, cout, cfg, rngs=rngs))
    pooled = cfg.bins[0] * cfg.bins[1] * cfg.widths[-1]
    self.box_head = nnx.Linear(pooled, cfg.embed_dim, kernel_init=_INIT, dtype=cfg.dtype, rngs=rngs)
    self.text_fc1 = nnx.Linear(
      cfg.text_dim, cfg.text_hidden, kernel_init=_INIT, dtype=cfg.dtype, rngs=rngs
    )
    self.text_fc2 = nnx.Linear(
      cfg.text_hidden, cfg.embed_dim, kernel_init=_INIT, dtype=cfg.dtype, rngs=rngs
    )
    self.log_scale = nnx.Param(jnp.log(jnp.asarray(cfg.init_scale, jnp.float32)))

  def __call__(self, sheet_BHWC: jax.Array, boxes_BQ4: jax.Array) -> jax.Array:
    """x_BQP: one unit vector a box.

    Args:
      sheet_BHWC: uint8 pixels, sides divisible by 2^levels.
      boxes_BQ4: y0, x0, y1, x1 as fractions of the sheet.
    """
    x_BHWC = sheet_BHWC.astype(self.cfg.dtype) / 127.5 - 1.0
    for i in range(len(self.cfg.widths)):
      x_BHWC = getattr(self, f"level_{i}")(x_BHWC)
    rois = roi_align(unit(x_BHWC).astype(self.cfg.dtype), boxes_BQ4, self.cfg.bins)
    return unit(self.box_head(rois.reshape(*boxes_BQ4.shape[:2], -1)))

  def text(self, features_BGE: jax.Array, mask_BG: jax.Array) -> jax.Array:
    """y_BP: the mean over bytes, projected by an MLP to a unit vector."""
    weight_BG = mask_BG.astype(jnp.float32)
    total_BE = jnp.einsum("bge,bg->be", features_BGE.astype(jnp.float32), weight_BG)
    mean_BE = total_BE / jnp.maximum(jnp.sum(weight_BG, axis=1), 1.0)[:, None]
    return unit(self.text_fc2(jax.nn.gelu(self.text_fc1(mean_BE))))

  def scale(self) -> jax.Array:
    """The learned inverse temperature t."""
    return jnp.minimum(jnp.exp(self.log_scale[...]), self.cfg.max_scale)


def make_config(variant: str = "nano", **overrides) -> GlyphTowerConfig:
  """A row of VARIANTS with fields replaced; an unknown name raises UserError naming the nearest."""
  return variants.make_config(GlyphTowerConfig, VARIANTS, variant, overrides)


VARIANTS = {
  "nano": dict(widths=(24, 48, 64), bins=(3, 6), embed_dim=128, text_dim=160, text_hidden=320),
  "small": dict(
    widths=(64, 128, 256), bins=(4, 32), embed_dim=768, text_dim=1472, text_hidden=1472
  ),
}
