"""Rules to shardings."""

import jax
import jax.numpy as jnp
import optax
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec as P

from seedream_jax import types
from seedream_jax.engine import mesh, sharding, trees


def abstract(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


TREE = {
  "layers": {"kernel": abstract(3, 8, 4), "bias": abstract(3, 4)},
  "out": {"kernel": abstract(7, 16)},
}
RULES = (
  ("layers/kernel", ("fsdp", "tensor")),
  (".*kernel", ("fsdp?", ("fsdp?", "tensor"))),
  (".*", ()),
)


class ShardingTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.mesh = mesh.make({"fsdp": 4, "tensor": 2})

  def test_specs_align_to_trailing_dims(self):
    inferred = sharding.infer(TREE, RULES, self.mesh)
    self.assertEqual(inferred["layers"]["kernel"].spec, P(None, "fsdp", "tensor"))
    self.assertEqual(inferred["layers"]["bias"].spec, P())
    self.assertEqual(inferred["out"]["kernel"].spec, P(None, ("fsdp", "tensor")))

  def test_optional_axis_goes_where_it_divides(self):
    # 7 is not divisible by fsdp=4 and 4 is, but not by fsdp * tensor = 8.
    tree = {"out": {"kernel": abstract(7, 4)}}
    with self.assertRaisesRegex(types.UserError, "'out/kernel' .* tensor=2 does not divide dim 4"):
      sharding.infer(tree, RULES, self.mesh)
    inferred = sharding.infer(tree, ((".*", ("fsdp?", ("fsdp?", "tensor?"))),), self.mesh)
    self.assertEqual(inferred["out"]["kernel"].spec, P(None, "fsdp"))

  def test_placed_as_inferred(self):
    inferred = sharding.infer(TREE["layers"], ((".*", ("fsdp?",)),), self.mesh)
    x = jax.device_put(jnp.ones((3, 4)), inferred["bias"])
    self.assertEqual(x.addressable_shards[0].data.shape, (3, 1))

  @parameterized.parameters(
    ((), r"no sharding rule covers parameter"),
    (((".*", ("fdsp",)),), r"unknown mesh axis 'fdsp'"),
    (((".*", ("fsdp?", "fsdp?")),), r"'fsdp' used twice"),
    (((".*", "fsdp"),), r"must be a tuple"),
    (((".*", (None,) * 4),), r"more entries than shape"),
    (((".*", ("tensor", None)),), r"tensor=2 does not divide dim 3.*'tensor\?'"),
  )
  def test_errors_name_the_leaf(self, rules, message):
    with self.assertRaisesRegex(types.UserError, message) as caught:
      sharding.infer(TREE, rules, self.mesh)
    self.assertIn("layers/", str(caught.exception))

  def test_optimizer_state_follows_parameters(self):
    rules = (("kernel", ("fsdp", "tensor")), ("bias", ()))
    inferred = sharding.infer(TREE["layers"], rules, self.mesh)
    state = jax.eval_shape(optax.adam(1.0).init, trees.flatten(TREE["layers"]))
    followed = sharding.follow(state, inferred, self.mesh)
    self.assertEqual(followed[0].mu["kernel"], inferred["kernel"])
    self.assertEqual(followed[0].count.spec, P())

  def test_batch(self):
    x = jax.device_put(jnp.ones((8, 3)), sharding.batch(mesh.make({"data": 2, "fsdp": 4})))
    self.assertEqual(x.addressable_shards[0].data.shape, (1, 3))

  def test_table(self):
    inferred = sharding.infer({"k": abstract(5, 8, 16)}, (("k", ("tensor", ("fsdp",))),), self.mesh)
    self.assertEqual(
      sharding.table({"k": abstract(5, 8, 16)}, inferred),
      ["k float32[5,8,16] (None, tensor, fsdp)"],
    )


if __name__ == "__main__":
  absltest.main()
