"""Where activations live on the mesh of the context.

Dims: B batch.
XLA propagates shardings from parameters as readily as from the batch: with parameters cut over
fsdp it cuts activations along their width and copies the batch. Saying where the batch lives, once a
block, makes it gather parameters instead, which is what fsdp means.
"""

import math

import jax
from jax.sharding import PartitionSpec as P

from seedream_jax import types


def by_batch(x: jax.Array) -> jax.Array:
  """`x` with its leading dim over (data, fsdp), if there is a mesh and they divide it."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1 or x.shape[0] % math.prod(mesh.shape[axis] for axis in types.BATCH_AXES):
    return x
  return jax.lax.with_sharding_constraint(x, P(types.BATCH_AXES))
