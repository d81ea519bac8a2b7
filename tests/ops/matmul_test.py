"""The projection matmul: lax.dot_general and its gradient, in every dtype, visible to remat."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from seedream_jax.ops import matmul, partition


def _dims(x):
  return (((x.ndim - 1,), (0,)), ((), ()))


class MatmulTest(parameterized.TestCase):
  @parameterized.product(
    leading=[(7,), (2, 5), (2, 3, 5)], dtype=["float32", "bfloat16"], platform=["cpu", "tpu"]
  )
  def test_equals_lax_with_gradient(self, leading, dtype, platform):
    self.enter_context(mock.patch.object(partition, "platform", lambda: platform))
    x = jax.random.normal(jax.random.key(0), (*leading, 11), dtype)
    kernel = jax.random.normal(jax.random.key(1), (11, 13), dtype)

    def run(dot):
      return jax.value_and_grad(
        lambda x, k: jnp.sum(jnp.sin(dot(x, k, _dims(x)).astype(jnp.float32))), argnums=(0, 1)
      )(x, kernel)

    got, want = run(matmul.dot_general), run(lax.dot_general)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
      self.assertEqual(a.dtype, b.dtype)
      a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
      np.testing.assert_allclose(a, b, atol=1e-4 if dtype == "float32" else 0.2)

  def test_remat_policy_sees_the_dot(self):
    """What a policy saves is not computed again: 3 matmuls with gradient, not 4."""
    x, kernel = jnp.ones((7, 11)), jnp.ones((11, 13))
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable

    def f(x, kernel):
      return jnp.sum(jnp.sin(matmul.dot_general(x, kernel, _dims(x))))

    text = str(
      jax.make_jaxpr(jax.grad(jax.checkpoint(f, policy=policy), argnums=(0, 1)))(x, kernel)
    )
    self.assertEqual(text.count("dot_general["), 3)

  @parameterized.parameters(0, 1)
  def test_only_the_gradient_asked_for_is_made(self, argnum):
    """A frozen kernel costs no matmul, inside a scan as well."""
    x, kernels = jnp.ones((7, 13)), jnp.ones((3, 13, 13))

    def f(x, kernels):
      step = lambda x, kernel: (jnp.sin(matmul.dot_general(x, kernel, _dims(x))), None)  # noqa: E731
      return jnp.sum(jax.lax.scan(step, x, kernels)[0])

    one, both = (
      str(jax.make_jaxpr(jax.grad(f, argnums=which))(x, kernels)).count("dot_general[")
      for which in ((argnum,), (0, 1))
    )
    self.assertEqual(both, 3)
    # Towards the kernels alone the activations' gradient is still needed, from block to block.
    self.assertEqual(one, 2 if argnum == 0 else 3)

  def test_one_traced_function_is_asked_for_different_gradients(self):
    """JAX keeps the trace of a jitted function, and differentiates it anew for each asking."""
    x, kernels = (
      jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(((7, 13), (3, 13, 13)))
    )

    def run(dot):
      @jax.jit
      def f(x, kernels):
        step = lambda x, kernel: (jnp.sin(dot(x, kernel, _dims(x))), None)  # noqa: E731
        return jnp.sum(jax.lax.scan(step, x, kernels)[0])

      return [jax.grad(f, argnums=which)(x, kernels) for which in ((1,), (0,), (0, 1), (1,))]

    got, want = run(matmul.dot_general), run(lax.dot_general)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
      np.testing.assert_allclose(a, b, atol=1e-4)

  def test_other_contractions_are_refused(self):
    with self.assertRaisesRegex(ValueError, "not a projection"):
      matmul.dot_general(jnp.ones((3, 5)), jnp.ones((3, 7)), (((0,), (0,)), ((), ())))


if __name__ == "__main__":
  absltest.main()
