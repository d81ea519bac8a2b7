"""ROIAlign against a loop, and what the tower's two sides promise."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.models import glyph_tower


def _bilinear(map_HWC, y, x):
  """The map at a point in cell coordinates, clamped to the centres of the outer cells."""
  h, w, _ = map_HWC.shape
  y, x = np.clip(y, 0, h - 1), np.clip(x, 0, w - 1)
  y0, x0 = min(int(y), h - 2), min(int(x), w - 2)
  fy, fx = y - y0, x - x0
  top = (1 - fx) * map_HWC[y0, x0] + fx * map_HWC[y0, x0 + 1]
  bottom = (1 - fx) * map_HWC[y0 + 1, x0] + fx * map_HWC[y0 + 1, x0 + 1]
  return (1 - fy) * top + fy * bottom


def _roi_align(map_HWC, box, bins):
  """Mask R-CNN's, as torchvision.ops.roi_align(aligned=True, sampling_ratio=2) computes it."""
  h, w, c = map_HWC.shape
  y0, x0, y1, x1 = box[0] * h, box[1] * w, box[2] * h, box[3] * w
  out = np.zeros((*bins, c))
  for i in range(bins[0]):
    for j in range(bins[1]):
      for sy in (0.25, 0.75):
        for sx in (0.25, 0.75):
          y = y0 + (i + sy) * (y1 - y0) / bins[0] - 0.5
          x = x0 + (j + sx) * (x1 - x0) / bins[1] - 0.5
          out[i, j] += _bilinear(map_HWC, y, x) / 4
  return out


class RoiAlignTest(parameterized.TestCase):
  def test_equals_a_loop_over_samples(self):
    rng = np.random.default_rng(0)
    map_BHWC = rng.standard_normal((2, 5, 7, 3)).astype(np.float32)
    boxes_BQ4 = np.array(
      [
        [[0.0, 0.0, 1.0, 1.0], [0.21, 0.13, 0.58, 0.97]],
        [[0.6, 0.0, 0.7, 0.1], [0.05, 0.5, 0.95, 0.62]],
      ],
      np.float32,
    )
    got = glyph_tower.roi_align(jnp.asarray(map_BHWC), jnp.asarray(boxes_BQ4), (2, 3))
    for b in range(2):
      for q in range(2):
        want = _roi_align(map_BHWC[b], boxes_BQ4[b, q], (2, 3))
        np.testing.assert_allclose(got[b, q], want, atol=1e-5)

  def test_one_bin_a_cell_returns_a_linear_map(self):
    whole = jnp.array([[[0.0, 0.0, 1.0, 1.0]]])
    # One bin a cell takes its two samples a quarter cell either side of the centre: inside the
    # grid a linear map comes back exactly.
    ramp_BHWC = jnp.broadcast_to(jnp.arange(6.0)[None, None, :, None], (1, 4, 6, 3))
    got = glyph_tower.roi_align(ramp_BHWC, whole, (4, 6))
    np.testing.assert_allclose(got[0, 0, :, 1:5, 0], ramp_BHWC[0, :, 1:5, 0], atol=1e-5)

  def test_sees_only_its_box(self):
    def total(map_BHWC):
      box = jnp.array([[[0.0, 0.0, 0.5, 0.25]]])  # cells 0-1 x 0-1 of 4 x 8
      return jnp.sum(glyph_tower.roi_align(map_BHWC, box, (2, 2)))

    grad_HW = np.asarray(jax.grad(total)(jnp.ones((1, 4, 8, 1))))[0, :, :, 0]
    self.assertGreater(grad_HW[:2, :2].min(), 0)
    self.assertEqual(np.abs(grad_HW[3:]).max() + np.abs(grad_HW[:, 3:]).max(), 0)


class GlyphTowerTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cfg = glyph_tower.make_config(
      "nano", widths=(8, 16), bins=(2, 3), embed_dim=11, text_dim=10, text_hidden=13
    )
    cls.part = types.Part.from_module(lambda rngs: glyph_tower.GlyphTower(cfg, rngs=rngs))
    rng = np.random.default_rng(0)
    cls.params = jax.tree.map(
      lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape), jnp.float32), cls.part.abstract
    )

  def test_boxes_become_unit_vectors_in_their_order(self):
    rng = np.random.default_rng(1)
    sheet_BHWC = jnp.asarray(rng.integers(0, 256, (2, 16, 24, 3), dtype=np.uint8))
    boxes_BQ4 = jnp.asarray(
      np.tile([[0, 0, 0.5, 0.5], [0.5, 0.25, 1, 1], [0, 0.5, 1, 1]], (2, 1, 1)), jnp.float32
    )
    embed = jax.jit(lambda s, b: self.part.bind(self.params)(s, b))
    x_BQP = embed(sheet_BHWC, boxes_BQ4)
    self.assertEqual(x_BQP.shape, (2, 3, 11))
    np.testing.assert_allclose(jnp.linalg.norm(x_BQP, axis=-1), 1.0, atol=1e-5)
    np.testing.assert_allclose(embed(sheet_BHWC, boxes_BQ4[:, ::-1]), x_BQP[:, ::-1], atol=1e-5)

  def test_text_ignores_padding(self):
    rng = np.random.default_rng(1)
    features_BGE = jnp.asarray(rng.standard_normal((2, 5, 10)), jnp.float32)
    mask_BG = jnp.array([[True] * 3 + [False] * 2, [True] * 5])
    text = jax.jit(lambda f, m: self.part.bind(self.params).text(f, m))
    noise_BGE = jnp.where(mask_BG[..., None], features_BGE, 100.0)
    y_BP = text(features_BGE, mask_BG)
    np.testing.assert_allclose(text(noise_BGE, mask_BG), y_BP, atol=1e-5)
    np.testing.assert_allclose(jnp.linalg.norm(y_BP, axis=-1), 1.0, atol=1e-5)

  def test_scale_stops_at_its_maximum(self):
    hot = {**self.params, "log_scale": jnp.asarray(9.0)}
    self.assertAlmostEqual(float(self.part.bind(hot).scale()), 100.0, places=3)
    warm = {**self.params, "log_scale": jnp.log(jnp.asarray(7.0))}
    self.assertAlmostEqual(float(self.part.bind(warm).scale()), 7.0, places=3)

  def test_unit_has_a_finite_gradient_at_zero(self):
    grad = jax.grad(lambda x: jnp.sum(glyph_tower.unit(x)))(jnp.zeros(3))
    self.assertTrue(np.isfinite(grad).all())


if __name__ == "__main__":
  absltest.main()
