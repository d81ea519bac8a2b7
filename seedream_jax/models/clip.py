"""Images and captions as unit vectors of one space: a small convnet beside projected LLM features.

Dims: B batch, H W C pixels or feature grid, E text feature width, P joint embedding.
The text side is whatever encoder is being aligned; here is only its linear projection.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
from flax import nnx

from seedream_jax.models import classifier, glyph_tower, vae, variants


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


def make_config(variant: str = "nano", **overrides) -> ClipConfig:
  """A row of VARIANTS with fields replaced; an unknown name raises UserError naming the nearest."""
  return variants.make_config(ClipConfig, VARIANTS, variant, overrides)


VARIANTS = {
  "nano": dict(widths=(32, 48, 96, 192), bins=(4, 4), hidden=256, embed_dim=128, text_dim=384),
  "small": dict(
    widths=(64, 128, 256, 512, 512), bins=(4, 4), hidden=1024, embed_dim=512, text_dim=2048
  ),
}
