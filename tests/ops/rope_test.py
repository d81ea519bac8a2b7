"""Rotary positions: relative scores, a fixed centre, square patches at any aspect ratio."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.ops import rope


class RopeTest(parameterized.TestCase):
  def test_scores_do_not_change_under_a_global_shift(self):
    q_BINK, k_BINK = jax.random.normal(jax.random.key(0), (2, 1, 15, 2, 12))
    pos_I2 = rope.scaled_positions(3, 5, 4)

    def scores(pos_I2):
      cos, sin = rope.rope_2d(pos_I2, 12)
      return jnp.einsum(
        "binc,bjnc->bnij", rope.apply(q_BINK, cos, sin), rope.apply(k_BINK, cos, sin)
      )

    moved = scores(pos_I2 + jnp.array([[2.5, -1.25]]))
    np.testing.assert_allclose(moved, scores(pos_I2), atol=1e-4)
    self.assertGreater(np.abs(scores(2 * pos_I2) - moved).max(), 0.1)  # and they do depend on it

  def test_turning_keeps_lengths(self):
    x_BLNK = jax.random.normal(jax.random.key(0), (2, 7, 3, 8))
    turned = rope.apply(x_BLNK, *rope.rope_1d(jnp.arange(7) * 1.5, 8))
    np.testing.assert_allclose(
      jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x_BLNK, axis=-1), rtol=1e-5
    )

  def test_half_split_pairs_as_published_llms_turn_them(self):
    # Expectation by hand: channel k and k + K/2 are one complex number times e^{i p theta^(-2k/K)}.
    x = np.random.default_rng(0).standard_normal((1, 5, 1, 6)).astype(np.float32)
    pos = np.array([0, 1, 2, 3, 5])
    phase = pos[:, None] * 10_000.0 ** (-np.arange(0, 6, 2) / 6)
    z = (x[0, :, 0, :3] + 1j * x[0, :, 0, 3:]) * np.exp(1j * phase)
    want = np.concatenate([z.real, z.imag], axis=-1)
    got = rope.apply(x, *rope.rope_1d(jnp.asarray(pos), 6))[0, :, 0]
    np.testing.assert_allclose(got, want, atol=1e-5)

  def test_positions_of_each_example(self):
    x_BLNK = jax.random.normal(jax.random.key(0), (2, 5, 1, 4))
    pos_BL = jnp.stack([jnp.arange(5), jnp.arange(5) + 3])
    both = rope.apply(x_BLNK, *rope.rope_1d(pos_BL, 4))
    second = rope.apply(x_BLNK[1:], *rope.rope_1d(pos_BL[1], 4))
    np.testing.assert_allclose(both[1:], second, atol=1e-6)

  @parameterized.product(
    size=[(4, 4), (3, 5), (5, 3), (7, 11), (1, 9)], mode=["area", "longest_side"]
  )
  def test_centre_is_one_position_for_all_grids(self, size, mode):
    pos_I2 = rope.scaled_positions(*size, 4, mode)
    np.testing.assert_allclose(pos_I2.mean(axis=0), [1.5, 1.5], atol=1e-5)

  def test_patches_stay_square_and_areas_equal(self):
    pos = rope.scaled_positions(3, 12, 6).reshape(3, 12, 2)
    dy, dx = pos[1, 0, 0] - pos[0, 0, 0], pos[0, 1, 1] - pos[0, 0, 1]
    self.assertAlmostEqual(float(dy), float(dx), places=5)
    self.assertAlmostEqual(float(3 * dy * 12 * dx), 36.0, places=4)

  def test_base_grid_has_integer_positions(self):
    np.testing.assert_allclose(rope.scaled_positions(4, 4, 4), rope.corner_positions(4, 4))

  def test_height_turns_the_first_half_of_the_pairs(self):
    cos_IF, _ = rope.rope_2d(jnp.array([[1.0, 0.0], [0.0, 1.0]]), 8)
    self.assertTrue((cos_IF[0, 2:] == 1).all() and (cos_IF[1, :2] == 1).all())
    self.assertLess(float(cos_IF[0, 0]), 1.0)

  def test_bad_input_is_named(self):
    with self.assertRaisesRegex(types.UserError, "diagonal"):
      rope.scaled_positions(2, 2, 4, "diagonal")
    with self.assertRaisesRegex(ValueError, "6"):
      rope.rope_2d(jnp.zeros((1, 2)), 6)
    with self.assertRaisesRegex(ValueError, "7"):
      rope.rope_1d(jnp.zeros((1,)), 7)


if __name__ == "__main__":
  absltest.main()
