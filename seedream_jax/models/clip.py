"""Images and captions as unit vectors of one space: a small convnet beside an encoder's features.

Dims: B batch, H W C pixels or feature grid, L LLM tokens, G glyph bytes, S = L + G, M queries, E text feature width,
P joint embedding.
`Clip`'s text side is whatever encoder is being aligned; here is only its linear projection. `LockedClip`'s encoders are
frozen, and a few queries read them.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seedream_jax.models import classifier, conditioning, glyph_tower, layers, vae, variants, vit


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """Sizes.

  Attributes:
    widths: channels of the stem and of each residual block after it; all of them halve the grid.
    bins: rows and columns kept of the last grid, so that places survive.
    hidden: of the layer over all that is kept.
    embed_dim: P.
    text_dim: E.
    norm_groups: of every group norm.
    init_scale: logits are `scale` cosines; CLIP starts at 1 / 0.07 and stops at 100.
  """

  widths: tuple[int, ...]
  bins: tuple[int, int]
  hidden: int
  embed_dim: int
  text_dim: int
  norm_groups: int = 8
  init_scale: float = 1 / 0.07
  max_scale: float = 100.0
  dtype: str = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReaderConfig(vit.BlockConfig):
  """The queries over frozen features.

  Attributes:
    queries: M.
    llm_dim, byt5_dim: E of either encoder.
  """

  queries: int
  llm_dim: int
  byt5_dim: int


_INIT = nnx.initializers.lecun_normal()  # of linear layers; convolutions are the VAE's


class Clip(nnx.Module):
  """The image tower, the text projection and the learned inverse temperature."""

  def __init__(self, cfg: ClipConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.conv_in = vae.Conv(3, cfg.widths[0], 3, stride=2, dtype=cfg.dtype, rngs=rngs)
    for i, (cin, cout) in enumerate(itertools.pairwise(cfg.widths)):
      setattr(self, f"blocks_{i}", classifier.Block(cfg, cin, cout, rngs=rngs))
    self.norm_out = vae.GroupNorm(cfg.widths[-1], cfg.norm_groups, rngs=rngs)
    linear = functools.partial(nnx.Linear, kernel_init=_INIT, dtype=cfg.dtype, rngs=rngs)
    kept = (cfg.bins[0] * cfg.bins[1] + 1) * cfg.widths[-1]
    self.image_hidden = linear(kept, cfg.hidden)
    self.image_head = linear(cfg.hidden, cfg.embed_dim)
    self.text_head = linear(cfg.text_dim, cfg.embed_dim)
    self.log_scale = nnx.Param(jnp.log(jnp.asarray(cfg.init_scale, jnp.float32)))

  def image(self, image_BHWC: jax.Array) -> jax.Array:
    """x_BP of uint8 or [-1, 1] pixels."""
    if image_BHWC.dtype == jnp.uint8:
      image_BHWC = image_BHWC.astype(jnp.float32) / 127.5 - 1.0
    x_BHWC = self.conv_in(image_BHWC.astype(self.cfg.dtype))
    for i in range(len(self.cfg.widths) - 1):
      x_BHWC = getattr(self, f"blocks_{i}")(x_BHWC)
    x_BHWC = jax.nn.silu(self.norm_out(x_BHWC))
    whole_B14 = jnp.broadcast_to(jnp.array([0.0, 0.0, 1.0, 1.0])[None, None], (len(x_BHWC), 1, 4))
    bins_BD = glyph_tower.roi_align(x_BHWC, whole_B14, self.cfg.bins).reshape(len(x_BHWC), -1)
    # Bins say where a thing is, the maximum whether there is any: of bins alone each place learns each thing anew.
    kept_BD = jnp.concatenate([bins_BD, jnp.max(x_BHWC, axis=(1, 2))], axis=1)
    return glyph_tower.unit(self.image_head(jax.nn.silu(self.image_hidden(kept_BD))))

  def text(self, pooled_BE: jax.Array) -> jax.Array:
    """y_BP of pooled text features."""
    return glyph_tower.unit(self.text_head(pooled_BE))

  def scale(self) -> jax.Array:
    """The learned inverse temperature t."""
    return jnp.minimum(jnp.exp(self.log_scale[...]), self.cfg.max_scale)


class ReaderBlock(nnx.Module):
  """Queries look at the features and at one another, then an MLP: a Perceiver resampler's layer (arXiv 2204.14198)."""

  def __init__(self, cfg: ReaderConfig, *, rngs: nnx.Rngs):
    self.layer_norm1 = layers.LayerNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
    self.cross_attn = vit.Attention(cfg, rngs=rngs)
    self.layer_norm2 = layers.LayerNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
    self.mlp = vit.MLP(cfg, rngs=rngs)

  def __call__(self, x_BME: jax.Array, features_BSE: jax.Array, mask_BS: jax.Array) -> jax.Array:
    """One layer; `mask_BS` is True on features that may be looked at."""
    q_BME = self.layer_norm1(x_BME)
    mask_BL = jnp.concatenate([mask_BS, jnp.ones(q_BME.shape[:2], bool)], axis=1)
    context_BLE = jnp.concatenate([features_BSE, q_BME], axis=1)
    x_BME = x_BME + self.cross_attn(q_BME, mask_BL, context_BLE=context_BLE)
    return x_BME + self.mlp(self.layer_norm2(x_BME))


class Reader(nnx.Module):
  """Both frozen encoders' features to one vector: which thing has which colour is in no mean of them.

  A few queries cost little: two blocks over all tokens took longer than the picture tower, and the features know
  their context already.  # ours; undisclosed
  """

  def __init__(self, cfg: ReaderConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    linear = functools.partial(nnx.Linear, kernel_init=_INIT, dtype=cfg.dtype, rngs=rngs)
    self.llm_in, self.byt5_in = linear(cfg.llm_dim, cfg.width), linear(cfg.byt5_dim, cfg.width)
    self.features_norm = layers.LayerNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
    queries = nnx.initializers.normal(1.0)(rngs.params(), (cfg.queries, cfg.width))
    self.queries = nnx.Param(queries)
    self.blocks = layers.Stack(
      lambda r: ReaderBlock(cfg, rngs=r), cfg.depth, remat=cfg.remat, rngs=rngs
    )
    self.final_norm = layers.LayerNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)

  def __call__(
    self, llm_BLE: jax.Array, mask_BL: jax.Array, byt5_BGE: jax.Array, mask_BG: jax.Array
  ) -> jax.Array:
    """x_BE of all queries side by side, E = M width; masks are True on what may be read."""
    parts = self._placed(self.llm_in, llm_BLE), self._placed(self.byt5_in, byt5_BGE)
    features_BSE = self.features_norm(jnp.concatenate(parts, axis=1))
    mask_BS = jnp.concatenate([mask_BL, mask_BG], axis=1)
    x_BME = jnp.broadcast_to(self.queries[...], (len(llm_BLE), *self.queries.shape))
    x_BME, _ = self.blocks(
      x_BME.astype(features_BSE.dtype),
      lambda block, x_BME, _: (block(x_BME, features_BSE, mask_BS), None),
    )
    return self.final_norm(x_BME).reshape(len(x_BME), -1)

  def _placed(self, project, features_BLE: jax.Array) -> jax.Array:
    """Projected to the width, with sinusoidal positions: no length is too long for a table."""
    positions_LE = conditioning.sinusoid(jnp.arange(features_BLE.shape[1]), self.cfg.width)
    return project(features_BLE) + positions_LE[None].astype(self.cfg.dtype)


class LockedClip(Clip):
  """LiT's (arXiv 2111.07991): the text encoders stay as they are; what reads them is trained with the picture tower."""

  def __init__(self, cfg: ClipConfig, reader: ReaderConfig, *, rngs: nnx.Rngs):
    super().__init__(cfg, rngs=rngs)
    self.reader = Reader(reader, rngs=rngs)

  def text(self, *features: jax.Array) -> jax.Array:
    """y_BP of `Reader`'s arguments."""
    return super().text(self.reader(*features))


def make_config(variant: str = "nano", **overrides) -> ClipConfig:
  """A row of VARIANTS with fields replaced; an unknown name raises UserError naming the nearest."""
  return variants.make_config(ClipConfig, VARIANTS, variant, overrides)


def make_locked_config(
  variant: str = "nano", reader: Mapping[str, Any] | None = None, **overrides
) -> tuple[ClipConfig, ReaderConfig]:
  """`LockedClip`'s two configs: rows of VARIANTS and READERS; `reader` replaces fields of the latter."""
  reader_cfg = variants.make_config(ReaderConfig, READERS, variant, reader or {})
  cfg = make_config(variant, text_dim=reader_cfg.queries * reader_cfg.width, **overrides)
  return cfg, dataclasses.replace(reader_cfg, dtype=cfg.dtype)


VARIANTS = {
  "nano": dict(widths=(32, 48, 96, 192), bins=(4, 4), hidden=256, embed_dim=128, text_dim=384),
  "small": dict(
    widths=(64, 128, 256, 512, 512), bins=(4, 4), hidden=1024, embed_dim=512, text_dim=2048
  ),
}

READERS = {
  "nano": dict(width=128, depth=2, num_heads=4, mlp_dim=512, queries=8, llm_dim=192, byt5_dim=128),
  "small": dict(
    width=512, depth=4, num_heads=8, mlp_dim=2048, queries=16, llm_dim=1024, byt5_dim=1472
  ),
}
