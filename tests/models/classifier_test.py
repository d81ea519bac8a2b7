"""Classifier B: heads, feature levels, and the pooled embedding."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.models import classifier
from tests.models import tiny

HEADS = (("subject", 5), ("color", 3), ("count", 4), ("text", 1))


def _part(**overrides):
  sizes = dict(widths=(4, 6), norm_groups=2, feature_dim=7, heads=HEADS)
  cfg = classifier.make_config("nano", **{**sizes, **overrides})
  return types.Part.from_module(lambda rngs: classifier.Classifier(cfg, rngs=rngs))


class ClassifierTest(parameterized.TestCase):
  @parameterized.parameters((16, 24), (17, 11), (9, 30))
  def test_shapes_on_odd_grids_too(self, height, width):
    part = _part()

    def run(params, image_BHWC):
      model = part.bind(params)
      return model(image_BHWC), model.embedding(image_BHWC), model.features(image_BHWC)

    image = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    logits, embedding, features = jax.eval_shape(run, part.abstract, image)
    self.assertEqual({k: v.shape for k, v in logits.items()}, {k: (2, n) for k, n in HEADS})
    self.assertEqual(embedding.shape, (2, 7))
    self.assertEqual([x.shape[-1] for x in features], [4, 4, 6])

  def test_answer_does_not_depend_on_neighbours(self):
    part = _part()
    params, image_BHWC = tiny.draw(part.abstract), tiny.image(3, 16, 24, 3)
    fn = jax.jit(lambda x: part.bind(params).embedding(x))
    whole = fn(image_BHWC)
    for i in range(3):
      among_copies = fn(jnp.repeat(image_BHWC[i : i + 1], 3, axis=0))
      np.testing.assert_allclose(whole[i], among_copies[0], rtol=1e-4, atol=1e-5)

  def test_every_parameter_counts(self):
    part = _part()
    params = tiny.draw(part.abstract)

    def total(params):
      return sum(jnp.sum(x**2) for x in part.bind(params)(tiny.image(2, 16, 24, 3)).values())

    grads = jax.jit(jax.grad(total))(params)
    self.assertTrue(all(float(jnp.max(jnp.abs(g))) > 0 for g in jax.tree.leaves(grads)))


if __name__ == "__main__":
  absltest.main()
