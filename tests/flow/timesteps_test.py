"""Densities over t, the shift, grids: training and sampling share one schedule."""

import math
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.flow import timesteps

T = np.linspace(0.01, 0.99, 23)


class ShiftTest(parameterized.TestCase):
  def test_shifts_compose_as_products(self):
    twice = timesteps.shift_time(timesteps.shift_time(T, 1.7), 2.3)
    np.testing.assert_allclose(twice, timesteps.shift_time(T, 1.7 * 2.3), rtol=1e-6)

  @parameterized.parameters(0.5, 1.15)
  def test_is_flux_mu(self, mu):
    # black-forest-labs/flux sampling.py, time_shift with sigma = 1.
    want = math.exp(mu) / (math.exp(mu) + (1 / T - 1))
    np.testing.assert_allclose(timesteps.shift_time(T, math.exp(mu)), want, rtol=1e-6)

  def test_moves_log_snr_by_minus_two_log_alpha(self):
    def log_snr(t):
      return 2 * np.log((1 - t) / t)

    moved = log_snr(timesteps.shift_time(T, 3.0)) - log_snr(T)
    np.testing.assert_allclose(moved, -2 * math.log(3.0), rtol=1e-5)

  def test_keeps_the_ends(self):
    np.testing.assert_array_equal(timesteps.shift_time(np.array([0.0, 1.0]), 3.0), [0, 1])

  def test_resolution_shift_is_sd3s_square_root_of_the_pixel_ratio(self):
    self.assertEqual(timesteps.resolution_shift(8, 8, 8), 1.0)
    self.assertEqual(timesteps.resolution_shift(16, 16, 8), 2.0)
    self.assertAlmostEqual(timesteps.resolution_shift(4, 25, 5), math.sqrt(100 / 25))


class SampleTest(parameterized.TestCase):
  def test_logit_normal_moments(self):
    t = timesteps.sample(jax.random.key(0), (20_000,), mean=0.4, std=0.7)
    logit = np.log(t) - np.log1p(-t)
    self.assertAlmostEqual(float(logit.mean()), 0.4, delta=0.02)
    self.assertAlmostEqual(float(logit.std()), 0.7, delta=0.02)

  def test_uniform_covers_the_unit_interval(self):
    t = timesteps.sample(jax.random.key(0), (20_000,), density="uniform")
    np.testing.assert_allclose(np.quantile(t, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.02)

  def test_shift_comes_after_the_density(self):
    plain = timesteps.sample(jax.random.key(0), (11,))
    shifted = timesteps.sample(jax.random.key(0), (11,), shift=2.5)
    np.testing.assert_allclose(shifted, timesteps.shift_time(plain, 2.5), rtol=1e-6)

  def test_training_and_sampling_share_the_shift(self):
    with mock.patch.object(timesteps, "shift_time", return_value="shared") as shift:
      self.assertEqual(timesteps.sample(jax.random.key(0), shift=2.5), "shared")
      self.assertEqual(timesteps.grid(3, 2.5), "shared")
    self.assertEqual([call.args[1] for call in shift.call_args_list], [2.5, 2.5])

  def test_grid(self):
    np.testing.assert_allclose(timesteps.grid(4), [1, 0.75, 0.5, 0.25, 0])
    grid = timesteps.grid(7, 3.0)
    self.assertEqual((float(grid[0]), float(grid[-1]), len(grid)), (1.0, 0.0, 8))
    self.assertTrue((np.diff(grid) < 0).all())

  def test_per_example_follows_the_id(self):
    def draw(ids):
      return timesteps.per_example(
        jax.random.key(0), jnp.array(ids, jnp.uint32), lambda key: jax.random.normal(key, (3,))
      )

    a, b = draw([5, 2**32 - 1, 9]), draw([9, 5])
    np.testing.assert_array_equal(a[0], b[1])
    np.testing.assert_array_equal(a[2], b[0])
    self.assertFalse((a[0] == a[1]).any())

  def test_eight_timesteps(self):
    got = timesteps.eight_timesteps(jnp.array([0, 1, 7, 8, 21], jnp.uint32))
    np.testing.assert_array_equal(got, np.array([0, 1, 7, 0, 5]) / 8)

  def test_unknown_density_is_named(self):
    with self.assertRaisesRegex(types.UserError, "mode.*logit_normal or uniform"):
      timesteps.sample(jax.random.key(0), density="mode")


if __name__ == "__main__":
  absltest.main()
