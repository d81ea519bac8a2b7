"""The metrics file over a resume, pictures, and the arithmetic of speed."""

import glob
import json
import math
import os
import tempfile
from unittest import mock

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from seedream_jax.engine import flops, metrics


class WriterTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.workdir = os.path.join(folder.name, "run")
    self.path = os.path.join(self.workdir, "metrics.jsonl")

  def write(self, steps, start_step=0):
    writer = metrics.Writer(self.workdir, start_step=start_step)
    for step in steps:
      writer.scalars(step, {"train/loss": jnp.float32(step)})
    writer.close()

  def lines(self):
    with open(self.path, encoding="utf-8") as f:
      return [json.loads(line) for line in f]

  def test_a_resumed_run_tells_each_step_once(self):
    self.write(range(1, 6))
    self.write(range(4, 7), start_step=3)
    self.assertEqual([row["step"] for row in self.lines()], [1, 2, 3, 4, 5, 6])
    self.assertEqual([row["train/loss"] for row in self.lines()], [1, 2, 3, 4, 5, 6])

  def test_a_line_cut_off_by_a_kill_is_dropped(self):
    self.write([1, 2])
    os.truncate(self.path, os.path.getsize(self.path) - 9)
    self.write([2, 3], start_step=1)
    self.assertEqual([row["step"] for row in self.lines()], [1, 2, 3])

  def test_a_new_run_in_an_old_folder_starts_over(self):
    self.write([1, 2])
    self.write([1])
    self.assertEqual([row["step"] for row in self.lines()], [1])

  def test_lines_are_on_disk_at_once(self):
    writer = metrics.Writer(self.workdir)
    writer.scalars(1, {"a": 1})
    self.assertLen(self.lines(), 1)
    writer.close()

  def test_not_finite_is_valid_json(self):
    writer = metrics.Writer(self.workdir)
    writer.scalars(1, {"a": np.nan, "b": np.inf, "c": 2})
    writer.close()
    row = self.lines()[0]
    self.assertEqual([row[k] for k in "abc"], [None, None, 2])

  def test_mean_skips_what_is_no_number_or_missing(self):
    rows = [{"a": 1.0, "b": math.nan}, {"a": 3.0, "b": 5.0, "c": math.inf}]
    mean = metrics.mean(rows)
    self.assertEqual((mean["a"], mean["b"]), (2.0, 5.0))
    self.assertTrue(math.isnan(mean["c"]))

  def test_read_merges_a_step(self):
    writer = metrics.Writer(self.workdir)
    writer.scalars(2, {"train/loss": 2})
    writer.scalars(1, {"train/loss": 1})
    writer.scalars(2, {"eval/loss": 3})
    writer.close()
    rows = metrics.read(self.workdir)
    self.assertEqual([row["step"] for row in rows], [1, 2])
    self.assertEqual((rows[1]["train/loss"], rows[1]["eval/loss"]), (2, 3))

  def test_tensorboard(self):
    self.write([1, 2])
    self.assertLen(glob.glob(f"{self.workdir}/tensorboard/events*"), 1)

  def test_images(self):
    writer = metrics.Writer(self.workdir)
    floats = np.stack([np.full((5, 7, 3), -1.0), np.full((5, 7, 3), 1.5)])
    writer.images(3, "eval/samples", jnp.asarray(floats))
    gray = np.arange(35, dtype=np.uint8).reshape(5, 7, 1)
    writer.images(3, "gray", gray)
    with self.assertRaisesRegex(ValueError, "expected .* got"):
      writer.images(3, "bad", np.zeros((5, 7)))
    writer.close()
    with Image.open(f"{self.workdir}/images/eval/samples/00000003.png") as image:
      expected = np.concatenate([np.zeros((5, 7, 3)), np.full((5, 7, 3), 255)], axis=1)
      np.testing.assert_array_equal(np.asarray(image), expected)
    with Image.open(f"{self.workdir}/images/gray/00000003.png") as image:
      np.testing.assert_array_equal(np.asarray(image), gray[..., 0])

  def test_only_process_zero_writes(self):
    with mock.patch.object(metrics.jax, "process_index", return_value=1):
      self.write([1])
      writer = metrics.Writer(self.workdir)
      writer.images(1, "x", np.zeros((5, 7, 3)))
      writer.close()
    self.assertFalse(os.path.exists(self.workdir))


class ProgressTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.now = 100.0
    self.enter_context(mock.patch.object(metrics.time, "perf_counter", lambda: self.now))

  def progress(self, start=0):
    return metrics.Progress(100, start, 8)

  def test_the_first_call_is_left_out(self):
    progress = self.progress(start=10)
    for step, seconds in ((11, 60.0), (12, 2.0), (13, 2.0)):
      self.now += seconds
      progress.update(step)
    speed = progress.speed()
    self.assertEqual(speed["speed/examples"], 13 * 8)
    self.assertAlmostEqual(speed["speed/step_s"], 2.0)
    self.assertAlmostEqual(speed["speed/img_per_s"], 4.0)
    self.assertNotIn("speed/mfu", speed)

  def test_nothing_to_say_yet(self):
    progress = self.progress()
    progress.update(1)
    self.assertEqual(progress.speed(), {"speed/examples": 8.0})

  def test_fused_steps_share_a_call(self):
    progress, seen = self.progress(), []
    for call in range(4):
      self.now += 6.0
      for i in range(3):
        progress.update(3 * call + i + 1)
        seen.append(progress.speed().get("speed/step_s"))
    self.assertSetEqual(set(seen), {None, 2.0})

  def test_pauses_do_not_count(self):
    progress = self.progress()
    for step in range(1, 5):
      self.now += 2.0
      progress.update(step)
      with progress.pause():
        self.now += 50.0
    self.assertAlmostEqual(progress.speed()["speed/step_s"], 2.0)

  def test_mfu(self):
    progress = self.progress()
    with mock.patch.object(flops, "total_peak", return_value=1e3):
      progress.set_flops(500)
    for step in (1, 2, 3):
      self.now += 2.0
      progress.update(step, {"dit/loss": 1.0})
    self.assertAlmostEqual(progress.speed()["speed/mfu"], 0.25)

  def test_unknown_hardware_has_no_mfu(self):
    progress = self.progress()
    with mock.patch.object(flops, "total_peak", return_value=None):
      progress.set_flops(500)
    for step in (1, 2, 3):
      self.now += 2.0
      progress.update(step)
    self.assertNotIn("speed/mfu", progress.speed())


if __name__ == "__main__":
  absltest.main()
