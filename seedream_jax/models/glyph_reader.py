"""A small convnet that reads one short string in a given zone: the rater of text, never a judge.

Dims: B batch, H W picture or grid, C channels, D width of the layer over all, L character slots, V characters and,
last, "none".
Only the zone is looked at, scaled to one size. Slots are fixed places in the string, not in the picture: slot 0 is the
first character, wherever it stands.  # ours
"""

import dataclasses

import jax
from flax import nnx

from seedream_jax.models import glyph_tower, vae, variants


@dataclasses.dataclass(frozen=True)
class GlyphReaderConfig:
  """Sizes.

  Attributes:
    widths: channels of each level; every level halves the grid, then adds one residual block.
    zone: rows and columns that the zone is scaled to.
    hidden: of the layer that sees the whole zone.
    slots: L, the longest string.
    characters: without "none"; V is one more.
    norm_groups: of every group norm.
  """

  widths: tuple[int, ...]
  zone: tuple[int, int]
  hidden: int
  slots: int = 5
  characters: int = 170
  norm_groups: int = 8
  dtype: str = "float32"


class GlyphReader(nnx.Module):
  """The zone, levels over it, one layer over all that is left, a softmax a slot."""

  def __init__(self, cfg: GlyphReaderConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    for i, (cin, cout) in enumerate(zip((3, *cfg.widths), cfg.widths)):
      setattr(self, f"level_{i}", glyph_tower.Level(cin, cout, cfg, rngs=rngs))
    self.norm = vae.GroupNorm(cfg.widths[-1], cfg.norm_groups, rngs=rngs)
    cells = cfg.zone[0] * cfg.zone[1] // 4 ** len(cfg.widths)
    self.project = nnx.Linear(cells * cfg.widths[-1], cfg.hidden, dtype=cfg.dtype, rngs=rngs)
    self.head = nnx.Linear(cfg.hidden, cfg.slots * (cfg.characters + 1), dtype=cfg.dtype, rngs=rngs)

  def __call__(self, image_BHWC: jax.Array, zone_B4: jax.Array) -> jax.Array:
    """logits_BLV, float32.

    Args:
      image_BHWC: floats in [-1, 1].
      zone_B4: y0, x0, y1, x1 as fractions of the picture.
    """
    x_BHWC = glyph_tower.roi_align(image_BHWC, zone_B4[:, None], self.cfg.zone)[:, 0]
    for i in range(len(self.cfg.widths)):
      x_BHWC = getattr(self, f"level_{i}")(x_BHWC)
    x_BHWC = jax.nn.silu(self.norm(x_BHWC))
    h_BD = jax.nn.silu(self.project(x_BHWC.reshape(len(x_BHWC), -1)))
    logits_BD = self.head(h_BD).astype("float32")
    return logits_BD.reshape(-1, self.cfg.slots, self.cfg.characters + 1)


def make_config(variant: str = "nano", **overrides) -> GlyphReaderConfig:
  """A row of VARIANTS with fields replaced; an unknown name raises UserError naming the nearest."""
  return variants.make_config(GlyphReaderConfig, VARIANTS, variant, overrides)


VARIANTS = {
  "nano": dict(widths=(24, 48), zone=(32, 64), hidden=256),
}
