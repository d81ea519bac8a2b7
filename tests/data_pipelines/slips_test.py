"""Slips: one thing wrong, everything else as it was asked for, still something the renderer draws."""

import collections
import dataclasses
import json

import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines.posters import fonts, poster, render, slips, splits, worlds
from data_pipelines.posters import scene as scene_lib

WORLD = worlds.make_world("nano")


def scenes(num: int = 150) -> list[scene_lib.Scene]:
  made = poster.Posters("nano", "preference", ((64, 64),), 0, fonts.find())
  return [json.loads(made.example(i)["scene"]) for i in range(num)]


SCENES = scenes()


def parts(scene: scene_lib.Scene) -> dict[str, object]:
  return {
    "subject": {thing["emoji"] for thing in scene["subjects"]},
    "count": len(scene["subjects"]),
    "color": scene["background"]["color"],
    "text": scene["text"] and scene["text"]["content"],
  }


class SlipsTest(parameterized.TestCase):
  @parameterized.parameters(*slips.KINDS)
  def test_one_thing_is_wrong(self, kind):
    seen = 0
    for i, scene in enumerate(SCENES):
      if kind not in slips.kinds(scene):
        continue
      seen += 1
      before = json.dumps(scene)
      got = slips.slip(scene, kind, WORLD, scene_lib.Dice("slip", i))
      self.assertEqual(json.dumps(scene), before)  # the scene asked for is left alone
      changed = {part for part, value in parts(got).items() if value != parts(scene)[part]}
      self.assertIn(kind, changed)
      self.assertLessEqual(changed, {kind, "subject"} if kind == "count" else {kind})
      self.assertLessEqual(parts(got)["subject"], set(WORLD.subjects))
    self.assertGreater(seen, 10)

  def test_siblings_differ_from_the_first_in_one_thing_and_stay_in_their_split(self):
    plain = poster.Posters("nano", "train", ((64, 64),), 3, fonts.find())
    made = dataclasses.replace(plain, siblings=4)
    self.assertNotEqual(made.describe(), plain.describe())
    kinds = collections.Counter()
    for start in range(0, 80, 4):
      first, *rest = (made.draw(start + i)[1] for i in range(4))
      self.assertEqual(first, plain.draw(start)[1])
      for other in rest:
        self.assertEqual(splits.split_of(other), "train")
        changed = {part for part, value in parts(other).items() if value != parts(first)[part]}
        kinds[min(changed)] += 1
        self.assertIn(len(changed - {"subject"}), (0, 1))
        self.assertTrue(changed)
    self.assertEqual(set(kinds), set(slips.KINDS))

  def test_siblings_say_what_they_show(self):
    made = poster.Posters("nano", "train", ((64, 64),), 3, fonts.find(), siblings=4)
    for i in range(40):
      _, scene, said = made.draw(i)
      if scene["text"]:
        quoting = [c["text"] for c in said if c["kind"] == "textual"]
        self.assertTrue(quoting)
        for text in quoting:
          self.assertIn(scene["text"]["content"], text)

  def test_length_and_place_of_the_text_stay(self):
    for i, scene in enumerate(s for s in SCENES if s["text"]):
      got = slips.slip(scene, "text", WORLD, scene_lib.Dice("slip", i))["text"]
      differ = [a != b for a, b in zip(got["content"], scene["text"]["content"], strict=True)]
      self.assertEqual(sum(differ), 1)
      self.assertEqual({**got, "content": ""}, {**scene["text"], "content": ""})

  def test_the_renderer_draws_it_otherwise(self):
    renderer = render.shared(fonts.find())
    for i, scene in enumerate(SCENES[:8]):
      truth, _ = renderer.render(scene)
      for kind in slips.kinds(scene):
        image_HWC, _ = renderer.render(slips.slip(scene, kind, WORLD, scene_lib.Dice("slip", i)))
        self.assertGreater(np.abs(image_HWC.astype(int) - truth).max(), 40, msg=kind)


if __name__ == "__main__":
  absltest.main()
