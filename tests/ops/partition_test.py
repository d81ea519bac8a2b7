"""Activations follow the batch over the mesh of the context."""

import jax
import jax.numpy as jnp
from absl.testing import absltest
from jax.sharding import PartitionSpec as P

from seedream_jax import types
from seedream_jax.engine import mesh
from seedream_jax.ops import partition


class PartitionTest(absltest.TestCase):
  def test_leading_dim_over_data_and_fsdp(self):
    with jax.set_mesh(mesh.make({"data": 2, "fsdp": 4})):
      got = jax.jit(partition.by_batch)(jnp.ones((16, 3)))
    self.assertEqual(got.sharding.spec, P(types.BATCH_AXES))

  def test_no_mesh_or_no_fit_is_left_alone(self):
    x = jnp.ones((6, 3))
    self.assertIs(partition.by_batch(x), x)
    with jax.set_mesh(mesh.make({"data": 2, "fsdp": 4})):
      self.assertIs(partition.by_batch(x), x)


if __name__ == "__main__":
  absltest.main()
