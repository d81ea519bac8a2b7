"""Glyph sheets: negatives are unlike, boxes hold their string, splits keep their strings."""

import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines.posters import builder, fonts, glyphs, palette, render, sheet, splits, words
from data_pipelines.posters import scene as scene_lib
from seedream_jax import types
from seedream_jax.data import glyphs as loader_lib

FONTS = fonts.find()


def _distance(a: str, b: str) -> int:
  """Edits between two strings, a swap of neighbours counting as one."""
  table = np.zeros((len(a) + 1, len(b) + 1), int)
  table[:, 0], table[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
  for i, x in enumerate(a, 1):
    for j, y in enumerate(b, 1):
      best = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (x != y))
      if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
        best = min(best, table[i - 2, j - 2] + 1)
      table[i, j] = best
  return int(table[-1, -1])


class GlyphsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("look_alike", "未", {"末"}), ("look_alike", "O", {"Q", "C", "D", "G"}),
    ("drop", "AB", {"A", "B"}), ("repeat", "AB", {"AAB", "ABB"}), ("swap", "AB", {"BA", "AB"}),
    ("add", "A", {"ZA"}), ("replace", "AB", {"ZB", "AZ"}),
  )  # fmt: skip
  def test_edits(self, kind, content, allowed):
    got = {glyphs.edit(content, kind, scene_lib.Dice(i), "Z") for i in range(60)}
    self.assertEqual(got, allowed)

  @parameterized.parameters("未", "春天", "A", "LOVE", "AAAAA", "日曰", "HAPPY")
  def test_negatives_are_unlike_and_near(self, content):
    alphabet = "ABCDEFGH" if content.isascii() else words.NANO_CHARS
    for seed in range(20):
      got = glyphs.negatives(content, 7, scene_lib.Dice(seed), alphabet, 7)
      self.assertLen(set(got), 7)
      self.assertNotIn(content, got)
      self.assertNotIn("", got)
      for text in got:
        self.assertLessEqual(len(text.encode()), 7)
        self.assertEqual(_distance(content, text), 1, (content, text))

  def test_too_many_negatives_are_refused(self):
    with self.assertRaisesRegex(ValueError, "of 9 negatives"):
      glyphs.negatives("A", 9, scene_lib.Dice(0), "AB", 1)

  @parameterized.parameters((32, 64), (24, 60), (48, 96))
  def test_boxes_hold_their_ink(self, *cell):
    renderer = render.Renderer(FONTS)
    rows = [["春天", "春夫", "天春"], ["LOVE", "LQVE", "LOV"], ["一", "二", "日"]]
    for seed in range(6):
      dice = scene_lib.Dice(seed)
      image, boxes = glyphs.render_sheet(rows, renderer, dice, ("sans_bold", "kai"), cell)
      ink = (image != image[0, 0]).any(-1)
      self.assertIn(tuple(image[0, 0]), [palette.COLORS[c] for c in palette.NANO])
      count = 0
      for y0, x0, y1, x1 in boxes.astype(int):
        part = ink[y0:y1, x0:x1]
        count += part.sum()
        self.assertTrue(all(s.any() for s in (part[0], part[-1], part[:, 0], part[:, -1])))
        self.assertEqual((y0 // cell[0], x0 // cell[1]), ((y1 - 1) // cell[0], (x1 - 1) // cell[1]))
      self.assertEqual(count, ink.sum())  # no ink outside boxes, none in two

  def test_a_box_shows_its_own_string(self):
    renderer = render.Renderer(FONTS)
    rows = [["春", "龙", "一", "I"]]
    for seed in range(8):
      image, boxes = glyphs.render_sheet(
        rows, renderer, scene_lib.Dice(seed), ("sans_bold",), (32, 64)
      )
      size = {text: box[2:] - box[:2] for text, box in zip(rows[0], boxes, strict=True)}
      self.assertLess(size["一"][0], 8)
      self.assertLess(size["I"][1], 10)
      self.assertGreater(min(*size["春"], *size["龙"]), 18)

  def test_place_does_not_tell_the_truth(self):
    source = glyphs.Sheets("nano", "train", 0, FONTS, strings=1, negatives=3)
    first = [int(source.example(i)["boxes"][0, 0] * 4) for i in range(80)]  # four rows of cells
    for row in range(4):
      self.assertBetween(first.count(row), 8, 34)

  def test_splits_keep_their_strings(self):
    found = {}
    for split in ("train", "val", "heldout"):
      source = glyphs.Sheets("nano", split, 0, FONTS, strings=8, negatives=1)
      texts = [t for i in range(25) for t in source.example(i)["strings"][::2]]
      found[split] = {t for t in texts if len(t) > 1}
      for text in texts:
        held = splits.text_is_held_out(text, "en" if text.isascii() else "zh")
        self.assertEqual(held, split == "heldout")
    self.assertEmpty(found["train"] & found["val"])
    with self.assertRaisesRegex(types.UserError, "train, val, heldout"):
      glyphs.Sheets("nano", "bench", 0, FONTS)

  def test_the_loader_reads_them(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    source = glyphs.Sheets("nano", "train", 0, FONTS, strings=2, negatives=3)
    builder.build(builder.Plan(source, 5, shard_size=3), folder)
    loader = loader_lib.GlyphLoader({"source": f"{folder}:train", "batch_size": 5})
    batch = loader.batch(0)
    self.assertEqual(batch["boxes_BJN4"].shape, (5, 2, 4, 4))
    self.assertEqual(batch["byt5_ids_BJNG"].shape, (5, 2, 4, 8))
    for i, ident in enumerate(batch["id_B"]):
      record = source.example(int(ident))
      np.testing.assert_array_equal(batch["sheet_BHWC"][i], sheet.decode(record["image"]))
      np.testing.assert_allclose(batch["boxes_BJN4"][i].reshape(-1, 4), record["boxes"])
      image = batch["sheet_BHWC"][i]
      scale = np.array([*image.shape[:2]] * 2)
      for y0, x0, y1, x1 in np.rint(record["boxes"] * scale[None, :]).astype(int):
        ink = (image[y0:y1, x0:x1] != image[0, 0]).any(-1)
        self.assertTrue(all(side.any() for side in (ink[0], ink[-1], ink[:, 0], ink[:, -1])))


if __name__ == "__main__":
  absltest.main()
