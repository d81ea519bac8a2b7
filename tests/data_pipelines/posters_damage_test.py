"""The corruptor does what its labels say, and nothing else."""

import collections
import functools
import json

import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines.posters import damage, fonts, poster, sheet, splits
from data_pipelines.posters import scene as scene_lib

FONTS = fonts.find()
BASE = poster.Posters("nano", "train", ((64, 64),), 0, FONTS)
COUNT = 240


@functools.cache
def _records(rate=0.8, kinds=damage.KINDS):
  source = damage.Damaged(BASE, rate, kinds)
  out = []
  for i in range(COUNT):
    record = source.example(i)
    out.append(
      {**record, "image": sheet.decode(record["image"]), "damage": json.loads(record["damage"])}
    )
  return out


def _of(kind):
  found = [(i, r) for i, r in enumerate(_records()) if r["damage"]["kind"] == kind]
  assert found, kind
  return found


class DamageTest(parameterized.TestCase):
  @parameterized.parameters(*damage.PIXEL_KINDS, *damage.STAMP_KINDS)
  def test_pixels_change_and_only_inside_the_box(self, kind):
    for i, record in _of(kind):
      clean, _, said = BASE.draw(i)
      change = np.abs(record["image"].astype(int) - clean).max(-1)
      self.assertEqual(record["captions"], said)
      self.assertGreater(change.max(), 0)
      box = record["damage"]["box"]
      if kind in ("mosaic", "overlay", "logo", "sticker"):
        y0, x0, y1, x1 = box
        change[y0:y1, x0:x1] = 0
        self.assertEqual(change.max(), 0)
      else:
        self.assertIsNone(box)

  @parameterized.product(
    kind=(*damage.PIXEL_KINDS, *damage.STAMP_KINDS), size=((64, 64), (48, 80), (256, 160))
  )
  def test_every_kind_at_every_size(self, kind, size):
    source = damage.Damaged(poster.Posters("nano", "train", (size,), 0, FONTS), 1.0)
    image_HWC, _, _ = source.base.draw(3)
    before = image_HWC.copy()
    for seed in range(4):
      out, label = source.damage(image_HWC, kind, scene_lib.Dice(seed))
      self.assertEqual((out.shape, out.dtype), (image_HWC.shape, np.uint8))
      self.assertEqual(label["kind"], kind)
    np.testing.assert_array_equal(image_HWC, before)

  def test_a_label_of_none_is_a_clean_poster(self):
    for i, record in _of("none"):
      np.testing.assert_array_equal(record["image"], BASE.draw(i)[0])

  def test_near_blank_is_flat_and_blur_is_soft(self):
    for _, record in _of("near_blank"):
      self.assertLess(record["image"].std(axis=(0, 1)).max(), 10)
    for i, record in _of("blur"):
      sharp, soft = (
        np.abs(np.diff(x.astype(int), axis=1)).mean() for x in (BASE.draw(i)[0], record["image"])
      )
      self.assertLess(soft, 0.9 * sharp)

  def test_duplicates_name_their_original(self):
    for _, record in _of("duplicate"):
      of = record["damage"]["of"]
      self.assertLess(of, record["id"])
      image_HWC, scene, said = BASE.draw(of)
      np.testing.assert_array_equal(record["image"], image_HWC)
      self.assertEqual((json.loads(record["scene"]), record["captions"]), (scene, said))

  @parameterized.parameters(*damage.NEAR_KINDS)
  def test_near_duplicates_are_near(self, kind):
    near, far = [], []
    for _, record in _of(kind):
      of = record["damage"]["of"]
      near.append(np.abs(record["image"].astype(float) - BASE.draw(of)[0]).mean())
      far.append(np.abs(record["image"].astype(float) - BASE.draw(of + 1)[0]).mean())
    self.assertGreater(min(near), 0)
    self.assertLess(np.mean(near), np.mean(far) / 2)

  def test_wrong_captions_belong_to_another_picture(self):
    for i, record in _of("wrong_caption"):
      image_HWC, scene, _ = BASE.draw(i)
      _, other, said = BASE.draw(record["damage"]["of"])
      np.testing.assert_array_equal(record["image"], image_HWC)
      self.assertEqual(record["captions"], said)
      self.assertNotEqual(splits.content_key(scene), splits.content_key(other))

  def test_the_campaign_repeats_a_dozen_posters(self):
    found = [json.loads(r["scene"]) for _, r in _of("over_represented")]
    campaign = {splits.content_key(BASE.draw(i)[1]) for i in range(12)}
    self.assertContainsSubset({splits.content_key(s) for s in found}, campaign)
    self.assertEqual({r["source"] for _, r in _of("over_represented")}, {"campaign"})

  def test_rate_and_kinds(self):
    kinds = collections.Counter(r["damage"]["kind"] for r in _records())
    self.assertBetween(1 - kinds["none"] / COUNT, 0.7, 0.9)
    self.assertSameElements(kinds, {"none", *damage.KINDS})
    only = collections.Counter(r["damage"]["kind"] for r in _records(1.0, ("blur",)))
    self.assertEqual(only, {"blur": COUNT})

  def test_deterministic_in_any_order(self):
    source = damage.Damaged(BASE, 0.8)
    for i in (201, 7, 33):
      again = source.example(i)
      np.testing.assert_array_equal(sheet.decode(again["image"]), _records()[i]["image"])
      self.assertEqual(json.loads(again["damage"]), _records()[i]["damage"])


if __name__ == "__main__":
  absltest.main()
