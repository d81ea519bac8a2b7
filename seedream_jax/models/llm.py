"""Decoder-only language model of the Qwen3 family, used as the text encoder.

Dims: B batch, L tokens, E width, F MLP hidden, N heads, K head dim, V vocabulary.
Leaf names follow the published checkpoints (`self_attn/q_proj`, `mlp/gate_proj`, ...). `qk_norm`
off and `qkv_bias` on is Qwen2.5; both off is Llama. Seedream 2.0 says of its LLM only that it is
self-developed, decoder-only and bilingual (Sec. 3.2).
# ours; undisclosed: Qwen3, the nearest open family.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from seedream_jax.models import layers, lora, variants
from seedream_jax.ops import attention, rope


@dataclasses.dataclass(frozen=True)
class LLMConfig:
  """Sizes and switches; the defaults of the switches are Qwen3's, those of the ids data/tokenizers.py's.

  A text is its pieces and `eos_id`, padded at the right with `pad_id`; the two may be one.
  """

  vocab_size: int
  width: int
  depth: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  qk_norm: bool = True
  qkv_bias: bool = False
  tied: bool = True  # logits through the embedding table; False adds `lm_head`
  rope_theta: float = 1e6
  rope_llama3: tuple[float, ...] = ()  # Llama 3.1's stretched frequencies, see ops/rope.py
  norm_eps: float = 1e-6
  pad_id: int = 0
  eos_id: int = 3
  remat: str = "none"
  dtype: str = "float32"
  lora: "lora.LoRAConfig | None" = None  # adapters: fields of lora.LoRAConfig

  def __post_init__(self):
    object.__setattr__(self, "lora", lora.make_config(self.lora))


_linear = functools.partial(layers.linear, bias=False)


class Attention(nnx.Module):
  """Causal grouped-query attention with RMS-normed queries and keys, rotated after the norm."""

  def __init__(self, cfg: LLMConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    q_dim, kv_dim = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    self.q_proj = _linear(cfg, cfg.width, q_dim, "in", bias=cfg.qkv_bias, rngs=rngs)
    self.k_proj = _linear(cfg, cfg.width, kv_dim, "in", bias=cfg.qkv_bias, rngs=rngs)
    self.v_proj = _linear(cfg, cfg.width, kv_dim, "in", bias=cfg.qkv_bias, rngs=rngs)
    self.o_proj = _linear(cfg, q_dim, cfg.width, "out", rngs=rngs)
    if cfg.qk_norm:
      self.q_norm = layers.RMSNorm(cfg.head_dim, eps=cfg.norm_eps, rngs=rngs)
      self.k_norm = layers.RMSNorm(cfg.head_dim, eps=cfg.norm_eps, rngs=rngs)

  def __call__(
    self, x_BLE: jax.Array, mask_BL: jax.Array | None, angles: tuple[jax.Array, jax.Array]
  ) -> jax.Array:
    """Mixes tokens; `angles` are cos and sin of the rotation."""
    head = (*x_BLE.shape[:2], -1, self.cfg.head_dim)
    q_BLNK = self.q_proj(x_BLE).reshape(head)
    k_BLNK = self.k_proj(x_BLE).reshape(head)
    v_BLNK = self.v_proj(x_BLE).reshape(head)
    if self.cfg.qk_norm:
      q_BLNK, k_BLNK = self.q_norm(q_BLNK), self.k_norm(k_BLNK)
    q_BLNK, k_BLNK = rope.apply(q_BLNK, *angles), rope.apply(k_BLNK, *angles)
    att_BLNK = attention.joint(q_BLNK, k_BLNK, v_BLNK, mask_BL, causal=True)
    return self.o_proj(att_BLNK.reshape(*x_BLE.shape[:2], -1))


class MLP(nnx.Module):
  """SwiGLU."""

  def __init__(self, cfg: LLMConfig, *, rngs: nnx.Rngs):
    self.gate_proj = _linear(cfg, cfg.width, cfg.mlp_dim, "in", rngs=rngs)
    self.up_proj = _linear(cfg, cfg.width, cfg.mlp_dim, "in", rngs=rngs)
    self.down_proj = _linear(cfg, cfg.mlp_dim, cfg.width, "out", rngs=rngs)

  def __call__(self, x_BLE: jax.Array) -> jax.Array:
    """Token by token."""
    return self.down_proj(jax.nn.silu(self.gate_proj(x_BLE)) * self.up_proj(x_BLE))


class Block(nnx.Module):
  """Pre-norm attention and MLP, each added to the residual stream."""

  def __init__(self, cfg: LLMConfig, *, rngs: nnx.Rngs):
    self.input_layernorm = layers.RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
    self.self_attn = Attention(cfg, rngs=rngs)
    self.post_attention_layernorm = layers.RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
    self.mlp = MLP(cfg, rngs=rngs)

  def __call__(
    self, x_BLE: jax.Array, mask_BL: jax.Array | None, angles: tuple[jax.Array, jax.Array]
  ) -> jax.Array:
    """One layer of the decoder."""
    x_BLE = x_BLE + self.self_attn(self.input_layernorm(x_BLE), mask_BL, angles)
    return x_BLE + self.mlp(self.post_attention_layernorm(x_BLE))


class LLM(nnx.Module):
  """Token ids to features; `logits` turns features into next-token scores."""

  def __init__(self, cfg: LLMConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.embed_tokens = nnx.Embed(
      cfg.vocab_size,
      cfg.width,
      dtype=cfg.dtype,
      embedding_init=layers.residual_inits(cfg.depth)["embed"],
      rngs=rngs,
    )
    self.blocks = layers.Stack(lambda r: Block(cfg, rngs=r), cfg.depth, remat=cfg.remat, rngs=rngs)
    self.norm = layers.RMSNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
    if not cfg.tied:
      self.lm_head = _linear(cfg, cfg.width, cfg.vocab_size, "in", rngs=rngs)
    lora.attach(self, cfg.lora, "model.llm.lora", rngs=rngs)

  def __call__(self, ids_BL: jax.Array, mask_BL: jax.Array | None = None) -> jax.Array:
    """Features after the final norm.

    Args:
      ids_BL: token ids, padded at the right.
      mask_BL: True where a token may be attended to. None is right for right-padded text, whose
        real tokens come before the padding and so never see it.

    Returns:
      features_BLE; rows of padding are finite and meaningless.
    """
    cfg, positions_L = self.cfg, jnp.arange(ids_BL.shape[1])
    angles = rope.rope_1d(positions_L, cfg.head_dim, cfg.rope_theta, cfg.rope_llama3)
    x_BLE, _ = self.blocks(
      self.embed_tokens(ids_BL), lambda block, x_BLE, _: (block(x_BLE, mask_BL, angles), None)
    )
    return self.norm(x_BLE)

  def logits(self, features_BLE: jax.Array) -> jax.Array:
    """Next-token scores in float32."""
    scores_BLV = (
      self.embed_tokens.attend(features_BLE) if self.cfg.tied else self.lm_head(features_BLE)
    )
    return scores_BLV.astype(jnp.float32)


def text_mask(cfg: LLMConfig, ids_BL: jax.Array) -> jax.Array:
  """mask_BL, True on a text's tokens, its end included.

  Where texts are padded with the end token (Llama, Qwen's base models), a text goes up to the first one.
  """
  if cfg.pad_id != cfg.eos_id:
    return ids_BL != cfg.pad_id
  is_end_BL = ids_BL == cfg.eos_id
  return jnp.cumsum(is_end_BL, axis=1) - is_end_BL == 0


def empty_prompt(cfg: LLMConfig, shape: tuple[int, int]) -> jax.Array:
  """int32 ids of `shape` (B, L) that say nothing: [eos], padded."""
  return jnp.full(shape, cfg.pad_id, jnp.int32).at[:, 0].set(cfg.eos_id)


def pooled(features_BLE: jax.Array, mask_BL: jax.Array) -> jax.Array:
  """One vector a text: masked mean beside the last token's feature, [B, 2E] float32."""
  features_BLE = features_BLE.astype(jnp.float32)
  weight_BL = mask_BL.astype(jnp.float32)
  mean_BE = jnp.einsum("ble,bl->be", features_BLE, weight_BL) / jnp.sum(weight_BL, 1)[:, None]
  last_B = jnp.sum(mask_BL, axis=1) - 1
  last_BE = jnp.take_along_axis(features_BLE, last_B[:, None, None], axis=1)[:, 0]
  return jnp.concatenate([mean_BE, last_BE], axis=1)


def make_config(variant: str = "nano", **overrides) -> LLMConfig:
  """A row of VARIANTS with fields replaced.

  Raises:
    UserError: for an unknown variant or field, naming the nearest one.
  """
  return variants.make_config(LLMConfig, VARIANTS, variant, overrides)


# The billions are Qwen3's published sizes (hf.co/Qwen/Qwen3-*/config.json); nano is ours.
VARIANTS = {
  "nano": dict(
    vocab_size=2048, width=192, depth=4, num_heads=3, num_kv_heads=1, head_dim=64, mlp_dim=512
  ),
  "0.6B": dict(
    vocab_size=151936,
    width=1024,
    depth=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=3072,
  ),
  "1.7B": dict(
    vocab_size=151936,
    width=2048,
    depth=28,
    num_heads=16,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=6144,
  ),
  "4B": dict(
    vocab_size=151936,
    width=2560,
    depth=36,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=9728,
  ),
  "8B": dict(
    vocab_size=151936,
    width=4096,
    depth=36,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    mlp_dim=12288,
    tied=False,
  ),
}
