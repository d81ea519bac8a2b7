"""Raters move with what they rate, noise is declared and keyed, and a judge never rates."""

import collections
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines.posters import fonts, render, worlds
from data_pipelines.posters import scene as scene_lib
from data_pipelines.preferences import aesthetics, asked, candidates, pairs, rate, raters, sample
from experiments import rater
from seedream_jax import types
from seedream_jax.engine import checkpoint
from seedream_jax.run import open as open_lib
from tests.run import tiny_judge

NANO = worlds.make_world("nano")
STD = dict(alignment=0.1, text=0.1, aesthetic=0.1)
WEIGHTS = dict(alignment=1.0, text=1.0, aesthetic=0.5)


def tiny_rater(folder: str, reads: str) -> str:
  """A rater's folder with random weights."""
  config = rater.get_config(f"nano,reads={reads}")
  name = "classifier" if reads == "objects" else "glyph_reader"
  sizes = dict(widths=(4,), norm_groups=2)
  more = dict(feature_dim=5) if reads == "objects" else dict(zone=(8, 16), hidden=6)
  config.model[name].update(sizes | more)
  abstract = open_lib.make_stage(config).parts()[name].abstract
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: jnp.float32(0.5 * rng.standard_normal(x.shape)), abstract)
  checkpoint.save_weights(os.path.join(folder, f"{name}.safetensors"), params)
  pathlib.Path(folder, "config.json").write_text(config.to_json_best_effort())
  return folder


class Fake:
  """A rater whose score is a function of the pixels, for some prompts."""

  def __init__(self, dimension: str, tag: str = ""):
    self.dimension, self._tag = dimension, tag

  def describe(self):
    return {"fake": self.dimension}

  def __call__(self, images, prompts):
    sign = 1 if self.dimension == "alignment" else -1
    return [
      sign * float(image.mean()) / 255 if not self._tag or self._tag in prompt.tags else None
      for image, prompt in zip(images, prompts, strict=True)
    ]


class AestheticsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    renderer, cls.gains = render.shared(fonts.find()), {axis: [] for axis in worlds.AXES}
    for i in range(80):
      dice = scene_lib.Dice("aesthetics test", i)
      scene = scene_lib.sample(dice, NANO, (64, 64))
      for axis in worlds.AXES:
        others = {a: int(dice.chance(0.25)) for a in worlds.AXES}
        off, on = (
          aesthetics.measure(renderer.render({**scene, "aesthetics": {**others, axis: x}})[0])
          for x in (0, 1)
        )
        cls.gains[axis].append([on[a] - off[a] for a in worlds.AXES])

  @parameterized.parameters(*enumerate(worlds.AXES))
  def test_an_axis_raises_its_own_measure_by_about_one(self, place, axis):
    gains = np.array(self.gains[axis])
    self.assertGreater((gains[:, place] > 0).mean(), 0.9)
    self.assertBetween(float(np.median(gains[:, place])), 0.8, 1.2)
    others = np.delete(gains, place, axis=1)
    self.assertLess(np.abs(np.median(others, axis=0)).max(), 0.3)

  def test_axes_are_the_worlds_own(self):
    self.assertEqual(aesthetics.AXES, worlds.AXES)

  def test_any_size(self):
    image = np.random.default_rng(0).integers(0, 256, (48, 128, 3), np.uint8)
    self.assertTrue(np.isfinite(aesthetics.score(image)))
    self.assertEqual(aesthetics.measure(image)["texture"], aesthetics.MOST)


class PairsTest(parameterized.TestCase):
  def test_pairs_of_a_set(self):
    every = pairs.choose("p", 6, 99, 0)
    self.assertLen({frozenset(p) for p in every}, 15)
    self.assertEqual(pairs.choose("p", 6, 4, 0), every[:4])
    self.assertNotEqual(pairs.choose("p", 6, 15, 1), every)
    shown = [pair for i in range(200) for pair in pairs.choose(f"p{i}", 4, 3, 0)]
    self.assertBetween(np.mean([a < b for a, b in shown]), 0.42, 0.58)

  def test_noise_is_keyed_and_of_the_declared_deviation(self):
    draws = [pairs.noisy([1.0, 2.0], 0.5, f"p{i}", 3, "text") for i in range(4000)]
    noise = np.array(draws) - [1, 2]
    np.testing.assert_allclose(noise.std(0), 0.5, rtol=0.05)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.03)
    self.assertLess(abs(np.corrcoef(noise.T)[0, 1]), 0.05)
    self.assertEqual(pairs.noisy([1.0, 2.0], 0.5, "p7", 3, "text"), draws[7])
    for other in (("p8", 3, "text"), ("p7", 4, "text"), ("p7", 3, "alignment")):
      self.assertNotEqual(pairs.noisy([1.0, 2.0], 0.5, *other), draws[7])

  def test_a_ceiling_leaves_out_what_was_level(self):
    found = pairs.ceiling([0, "tie", 1, 1, "tie"], [0, 1, 0, 1, "tie"])
    self.assertEqual(found, {"value": 0.6667, "n": 3})
    self.assertEqual(pairs.ceiling(["tie"], [0]), {"value": None, "n": 0})

  @parameterized.parameters(
    ({"text": [0.9, 0.1]}, 0, 0),
    ({"text": [0.1, 0.9]}, 0, 1),
    ({"text": [0.5, 0.5]}, 0, "tie"),
    ({"text": [0.5, 0.54]}, 0.05, "tie"),
    ({"alignment": [0.9, 0.2], "aesthetic": [0.0, 1.0]}, 0, 0),  # 1 : 0.5
    ({"alignment": [0.5, 0.2], "aesthetic": [0.0, 1.0]}, 0, 1),
  )
  def test_the_choice_is_by_the_weighted_mean(self, scores, margin, want):
    self.assertEqual(pairs.preferred(scores, WEIGHTS, margin), want)

  def test_the_last_line_of_a_rater_counts(self):
    path = os.path.join(self.enter_context(tempfile.TemporaryDirectory()), "p.jsonl")
    base = dict(prompt="a", lang="en", tags=(), images=({"file": "a"}, {"file": "b"}), scores={})
    lines = [
      pairs.Pair(id=i, preferred=p, rater=r, **base).line()
      for i, p, r in (
        ("1", 0, "x"),
        ("2", 1, "x"),
        ("1", 1, "y"),
        ("1", "tie", "x"),
        ("2", None, "x"),
      )
    ]
    pathlib.Path(path).write_text("".join(lines) + lines[0][:-9])  # and one that was cut short
    self.assertEqual([(p.rater, p.preferred) for p in pairs.read(path)], [("x", "tie"), ("y", 1)])

  @parameterized.parameters(
    (dict(preferred=2), "preferred 2; expected 0, 1"),
    (dict(preferred=True), "preferred True; expected 0, 1"),
    (dict(lang="fr"), "lang 'fr'"),
    (dict(images=[{"file": "a"}]), "images: expected two"),
    (dict(images=[{"file": "a"}, {"data": "d"}]), 'images: a reference with "data" needs "row"'),
    (dict(images=[{"file": "a"}, {}]), 'images: expected objects with "data"'),
    (dict(scores={"text": [1]}), "scores: expected"),
    (dict(rater=""), "rater ''; expected some text"),
    (None, "lacks 'noise'"),
  )
  def test_bad_lines_are_named(self, change, regex):
    path = os.path.join(self.enter_context(tempfile.TemporaryDirectory()), "p.jsonl")
    good = pairs.Pair("1", "a", "en", (), ({"file": "a"}, {"file": "b"}), {}, 0, "x").line()
    bad = json.loads(good)
    if change is None:
      del bad["noise"]
    pathlib.Path(path).write_text(good + json.dumps({**bad, **(change or {})}) + "\n")
    with self.assertRaisesRegex(types.UserError, f"--pairs .*p.jsonl: line 2: {regex}"):
      pairs.read(path)


class RateTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.dir = cls.enterClassContext(tempfile.TemporaryDirectory())
    said = asked.draw("nano", "preference", 40, (64, 64), 0, fonts.find())
    drawers = tuple(sample.RenderDrawer(n, fonts.find()) for n in ("truth", "damaged"))
    sample.build(sample.Candidates(tuple(said), drawers), f"{cls.dir}/sets")
    cls.reader = candidates.Reader(candidates.open_sets(f"{cls.dir}/sets"))
    cls.sets = list(cls.reader)

  def rate(self, many, std=STD, **kwargs):
    return rate.rate(self.reader, many, data="sets", noise=std, weights=WEIGHTS, **kwargs)

  def test_scores_lie_in_the_order_shown(self):
    made, summary = self.rate([Fake("alignment")], std=dict(alignment=0.0), pairs_per_set=6)
    self.assertLen(made, 40 * 6)
    for pair in made:
      found = [self.sets[ref["row"]] for ref in pair.images]
      means = [s.decode(r["candidate"]).mean() / 255 for s, r in zip(found, pair.images)]
      np.testing.assert_allclose(pair.scores["alignment"], means, atol=1e-5)
      if pair.preferred != "tie":
        self.assertEqual(pair.preferred, int(np.argmax(means)))
      self.assertEqual(pair.images[0]["sha256"], found[0].digest(pair.images[0]["candidate"]))
    self.assertEqual(summary["ceilings"]["alignment"]["value"], 1.0)

  def test_the_ceiling_is_what_noise_leaves(self):
    clean, _ = self.rate([Fake("alignment")], std=dict(alignment=0.0), pairs_per_set=6)
    noised, summary = self.rate([Fake("alignment")], std=dict(alignment=0.05), pairs_per_set=6)
    both = [(a.preferred, b.preferred) for a, b in zip(clean, noised) if a.preferred != "tie"]
    want = round(sum(a == b for a, b in both) / len(both), 4)
    self.assertEqual(summary["ceilings"]["preferred"], {"value": want, "n": len(both)})
    self.assertBetween(want, 0.5, 0.95)
    for pair in noised:
      self.assertEqual(pair.noise["ceiling"], {"preferred": want, "alignment": want})
      self.assertEqual(pair.noise["std"], {"alignment": 0.05})

  def test_how_often_the_truth_is_preferred(self):
    made, summary = self.rate([Fake("alignment")], std=dict(alignment=0.05), pairs_per_set=6)
    found = collections.defaultdict(list)
    for pair in made:
      damage = [image["damage"] for image in pair.images]
      if damage.count("") == 1:
        means = [self.sets[i["row"]].decode(i["candidate"]).mean() for i in pair.images]
        found["".join(damage)].append(means[damage.index("")] > means[damage.index("") - 1])
    want = {k: {"share": round(np.mean(v), 4), "n": len(v)} for k, v in found.items()}
    self.assertEqual(summary["truth_preferred"], dict.fromkeys(("preferred", "alignment"), want))

  def test_text_is_rated_only_where_it_is_asked(self):
    made, _ = self.rate([Fake("text", asked.TEXT), raters.Aesthetic()])
    self.assertEqual({len(p.scores) for p in made}, {1, 2})
    for pair in made:
      self.assertEqual("text" in pair.scores, asked.TEXT in pair.tags)

  def test_networks_rate_and_say_who_they_are(self):
    many = [
      raters.Alignment(tiny_rater(f"{self.dir}/a", "objects")),
      raters.Text(tiny_rater(f"{self.dir}/t", "glyphs")),
    ]
    images = [s.decode(0) for s in self.sets]
    said = [s.prompt for s in self.sets]
    aligned, spelled = (r(images, said) for r in many)
    self.assertTrue(all(0 <= score <= 1 for score in aligned))
    for score, prompt in zip(spelled, said):
      if asked.TEXT in prompt.tags:
        self.assertBetween(score, 0, 1)
      else:
        self.assertIsNone(score)
    np.testing.assert_allclose(many[0](images[:1], said[:1]), aligned[:1], rtol=1e-5)
    self.assertLen(many[0].describe()["sha256"], 64)
    bare = asked.Prompt("x", "“春”", "zh", (64, 64))
    self.assertEqual([r(images[:1], [bare]) for r in many], [[None], [None]])
    written = next(p for p in said if asked.TEXT in p.tags)
    unsaid = asked.Prompt("x", "a poster", "en", (64, 64), written.scene)  # no text is asked for
    self.assertEqual(many[1](images[:1], [unsaid]), [None])

  def test_what_is_spelled(self):
    log_probs = np.log(np.full((3, 5), 0.05))
    for slot, char in enumerate((2, 0, 4)):  # 4 is none
      log_probs[slot, char] = np.log(0.8)
    self.assertAlmostEqual(raters.spelled(log_probs, [2, 0]), 0.8)
    self.assertAlmostEqual(raters.spelled(log_probs, [2]), (0.8 + 0.05) / 2)  # one too many
    self.assertAlmostEqual(raters.spelled(log_probs, [2, 0, 1]), (1.6 + 0.05) / 3)
    self.assertAlmostEqual(raters.spelled(log_probs, [0, 2]), (0.05 * 2 + 0.8) / 3)

  def test_the_truth_of_logits_scores_highest(self):
    net = raters.Alignment(tiny_rater(f"{self.dir}/b", "objects"))
    words = net._words
    prompt = next(s.prompt for s in self.sets if s.prompt.scene["subjects"])
    prompt = dataclasses.replace(prompt, text="some picture on a background of some colour")
    scene = prompt.scene
    right = {
      "subject": 9.0 * np.isin(words.subjects, [s["emoji"] for s in scene["subjects"]]) - 5,
      "color": 9.0 * np.isin(words.colors, scene["background"]["color"]),
      "count": 9.0 * (np.arange(4) == scene["count"]),
      "text": np.array([5.0 if scene["text"] else -5.0]),
    }
    best = net._score(right, prompt)
    self.assertGreater(best, 0.95)
    for name, value in right.items():
      self.assertLess(net._score({**right, name: -value}, prompt), best - 0.1, name)
    crowded = right["subject"].copy()
    crowded[np.argmin(crowded)] = 4  # another one beside those asked for
    self.assertLess(net._score({**right, "subject": crowded}, prompt), best - 0.1)
    silent = dataclasses.replace(prompt, text="some picture")  # any ground will do
    other = {**right, "color": -right["color"]}
    self.assertEqual(net._score(other, silent), net._score(right, silent))

  def test_a_judge_never_rates(self):
    judge = tiny_judge.write(f"{self.dir}/judge")
    with self.assertRaisesRegex(types.UserError, "trained on split 'judge', so it is a judge"):
      raters.Alignment(judge)
    with self.assertRaisesRegex(types.UserError, "--text .*: holds no glyph_reader"):
      raters.Text(judge)

  def test_the_command(self):
    out = f"{self.dir}/pairs.jsonl"
    verb = [
      sys.executable,
      "-m",
      "data_pipelines.preferences",
      "rate",
      "--data",
      f"{self.dir}/sets",
    ]
    done = subprocess.run(
      [*verb, "--out", out, "--noise", "aesthetic=0.2"], capture_output=True, text=True, check=True
    )
    summary = json.loads(done.stdout.splitlines()[-1])
    self.assertEqual((summary["pairs"], summary["noise"]), (160, {"aesthetic": 0.2}))
    self.assertEqual(
      json.loads(pathlib.Path(f"{self.dir}/pairs.summary.json").read_text()), summary
    )
    made = pairs.read(out)
    self.assertLen(made, 160)
    self.assertEqual(pairs.resolve(made[0].images[0]["data"], out), f"{self.dir}/sets:train")
    done = subprocess.run(
      [*verb, "--out", out, "--noise", "taste=1"], capture_output=True, text=True
    )
    self.assertEqual((done.returncode, done.stderr.count("\n")), (2, 1))
    self.assertIn("--noise 'taste=1': expected DIMENSION=NUMBER", done.stderr)


if __name__ == "__main__":
  absltest.main()
