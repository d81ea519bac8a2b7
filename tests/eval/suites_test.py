"""Suites: what is sampled, judged, refused, reported and compared."""

import json
import os
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines.posters import worlds
from seedream_jax import types
from seedream_jax.eval import frechet, suites
from tests.eval import tiny

_OPEN = {
  name: {"value": 1.0, "n": 500}
  for name in ("subject", "count", "place", "color", "text_color", "R_a", "R_h")
}
_OPEN["availability"] = {"value": 0.99, "n": 500}


def _prompts(n: int = 3, **options) -> list[dict]:
  """n scenes, each in both languages."""
  out = []
  for i in range(n):
    emoji = tiny.SUBJECTS[i % len(tiny.SUBJECTS)]
    scene = tiny.scene(
      color=tiny.COLORS[i % 2], subjects=[(emoji, 28, (48, 32), "bottom")], **options
    )
    for lang in ("zh", "en"):
      prompt = f"{emoji} {lang} {i}"
      out.append(
        {
          "id": f"s{i}-{lang}",
          "prompt": prompt,
          "lang": lang,
          "category": f"c{i % 2}",
          "scene": scene,
        }
      )
  return out


class _FakeJudges:
  """Right exactly where the first pixel is 1."""

  def judge(self, images, prompts):
    return [
      {
        "subject": (float(x[0, 0, 0] == 1), 1.0),
        f"subject/{p['lang']}": (float(x[0, 0, 0] == 1), 1.0),
      }
      for x, p in zip(images, prompts)
    ]


def _run(sample_fn, prompts, *, judges=None, ceilings=_OPEN, **options):
  return suites.run_suite(
    "bench", sample_fn, prompts, judges=judges or _FakeJudges(), ceilings=ceilings, **options
  )


def _marks(value):
  return lambda prompts, seeds: np.full((len(prompts), 64, 64, 3), value, np.uint8)


class SuitesTest(parameterized.TestCase):
  def test_truth_scores_one_and_shuffled_truth_nothing(self):
    tiny.require_fonts()
    world = {"subjects": tiny.SUBJECTS, "colors": tiny.COLORS, "sizes": (18, 36)}
    judges = suites.make_judges(world, recognizer=lambda lines: ["春"] * len(lines))
    prompts = _prompts(3, text=("春", "zh", "red", "top"))
    rng = np.random.default_rng(0)

    def truth(batch, seeds):
      return np.stack([tiny.draw(p["scene"]) for p in batch])

    def shuffled(batch, seeds):
      flat = truth(batch, seeds).reshape(len(batch), -1, 3)
      return rng.permutation(flat, axis=1).reshape(-1, 64, 64, 3)

    got = _run(truth, prompts, judges=judges).report
    self.assertTrue(got["smoke"])
    self.assertEqual((got["n"], got["clusters"]), (6, 3))
    for name in ("subject", "subject/zh", "place/1", "color/en", "availability/zh/1", "R_a@c0"):
      self.assertEqual(got["metrics"][name]["value"], 1.0, name)
    self.assertEqual(got["metrics"]["availability/zh"]["ceiling"], 0.99)
    self.assertEqual(
      _run(shuffled, prompts, judges=judges).report["metrics"]["subject"]["value"], 0.0
    )

  def test_calls_share_what_is_alike_and_rows_keep_the_order(self):
    prompts = _prompts(3)
    plain = _run(_marks(1), prompts, batch_size=4)
    calls = []

    def sample(batch, seeds):
      calls.append([p["lang"] for p in batch])
      return _marks(1)(batch, seeds)

    grouped = _run(sample, prompts, batch_size=4, alike=lambda prompt: prompt["lang"])
    self.assertEqual(sorted(calls), [["en"] * 3, ["zh"] * 3])
    self.assertEqual(grouped.rows, plain.rows)

  def test_a_judge_below_its_ceiling_is_refused(self):
    prompts = _prompts()
    for value, reported in ((0.96, False), (0.97, True)):
      got = _run(_marks(1), prompts, ceilings={"subject": {"value": value, "n": 500}}).report
      self.assertEqual("subject" in got["metrics"], reported)
      self.assertEqual("subject/zh" in got["metrics"], reported)
      self.assertEqual("subject" in got["refused"], not reported)
    got = _run(_marks(1), prompts, ceilings={}).report
    self.assertEmpty(got["metrics"])
    self.assertIn("no ceiling", got["refused"]["subject"]["reason"])

  @parameterized.parameters(
    ("count/2", {"count": 0.99, "count/2": (0.9, 120)}, 0.9),
    ("count/2", {"count": 0.99, "count/2": (0.9, 12)}, 0.99),  # twelve images cannot refuse
    ("styled/count/2@c", {"styled/count": 0.98}, 0.98),
    ("count@swap", {"count": 0.99}, 0.99),
    ("count", {"color": 0.99}, None),
  )
  def test_ceiling_falls_back_to_the_parent(self, metric, table, want):
    ceilings = {
      k: {"value": v, "n": 500} if np.isscalar(v) else {"value": v[0], "n": v[1]}
      for k, v in table.items()
    }
    self.assertEqual(suites.ceiling_of(metric, ceilings), want)

  def test_measured_ceilings_carry_their_size(self):
    got = suites.measure_ceilings(_marks(1)([0] * 6, None), _prompts(), _FakeJudges())
    self.assertEqual(
      (got["subject"]["value"], got["subject"]["n"], got["subject/zh"]["n"]), (1.0, 6, 3)
    )

  def test_noise_is_the_prompts_own(self):
    seen = []

    def sample_fn(prompts, seeds):
      self.assertEqual(seeds.dtype, np.int64)
      seen.append({(p["id"], int(s)) for p, s in zip(prompts, seeds)})
      return _marks(1)(prompts, seeds)

    prompts = _prompts(5)
    _run(sample_fn, prompts, images_per_prompt=3, batch_size=7)
    first = set().union(*seen)
    self.assertLen(first, 30)
    seen.clear()
    _run(sample_fn, prompts[::-1], images_per_prompt=3, batch_size=11)
    self.assertEqual(set().union(*seen), first)

  def test_a_batch_has_one_size_and_no_image_is_lost(self):
    prompts = _prompts(2) + [
      {**p, "id": "wide" + p["id"], "scene": {**p["scene"], "size": [48, 80]}} for p in _prompts(3)
    ]
    sizes = []

    def sample_fn(batch, seeds):
      sizes.append({tuple(p["scene"]["size"]) for p in batch})
      marks = np.array([int(p["id"].startswith("wide")) for p in batch], np.uint8)
      return np.broadcast_to(
        marks[:, None, None, None], (len(batch), *batch[0]["scene"]["size"], 3)
      )

    result = _run(sample_fn, prompts, batch_size=3)
    self.assertTrue(all(len(s) == 1 for s in sizes))
    for image, prompt in zip(result.images, result.prompts):
      self.assertEqual(image[0, 0, 0], prompt["id"].startswith("wide"))

  def test_wrong_images_are_refused(self):
    with self.assertRaisesRegex(ValueError, r"expected uint8\(6, 64, 64, 3\)"):
      _run(lambda p, s: np.zeros((len(p), 64, 64, 3), np.float32), _prompts())

  def test_compare_pairs_rows(self):
    prompts = _prompts(11)

    def even(batch, seeds):
      marks = (seeds % 2 == 0).astype(np.uint8)
      return np.broadcast_to(marks[:, None, None, None], (len(batch), 64, 64, 3))

    a, b = _run(even, prompts), _run(_marks(1), prompts)
    path = os.path.join(tempfile.mkdtemp(), "rows.jsonl")
    suites.write_rows(path, b.rows[::-1])
    got = suites.compare(a.rows, suites.read_rows(path), ["subject", "subject/zh"])
    base = a.report["metrics"]["subject"]["value"]
    self.assertAlmostEqual(got["subject"]["value"], 1.0 - base)
    self.assertEqual((got["subject"]["verdict"], got["subject"]["strength"]), ("better", "smoke"))
    self.assertEqual(got["subject/zh"]["n"], 11)
    with self.assertRaisesRegex(types.UserError, "prompts or noise"):
      suites.compare(a.rows, b.rows[1:], ["subject"])
    with self.assertRaisesRegex(types.UserError, "prompts or noise"):
      suites.compare(a.rows, [*b.rows[1:], b.rows[1]], ["subject"])

  def test_distribution_is_reported_as_a_ratio(self):
    rng = np.random.default_rng(0)
    real = rng.normal(size=(301, 3))
    spread = suites.Distribution(
      lambda x: rng.normal(size=(len(x), 3)) + 5, frechet.moments(real), real[:100]
    )
    got = _run(_marks(1), _prompts(), distribution=spread).report["fd_judge"]
    self.assertGreater(got["value"], 10)
    self.assertTrue(got["smoke"])
    lone = _run(_marks(1), _prompts()[:1], distribution=spread).report
    self.assertNotIn("fd_judge", lone)  # one image has no covariance

  def test_last_line_is_one_json_object(self):
    line = suites.last_line(_run(_marks(0), _prompts()).report)
    self.assertNotIn("\n", line)
    self.assertEqual(json.loads(line)["metrics"]["subject"]["value"], 0.0)

  def test_users_mistakes(self):
    with self.assertRaisesRegex(types.UserError, "nearest: bench"):
      suites.run_suite("benhc", _marks(1), _prompts(), judges=_FakeJudges(), ceilings={})
    with self.assertRaisesRegex(types.UserError, "no prompts"):
      _run(_marks(1), [])
    with self.assertRaisesRegex(types.UserError, "no such prompt file"):
      suites.load_prompts("/nonexistent.jsonl")
    with self.assertRaisesRegex(types.UserError, "nearest: nano"):
      suites.load_world("nan")
    path = os.path.join(tempfile.mkdtemp(), "p.jsonl")
    with open(path, "w") as f:
      f.write('{"id": "a", "prompt": "b", "lang": "en"}\n')
    with self.assertRaisesRegex(types.UserError, r"p.jsonl:1: .* lacks scene"):
      suites.load_prompts(path)
    for read in (suites.load_prompts, suites.read_rows):
      for line, why in (
        ("{", "1: not JSON"),
        ("", "1: expected one JSON object"),
        ("[1]", "1: expec"),
      ):
        pathlib.Path(path).write_text(f"{line}\n")
        with self.assertRaisesRegex(types.UserError, f"p.jsonl:{why}"):
          read(path)
      with self.assertRaisesRegex(types.UserError, "Is a directory"):
        read(os.path.dirname(path))

  def test_the_nano_world_is_whole(self):
    world = suites.load_world("nano")
    drawn = worlds.make_world("nano")
    self.assertEqual(tuple(world["subjects"]), drawn.subjects)
    self.assertEqual(tuple(world["colors"]), drawn.colors)
    for suite in suites.SUITES:
      for metric in ("subject", "count", "place", "color", "availability/zh", "availability/en"):
        if suite != "heldout" or "count" not in metric:
          self.assertGreaterEqual(
            world["ceilings"][suite][metric]["value"], suites.MIN_CEILING, (suite, metric)
          )


if __name__ == "__main__":
  absltest.main()
