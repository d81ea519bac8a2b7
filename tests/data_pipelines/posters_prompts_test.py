"""Prompt sets are frozen, fully named, and disjoint."""

import hashlib
import json
import pathlib
import tempfile

from absl.testing import absltest, parameterized

from data_pipelines.posters import fonts, prompts, splits, subjects, words, worlds
from seedream_jax import types
from seedream_jax.data import tokenizers

NANO = worlds.make_world("nano")
SUITES = {name: prompts.make(NANO, name) for name in prompts.SUITES}

# Frozen before any training. A digest that changes means scores before and after do not compare:
# only then, and with GRAMMAR raised, write the new one here.
DIGESTS = {
  "bench": "352df948937c504d",
  "heldout": "b8a3a32a916c7a47",
  "hard": "9c282f19d4936f50",
  "val": "c5889d5a820a0d46",
  "text": "abf9d5ae68773dff",
  "preference": "79ef220cc77e835b",
  "refl": "b2fc850e5bb6b73f",
}


def _digest(suite: list[prompts.Prompt]) -> str:
  said = json.dumps([p["prompt"] for p in suite], ensure_ascii=False)
  return hashlib.sha256(said.encode()).hexdigest()[:16]


class PromptsTest(parameterized.TestCase):
  def test_frozen(self):
    self.assertEqual({name: _digest(suite) for name, suite in SUITES.items()}, DIGESTS)

  def test_no_two_suites_share_a_prompt_or_a_scene(self):
    prompt_of, scene_of = {}, {}
    for name, suite in SUITES.items():
      for p in suite:
        self.assertEqual(prompt_of.setdefault(p["prompt"], name), name)
        self.assertEqual(scene_of.setdefault(splits.content_key(p["scene"]), name), name)
        self.assertEqual(splits.split_of(p["scene"]), name)

  def test_bench_has_240_prompts_a_language(self):
    for lang in ("zh", "en"):
      self.assertLen({p["prompt"] for p in SUITES["bench"] if p["lang"] == lang}, 240)
    self.assertLen(
      {p["id"] for suite in SUITES.values() for p in suite}, sum(map(len, SUITES.values()))
    )
    self.assertLen({p["category"] for p in SUITES["bench"]}, 8)

  def test_prompts_quote_their_text(self):
    for suite in SUITES.values():
      for p in suite:
        text = p["scene"]["text"]
        want = [] if text is None else [text["content"]]
        self.assertEqual(tokenizers.find_quoted(p["prompt"]), want)
        self.assertEqual(set(p["scene"]["aesthetics"].values()), {0})

  def test_categories_hold(self):
    def by(suite: str, name: str) -> list[dict]:
      return [p["scene"] for p in SUITES[suite] if p["category"] == name]

    for scene in by("bench", "count") + by("hard", "count"):
      self.assertGreater(scene["count"], 1)
      self.assertLen({s["emoji"] for s in scene["subjects"]}, 1)
    for scene in by("hard", "swap"):
      self.assertLen({s["emoji"] for s in scene["subjects"]}, scene["count"])
    for scene in by("hard", "few_shot"):
      self.assertTrue(set(scene["text"]["content"]) & set(words.FEW_SHOT))
    for scene in by("bench", "counterfactual") + by("hard", "counterfactual"):
      self.assertTrue(scene["counterfactual"])
    for scene in by("bench", "culture"):
      said = scene["text"] and scene["text"]["content"] in words.CULTURE_WORDS
      self.assertTrue(said or {s["emoji"] for s in scene["subjects"]} & subjects.CULTURE)
    for scene in by("heldout", "pair"):
      color = scene["background"]["color"]
      self.assertTrue(splits.pair_is_held_out(scene["subjects"][0]["emoji"], color))
    for suite, name in (("heldout", "pair"), ("bench", "subject")):
      shown = {scene["subjects"][0]["emoji"] for scene in by(suite, name)}
      self.assertLen(shown, 64 if suite == "heldout" else 30)
    for lang in ("zh", "en"):
      for scene in by("heldout", lang):
        self.assertTrue(splits.text_is_held_out(scene["text"]["content"], lang))
      self.assertEqual({s["text"]["lang"] for s in by("text", lang)}, {lang})

  def test_written_with_exact_boxes(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    path = prompts.write(NANO, "text", folder, fonts.find())
    read = [json.loads(line) for line in pathlib.Path(path).read_text().splitlines()]
    self.assertEqual([p["prompt"] for p in read], [p["prompt"] for p in SUITES["text"]])
    self.assertTrue(all(p["scene"]["text"]["box"] for p in read))

  def test_another_size_keeps_the_split_and_fills_the_picture(self):
    wide = prompts.make(NANO, "heldout", size=(64, 96))
    self.assertEqual({tuple(p["scene"]["size"]) for p in wide}, {(64, 96)})
    self.assertEqual({splits.split_of(p["scene"]) for p in wide}, {"heldout"})
    centers = [s["center"][1] for p in wide for s in p["scene"]["subjects"]]
    self.assertGreater(max(centers), 64)

  def test_a_reference_is_other_scenes_drawn_as_the_suite_is(self):
    drawn = list(prompts.reference(NANO, "heldout", (64, 64), 90))
    frozen = [p["scene"] for p in SUITES["heldout"] if p["lang"] == "zh"]
    self.assertEqual({splits.split_of(s) for s in drawn}, {"heldout"})
    self.assertFalse({s["seed"] for s in drawn} & {s["seed"] for s in frozen})
    kinds = [s["text"] and s["text"]["lang"] for s in drawn]
    self.assertEqual(kinds, [None, "zh", "en"] * 30)
    axes = [sum(s["aesthetics"].values()) for s in drawn]
    self.assertBetween(sum(axes) / len(axes), 0.6, 1.4)  # four axes at 0.25

  def test_unknown_suite_names_the_nearest(self):
    with self.assertRaisesRegex(types.UserError, "did you mean 'bench'"):
      prompts.make(NANO, "benhc")


if __name__ == "__main__":
  absltest.main()
