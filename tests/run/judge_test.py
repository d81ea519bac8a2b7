"""Classifier B opened: one answer an image whatever the batch, ground truth of its own weights only."""

import json
import os
import tempfile

import numpy as np
from absl.testing import absltest

from experiments import judge as experiment
from seedream_jax import types
from seedream_jax.eval import frechet
from seedream_jax.run import judge
from tests.run import tiny_judge

_WORDS = experiment.VOCABULARY["nano"]


def _images(count: int, size: tuple[int, int] = (64, 64)) -> list[np.ndarray]:
  rng = np.random.default_rng(count)
  return [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)]


def _truth(world: str = "nano") -> judge.Truth:
  rng = np.random.default_rng(0)
  return judge.Truth(
    world,
    {"heldout": {"subject_b": {"value": 0.98, "n": 240}}},
    frechet.moments(rng.standard_normal((101, 5))),
    ("s0", "s1", "s2"),
    rng.standard_normal((3, 2, 5)),
    {"pillow": "0"},
  )


def _prompts(*clusters: str) -> list[dict]:
  return [{"id": f"{c}-{lang}", "lang": lang} for c in clusters for lang in ("zh", "en")]


class JudgeTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = tiny_judge.write(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.classifier = judge.ClassifierB(cls.folder)

  def test_answers_are_the_logits_in_words(self):
    images = _images(7)
    logits = self.classifier._predict("logits", images)
    for answer, row in zip(self.classifier.answers(images), logits):
      best = sorted(range(64), key=lambda v: -row["subject"][v])[:3]
      self.assertEqual(answer.subjects, tuple(_WORDS["subjects"][v] for v in best))
      self.assertEqual(answer.color, _WORDS["colors"][max(range(8), key=row["color"].__getitem__)])
      self.assertEqual(answer.count, max(range(4), key=row["count"].__getitem__))
    self.assertGreater(len(set(self.classifier.answers(_images(40)))), 1)

  def test_no_image_is_lost_among_sizes_and_batches(self):
    images = [x for pair in zip(_images(67), _images(67, (48, 80))) for x in pair]
    whole = self.classifier.features(images)
    self.assertEqual(whole.shape, (134, 5))
    for i in (0, 1, 63, 64, 65, 132, 133):
      np.testing.assert_allclose(
        whole[i], self.classifier.features(images[i : i + 1])[0], rtol=1e-4, atol=1e-5
      )

  def test_truth_comes_back(self):
    truth = _truth()
    judge.write_truth(self.folder, truth)
    got = judge.read_truth(self.folder, "nano")
    self.assertEqual((got.ceilings, got.clusters), (truth.ceilings, truth.clusters))
    self.assertEqual(got.reference.n, 101)
    np.testing.assert_allclose(got.reference.cov_FF, truth.reference.cov_FF, rtol=1e-5)
    np.testing.assert_allclose(got.render_SRE, truth.render_SRE, atol=2e-3)

  def test_truth_of_something_else_is_refused(self):
    folder = tiny_judge.write(self.enterContext(tempfile.TemporaryDirectory()))
    with self.assertRaisesRegex(types.UserError, "no truth.json.*data_pipelines.ceilings"):
      judge.read_truth(folder, "nano")
    judge.write_truth(folder, _truth())
    with self.assertRaisesRegex(types.UserError, "of world nano, asked small"):
      judge.read_truth(folder, "small")
    tiny_judge.write(folder, seed=1)
    with self.assertRaisesRegex(types.UserError, "of other weights"):
      judge.read_truth(folder, "nano")

  def test_a_folder_without_a_classifier_is_refused(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    with self.assertRaisesRegex(types.UserError, "holds no classifier.safetensors"):
      judge.ClassifierB(folder)

  def test_another_stages_folder_is_refused(self):
    folder = tiny_judge.write(self.enterContext(tempfile.TemporaryDirectory()))
    path = os.path.join(folder, "config.json")
    with open(path) as f:
      config = json.load(f)
    config["data"]["streams"]["train"]["labels"] = config["data"]["streams"]["train"]["labels"][1:]
    with open(path, "w") as f:
      json.dump(config, f)
    with self.assertRaisesRegex(types.UserError, "data.labels"):
      judge.ClassifierB(folder)

  def test_the_floor_is_the_truth_of_the_same_prompts(self):
    truth = _truth()
    got = judge.distribution(self.classifier, truth, _prompts("s2", "s0"), 2)
    # Four images a scene, two languages by two, over two renders in turn.
    want = [truth.render_SRE[s, r] for s in (2, 0) for r in (0, 1, 0, 1)]
    np.testing.assert_array_equal(got.floor_NF, want)
    self.assertIs(got.reference, truth.reference)
    images = np.stack(_images(3))
    np.testing.assert_array_equal(got.features_fn(images), self.classifier.features(images))
    with self.assertRaisesRegex(types.UserError, "no ground truth of prompt s9-zh"):
      judge.distribution(self.classifier, truth, _prompts("s9"), 1)


if __name__ == "__main__":
  absltest.main()
