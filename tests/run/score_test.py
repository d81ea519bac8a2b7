"""A suite scored on pictures that a fake model draws: what is written, paired, and added of classifier B."""

import json
import os
import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest

from data_pipelines.posters import fonts, prompts, render, worlds
from seedream_jax import types
from seedream_jax.eval import frechet, ocr, suites
from seedream_jax.run import judge, pipeline, score
from tests.run import tiny_judge

NANO = worlds.make_world("nano")
NUM = 12  # prompts: six scenes


class _Painter:
  """Draws the truth, or every picture black."""

  def __init__(self, asked: list[dict], *, right: bool):
    renderer = render.shared(fonts.find())
    self._image = {p["prompt"]: renderer.render(p["scene"])[0] for p in asked}
    self._right = right

  def noise(self, ids, size, seed):
    return np.zeros((1, 8, 8, 1), np.float32)

  def text_bucket(self, said):
    return len(said) > 20

  def sample(self, said, noise, options):
    assert len(set(map(self.text_bucket, said))) == 1, "prompts that are padded apart share a call"
    images = np.stack([self._image[p] for p in said])
    return (images if self._right else np.zeros_like(images)), noise


class ScoreTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = cls.enterClassContext(tempfile.TemporaryDirectory())
    with mock.patch.object(prompts, "SCENES", NUM // 2):
      prompts.write(NANO, "heldout", cls.root, fonts.find())
    cls.asked = suites.load_prompts(os.path.join(cls.root, "nano_heldout.jsonl"))
    cls.judge = tiny_judge.write(os.path.join(cls.root, "judge"))
    clusters = tuple(dict.fromkeys(map(suites.cluster_of, cls.asked)))
    rng = np.random.default_rng(0)
    ceilings = {
      "heldout": {f"{name}_b": {"value": 0.99, "n": 240} for name in ("subject", "count")}
    }
    judge.write_truth(
      cls.judge,
      judge.Truth(
        "nano",
        ceilings,
        frechet.moments(rng.standard_normal((101, 5))),
        clusters,
        rng.standard_normal((len(clusters), 2, 5)),
        {},
      ),
    )

  def _run(self, name: str, *, right: bool = True, classifier: str = "", **options) -> dict:
    """The report, written as NAME.json."""
    out = os.path.join(self.root, f"{name}.json")
    request = score.Request(prompts=self.root, num=NUM, classifier=classifier, **options)
    reads = mock.Mock(side_effect=lambda lines: ["春"] * len(lines))
    with mock.patch.object(ocr, "Recognizer", return_value=reads):
      result = score.score(
        request, lambda: _Painter(self.asked, right=right), pipeline.Options(batch_size=2)
      )
    score.write(out, result)
    with open(out) as f:
      report = json.load(f)
    self.assertEqual(report, json.loads(suites.last_line(result.report)))
    return report

  def _rows(self, name: str) -> str:
    return os.path.join(self.root, f"{name}.rows.jsonl")

  def test_rows_lie_beside_the_report(self):
    report = self._run("rows", images_per_prompt=2)
    rows = suites.read_rows(self._rows("rows"))
    self.assertLen(rows, 2 * NUM)
    self.assertEqual({row["id"] for row in rows}, {p["id"] for p in self.asked})
    held = [row["outcomes"]["subject"] for row in rows if "subject" in row["outcomes"]]
    self.assertEqual(report["metrics"]["subject"]["value"], sum(n for n, _ in held) / len(held))

  def test_a_run_is_subtracted_image_by_image(self):
    self._run("black", right=False)
    report = self._run("truth", against=self._rows("black"))
    found = report["against"]["differences"]
    got = found["subject"]
    self.assertEqual((got["value"], got["verdict"], got["strength"]), (1.0, "better", "smoke"))
    self.assertEqual(set(found), set(report["metrics"]))
    want = r"\nsubject +\+1\.000 +\[\+1\.000, \+1\.000\] +\d+  better, smoke"
    self.assertRegex(score.table(found), want)
    back = self._run("back", right=False, against=self._rows("truth"))
    self.assertEqual(back["against"]["differences"]["subject"]["value"], -1.0)

  def test_only_what_both_runs_judged_is_subtracted(self):
    self._run("one")
    report = self._run("two", classifier=self.judge, against=self._rows("one"))
    self.assertIn("subject_b", report["metrics"])
    self.assertEqual(
      set(report["against"]["differences"]),
      {name for name in report["metrics"] if "_b" not in name},
    )

  def test_other_prompts_or_noise_are_refused_before_a_model_is_opened(self):
    self._run("short")
    opened = mock.Mock(side_effect=AssertionError("a model was opened"))
    for options, what in (
      (dict(num=NUM - 1), "prompts or noise"),
      (dict(num=NUM, images_per_prompt=2), "prompts or noise"),
      (dict(against="nowhere.jsonl"), "nowhere.jsonl: no such file"),
    ):
      request = score.Request(prompts=self.root, **{"against": self._rows("short"), **options})
      with self.assertRaisesRegex(types.UserError, what):
        score.score(request, opened, pipeline.Options())

  def test_classifier_b_stands_beside_with_its_own_ceiling(self):
    plain = self._run("plain")
    self.assertFalse([m for m in (*plain["metrics"], *plain["refused"]) if "_b" in m])
    self.assertNotIn("fd_judge", plain)
    report = self._run("second", classifier=self.judge)
    for name in ("subject", "count"):
      b = report["metrics"][f"{name}_b"]
      self.assertEqual((b["ceiling"], b["n"]), (0.99, report["metrics"][name]["n"]))
    self.assertIn("no ceiling", report["refused"]["color_b"]["reason"])
    fd = report["fd_judge"]
    self.assertEqual((fd["n"], fd["reference_n"], fd["smoke"]), (NUM, 101, True))
    self.assertGreater(fd["value"], 0)
    self.assertEqual(report["classifier"]["path"], self.judge)
    with open(os.path.join(self.root, "second.html")) as f:
      self.assertRegex(f.read(), rf"FD-judge [\d.]+ x.*smoke only; n = {NUM}, reference 101")

  def test_the_default_is_the_worlds_own_where_it_is(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.addCleanup(os.chdir, os.getcwd())
    os.chdir(folder)
    self.assertIsNone(score.open_classifier(score.Request()))
    os.makedirs(os.path.join("weights", "nano"))
    os.symlink(self.judge, os.path.join("weights", "nano", "judge"))
    found = score.open_classifier(score.Request())
    self.assertEqual(found.folder, os.path.join("weights", "nano", "judge"))
    self.assertIsNone(score.open_classifier(score.Request(classifier="")))
    self.assertIsNone(score.open_classifier(score.Request(world="small")))
    with self.assertRaisesRegex(types.UserError, "--classifier none_there"):
      score.open_classifier(score.Request(classifier="none_there"))


if __name__ == "__main__":
  absltest.main()
