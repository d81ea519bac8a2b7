"""The picture tower of pair alignment."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from seedream_jax import types
from seedream_jax.models import clip


class ClipTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cfg = clip.make_config(
      "nano", widths=(8, 16), bins=(2, 2), hidden=12, embed_dim=11, text_dim=10
    )
    cls.part = types.Part.from_module(lambda rngs: clip.Clip(cfg, rngs=rngs))
    rng = np.random.default_rng(0)
    cls.params = jax.tree.map(
      lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape), jnp.float32), cls.part.abstract
    )
    cls.image = staticmethod(jax.jit(lambda x: cls.part.bind(cls.params).image(x)))

  def test_bytes_and_floats_are_one_picture_and_places_survive(self):
    rng = np.random.default_rng(1)
    bytes_BHWC = jnp.asarray(rng.integers(0, 256, (3, 8, 12, 3), dtype=np.uint8))
    x_BP = self.image(bytes_BHWC)
    self.assertEqual(x_BP.shape, (3, 11))
    np.testing.assert_allclose(jnp.linalg.norm(x_BP, axis=-1), 1.0, atol=1e-5)
    floats_BHWC = bytes_BHWC.astype(jnp.float32) / 127.5 - 1.0
    np.testing.assert_allclose(self.image(floats_BHWC), x_BP, atol=1e-5)
    mirrored_BP = self.image(bytes_BHWC[:, :, ::-1])
    self.assertGreater(float(jnp.min(jnp.linalg.norm(mirrored_BP - x_BP, axis=-1))), 1e-2)

  def test_text_is_linear_up_to_length(self):
    rng = np.random.default_rng(1)
    pooled_BE = jnp.asarray(rng.standard_normal((3, 10)), jnp.float32)
    bias_free = {**self.params, "text_head": dict(self.params["text_head"], bias=jnp.zeros(11))}
    text = self.part.bind(bias_free).text
    np.testing.assert_allclose(text(5.0 * pooled_BE), text(pooled_BE), atol=1e-5)
    want_BP = pooled_BE @ self.params["text_head"]["kernel"]
    want_BP = want_BP / jnp.linalg.norm(want_BP, axis=-1, keepdims=True)
    np.testing.assert_allclose(text(pooled_BE), want_BP, atol=1e-5)

  def test_scale_stops_at_its_maximum(self):
    hot = {**self.params, "log_scale": jnp.asarray(9.0)}
    self.assertAlmostEqual(float(self.part.bind(hot).scale()), 100.0, places=3)


if __name__ == "__main__":
  absltest.main()
