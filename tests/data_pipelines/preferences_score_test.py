"""Scoring a reward: the noise comes off again, the ceiling is what it left, thirds are by the gap beneath it."""

import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines.posters import fonts, render, worlds
from data_pipelines.preferences import asked, candidates, pairs, sample, score, scorer


def _about(number: int, clean: tuple[float, float], std: float) -> tuple[dict, bool]:
  """What a record of the pair says (preferred first), and whether the noise left the choice as it was."""
  heard = pairs.noisy(clean, std, f"p{number}:0-1", 7, "text")
  order = (0, 1) if heard[0] > heard[1] else (1, 0)  # of candidates, preferred first
  about = {
    "id": f"p{number}:0-1",
    "candidates": list(order),
    "scores": {"text": [heard[k] for k in order]},
    "noise": {"std": {"text": std}, "seed": 7},
  }
  return about, (clean[0] > clean[1]) == (heard[0] > heard[1])


class ShippedTest(parameterized.TestCase):
  """weights/clip and weights/rewards: two renders of one scene, of which one is right, or better looking."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.fonts = fonts.find()
    cls.prompts = asked.draw("nano", "preference", 64, (64, 64), 9, cls.fonts)

  def right(self, folder, better, worse):
    """Whether each prompt's better picture has the higher reward."""
    both = [np.stack(pair) for pair in zip(better, worse, strict=True)]
    given = zip((prompt.text for prompt in self.prompts), both)
    score_BR = np.stack(list(scorer.Scorer(folder)(given)))
    return score_BR[:, 0] > score_BR[:, 1]

  @parameterized.parameters(
    ("weights/clip", ("subject", "text"), 0.9),  # short prompts leave the ground open
    ("weights/rewards/alignment", ("subject", "color"), 0.7),
    ("weights/rewards/text", ("text",), 0.7),
  )
  def test_truth_is_preferred_to_the_same_scene_with_one_thing_wrong(self, folder, kinds, least):
    truth, slip = (
      sample.RenderDrawer(name, self.fonts) for name in (candidates.TRUTH, candidates.SLIP)
    )
    seeds = range(len(self.prompts))
    right_B = self.right(folder, truth(self.prompts, seeds), slip(self.prompts, seeds))
    seen = [slip.damage_of(prompt, seed) in kinds for prompt, seed in zip(self.prompts, seeds)]
    self.assertGreater(np.mean(right_B[seen]), least)

  def test_good_looks_are_preferred(self):
    renderer = render.shared(self.fonts)
    pretty, plain = (
      [
        renderer.render({**p.scene, "aesthetics": dict.fromkeys(worlds.AXES, on)})[0]
        for p in self.prompts
      ]
      for on in (1, 0)
    )
    self.assertGreater(np.mean(self.right("weights/rewards/aesthetic", pretty, plain)), 0.9)


class ScoreTest(absltest.TestCase):
  def test_the_noise_comes_off(self):
    rng = np.random.default_rng(0)
    for number in range(50):
      clean = tuple(rng.uniform(size=2))
      about, kept = _about(number, clean, 0.3)
      gap = score.clean_gap(about, "text")
      self.assertAlmostEqual(abs(gap), abs(clean[0] - clean[1]), places=6)
      self.assertEqual(gap > 0, kept)

  def test_without_scores_or_noise_there_is_no_gap(self):
    about, _ = _about(0, (0.2, 0.8), 0.1)
    self.assertIsNone(score.clean_gap(about, "alignment"))
    self.assertIsNone(score.clean_gap({**about, "noise": None}, "text"))
    self.assertIsNone(score.clean_gap({**about, "candidates": [None, None]}, "text"))

  def test_a_perfect_reward_reaches_the_ceiling_and_no_more(self):
    rng = np.random.default_rng(1)
    abouts, kept = zip(*(_about(i, tuple(rng.uniform(size=2)), 0.3) for i in range(600)))
    gaps = [score.clean_gap(about, "text") for about in abouts]
    langs, prompts = ["zh", "en"] * 300, [f"p{i // 2}" for i in range(600)]
    models = [("base", "tuned"), ("base", "slip"), ("base", "base")] * 200
    damages = [("", ""), ("", "subject"), ("", "")] * 200
    groups = score.summarize(np.array(kept), gaps, langs, prompts, models, damages)
    self.assertEqual(set(groups), {"all", "zh", "en", "drawn", "subject lost", *score.THIRDS})
    self.assertEqual(groups["drawn"]["n"], 400)
    self.assertEqual(sum(groups[name]["n"] for name in score.THIRDS), 600)
    for got in groups.values():
      self.assertAlmostEqual(got["of_ceiling"], 1.0)
    self.assertLess(groups["hard"]["ceiling"], 0.7)
    self.assertGreater(groups["easy"]["ceiling"], 0.85)
    coin = score.summarize(rng.random(600) < 0.5, gaps, langs, prompts, models, damages)
    self.assertAlmostEqual(coin["all"]["accuracy"], 0.5, delta=0.07)

  def test_a_reward_that_knows_renders_by_their_look_is_found_out(self):
    damages = [("text", ""), ("", "text"), ("", ""), ("text", "color")] * 50
    never = np.array(
      [not preferred for preferred, _ in damages]
    )  # the render with a slip always loses
    groups = score.summarize(
      never,
      [0.1] * 200,
      ["zh"] * 200,
      [f"p{i}" for i in range(200)],
      [("a", "slip")] * 200,
      damages,
    )
    got = {name: (groups[name]["accuracy"], groups[name]["n"]) for name in groups if "text" in name}
    self.assertEqual(got, {"text won": (0.0, 50), "text lost": (1.0, 50)})

  def test_choices_of_people_have_no_ceiling(self):
    groups = score.summarize(
      np.ones(4, bool),
      [None] * 4,
      ["zh"] * 4,
      list("abcd"),
      [("truth", "a")] * 4,
      [("", "")] * 4,
    )
    self.assertEqual(set(groups), {"all", "zh"})
    self.assertNotIn("ceiling", groups["all"])


if __name__ == "__main__":
  absltest.main()
