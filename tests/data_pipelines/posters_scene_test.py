"""The grammar: same seed, same scene; splits that never meet; what is reserved stays unseen."""

import collections

from absl.testing import absltest, parameterized

from data_pipelines.posters import palette, splits, subjects, words, worlds
from data_pipelines.posters import scene as scene_lib
from seedream_jax import types

NANO = worlds.make_world("nano")


def _scenes(split, count, world=NANO, size=(64, 64)):
  dice = (scene_lib.Dice(3, split, i) for i in range(count))
  return [scene_lib.sample_in(split, d, world, size) for d in dice]


class SceneTest(parameterized.TestCase):
  def test_dice_are_frozen(self):
    # Drawn once with this code; a change here changes every data set.
    dice = scene_lib.Dice(7, "a")
    self.assertEqual([dice.integer(0, 999) for _ in range(20)], FIRST_ROLLS)

  def test_same_seed_same_scene(self):
    self.assertEqual(_scenes("train", 11), _scenes("train", 11))
    other = [scene_lib.sample_in("train", scene_lib.Dice(4, i), NANO, (64, 64)) for i in range(11)]
    self.assertNotEqual(_scenes("train", 11), other)

  def test_splits_never_meet(self):
    seen = {}
    for split in splits.NAMES:
      for scene in _scenes(split, 60):
        self.assertEqual(splits.split_of(scene), split)
        key = splits.content_key(scene)
        self.assertEqual(seen.setdefault(key, split), split)

  def test_held_out_parts_are_never_trained_on(self):
    for scene in _scenes("train", 300):
      color, text = scene["background"]["color"], scene["text"]
      for subject in scene["subjects"]:
        self.assertFalse(splits.pair_is_held_out(subject["emoji"], color))
      if text is not None:
        self.assertFalse(splits.text_is_held_out(text["content"], text["lang"]))
    for scene in _scenes("heldout", 60):
      self.assertTrue(splits.held_out(scene))

  def test_one_in_seven_is_held_out(self):
    for emoji in subjects.CURATED:
      held = [c for c in palette.ALL if splits.pair_is_held_out(emoji, c)]
      self.assertLen(held, 2, emoji)
      self.assertEqual(
        [c in palette.NANO for c in held], [True, False]
      )  # what nano draws, and the rest
      self.assertEmpty(subjects.lookup(emoji).avoid & set(held))
    chars = [a + b for a in words.FREQUENT for b in words.FREQUENT]
    share = sum(splits.text_is_held_out(c, "zh") for c in chars) / len(chars)
    self.assertBetween(share, 0.13, 0.155)

  @parameterized.parameters("nano", "small", "base", "full")
  def test_reserved_are_never_drawn(self, name):
    world = worlds.make_world(name)
    self.assertEmpty(set(world.subjects) & set(subjects.RESERVED))
    self.assertEmpty(set(world.faces) & set(worlds.RESERVED_FACES))
    for split in ("train", "heldout"):
      for scene in _scenes(split, 40, world):
        self.assertContainsSubset({s["emoji"] for s in scene["subjects"]}, world.subjects)
        if scene["text"] is not None:
          self.assertIn(scene["text"]["face"], world.faces)

  def test_nano_vocabulary(self):
    self.assertLen(set(words.NANO_CHARS), 128)
    self.assertLen(words.LOOK_ALIKES, 16)
    self.assertLen(set(subjects.NANO), 64)
    self.assertLen(set(subjects.RESERVED), 32)
    self.assertEmpty(set(subjects.NANO) & set(subjects.RESERVED))
    self.assertEmpty(set("🧧🀄💯📅🆗") & set(subjects.NANO))
    self.assertLen(set("".join(words.nano_en_words())), 26)

  def test_nano_follows_its_rules(self):
    scenes, count = [scene_lib.sample(scene_lib.Dice(i), NANO, (64, 64)) for i in range(1500)], 1500
    with_text = [s for s in scenes if s["text"] is not None]
    self.assertBetween(len(with_text) / count, 0.66, 0.74)
    zh = [s["text"]["content"] for s in with_text if s["text"]["lang"] == "zh"]
    self.assertBetween(len(zh) / len(with_text), 0.45, 0.55)
    self.assertBetween(sum(len(c) == 2 for c in zh) / len(zh), 0.65, 0.75)
    self.assertBetween(sum(s["style"] == "plain" for s in scenes) / count, 0.82, 0.88)
    for axis in worlds.AXES:
      self.assertBetween(sum(s["aesthetics"][axis] for s in scenes) / count, 0.21, 0.29)
    for scene in scenes:
      text, background = scene["text"], scene["background"]["color"]
      self.assertEqual(scene["count"], len(scene["subjects"]))
      self.assertLessEqual(scene["count"], 3 if text is None else 1)
      for subject in scene["subjects"]:
        self.assertBetween(subject["size"], 26, 34)
        self.assertNotIn(background, subjects.lookup(subject["emoji"]).avoid)
      if text is not None:
        self.assertGreaterEqual(palette.contrast(text["color"], background), palette.MIN_CONTRAST)
        self.assertLessEqual(len(text["content"]), 2 if text["lang"] == "zh" else 5)
        self.assertIn(text["place"], ("top", "bottom"))
        self.assertBetween(text["px"], *((26, 30) if text["lang"] == "zh" else (20, 24)))

  @parameterized.parameters((64, 64), (48, 80), (80, 48), (96, 48), (128, 128), (288, 512))
  def test_subjects_lie_inside_and_apart(self, height, width):
    for name in ("nano", "small"):
      world = worlds.make_world(name)
      for i in range(120):
        scene = scene_lib.sample(scene_lib.Dice(i, height), world, (height, width))
        boxes = []
        for subject in scene["subjects"]:
          (y, x), half = subject["center"], subject["size"] / 2
          boxes.append((y - half, x - half, y + half, x + half))
          self.assertEqual(subject["place"], scene_lib.place_of(y, x, (height, width)))
          self.assertTrue(
            y - half >= 0 and x - half >= 0 and y + half <= height and x + half <= width
          )
        for at, a in enumerate(boxes):
          for b in boxes[at + 1 :]:
            apart = a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
            self.assertTrue(apart, f"{scene}")

  def test_counterfactuals_turn_real_sizes_round(self):
    world = NANO.tilted(text_rate=0.0, counts=(0.0, 1.0, 0.0), counterfactual_rate=1.0)
    found = collections.Counter()
    for i in range(150):
      scene = scene_lib.sample(scene_lib.Dice(i), world, (64, 64))
      found[scene["counterfactual"]] += 1
      if scene["counterfactual"]:
        a, b = scene["subjects"]
        ranks = [subjects.lookup(s["emoji"]).rank for s in (a, b)]
        self.assertNotEqual(a["size"] > b["size"], ranks[0] > ranks[1])
        self.assertGreaterEqual(abs(a["size"] - b["size"]), 5)
    self.assertGreater(found[True], 130)

  def test_ids_fit_a_batch(self):
    rows = (0, 1, 2, 3, splits.MAX_RECORDS - 1)
    ids = [splits.record_id(name, row) for name in splits.NAMES for row in rows]
    self.assertLen(set(ids), len(rows) * len(splits.NAMES))
    self.assertLess(max(ids), 2**32)

  def test_unknown_world_names_the_nearest(self):
    with self.assertRaisesRegex(types.UserError, "did you mean 'small'"):
      worlds.make_world("smal")


FIRST_ROLLS = [
  983,
  338,
  746,
  572,
  441,
  25,
  595,
  206,
  806,
  712,
  205,
  466,
  627,
  310,
  979,
  871,
  859,
  94,
  213,
  851,
]

if __name__ == "__main__":
  absltest.main()
