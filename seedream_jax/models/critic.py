"""The autoencoder's critic: a PatchGAN, one verdict a patch (Isola et al. 2017, arXiv 1611.07004).

Dims: B batch, H W grid height, width, C channels. Group norm in place of batch norm, so that an example's score does
not depend on its neighbours.
"""

import dataclasses

import jax
from flax import nnx

from seedream_jax.models import vae, variants


@dataclasses.dataclass(frozen=True)
class CriticConfig:
  """Sizes: `widths` of the strided layers; the last layer but one keeps the grid."""

  widths: tuple[int, ...]
  norm_groups: int
  image_channels: int = 3
  dtype: str = "float32"


class Critic(nnx.Module):
  """Strided convolutions, then one logit a patch."""

  def __init__(self, cfg: CriticConfig, *, rngs: nnx.Rngs):
    self.depth = len(cfg.widths)
    cin = cfg.image_channels
    for i, width in enumerate(cfg.widths):
      setattr(self, f"conv_{i}", vae.Conv(cin, width, 3, stride=2, dtype=cfg.dtype, rngs=rngs))
      if i > 0:  # as in the paper, none after the first layer
        setattr(self, f"norm_{i}", vae.GroupNorm(width, cfg.norm_groups, rngs=rngs))
      cin = width
    self.conv_out = vae.Conv(cin, 1, 3, dtype=cfg.dtype, rngs=rngs)

  def __call__(self, image_BHWC: jax.Array) -> jax.Array:
    """logits_BHW of image patches in [-1, 1]; above 0 is real."""
    x_BHWC = image_BHWC
    for i in range(self.depth):
      x_BHWC = getattr(self, f"conv_{i}")(x_BHWC)
      if i > 0:
        x_BHWC = getattr(self, f"norm_{i}")(x_BHWC)
      x_BHWC = jax.nn.leaky_relu(x_BHWC, 0.2)
    return self.conv_out(x_BHWC)[..., 0]


def make_config(variant: str = "nano", **overrides) -> CriticConfig:
  """A row of VARIANTS with fields replaced; an unknown name raises UserError naming the nearest."""
  return variants.make_config(CriticConfig, VARIANTS, variant, overrides)


VARIANTS: dict[str, dict] = {
  "nano": dict(widths=(24, 48, 96), norm_groups=8),
  "small": dict(widths=(64, 128, 256), norm_groups=32),
  "base": dict(widths=(64, 128, 256, 512), norm_groups=32),
}
