"""Glyph sheets written and read back: order, negatives, damage."""

import io
import os
import tempfile

import numpy as np
from absl.testing import absltest
from PIL import Image

from seedream_jax import types
from seedream_jax.data import glyphs, records

SHEETS, STRINGS, CELLS = 7, 2, 3


def _sheet(i: int, damaged: bool = False) -> dict:
  png = io.BytesIO()
  Image.fromarray(np.full((8, 16, 3), i, np.uint8)).save(png, "png")
  if damaged:
    png = io.BytesIO(png.getvalue()[:40])
  png.seek(0)
  cells = STRINGS * CELLS
  return {
    "id": 100 + i,
    "image": png,
    "height": 8,
    "width": 16,
    "captions": [],
    "scene": "",
    "bucket": "8x16",
    "boxes": np.arange(cells * 4, dtype=np.float32).reshape(cells, 4) / 100 + i,
    "strings": [f"{chr(65 + i)}{c}" for c in range(cells)],
    "num_strings": STRINGS,
  }


class GlyphsTest(absltest.TestCase):
  def _write(self, damaged: tuple[int, ...] = ()) -> str:
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = os.path.join(folder, records.shard_name("glyphs", "train", 0, 1))
    sheets = [_sheet(i, i in damaged) for i in range(SHEETS)]
    count = records.write_shard(path, glyphs.features(), sheets)
    shards = {"train": [(count, os.path.getsize(path))]}
    records.write_metadata(folder, "glyphs", glyphs.features(), shards, "test")
    return folder

  def test_reads_what_was_written(self):
    loader = glyphs.GlyphLoader(dict(source=self._write(), batch_size=3))
    batch = loader.batch(0)
    self.assertEqual(set(batch), set(glyphs.FEATURES))
    self.assertEqual(batch["sheet_BHWC"].shape, (3, 8, 16, 3))
    self.assertEqual(batch["boxes_BJN4"].shape, (3, STRINGS, CELLS, 4))
    for b, number in enumerate(batch["id_B"].astype(int) - 100):
      self.assertTrue((batch["sheet_BHWC"][b] == number).all())
      np.testing.assert_allclose(batch["boxes_BJN4"][b, 1, 2], number + np.arange(20, 24) / 100)
      # ByT5 ids of e.g. "C5": the last cell of the second string.
      want_G = [ord(chr(65 + number)) + 3, ord("5") + 3, 1, 0, 0, 0, 0, 0]
      np.testing.assert_array_equal(batch["byt5_ids_BJNG"][b, 1, 2], want_G)

  def test_order_is_a_function_of_seed_and_step(self):
    folder = self._write()
    make = lambda **kwargs: glyphs.GlyphLoader(dict(source=folder, batch_size=2, seed=5), **kwargs)  # noqa: E731
    ids = [make().batch(step)["id_B"] for step in range(6)]
    streamed = make().iterate(2)
    for step in range(2, 6):
      got, batch = next(streamed)
      self.assertEqual(got, step)
      np.testing.assert_array_equal(batch["id_B"], ids[step])
    self.assertLen(set(np.concatenate(ids[:3])), 6)  # no sheet twice in an epoch
    self.assertFalse(np.array_equal(np.concatenate(ids[:3]), np.concatenate(ids[3:])))
    hosts = [make(process_index=i, process_count=2).batch(4)["id_B"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(hosts), ids[4])

  def test_fewer_negatives(self):
    loader = glyphs.GlyphLoader(dict(source=self._write(), batch_size=2, negatives=1))
    batch = loader.batch(0)
    self.assertEqual(batch["byt5_ids_BJNG"].shape, (2, STRINGS, 2, 8))
    digits = batch["byt5_ids_BJNG"][0, :, :, 1] - 3 - ord("0")
    np.testing.assert_array_equal(digits, [[0, 1], [3, 4]])

  def test_damage_is_replaced_and_counted(self):
    folder = self._write(damaged=(3, 4))
    loader = glyphs.GlyphLoader(dict(source=folder, batch_size=2))
    ids = np.concatenate([loader.batch(step)["id_B"] for step in range(9)])
    self.assertNotIn(103, ids)
    self.assertNotIn(104, ids)
    report = loader.report()
    self.assertEqual(report["examples"], 18)
    self.assertEqual(report["intact"] + report["replaced"], 18)
    self.assertGreater(report["replaced"], 0)
    self.assertLen(report["corrupt"], 2)

  def test_user_errors(self):
    folder = self._write()
    for fields, message in (
      (dict(batch_size=8), "7 sheets, fewer than a batch, 8"),
      (dict(batch_size=2, negatives=5), "negatives: 5, sheets hold 2 a string"),
      (dict(batch_size=0), "batch_size: 0, expected at least 1"),
    ):
      with self.assertRaisesRegex(types.UserError, message):
        glyphs.GlyphLoader(dict(source=folder, **fields))
    with self.assertRaisesRegex(types.UserError, "does not split over 2 hosts"):
      glyphs.GlyphLoader(dict(source=folder, batch_size=3), process_count=2)


if __name__ == "__main__":
  absltest.main()
