"""Text metrics against hand-counted and brute-force answers; pictures against planted scenes."""

import functools

import numpy as np
from absl.testing import absltest, parameterized
from scipy import ndimage

from seedream_jax.eval import judges, matched, ocr
from tests.eval import tiny


def _brute_force(target: str, reading: str) -> tuple[int, int]:
  """(fewest edits, most matches among those), by trying every alignment."""

  @functools.cache
  def best(i: int, j: int) -> tuple[int, int]:
    if i == len(target) or j == len(reading):
      return len(target) - i + len(reading) - j, 0
    same = target[i] == reading[j]
    options = [
      (best(i + 1, j + 1)[0] + (not same), best(i + 1, j + 1)[1] - same),
      (best(i + 1, j)[0] + 1, best(i + 1, j)[1]),
      (best(i, j + 1)[0] + 1, best(i, j + 1)[1]),
    ]
    return min(options)

  edits, matches = best(0, 0)
  return edits, -matches


class TextTest(parameterized.TestCase):
  @parameterized.parameters(
    # target, reading, N_e, N_c
    ("春天", "春天", 0, 2),
    ("春天", "春大", 1, 1),
    ("春天", "", 2, 0),
    ("春", "春春春", 2, 1),
    ("love", "lov", 1, 3),
    ("love", "glove", 1, 4),
    (
      "ab",
      "ba",
      2,
      1,
    ),  # delete and insert cost what two substitutions do, and keep one letter in place
    ("kitten", "sitting", 3, 4),  # Levenshtein's textbook pair
  )
  def test_counted_by_hand(self, target, reading, errors, correct):
    self.assertEqual(judges.align(target, reading), (errors, correct))

  def test_agrees_with_brute_force(self):
    rng = np.random.default_rng(0)
    for _ in range(200):
      a, b = ("".join(rng.choice(list("abc"), rng.integers(0, 7))) for _ in range(2))
      self.assertEqual(judges.align(a, b), _brute_force(a, b), (a, b))

  def test_insertions_make_accuracy_negative(self):
    num, den = judges.text_outcomes("春", "春夏秋冬", "zh")["R_a"]
    self.assertEqual(num / den, -2.0)  # 1 - 3/1, never clipped

  def test_hit_rate_and_availability(self):
    got = judges.text_outcomes("hope", "hop", "en")
    self.assertEqual(got["R_h"], (3, 4))
    self.assertEqual(got["R_a"], (3, 4))
    self.assertEqual(got["availability"], (0.0, 1.0))
    self.assertEqual(got["availability/en/4"], (0.0, 1.0))
    self.assertEqual(judges.text_outcomes("hope", "hope", "en")["availability/en"], (1.0, 1.0))


class SubjectTest(parameterized.TestCase):
  def _outcomes(self, found, **changes):
    scene = tiny.scene(
      subjects=[("🐼", 28, (16, 16), "top_left"), ("🐉", 28, (48, 48), "bottom_right")]
    )
    return dict(judges.subject_outcomes(found, {**scene, **changes}, (64, 64), "zh"))

  def _found(self, *items):
    return [matched.Detection(emoji, score, center, size) for emoji, score, center, size in items]

  def test_all_right(self):
    found = self._found(("🐉", 0.9, (47, 50), 28), ("🐼", 0.8, (17, 14), 28))
    self.assertTrue(all(num == den for num, den in self._outcomes(found).values()))

  def test_swapped_places_fail_only_place(self):
    got = self._outcomes(self._found(("🐼", 0.9, (47, 50), 28), ("🐉", 0.8, (17, 14), 28)))
    self.assertEqual((got["subject"][0], got["count"][0], got["place"][0]), (1.0, 1.0, 0.0))

  def test_one_too_many_fails_only_count(self):
    found = self._found(
      ("🐉", 0.9, (47, 50), 28), ("🐼", 0.8, (17, 14), 28), ("🐼", 0.7, (17, 48), 28)
    )
    got = self._outcomes(found)
    self.assertEqual((got["subject"][0], got["count"][0], got["place"][0]), (1.0, 0.0, 1.0))

  def test_twins_are_placed_by_assignment(self):
    twins = tiny.scene(
      subjects=[("🐼", 28, (16, 16), "top_left"), ("🐼", 28, (48, 48), "bottom_right")]
    )
    found = self._found(("🐼", 0.9, (48, 48), 28), ("🐼", 0.8, (16, 16), 28))
    got = dict(judges.subject_outcomes(found, twins, (64, 64), "en"))
    self.assertEqual(got["place/en"], (1.0, 1.0))

  def test_styles_stand_apart(self):
    got = self._outcomes([], style="neon")
    self.assertIn("styled/subject", got)
    self.assertNotIn("subject", got)

  def test_relation(self):
    scene = tiny.scene(subjects=[("🐼", 34, (32, 18), "left"), ("🐉", 26, (32, 50), "right")])
    scene["counterfactual"] = True
    for sizes, want in (((33, 25), 1.0), ((25, 33), 0.0), ((30, 30), 0.0)):
      found = self._found(("🐼", 0.9, (32, 18), sizes[0]), ("🐉", 0.8, (32, 50), sizes[1]))
      self.assertEqual(
        dict(judges.subject_outcomes(found, scene, (64, 64), "zh"))["relation"][0], want
      )

  @parameterized.parameters(
    ((10, 12), "top_left", True), ((10, 12), "top", False), ((32, 32), "center", True),
    ((32, 12), "left", True), ((28, 12), "top_left", True),  # 0.44 of the side: within the slack
    ((30, 12), "top_left", False), ((50, 33), "bottom", True), ((50, 33), "bottom_right", False),
  )  # fmt: skip
  def test_places(self, center, place, want):
    self.assertEqual(judges.in_place(center, place, (64, 64)), want)


class PictureTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    tiny.require_fonts()
    cls.scene = tiny.scene(
      color="yellow", subjects=[("🐼", 28, (48, 32), "bottom")], text=("春天", "zh", "red", "top")
    )
    cls.image = tiny.draw(cls.scene)

  def _judge(self, image, scene, reading="春天", **options):
    judge = judges.Judges(
      tiny.SUBJECTS, tiny.COLORS, recognizer=lambda lines: [reading] * len(lines), **options
    )
    return judge.judge([image], [{"id": "a-zh", "lang": "zh", "scene": scene}])[0]

  def test_truth_satisfies_every_judge(self):
    got = self._judge(self.image, self.scene)
    self.assertContainsSubset(
      ["subject", "count", "place", "color", "text_color", "R_a", "R_h", "availability"], got
    )
    asked = {
      name: pair for name, pair in got.items() if not name.startswith("aes")
    }  # no prompt asks for those
    self.assertTrue(all(num == den for num, den in asked.values()), got)

  @parameterized.parameters("white", "green", "purple")
  def test_wrong_background_is_seen(self, color):
    image = tiny.draw(
      {**self.scene, "background": {"kind": "solid", "color": color, "color2": None}}
    )
    got = self._judge(image, self.scene)
    self.assertEqual((got["color"][0], got["subject"][0]), (0.0, 1.0))

  def test_wrong_ink_is_seen(self):
    image = tiny.draw({**self.scene, "text": {**self.scene["text"], "color": "blue"}})
    got = self._judge(image, self.scene)
    self.assertEqual((got["text_color"][0], got["color"][0]), (0.0, 1.0))

  def test_wrong_subject_is_seen(self):
    image = tiny.draw({**self.scene, "subjects": [{**self.scene["subjects"][0], "emoji": "🐉"}]})
    got = self._judge(image, self.scene)
    self.assertEqual((got["subject"][0], got["count"][0], got["place"][0]), (0.0, 1.0, 0.0))

  def test_light_hides_no_subject(self):
    y, x = np.mgrid[0:64, 0:64] / 64
    light = 1.12 - 0.45 * np.hypot(y - 0.1, x - 0.15)
    asked = [
      tiny.scene(color=color, subjects=[(emoji, 28, (46, 46), "bottom")])
      for emoji in tiny.SUBJECTS
      for color in tiny.COLORS
    ]
    lit = [np.rint(tiny.draw(scene) * light[..., None]).clip(0, 255) for scene in asked]
    blurred = [ndimage.gaussian_filter(image, (0.9, 0.9, 0)).astype(np.uint8) for image in lit]
    found = [self._judge(*pair)["subject"][0] for pair in zip(blurred, asked)]
    self.assertEqual(np.mean(found), 1.0)  # of sprites compared as they are, 0.886

  def test_misread_text_fails_only_text(self):
    got = self._judge(self.image, self.scene, reading="春大")
    self.assertEqual((got["availability"][0], got["R_a"], got["subject"][0]), (0.0, (1, 2), 1.0))

  def test_without_text_no_recogniser_is_needed(self):
    scene = {**self.scene, "text": None}
    judge = judges.Judges(tiny.SUBJECTS, tiny.COLORS, recognizer=self.fail)
    (got,) = judge.judge([tiny.draw(scene)], [{"id": "a-zh", "lang": "zh", "scene": scene}])
    self.assertNotIn("R_a", got)

  def test_classifier_b_stands_beside(self):
    wrong = judges.Answer(("🐉", "🐼", "🏮"), "white", 1)
    second = judges.SecondJudge(lambda images: [wrong] * len(images))
    got = self._judge(self.image, self.scene, second=second)
    self.assertEqual((got["subject"][0], got["subject_b/zh"]), (1.0, (0.0, 1.0)))
    self.assertNotIn("subject_b", self._judge(self.image, self.scene))

  @parameterized.parameters(
    # kinds drawn, what B says, subject_b, count_b
    (("🐼",), judges.Answer(("🐼", "🐉", "🏮"), "red", 1), 1.0, 1.0),
    (("🐼",), judges.Answer(("🐉", "🐼", "🏮"), "red", 2), 0.0, 0.0),
    (("🐼", "🐼"), judges.Answer(("🐼", "🐉", "🏮"), "red", 2), 1.0, 1.0),
    (("🐼", "🐉"), judges.Answer(("🐉", "🐼", "🏮"), "red", 3), 1.0, 0.0),
    (("🐼", "🐉"), judges.Answer(("🐉", "🏮", "🐼"), "red", 2), 0.0, 1.0),
  )
  def test_classifier_b_is_asked_for_the_kinds_drawn(self, kinds, answer, subject, count):
    scene = tiny.scene(color="red", subjects=[(k, 20, (30, 30), "center") for k in kinds])
    got = dict(judges.answer_outcomes(answer, scene, "en"))
    self.assertEqual((got["subject_b"], got["count_b"]), ((subject, 1.0), (count, 1.0)))
    self.assertEqual(got[f"subject_b/{len(kinds)}"], (subject, 1.0))
    self.assertEqual(got["color_b/en"], (1.0, 1.0))
    styled = dict(judges.answer_outcomes(answer, {**scene, "style": "neon"}, "en"))
    self.assertEqual(styled["styled/subject_b"], (subject, 1.0))

  def test_classifier_b_is_not_asked_what_a_scene_does_not_say(self):
    scene = tiny.scene(color="red", text=("春", "zh", "white", "top"))
    scene["background"]["kind"] = "gradient"
    self.assertEmpty(dict(judges.answer_outcomes(judges.Answer((), "red", 0), scene, "zh")))

  @parameterized.parameters(("top", (0, 0, 32, 64)), ("right", (0, 32, 64, 64)))
  def test_zone_follows_the_place(self, place, want):
    text = {**self.scene["text"], "place": place}
    self.assertEqual(judges.text_zone({**self.scene, "text": text}), want)
    text["zone"] = [1, 2, 30.0, 40]
    self.assertEqual(judges.text_zone({**self.scene, "text": text}), (1, 2, 30, 40))

  def test_ink_lies_in_the_zone(self):
    mask = ocr.ink(self.image, judges.text_zone(self.scene))
    self.assertTrue(mask[:32].any())
    self.assertFalse(mask[32:].any())


if __name__ == "__main__":
  absltest.main()
