"""The table is finite and even; every picture goes to the nearest entry or is refused."""

import math

import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.data import buckets


class BucketsTest(parameterized.TestCase):
  def test_the_small_table(self):
    self.assertEqual(buckets.table(64), ((48, 80), (64, 64), (80, 48)))

  @parameterized.parameters(*buckets.AREAS)
  def test_table_is_even(self, area):
    sizes = buckets.table(area)
    self.assertIn((area, area), sizes)
    self.assertLen(set(sizes), len(sizes))
    for height, width in sizes:
      self.assertIn((width, height), sizes)
      self.assertEqual((height % 16, width % 16), (0, 0))
      self.assertLessEqual(max(height, width) / min(height, width), buckets.MAX_RATIO)
      self.assertBetween(height * width / area**2, 0.9, 1.1)

  def test_assigns_the_nearest_ratio(self):
    rng = np.random.default_rng(0)
    for height, width in rng.integers(400, 800, (50, 2)).tolist():
      got = buckets.assign(height, width, 256)

      def distance(size, ratio=height / width):
        return abs(math.log(size[0] / size[1] / ratio))

      self.assertLessEqual(distance(got), min(map(distance, buckets.table(256))) + 1e-9)
    for size in buckets.table(512):
      self.assertEqual(buckets.assign(*size, 512), size)

  def test_out_of_the_table(self):
    with self.assertRaisesRegex(types.UserError, "picture of 100x300: ratio 3.00 .* at most 2.60"):
      buckets.assign(100, 300, 64)
    with self.assertRaisesRegex(types.UserError, "area 65: expected one of 64, 128"):
      buckets.assign(100, 100, 65)
    with self.assertRaisesRegex(types.UserError, "picture of 0x10"):
      buckets.assign(0, 10, 64)

  def test_names(self):
    self.assertEqual(buckets.parse(buckets.name((48, 80))), (48, 80))
    for bad in ("48", "48x", "48x81", "-16x16", "0x16", "48X80"):
      with self.assertRaisesRegex(types.UserError, "expected HxW with sides a multiple of 16"):
        buckets.parse(bad)

  @parameterized.parameters((1, 16), (16, 16), (17, 32), (64, 64), (65, 256), (256, 256))
  def test_text(self, length, bucket):
    self.assertEqual(buckets.text_bucket(length), bucket)

  def test_text_too_long(self):
    with self.assertRaisesRegex(types.UserError, "prompt of 33 tokens: .* holds 32"):
      buckets.text_bucket(33, (32, 16))


if __name__ == "__main__":
  absltest.main()
