"""Published two-tower models: a ViT and a text tower whose unit vectors share a space.

Dims: B batch, L text tokens, E width, P joint embedding.
CLIP (Radford et al. 2021, arXiv 2103.00020) has a causal text tower that is read at the end token;
Chinese-CLIP (Yang et al. 2022, arXiv 2211.01335) a BERT that is read at its first token, [CLS]. The
convnet that this project trains from scratch is `clip.py`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seedream_jax import types
from seedream_jax.models import glyph_tower, layers, variants, vit


@dataclasses.dataclass(frozen=True, kw_only=True)
class CausalTextConfig(vit.BlockConfig):
  """CLIP's text tower.

  Attributes:
    vocab_size: rows of the token table.
    length: rows of the position table, the most tokens of a text.
    eos_id: a text is read at its first such token; None at its highest id (the first models' rule).
  """

  vocab_size: int
  length: int
  eos_id: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig(vit.BlockConfig):
  """Chinese-CLIP's text tower, with CLIP's words for its sizes."""

  vocab_size: int
  length: int
  segments: int = 2  # of which the first is used
  pad_id: int = 0
  norm_first: bool = False
  norm_eps: float = 1e-12


@dataclasses.dataclass(frozen=True)
class TwoTowerConfig:
  """Both towers; `embed_dim` is P."""

  vision: vit.ViTConfig
  text: CausalTextConfig | BertConfig
  embed_dim: int

  @property
  def dtype(self) -> str:
    """Of both."""
    return self.vision.dtype


def _embed(cfg: vit.BlockConfig, rows: int, rngs: nnx.Rngs) -> nnx.Embed:
  init = nnx.initializers.normal(0.02)
  return nnx.Embed(rows, cfg.width, dtype=cfg.dtype, embedding_init=init, rngs=rngs)


def _rows(embed: nnx.Embed, length: int) -> jax.Array:
  """The first `length` positions, [1, L, E]."""
  if length > embed.num_embeddings:
    raise types.UserError(
      f"text of {length} tokens: the tower reads at most {embed.num_embeddings}"
    )
  return embed(jnp.arange(length))[None]


class CausalText(nnx.Module):
  """Token ids to features; `pooled` reads them at the end token."""

  def __init__(self, cfg: CausalTextConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.token_embedding = _embed(cfg, cfg.vocab_size, rngs)
    self.position_embedding = _embed(cfg, cfg.length, rngs)
    self.blocks = layers.Stack(
      lambda r: vit.Block(cfg, rngs=r), cfg.depth, remat=cfg.remat, rngs=rngs
    )
    self.final_norm = layers.LayerNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)

  def __call__(self, ids_BL: jax.Array, mask_BL: jax.Array | None = None) -> jax.Array:
    """features_BLE after the final norm; a text padded at the right needs no mask."""
    x_BLE = self.token_embedding(ids_BL) + _rows(self.position_embedding, ids_BL.shape[1])
    x_BLE, _ = self.blocks(x_BLE, lambda block, x_BLE, _: (block(x_BLE, mask_BL, True), None))
    return self.final_norm(x_BLE)

  def mask(self, ids_BL: jax.Array) -> None:
    """None: no token sees what is right of it, and a text is read at its first end."""
    del ids_BL

  def pooled(self, ids_BL: jax.Array, mask_BL: jax.Array | None = None) -> jax.Array:
    """features_BE at the end token; at the first token of a text that has none."""
    found_BL = ids_BL if self.cfg.eos_id is None else ids_BL == self.cfg.eos_id
    end_B11 = jnp.argmax(found_BL, axis=1)[:, None, None]
    return jnp.take_along_axis(self(ids_BL, mask_BL), end_B11, axis=1)[:, 0]


class Bert(nnx.Module):
  """Token ids to features; `pooled` reads them at the first token, [CLS]."""

  def __init__(self, cfg: BertConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.word_embeddings = _embed(cfg, cfg.vocab_size, rngs)
    self.position_embeddings = _embed(cfg, cfg.length, rngs)
    self.token_type_embeddings = _embed(cfg, cfg.segments, rngs)
    self.norm = layers.LayerNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
    self.blocks = layers.Stack(
      lambda r: vit.Block(cfg, rngs=r), cfg.depth, remat=cfg.remat, rngs=rngs
    )

  def __call__(self, ids_BL: jax.Array, mask_BL: jax.Array | None = None) -> jax.Array:
    """features_BLE; `mask_BL` is True on real tokens, and None says that all are."""
    x_BLE = self.word_embeddings(ids_BL) + self.token_type_embeddings(jnp.zeros_like(ids_BL))
    x_BLE = self.norm(x_BLE + _rows(self.position_embeddings, ids_BL.shape[1]))
    x_BLE, _ = self.blocks(x_BLE, lambda block, x_BLE, _: (block(x_BLE, mask_BL), None))
    return x_BLE

  def mask(self, ids_BL: jax.Array) -> jax.Array:
    """mask_BL, True on real tokens."""
    return ids_BL != self.cfg.pad_id

  def pooled(self, ids_BL: jax.Array, mask_BL: jax.Array | None = None) -> jax.Array:
    """features_BE of [CLS]."""
    return self(ids_BL, mask_BL)[:, 0]


class TwoTower(nnx.Module):
  """Both towers, their projections and the learned inverse temperature."""

  def __init__(self, cfg: TwoTowerConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.vision_model = vit.ViT(cfg.vision, rngs=rngs)
    text = Bert if isinstance(cfg.text, BertConfig) else CausalText
    self.text_model = text(cfg.text, rngs=rngs)
    init = nnx.initializers.lecun_normal()
    self.visual_projection, self.text_projection = (
      nnx.Linear(
        side.width, cfg.embed_dim, use_bias=False, kernel_init=init, dtype=cfg.dtype, rngs=rngs
      )
      for side in (cfg.vision, cfg.text)
    )
    self.logit_scale = nnx.Param(jnp.log(jnp.asarray(1 / 0.07, jnp.float32)))

  def image(self, image_BHWC: jax.Array) -> jax.Array:
    """x_BP, float32 unit vectors of uint8 or [-1, 1] pixels."""
    return glyph_tower.unit(self.visual_projection(self.vision_model(image_BHWC)[:, 0]))

  def text(self, ids_BL: jax.Array, mask_BL: jax.Array | None = None) -> jax.Array:
    """y_BP, float32 unit vectors of texts padded at the right; `mask_BL` is True on real tokens."""
    return glyph_tower.unit(self.text_projection(self.text_model.pooled(ids_BL, mask_BL)))

  def scale(self) -> jax.Array:
    """The learned inverse temperature: logits are `scale` cosines."""
    return jnp.exp(self.logit_scale[...].astype(jnp.float32))


def fit(image_BHWC: jax.Array, cfg: vit.ViTConfig) -> jax.Array:
  """Pictures of any size, in [-1, 1], at about the number of patches that the table of positions has.

  Published processors cut a square out of the middle; a judge of a whole picture must see its edges, so that here the
  ratio stays, as near as whole patches allow, and the positions are interpolated.  # ours; undisclosed
  """
  if image_BHWC.dtype == jnp.uint8:
    image_BHWC = image_BHWC.astype(jnp.float32) / 127.5 - 1.0
  (batch, height, width, channels), area = image_BHWC.shape, cfg.grid[0] * cfg.grid[1]
  rows = max(round(math.sqrt(area * height / width)), 1)
  columns = max(round(math.sqrt(area * width / height)), 1)
  size = (rows * cfg.patch, columns * cfg.patch)
  if size == (height, width):
    return image_BHWC
  return jax.image.resize(image_BHWC, (batch, *size, channels), "cubic", antialias=True)


def is_published(fields: Mapping[str, Any]) -> bool:
  """Whether a config's fields are of this model, and not of `clip.py`'s."""
  return "vision" in fields


def make_config(
  vision: Mapping[str, Any], text: Mapping[str, Any], embed_dim: int, **both: Any
) -> TwoTowerConfig:
  """The config of fields as JSON holds them; `both` (dtype, remat) are of both towers.

  Raises:
    types.UserError: an unknown field, naming the nearest.
  """
  kinds = (vit.ViTConfig, CausalTextConfig if "eos_id" in text else BertConfig)
  towers = (
    variants.make_config(kind, {"given": {}}, "given", {**fields, **both})
    for kind, fields in zip(kinds, (vision, text))
  )
  return TwoTowerConfig(*towers, embed_dim)
