"""Background, thresholds, components and colours against hand-made images and published values."""

import numpy as np
from absl.testing import absltest, parameterized
from scipy import ndimage

from data_pipelines.posters import palette
from seedream_jax.eval import pixels


class PixelsTest(parameterized.TestCase):
  def test_background_ignores_a_minority_and_follows_a_gradient(self):
    y, x = np.mgrid[0:48, 0:64]
    image = np.stack([100 + 0.5 * y, 150 + 0 * y, 200 - 0.3 * x], -1)
    want = image.copy()
    image[5:35, 10:40] = (255, 30, 20)  # 29% of the pixels
    got = pixels.background(np.rint(image).astype(np.uint8))
    np.testing.assert_allclose(got, want, atol=2.0)

  def test_light_is_evened_out_and_even_light_left_alone(self):
    y, x = np.mgrid[0:64, 0:64] / 64
    light = 1.12 - 0.3 * np.hypot(y - 0.1, x - 0.85)
    image = np.broadcast_to(np.float32((200, 120, 60)), (64, 64, 3)).copy()
    image[30:50, 8:28] = (40, 60, 160)
    lit = np.rint(image * light[..., None]).astype(np.uint8)
    got = pixels.evenly_lit(lit).astype(np.float32)
    for part, want in ((np.s_[:24], (200, 120, 60)), (np.s_[30:50, 8:28], (40, 60, 160))):
      spread = [(x[part] / np.float32(want)).mean(-1).std() for x in (got, lit)]
      self.assertLess(spread[0], 0.6 * spread[1], part)  # a plane is no circle of light
    np.testing.assert_allclose(pixels.evenly_lit(image.astype(np.uint8)), image, atol=1.0)

  def test_mode_is_the_commonest_not_the_mean(self):
    image = np.concatenate([np.full((7, 3), 30), np.full((5, 3), 200)]).astype(np.uint8)
    np.testing.assert_allclose(pixels.mode(image), (30, 30, 30))

  def test_otsu_separates_two_heaps(self):
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(10, 3, 900), rng.normal(90, 5, 100)])
    self.assertBetween(pixels.otsu(values), 17, 75)  # no value lies between

  @parameterized.parameters(0.2, 0.4, 0.6)
  def test_components_agree_with_scipy(self, density):
    mask = np.random.default_rng(1).random((23, 37)) < density
    got = pixels.components(mask)
    want, count = ndimage.label(mask, np.ones((3, 3)))
    self.assertEqual(got.max(), count)
    pairs = {tuple(p) for p in zip(got.reshape(-1), want.reshape(-1))}
    self.assertLen(pairs, len(np.unique(want)))  # one-to-one
    np.testing.assert_array_equal(got == 0, ~mask)

  def test_components_of_nothing(self):
    np.testing.assert_array_equal(pixels.components(np.zeros((3, 5), bool)), np.zeros((3, 5)))

  def test_lab_of_known_colours(self):
    # Bruce Lindbloom's calculator, D65 without adaptation: white, red, blue, mid grey.
    rgb = np.array([(255, 255, 255), (255, 0, 0), (0, 0, 255), (128, 128, 128)], np.float32)
    want = [(100, 0, 0), (53.24, 80.09, 67.20), (32.30, 79.19, -107.86), (53.59, 0, 0)]
    np.testing.assert_allclose(pixels.to_lab(rgb), want, atol=0.05)

  def test_every_colour_word_survives_jitter_and_light(self):
    rng = np.random.default_rng(2)
    for name, rgb in pixels.PALETTE.items():
      for _ in range(20):
        seen = np.clip(np.array(rgb) + rng.uniform(-6, 6, 3), 0, 255)
        self.assertEqual(pixels.nearest_color(seen, pixels.PALETTE), name)

  def test_words_mean_what_the_posters_mean(self):
    self.assertEqual(pixels.PALETTE, palette.COLORS)


if __name__ == "__main__":
  absltest.main()
