"""Where activations live on the mesh of the context, and what it is made of.

Dims: B batch, X several of a thing, D F widths.
XLA propagates shardings from parameters as readily as from the batch: with parameters cut over
fsdp it cuts activations along their width and copies the batch. Saying where the batch lives, once a
block, makes it gather parameters instead, which is what fsdp means.
"""

import math
from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec as P

from seedream_jax import types


def platform() -> str:
  """Of the mesh in the context, which may be of hardware that is not here (ahead-of-time compilation)."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform


def by_batch(x: jax.Array) -> jax.Array:
  """`x` with its leading dim over (data, fsdp), if there is a mesh and they divide it."""
  return jax.lax.with_sharding_constraint(x, P(types.BATCH_AXES)) if _divides(x.shape[0]) else x


def to_columns(x_BD: jax.Array) -> jax.Array:
  """`x_BD` on every chip of fsdp, for kernels whose columns stay there: see `from_columns`."""
  return jax.lax.with_sharding_constraint(x_BD, P(types.DATA)) if _divides(x_BD.shape[0]) else x_BD


def from_columns(y_XBF: jax.Array) -> jax.Array:
  """What kernels cut over fsdp by their columns made of `to_columns(x_BD)`, by batch again, in one exchange.

  For kernels that are larger than all that goes through them, as adaLN's are: few vectors travel, and no weight nor
  its gradient does. One exchange for all X kernels: libtpu takes 13 s to route one over 256 chips of v5e.
  """
  if not _divides(y_XBF.shape[1]):
    return y_XBF
  if y_XBF.shape[2] % jax.sharding.get_abstract_mesh().shape[types.FSDP] == 0:
    y_XBF = jax.lax.with_sharding_constraint(y_XBF, P(None, types.DATA, types.FSDP))
  return jax.lax.with_sharding_constraint(y_XBF, P(None, types.BATCH_AXES))


def in_turns(fn: Callable[[jax.Array], jax.Array], x: jax.Array, at_once: int) -> jax.Array:
  """`fn(x)`, by `at_once` examples of each batch shard at a time; the backward pass makes a turn's activations again.

  What `fn` holds is then that of a turn, however large the batch.

  Args:
    fn: of examples that do not depend on each other.
    x: leads with the batch.
    at_once: divides the examples of a shard, else UserError.
  """
  shards = _shards() if _divides(len(x)) else 1
  turns, left = divmod(len(x), shards * at_once)
  if left:
    raise types.UserError(
      f"{len(x)} examples on {shards} shards do not divide into turns of {at_once}"
    )
  # [shards, turns, at_once, ...] to [turns, shards * at_once, ...], and back: examples stay on their shard.
  x = x.reshape(shards, turns, at_once, *x.shape[1:]).swapaxes(0, 1)
  x = x.reshape(turns, shards * at_once, *x.shape[3:])
  y = jax.lax.map(jax.checkpoint(lambda turn: by_batch(fn(turn)), prevent_cse=False), x)
  y = y.reshape(turns, shards, at_once, *y.shape[2:]).swapaxes(0, 1)
  return by_batch(y.reshape(-1, *y.shape[3:]))


def _divides(batch: int) -> bool:
  """Whether there is a mesh whose batch axes divide it."""
  return jax.sharding.get_abstract_mesh().size > 1 and batch % _shards() == 0


def _shards() -> int:
  """Of the batch, on the mesh in the context."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[axis] for axis in types.BATCH_AXES)
