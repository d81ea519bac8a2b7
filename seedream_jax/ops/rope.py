"""Rotary positions: 1-D for language models, centre-aligned scaled 2-D for image tokens.

Dims: B batch, L sequence, I image tokens, N heads, K head dim, 2 = (y, x).
Seedream 2.0, Sec. 3.1, Fig. 10 (Scaling RoPE). The paper prints no formula; `scaled_positions` is
the reading that keeps the image centre at one position for every grid. Positions are fractional, so
angles are computed from float32 positions and never looked up in a table.
"""

import jax
import jax.numpy as jnp

from seedream_jax import types


def rope_1d(
  positions: jax.Array, dim: int, theta: float = 10_000.0, llama3: tuple[float, ...] = ()
) -> tuple[jax.Array, jax.Array]:
  """Angles of one axis.

  Args:
    positions: [...], any real numbers.
    dim: how many channels the axis turns; even.
    theta: base of the geometric frequencies 1 .. theta^-(1 - 2/dim).
    llama3: (factor, low, high, length): waves longer than length / low tokens are stretched by factor, those
      shorter than length / high are kept, and between the two it is blended (Llama 3.1).

  Returns:
    cos and sin, [..., dim / 2], float32.
  """
  if dim % 2:
    raise ValueError(f"RoPE turns pairs of channels, dim={dim} is odd")
  frequencies = theta ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
  if llama3:
    factor, low, high, length = llama3
    turns = length * frequencies / (2 * jnp.pi)
    kept = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    frequencies = frequencies * (kept + (1 - kept) / factor)
  angles = jnp.asarray(positions, jnp.float32)[..., None] * jnp.expand_dims(
    frequencies, tuple(range(jnp.ndim(positions)))
  )
  return jnp.cos(angles), jnp.sin(angles)


def rope_2d(pos_I2: jax.Array, dim: int, theta: float = 10_000.0) -> tuple[jax.Array, jax.Array]:
  """Angles of an image token: the first half of the pairs turns with y, the second with x."""
  if dim % 4:
    raise ValueError(f"2-D RoPE needs a head dim divisible by 4, got {dim}")
  cos_I2F, sin_I2F = rope_1d(pos_I2, dim // 2, theta)
  return cos_I2F.reshape(-1, dim // 2), sin_I2F.reshape(-1, dim // 2)


def apply(x_BLNK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
  """Turns channel pairs (k, k + K/2) of `x`; cos and sin are [L, K/2] or [B, L, K/2]."""
  if cos.ndim == 2:
    cos, sin = cos[None], sin[None]
  cos_BL1F, sin_BL1F = cos[:, :, None], sin[:, :, None]
  a, b = jnp.split(x_BLNK.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos_BL1F - b * sin_BL1F, b * cos_BL1F + a * sin_BL1F], axis=-1)
  return turned.astype(x_BLNK.dtype)


def scaled_positions(h: int, w: int, base: float, mode: str = "area") -> jax.Array:
  """Centre-aligned positions of an h x w token grid, [h * w, 2] float32, row-major.

  One scale for both axes keeps patches square; the centre is (base - 1) / 2 whatever h and w are.

  Args:
    h: token rows.
    w: token columns.
    base: side of the grid at which positions are 0 .. base - 1.
    mode: "area": s = base / sqrt(h w); "longest_side": s = base / max(h, w).  # ours; undisclosed
  """
  if mode not in ("area", "longest_side"):
    raise types.UserError(f"rope mode {mode!r}: expected area or longest_side")
  scale = base / ((h * w) ** 0.5 if mode == "area" else max(h, w))
  y_h = (base - 1) / 2 + scale * (jnp.arange(h, dtype=jnp.float32) - (h - 1) / 2)
  x_w = (base - 1) / 2 + scale * (jnp.arange(w, dtype=jnp.float32) - (w - 1) / 2)
  return _grid(y_h, x_w)


def corner_positions(h: int, w: int) -> jax.Array:
  """Plain integer positions from the top-left corner: the ablation of `scaled_positions`."""
  return _grid(jnp.arange(h, dtype=jnp.float32), jnp.arange(w, dtype=jnp.float32))


def _grid(y_h: jax.Array, x_w: jax.Array) -> jax.Array:
  return jnp.stack(jnp.meshgrid(y_h, x_w, indexing="ij"), axis=-1).reshape(-1, 2)
