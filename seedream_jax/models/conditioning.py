"""What conditions the DiT: one class each, and the splice of the two text encoders.

Dims: B batch, L LLM tokens, G glyph bytes, T = L + G spliced text, E encoder width, D model width, A aesthetic labels,
2 = (negative, positive).
Every condition but time ends in a zero-initialised layer: adding one to a trained model changes
nothing until it is trained. A condition is fn(t_B, cond, size_B2) -> vec_BD, and their sum feeds
adaLN (which ones: # ours; undisclosed, after SD3, FLUX and Seedream 3.0's size embedding).
Everything here but the splice is float32: it is small, and modulation is sensitive.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from seedream_jax import types
from seedream_jax.models import layers
from seedream_jax.ops import partition

FREQUENCIES = 256  # channels of a sinusoidal embedding, as in DiT and FLUX


def sinusoid(x: jax.Array, dim: int = FREQUENCIES, max_period: float = 10_000.0) -> jax.Array:
  """cos and sin of x at dim / 2 geometric frequencies: [...] -> [..., dim], float32."""
  frequencies = max_period ** (-jnp.arange(dim // 2, dtype=jnp.float32) / (dim // 2))
  angles = x.astype(jnp.float32)[..., None] * jnp.expand_dims(frequencies, tuple(range(x.ndim)))
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class MLP(nnx.Module):
  """Linear, SiLU, Linear; the second may start at zero."""

  def __init__(
    self, din: int, dim: int, *, zero: bool = False, dtype: str = "float32", rngs: nnx.Rngs
  ):
    last = nnx.initializers.zeros if zero else nnx.initializers.lecun_normal()
    self.fc1 = nnx.Linear(din, dim, dtype=dtype, rngs=rngs)
    self.fc2 = nnx.Linear(dim, dim, kernel_init=last, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., din] -> [..., dim]."""
    return partition.by_batch(self.fc2(nnx.silu(partition.by_batch(self.fc1(x)))))


class Time(nnx.Module):
  """Where on the path: sinusoid(1000 t) through an MLP."""

  def __init__(self, width: int, text_dim: int, *, rngs: nnx.Rngs):
    del text_dim
    self.mlp = MLP(FREQUENCIES, width, rngs=rngs)

  def __call__(self, t_B: jax.Array, cond: types.Cond, size_B2: jax.Array) -> jax.Array:
    """[B, D] float32."""
    del cond, size_B2
    return self.mlp(sinusoid(1000.0 * t_B.astype(jnp.float32)))


class Size(nnx.Module):
  """Height and width of the picture in pixels (Seedream 3.0, Sec. 2.2)."""

  def __init__(self, width: int, text_dim: int, *, rngs: nnx.Rngs):
    del text_dim
    self.mlp = MLP(FREQUENCIES, width, zero=True, rngs=rngs)

  def __call__(self, t_B: jax.Array, cond: types.Cond, size_B2: jax.Array) -> jax.Array:
    """[B, D] float32."""
    del t_B, cond
    return self.mlp(sinusoid(size_B2, FREQUENCIES // 2).reshape(-1, FREQUENCIES))


class Pooled(nnx.Module):
  """The prompt's pooled LLM feature: the coarse meaning that SD3 takes from CLIP."""

  def __init__(self, width: int, text_dim: int, *, rngs: nnx.Rngs):
    self.mlp = MLP(text_dim, width, zero=True, rngs=rngs)

  def __call__(self, t_B: jax.Array, cond: types.Cond, size_B2: jax.Array) -> jax.Array:
    """[B, D] float32."""
    del t_B, size_B2
    return self.mlp(cond.vec_BE.astype(jnp.float32))


class Guidance(nnx.Module):
  """The guidance scale of a guidance-distilled model, embedded as time is."""

  def __init__(self, width: int, text_dim: int, *, rngs: nnx.Rngs):
    del text_dim
    self.mlp = MLP(FREQUENCIES, width, zero=True, rngs=rngs)

  def __call__(self, t_B: jax.Array, cond: types.Cond, size_B2: jax.Array) -> jax.Array:
    """[B, D] float32."""
    del t_B, size_B2
    if cond.guidance_B is None:
      raise ValueError("this DiT is conditioned on guidance: Cond.guidance_B must be set")
    return self.mlp(sinusoid(1000.0 * cond.guidance_B.astype(jnp.float32)))


class Origin(nnx.Module):
  """Whether the picture is real or drawn by a model: what SFT's negative samples are labelled with (Sec. 4.2).

  How the label enters is # ours; undisclosed.
  """

  def __init__(self, width: int, text_dim: int, *, rngs: nnx.Rngs):
    del text_dim, rngs
    self.table = nnx.Param(jnp.zeros((2, width), jnp.float32))

  def __call__(self, t_B: jax.Array, cond: types.Cond, size_B2: jax.Array) -> jax.Array:
    """[B, D] float32; zero where unknown."""
    del t_B, size_B2
    if cond.origin_B is None:
      raise ValueError("this DiT is conditioned on the origin: Cond.origin_B must be set")
    return jax.nn.one_hot(cond.origin_B, 2) @ self.table[...]


CONDITIONS = {
  "time": Time,
  "size": Size,
  "pooled": Pooled,
  "guidance": Guidance,
  "origin": Origin,
}


class Conditions(nnx.Module):
  """The sum of the named conditions; each lives under its own name in the parameter tree."""

  def __init__(self, names: tuple[str, ...], width: int, text_dim: int, *, rngs: nnx.Rngs):
    for name in names:
      if name not in CONDITIONS:
        raise types.UserError(f"condition {name!r}: expected one of {', '.join(CONDITIONS)}")
      setattr(self, name, CONDITIONS[name](width, text_dim, rngs=rngs))
    self.names = tuple(names)

  def __call__(self, t_B: jax.Array, cond: types.Cond, size_B2: jax.Array) -> jax.Array:
    """The adaLN vector, [B, D] float32."""
    return sum(getattr(self, name)(t_B, cond, size_B2) for name in self.names)


class TextSplice(nnx.Module):
  """Joins LLM and ByT5 features on the sequence; an MLP takes ByT5 to LLM width (Sec. 3.3).

  The LLM's padded bucket comes first, then the bytes in fixed slots, masked where none is rendered.
  """

  def __init__(self, glyph_len: int, glyph_dim: int, text_dim: int, *, dtype: str, rngs: nnx.Rngs):
    self.glyph_len = glyph_len
    self.mlp = MLP(glyph_dim, text_dim, dtype=dtype, rngs=rngs)

  def __call__(
    self, llm_BLE: jax.Array, mask_BL: jax.Array, byt5_BGE: jax.Array, mask_BG: jax.Array
  ) -> types.Cond:
    """Condition of features and of masks that are True on tokens the DiT may see."""
    if byt5_BGE.shape[1] != self.glyph_len:
      raise types.UserError(
        f"texts carry {byt5_BGE.shape[1]} glyph bytes, the DiT has glyph_len={self.glyph_len} slots"
      )
    glyph_BGE = self.mlp(byt5_BGE).astype(llm_BLE.dtype)
    seen_BL1 = mask_BL[:, :, None].astype(jnp.float32)
    total_BE = jnp.sum(llm_BLE.astype(jnp.float32) * seen_BL1, axis=1)
    return types.Cond(
      txt_BTE=jnp.concatenate([llm_BLE, glyph_BGE], axis=1),
      mask_BT=jnp.concatenate([mask_BL, mask_BG], axis=1),
      vec_BE=total_BE / jnp.maximum(jnp.sum(seen_BL1, axis=1), 1.0),
    )


class VMix(nnx.Module):
  """Aesthetic labels as one more value of every text token (VMix, arXiv:2412.20800, Sec. 3).

  Each label's negative or positive embedding is picked; a linear map over the token axis spreads the A of them over the
  text tokens, as many as there are keys; LayerNorm; a linear map. Blocks project what comes out, from zero at the
  start, and let the image read it through the attention it already pays to the text. VMix has the zero in the shared
  map; in the blocks' own it is learned faster, for every block sees its own gradient.  # ours

  `labels` is not trained: it holds a text encoder's features of the label words, written once (stages/denoise.py).
  The last G rows of the map are the bytes' slots, as in the DiT's table of positions.
  """

  def __init__(
    self, num_labels: int, glyph_len: int, rows: int, text_dim: int, width: int, *, rngs: nnx.Rngs
  ):
    self.glyph_len = glyph_len
    self.labels = nnx.Param(jnp.zeros((num_labels, 2, text_dim), jnp.float32))
    # Around 1: of weights around 0 every token hears another mixture, and what the image reads, an average over tokens,
    # cancels out; 16,000 pictures then teach nothing.  # ours; undisclosed
    noise_XA = jax.random.normal(rngs.params(), (rows, num_labels))
    self.mix = nnx.Param(1.0 + 0.5 * noise_XA)
    self.proj = nnx.Linear(text_dim, width, rngs=rngs)

  def __call__(self, tags_BA: jax.Array, strength_B: jax.Array | None, num_text: int) -> jax.Array:
    """[B, T, D] float32, zero for an example of which no label is known."""
    labels_A2E, picked_BA2 = self.labels[...], jax.nn.one_hot(tags_BA, 2)  # of -1: nothing
    tokens_BAE = jnp.einsum("bas,ase->bae", picked_BA2, labels_A2E)
    table_XA, num_llm = self.mix[...], num_text - self.glyph_len
    mix_TA = jnp.concatenate([table_XA[:num_llm], table_XA[len(table_XA) - self.glyph_len :]])
    x_BTE = layers.layer_norm(jnp.einsum("ta,bae->bte", mix_TA, tokens_BAE))
    scale_B = jnp.any(tags_BA >= 0, axis=1).astype(jnp.float32)
    if strength_B is not None:
      scale_B = scale_B * strength_B
    return scale_B[:, None, None] * self.proj(x_BTE)
