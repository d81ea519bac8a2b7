"""Activations follow the batch over the mesh of the context."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from jax.sharding import PartitionSpec as P

from seedream_jax import types
from seedream_jax.engine import hlo, mesh
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

  def test_in_turns_is_the_whole_and_its_gradient(self):
    weight = jnp.arange(3.0)[None]
    whole = lambda x: jnp.sin(x * weight)[:, :2]  # noqa: E731
    loss = lambda fn, x: jnp.sum(jnp.arange(16.0)[:, None] * fn(x))  # noqa: E731
    turns = lambda x: partition.in_turns(whole, x, 2)  # noqa: E731
    x = jax.random.normal(jax.random.key(0), (16, 3))
    want = jax.value_and_grad(lambda x: loss(whole, x))(x)
    for axes in ({"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}):
      with jax.set_mesh(mesh.make(axes)):
        got = jax.jit(jax.value_and_grad(lambda x: loss(turns, x)))(x)
        placed = jax.device_put(x, P(types.BATCH_AXES))
        program = jax.jit(turns).lower(placed).compile().as_text()
        seen = jax.make_jaxpr(turns)(x).jaxpr
      jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, want)
      self.assertEmpty(hlo.collectives(program))  # examples stay on their shard
      (scan,) = (eqn for eqn in seen.eqns if eqn.primitive.name == "scan")
      self.assertEqual(scan.params["length"], 8 // (axes.get("data", 1) * axes.get("fsdp", 1)))
    with self.assertRaisesRegex(types.UserError, "turns of 3"):
      partition.in_turns(whole, x, 3)


if __name__ == "__main__":
  absltest.main()
