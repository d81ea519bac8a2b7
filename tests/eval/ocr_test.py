"""The recogniser on rendered truth, and the trimming that makes or breaks it."""

import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax.eval import ocr
from tests.eval import tiny

TOP = (0, 0, 32, 64)
ZH = ("春", "龙", "福", "中秋", "团圆", "大海", "未来", "木本", "千王", "书画", "诗歌", "平安")
EN = ("LOVE", "HOPE", "SUN", "MOON", "TEA", "CAKE", "ROBOT", "JAZZ", "QUIZ", "WIN", "NEW", "ZEBRA")


def setUpModule():
  tiny.require_fonts()
  try:
    ocr.Recognizer()
  except ocr.types.UserError as e:
    raise absltest.SkipTest(str(e)) from e


def _line(text, color="red", ground="white"):
  return tiny.write(tiny.canvas(ground), text, color, (16, 32), 28 if text in ZH else 17)


class OcrTest(parameterized.TestCase):
  def test_ceiling_on_rendered_truth(self):
    recognizer = ocr.Recognizer()
    for texts in (ZH, EN):
      images = [
        _line(t, *c)
        for t, c in zip(texts, [("red", "white"), ("white", "blue"), ("black", "pink")] * 4)
      ]
      got = ocr.read(images, [TOP] * len(images), recognizer)
      hits = np.mean([g == ocr.fold(t) for g, t in zip(got, texts)])
      self.assertGreaterEqual(hits, 0.97, list(zip(got, texts)))

  def test_another_text_reads_otherwise(self):
    got = ocr.read([_line("末"), _line("未")], [TOP] * 2, ocr.Recognizer())
    self.assertEqual(got, ["末", "未"])

  def test_reading_does_not_depend_on_the_batch(self):
    recognizer, lines = (
      ocr.Recognizer(batch_size=5),
      [ocr.enlarge(_line(t)[4:30]) for t in ("春", "LOVE", "中秋")],
    )
    together = recognizer(lines)
    self.assertEqual(together, [recognizer([line])[0] for line in lines])

  def test_repeats_merge_unless_a_blank_parts_them(self):
    recognizer = ocr.Recognizer()
    once = recognizer._decode(np.array([0, 5, 5, 5, 0]))
    self.assertLen(once, 1)
    self.assertEqual(recognizer._decode(np.array([5, 5, 0, 5])), 2 * once)

  def test_an_empty_zone_reads_nothing(self):
    rng = np.random.default_rng(0)
    noisy = np.clip(tiny.canvas("pink") + rng.normal(0, 5, (64, 64, 3)), 0, 255).astype(np.uint8)
    for image in (tiny.canvas("blue"), noisy):
      self.assertFalse(ocr.ink(image, TOP).any())
      self.assertEqual(ocr.read([image], [TOP], ocr.Recognizer()), [""])

  def test_trim_is_tight(self):
    image = tiny.canvas("white")
    image[9:21, 17:40] = (200, 0, 0)
    self.assertEqual(ocr.trim(image, TOP).shape, (12 + 2 * ocr.MARGIN, 23 + 2 * ocr.MARGIN, 3))

  @parameterized.named_parameters(
    (
      "noise",
      lambda image, rng: np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8),
    ),
    ("specks", lambda image, rng: _with(image, [(1, 2), (2, 61), (30, 3)], (0, 0, 0))),
    ("frame", lambda image, rng: _framed(image)),
    ("subject over the border", lambda image, rng: tiny.put(image, "🐼", 34, (45, 32))),
    (
      "shadow",
      lambda image, rng: (image * np.linspace(0.8, 1.0, 64)[:, None, None]).astype(np.uint8),
    ),
  )
  def test_disturbance_leaves_the_ink(self, disturb):
    image = _line("LOVE")
    want = ocr.ink(image, TOP)
    got = ocr.ink(disturb(image, np.random.default_rng(1)), TOP)
    for axis in (0, 1):
      a, b = (np.nonzero(x.any(axis))[0][[0, -1]] for x in (want, got))
      np.testing.assert_allclose(a, b, atol=1)

  @parameterized.parameters(
    ("Hello World", "helloworld"), ("ＬＯＶＥ", "love"), (" 春 天 ", "春天")
  )
  def test_fold(self, text, want):
    self.assertEqual(ocr.fold(text), want)


def _with(image, points, color):
  out = image.copy()
  for y, x in points:
    out[y, x] = color
  return out


def _framed(image):
  out = image.copy()
  out[0], out[-1], out[:, 0], out[:, -1] = [(90, 90, 90)] * 4
  return out


if __name__ == "__main__":
  absltest.main()
