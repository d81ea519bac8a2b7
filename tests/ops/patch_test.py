"""Patches: row-major tokens, an exact inverse, any aspect ratio."""

import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax.ops import patch


class PatchTest(parameterized.TestCase):
  @parameterized.parameters((6, 10, 2), (4, 14, 2), (9, 3, 3), (5, 7, 1))
  def test_round_trip(self, h, w, side):
    x_BHWC = np.random.default_rng(0).standard_normal((2, h, w, 3))
    tokens_BID = patch.patchify(x_BHWC, side)
    self.assertEqual(tokens_BID.shape, (2, h * w // side**2, 3 * side**2))
    np.testing.assert_array_equal(patch.unpatchify(tokens_BID, h, w, side), x_BHWC)

  def test_tokens_are_row_major(self):
    x_BHWC = np.arange(6 * 10).reshape(1, 6, 10, 1)
    tokens_BID = patch.patchify(x_BHWC, 2)
    np.testing.assert_array_equal(tokens_BID[0, 1], [2, 3, 12, 13])  # right of the first
    np.testing.assert_array_equal(tokens_BID[0, 5], [20, 21, 30, 31])  # below the first

  def test_grid_that_does_not_divide_is_named(self):
    with self.assertRaisesRegex(ValueError, "6x7 grid.*2x2"):
      patch.patchify(np.zeros((1, 6, 7, 3)), 2)


if __name__ == "__main__":
  absltest.main()
