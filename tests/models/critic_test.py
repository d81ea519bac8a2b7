"""The critic: its patches, and what they must not see."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.models import critic
from tests.models import tiny


def _part(variant="nano", **overrides):
  cfg = critic.make_config(variant, **overrides)
  return types.Part.from_module(lambda rngs: critic.Critic(cfg, rngs=rngs))


class CriticTest(parameterized.TestCase):
  @parameterized.parameters(
    ("nano", (24, 40), (3, 5)), ("small", (8, 56), (1, 7)), ("base", (32, 48), (2, 3))
  )
  def test_one_logit_a_patch(self, variant, size, patches):
    part = _part(variant)
    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    out = jax.eval_shape(lambda p, x: part.bind(p)(x), part.abstract, image)
    self.assertEqual(out.shape, (2, *patches))

  def test_score_does_not_depend_on_neighbours(self):
    part = _part(widths=(4, 6), norm_groups=2)
    params, image_BHWC = tiny.draw(part.abstract), tiny.image(3, 8, 12, 3)
    fn = jax.jit(lambda x: part.bind(params)(x))
    whole = fn(image_BHWC)
    for i in range(3):
      among_copies = fn(jnp.repeat(image_BHWC[i : i + 1], 3, axis=0))
      np.testing.assert_allclose(whole[i], among_copies[0], rtol=1e-4, atol=1e-5)

  def test_every_parameter_counts(self):
    part = _part(widths=(4, 6), norm_groups=2)
    params = tiny.draw(part.abstract)
    image_BHWC = tiny.image(2, 8, 12, 3)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(part.bind(p)(image_BHWC) ** 2)))(params)
    self.assertTrue(all(float(jnp.max(jnp.abs(g))) > 0 for g in jax.tree.leaves(grads)))


if __name__ == "__main__":
  absltest.main()
