"""What is measured on ground truth: the numbers of classifier B, and the renders behind its FD-judge."""

import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest

from data_pipelines import ceilings
from data_pipelines.posters import fonts, prompts, worlds
from seedream_jax import types
from seedream_jax.data import labels
from seedream_jax.eval import judges, suites
from seedream_jax.run import judge
from tests.run import tiny_judge

NANO = worlds.make_world("nano")


class _Oracle:
  """Knows the scenes that are about to be judged; is wrong about every colour but red."""

  folder = "oracle"
  vocabulary = labels.Vocabulary(NANO.subjects, NANO.colors, (0, 1, 2, 3), 3)

  def __init__(self):
    self.suites = [[p["scene"] for p in prompts.make(NANO, s) if p["lang"] == "zh"]
                   for s in suites.SUITES]  # fmt: skip
    self.seen = []

  def answers(self, images):
    scenes = self.suites.pop(0)
    return [
      judges.Answer(tuple(dict.fromkeys(x["emoji"] for x in s["subjects"])), "red", s["count"])
      for s in scenes
    ]

  def features(self, images):
    self.seen += list(images)
    return np.stack([x.reshape(-1, 3).mean(0) for x in images])


@mock.patch.object(prompts, "SCENES", 11)
class CeilingsTest(absltest.TestCase):
  def test_an_oracle_meets_every_ceiling_it_should(self):
    oracle = _Oracle()
    got = ceilings.measure_classifier("nano", fonts.find(), oracle, num=23)
    self.assertEqual(set(got.ceilings), set(suites.SUITES))
    for suite, table in got.ceilings.items():
      self.assertEqual(table["subject_b"]["value"], 1.0, suite)
      self.assertLess(table["color_b"]["value"], 0.7)
      self.assertNotIn("subject_b/zh", table)
    self.assertEqual(got.reference.n, 23)
    self.assertLen(oracle.seen, 11 * ceilings._RENDERS + 23)
    asked = prompts.make(NANO, judge.FD_SUITE)
    self.assertEqual(got.clusters, tuple(dict.fromkeys(map(suites.cluster_of, asked))))
    self.assertEqual(got.render_SRE.shape, (11, ceilings._RENDERS, 3))
    first = np.stack([x.reshape(-1, 3).mean(0) for x in oracle.seen[: ceilings._RENDERS]])
    np.testing.assert_allclose(got.render_SRE[0], first)
    self.assertGreater(np.ptp(got.render_SRE[0], axis=0).min(), 0.1)  # drawn anew, not copied

  def test_another_world_is_refused(self):
    with self.assertRaisesRegex(types.UserError, "not of world small"):
      ceilings.measure_classifier("small", fonts.find(), _Oracle(), num=2)

  def test_what_is_measured_is_what_evaluate_reads(self):
    folder = tiny_judge.write(self.enterContext(tempfile.TemporaryDirectory()))
    truth = ceilings.measure_classifier("nano", fonts.find(), judge.ClassifierB(folder), num=19)
    judge.write_truth(folder, truth)
    got = judge.read_truth(folder, "nano")
    self.assertEqual((got.ceilings, got.reference.n), (truth.ceilings, 19))
    self.assertIn("emoji", got.provenance)
    asked = prompts.make(NANO, judge.FD_SUITE)
    fd = judge.distribution(judge.ClassifierB(folder), got, asked, 2)
    self.assertEqual(fd.floor_NF.shape, (44, 5))


if __name__ == "__main__":
  absltest.main()
