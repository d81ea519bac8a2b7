"""ByT5, the T5 v1.1 encoder over bytes: it spells the strings to be rendered.

Dims: B batch, G glyph bytes, E width, F MLP hidden, N heads, K head dim.
Xue et al. 2021, arXiv 2105.13626. RMS norm without bias, gated tanh-GELU, no scaling of q.k, one
bucketed relative position bias shared by all blocks. Leaf names follow the published checkpoints
(`q`, `wi_0`, ...).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedream_jax.models import layers, variants
from seedream_jax.ops import attention

PAD, EOS = 0, 1  # a byte b is id b + 3; 2 is unknown


@dataclasses.dataclass(frozen=True)
class ByT5Config:
  """Sizes; the bucket numbers are T5's."""

  width: int
  depth: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  vocab_size: int = 384
  num_buckets: int = 32
  max_distance: int = 128
  norm_eps: float = 1e-6
  remat: str = "none"
  dtype: str = "float32"


def _inits(cfg: ByT5Config) -> dict[str, nnx.Initializer]:
  """Every initialiser, after T5; q carries the 1/sqrt(K) that its attention leaves out."""
  normal = nnx.initializers.normal
  return {
    "embed": normal(1.0),
    "q": normal((cfg.width * cfg.head_dim) ** -0.5),
    "in": normal(cfg.width**-0.5),
    "attention_out": normal((cfg.num_heads * cfg.head_dim) ** -0.5),
    "mlp_out": normal(cfg.mlp_dim**-0.5),
    "bias": normal(cfg.width**-0.5),
  }


def _linear(cfg: ByT5Config, din: int, dout: int, init: str, *, rngs: nnx.Rngs) -> nnx.Linear:
  return nnx.Linear(
    din, dout, use_bias=False, dtype=cfg.dtype, kernel_init=_inits(cfg)[init], rngs=rngs
  )


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> np.ndarray:
  """T5's bidirectional bucket of key position minus query position, int32 (L, L).

  Half the buckets are for keys to the right. Within a half, the first half is one bucket a step,
  the rest grow logarithmically up to `max_distance`, beyond which all distances share the last one.
  """
  offset_LS = np.arange(length)[None, :] - np.arange(length)[:, None]
  half, exact = num_buckets // 2, num_buckets // 4
  distance_LS = np.abs(offset_LS)
  # float32 as in T5: in float64 some bucket edges fall on the other side.
  log_LS = np.log(np.maximum(distance_LS, 1).astype(np.float32) / np.float32(exact))
  log_LS = log_LS / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
  far_LS = np.minimum(exact + log_LS.astype(np.int32), half - 1)
  within_LS = np.where(distance_LS < exact, distance_LS, far_LS)
  return (within_LS + half * (offset_LS > 0)).astype(np.int32)


class SelfAttention(nnx.Module):
  """Bidirectional attention with an additive bias and no scaling."""

  def __init__(self, cfg: ByT5Config, *, rngs: nnx.Rngs):
    self.cfg = cfg
    dim = cfg.num_heads * cfg.head_dim
    self.q = _linear(cfg, cfg.width, dim, "q", rngs=rngs)
    self.k = _linear(cfg, cfg.width, dim, "in", rngs=rngs)
    self.v = _linear(cfg, cfg.width, dim, "in", rngs=rngs)
    self.o = _linear(cfg, dim, cfg.width, "attention_out", rngs=rngs)

  def __call__(self, x_BGE: jax.Array, mask_BG: jax.Array, bias_NGS: jax.Array) -> jax.Array:
    """Mixes bytes."""
    head = (*x_BGE.shape[:2], self.cfg.num_heads, self.cfg.head_dim)
    q_BGNK, k_BGNK, v_BGNK = (layer(x_BGE).reshape(head) for layer in (self.q, self.k, self.v))
    att_BGNK = attention.joint(q_BGNK, k_BGNK, v_BGNK, mask_BG, bias_NSL=bias_NGS, scale=1.0)
    return self.o(att_BGNK.reshape(*x_BGE.shape[:2], -1))


class MLP(nnx.Module):
  """Gated GELU."""

  def __init__(self, cfg: ByT5Config, *, rngs: nnx.Rngs):
    self.wi_0 = _linear(cfg, cfg.width, cfg.mlp_dim, "in", rngs=rngs)
    self.wi_1 = _linear(cfg, cfg.width, cfg.mlp_dim, "in", rngs=rngs)
    self.wo = _linear(cfg, cfg.mlp_dim, cfg.width, "mlp_out", rngs=rngs)

  def __call__(self, x_BGE: jax.Array) -> jax.Array:
    """Byte by byte."""
    return self.wo(jax.nn.gelu(self.wi_0(x_BGE), approximate=True) * self.wi_1(x_BGE))


class Block(nnx.Module):
  """Pre-norm attention and MLP, each added to the residual stream."""

  def __init__(self, cfg: ByT5Config, *, rngs: nnx.Rngs):
    self.self_attention_norm = layers.RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
    self.self_attention = SelfAttention(cfg, rngs=rngs)
    self.mlp_norm = layers.RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
    self.mlp = MLP(cfg, rngs=rngs)

  def __call__(self, x_BGE: jax.Array, mask_BG: jax.Array, bias_NGS: jax.Array) -> jax.Array:
    """One layer of the encoder."""
    x_BGE = x_BGE + self.self_attention(self.self_attention_norm(x_BGE), mask_BG, bias_NGS)
    return x_BGE + self.mlp(self.mlp_norm(x_BGE))


class ByT5(nnx.Module):
  """Byte ids to one feature a byte."""

  def __init__(self, cfg: ByT5Config, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.embed = nnx.Embed(
      cfg.vocab_size, cfg.width, dtype=cfg.dtype, embedding_init=_inits(cfg)["embed"], rngs=rngs
    )
    self.relative_attention_bias = nnx.Embed(
      cfg.num_buckets, cfg.num_heads, embedding_init=_inits(cfg)["bias"], rngs=rngs
    )
    self.blocks = layers.Stack(lambda r: Block(cfg, rngs=r), cfg.depth, remat=cfg.remat, rngs=rngs)
    self.final_norm = layers.RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)

  def __call__(self, ids_BG: jax.Array, mask_BG: jax.Array) -> jax.Array:
    """Features after the final norm.

    Args:
      ids_BG: byte ids, padded at the right.
      mask_BG: True where a byte may be attended to. A row without any attends to its first slot, so
        that it stays finite.

    Returns:
      features_BGE; rows of padding are finite and meaningless.
    """
    buckets_GS = relative_buckets(ids_BG.shape[1], self.cfg.num_buckets, self.cfg.max_distance)
    bias_NGS = jnp.moveaxis(self.relative_attention_bias(buckets_GS), -1, 0).astype(jnp.float32)
    first_G = np.arange(ids_BG.shape[1]) == 0
    mask_BG = mask_BG | (first_G[None, :] & ~jnp.any(mask_BG, axis=1, keepdims=True))
    x_BGE, _ = self.blocks(
      self.embed(ids_BG), lambda block, x_BGE, _: (block(x_BGE, mask_BG, bias_NGS), None)
    )
    return self.final_norm(x_BGE)


def make_config(variant: str = "nano", **overrides) -> ByT5Config:
  """A row of VARIANTS with fields replaced.

  Raises:
    UserError: for an unknown variant or field, naming the nearest one.
  """
  return variants.make_config(ByT5Config, VARIANTS, variant, overrides)


# The named sizes are ByT5's published encoders (hf.co/google/byt5-*/config.json); nano is ours.
VARIANTS = {
  "nano": dict(width=160, depth=4, num_heads=4, head_dim=32, mlp_dim=352),
  "small": dict(width=1472, depth=12, num_heads=6, head_dim=64, mlp_dim=3584),
  "base": dict(width=1536, depth=18, num_heads=12, head_dim=64, mlp_dim=3968),
  "large": dict(width=1536, depth=36, num_heads=16, head_dim=64, mlp_dim=3840),
}
