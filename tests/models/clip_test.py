"""The picture tower, and either text side."""

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

  def test_locked_text_reads_places_and_no_padding(self):
    small = dict(width=16, num_heads=2, mlp_dim=12, llm_dim=6, byt5_dim=5)
    cfg, reader = clip.make_locked_config("nano", small, widths=(8, 16), embed_dim=11)
    part = types.Part.from_module(lambda rngs: clip.LockedClip(cfg, reader, rngs=rngs))
    rng = np.random.default_rng(2)
    params = jax.tree.map(
      lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape), jnp.float32), part.abstract
    )
    text = jax.jit(lambda *features: part.bind(params).text(*features))
    llm_BLE, byt5_BGE = (
      jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((3, 5, 6), (3, 4, 5))
    )
    mask_BL = jnp.arange(5)[None] < jnp.array([[3], [4], [5]])
    mask_BG = jnp.arange(4)[None] < jnp.array([[0], [2], [2]])
    y_BP = text(llm_BLE, mask_BL, byt5_BGE, mask_BG)
    np.testing.assert_allclose(jnp.linalg.norm(y_BP, axis=-1), 1.0, atol=1e-5)
    padding = [
      jnp.where(m[..., None], x, 7.0) for x, m in ((llm_BLE, mask_BL), (byt5_BGE, mask_BG))
    ]
    np.testing.assert_allclose(text(padding[0], mask_BL, padding[1], mask_BG), y_BP, atol=1e-5)
    for turned in (
      text(llm_BLE.at[:, :2].set(llm_BLE[:, 1::-1]), mask_BL, byt5_BGE, mask_BG),
      text(llm_BLE, mask_BL, byt5_BGE.at[:, :2].set(byt5_BGE[:, 1::-1]), mask_BG),
    ):  # the same features in another order: of their mean nothing would change
      self.assertGreater(float(jnp.min(jnp.linalg.norm(turned - y_BP, axis=-1)[1:])), 1e-3)

  def test_both_sides_have_one_dtype(self):
    cfg, reader = clip.make_locked_config("nano", dtype="bfloat16")
    self.assertEqual((cfg.dtype, reader.dtype), ("bfloat16",) * 2)

  def test_scale_stops_at_its_maximum(self):
    hot = {**self.params, "log_scale": jnp.asarray(9.0)}
    self.assertAlmostEqual(float(self.part.bind(hot).scale()), 100.0, places=3)


if __name__ == "__main__":
  absltest.main()
