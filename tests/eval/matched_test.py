"""The matched filter finds planted subjects, and nothing where nothing is."""

import time

import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax.eval import matched, templates
from tests.eval import tiny

_FILTER = matched.MatchedFilter(tiny.SUBJECTS)


def setUpModule():
  tiny.require_fonts()


class MatchedTest(parameterized.TestCase):
  @parameterized.product(emoji=("🐼", "⚓", "🍌"), color=("white", "blue"), size=(21, 26, 33))
  def test_finds_subject_size_and_place(self, emoji, color, size):
    center = (23.0 if size % 2 == 0 else 22.5, 41.0 if size % 2 == 0 else 40.5)
    (found,) = _FILTER.detect(tiny.put(tiny.canvas(color), emoji, size, center))
    self.assertEqual(found.emoji, emoji)
    self.assertGreater(found.score, 0.97)
    self.assertEqual(found.size, size)
    self.assertEqual(found.center, center)

  def test_shuffled_pixels_hold_no_subject(self):
    image = tiny.put(tiny.canvas("white"), "🐉", 30, (32, 32))
    shuffled = np.random.default_rng(0).permutation(image.reshape(-1, 3)).reshape(image.shape)
    self.assertLen(_FILTER.detect(image), 1)
    self.assertEmpty(_FILTER.detect(shuffled))

  def test_counts_equal_and_unequal_neighbours(self):
    image = tiny.canvas("yellow")
    for emoji, center in (("🐼", (16, 16)), ("🐼", (16, 48)), ("🏮", (48, 32))):
      image = tiny.put(image, emoji, 28, center)
    found = _FILTER.detect(image, least=0.65)
    self.assertCountEqual([d.emoji for d in found], ["🐼", "🐼", "🏮"])

  def test_a_part_is_not_counted_beside_its_whole(self):
    for emoji in tiny.SUBJECTS:
      found = _FILTER.detect(tiny.put(tiny.canvas("pink"), emoji, 34, (30, 34)))
      self.assertEqual([d.emoji for d in found], [emoji])

  def test_a_faint_subject_beside_a_strong_one(self):
    image = tiny.put(tiny.put(tiny.canvas("blue"), "🐼", 34, (32, 18)), "🐳", 26, (32, 50))
    self.assertCountEqual([d.emoji for d in _FILTER.detect(image)], ["🐼", "🐳"])

  def test_what_one_scan_cannot_hold_is_left_to_the_next(self):
    image = tiny.canvas("pink", (64, 90))
    names = tiny.SUBJECTS[:6]
    self.assertGreater(len(names), matched.MAX_PLACES)
    for i, emoji in enumerate(names):
      image = tiny.put(image, emoji, 28, (16 + 32 * (i // 3), 15 + 30 * (i % 3)))
    self.assertCountEqual([d.emoji for d in _FILTER.detect(image)], names)

  def test_over_the_edge(self):
    (found,) = _FILTER.detect(tiny.put(tiny.canvas("green"), "🐼", 30, (12, 52)))
    self.assertEqual((found.emoji, found.center), ("🐼", (12.0, 52.0)))

  def test_text_is_no_subject(self):
    image = tiny.write(tiny.canvas("white"), "田春", "red", (16, 32))
    self.assertEmpty(_FILTER.detect(image, text_box=(0, 0, 32, 64)))
    both = tiny.put(image, "🚗", 28, (48, 32))
    self.assertEqual([d.emoji for d in _FILTER.detect(both, text_box=(0, 0, 32, 64))], ["🚗"])

  @parameterized.parameters(*[style for style in templates.STYLES if style != "plain"])
  def test_styles(self, style):
    color = "black" if style == "neon" else "white"
    image = tiny.put(tiny.canvas(color), "🐳", 32, (30, 30), style)
    self.assertEqual([d.emoji for d in _FILTER.detect(image, style=style)], ["🐳"])

  def test_blur_and_noise_lower_the_score_but_not_the_answer(self):
    image = tiny.put(tiny.canvas("white"), "🐉", 30, (32, 32)).astype(np.float32)
    soft = sum(np.roll(image, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)) / 9
    soft += np.random.default_rng(3).normal(0, 8, image.shape)
    found = _FILTER.detect(np.clip(soft, 0, 255).astype(np.uint8))
    self.assertEqual(found[0].emoji, "🐉")
    self.assertBetween(found[0].score, 0.7, 0.98)

  def test_larger_images_are_judged_in_their_own_pixels(self):
    image = tiny.put(tiny.canvas("white"), "🐼", 28, (24, 40)).repeat(3, 0).repeat(3, 1)
    (found,) = _FILTER.detect(image)
    self.assertEqual((found.size, found.center), (84, (72.0, 120.0)))

  def test_odd_sizes_and_aspect_ratios(self):
    image = tiny.put(tiny.canvas("white", (48, 80)), "🐼", 28, (24, 60))
    (found,) = _FILTER.detect(image)
    self.assertEqual(found.center, (24.0, 60.0))

  def test_empty_image(self):
    self.assertEmpty(_FILTER.detect(tiny.canvas("red")))

  def test_speed(self):
    image = tiny.put(tiny.canvas("white"), "🐼", 30, (32, 32))
    _FILTER.detect(image)
    start = time.process_time()
    for _ in range(5):
      _FILTER.detect(image)
    self.assertLess((time.process_time() - start) / 5, 0.5)  # 0.02 on an idle core with 64 subjects


if __name__ == "__main__":
  absltest.main()
