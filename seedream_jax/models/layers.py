"""Layers shared by the DiT and the encoders.

Dims: B batch, L sequence, D width, F MLP hidden.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seedream_jax.ops import attention, partition

# What a scanned block keeps for its backward pass, by name.
REMAT_POLICIES = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(attention.RESULT),
  ),
}


class Stack(nnx.Module):
  """`depth` copies of one block, parameters stacked on a leading dim, run by `lax.scan`.

  Args:
    make_block: builds one block from an `nnx.Rngs`.
    depth: number of blocks.
    remat: a key of REMAT_POLICIES.
  """

  def __init__(
    self,
    make_block: Callable[[nnx.Rngs], nnx.Module],
    depth: int,
    *,
    remat: str = "none",
    rngs: nnx.Rngs,
  ):
    self.layers = nnx.vmap(make_block, in_axes=0, out_axes=0)(rngs.split(depth))
    self.remat = remat

  def __call__(self, carry: Any, call: Callable[[Any, Any, Any], tuple[Any, Any]], xs: Any = None):
    """Scans `carry, y = call(block, carry, x)` over the blocks; returns (carry, ys stacked by block).

    The carry's leaves lead with the batch.
    """
    graphdef, stacked = nnx.split(self.layers)

    def body(carry, slices):
      params, x = slices
      carry, y = call(nnx.merge(graphdef, params), carry, x)
      # Said of what comes out: said of what goes in, XLA's gradients are wrong by a third on a mesh that has data, fsdp
      # and tensor (jax 0.10.2 on CPUs; loop_test).
      return jax.tree.map(partition.by_batch, carry), y

    carry = jax.tree.map(partition.by_batch, carry)
    if REMAT_POLICIES[self.remat] is not None:
      body = jax.checkpoint(body, policy=REMAT_POLICIES[self.remat], prevent_cse=False)
    return jax.lax.scan(body, carry, (stacked, xs))


def each(stacked: Any, call: Callable[[Any], Any]) -> Any:
  """`call(module)` of every copy of modules of a Stack, results stacked by block."""
  graphdef, state = nnx.split(stacked)
  return jax.lax.map(lambda params: call(nnx.merge(graphdef, params)), state)


def residual_inits(depth: int) -> dict[str, nnx.Initializer]:
  """Initialisers of a residual stack: variance 1/fan_in, less for what writes to the stream."""
  return {
    "embed": nnx.initializers.normal(0.02),
    "in": nnx.initializers.variance_scaling(1.0, "fan_in", "normal"),
    "out": nnx.initializers.variance_scaling(1.0 / (2 * depth), "fan_in", "normal"),
  }


def linear(
  cfg: Any, din: int, dout: int, init: str, *, bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
  """A layer of a residual stack; `cfg` gives depth and dtype, `init` is a key of `residual_inits`."""
  kernel_init = residual_inits(cfg.depth)[init]
  return nnx.Linear(din, dout, use_bias=bias, dtype=cfg.dtype, kernel_init=kernel_init, rngs=rngs)


class RMSNorm(nnx.Module):
  """x / rms(x) * scale over the last dim, in float32; returns x's dtype."""

  def __init__(self, dim: int, *, eps: float = 1e-6, rngs: nnx.Rngs):
    del rngs
    self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    """Norms the last dim."""
    x_f32 = x.astype(jnp.float32)
    rms = jnp.sqrt(jnp.mean(jnp.square(x_f32), axis=-1, keepdims=True) + self.eps)
    scale = jnp.expand_dims(self.scale[...], tuple(range(x.ndim - 1)))
    return (x_f32 / rms * scale).astype(x.dtype)


class LayerNorm(nnx.Module):
  """Mean and variance taken out over the last dim, then scale and bias, in float32; returns x's dtype."""

  def __init__(self, dim: int, *, eps: float, rngs: nnx.Rngs):
    del rngs
    self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))
    self.eps = eps

  def __call__(self, x: jax.Array) -> jax.Array:
    """Norms the last dim."""
    lead = tuple(range(x.ndim - 1))
    scale, bias = (jnp.expand_dims(p[...], lead) for p in (self.scale, self.bias))
    return (layer_norm(x.astype(jnp.float32), self.eps) * scale + bias).astype(x.dtype)


def layer_norm(x: jax.Array, eps: float = 1e-6) -> jax.Array:
  """LayerNorm without affine, in float32; adaLN supplies scale and shift."""
  x_f32 = x.astype(jnp.float32)
  x_f32 = x_f32 - jnp.mean(x_f32, axis=-1, keepdims=True)
  return (x_f32 * jax.lax.rsqrt(jnp.mean(jnp.square(x_f32), axis=-1, keepdims=True) + eps)).astype(
    x.dtype
  )
