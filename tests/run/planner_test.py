"""The planner's arithmetic; and, heavy, golden plans of the presets on the hardware that they are for."""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
from absl.testing import parameterized

from experiments import ct, pretrain, rlhf
from seedream_jax import types
from seedream_jax.engine import hardware
from seedream_jax.run import open as open_lib
from seedream_jax.run import planner

GOLDEN = pathlib.Path(__file__).parent / "golden" / "plans.json"
PLANS = (
  ("full", "v5e:16x16"),
  ("full", "v5p:4x4x4"),
  ("full", "v6e:16x16"),
  ("base", "v5e:4x4"),
)


def program(**changes) -> planner.Program:
  fields = dict(
    name="step", model_flops=3e15, executed_flops=4e15, hbm={"parameters": 1 << 30}, collectives={},
    wire_seconds=0.5, read_seconds=0.25, compile_seconds=1.0, warnings=[],
  )  # fmt: skip
  return planner.Program(**fields | changes)


class PlannerTest(parameterized.TestCase):
  def test_roofs(self):
    topology = hardware.parse("v5e:2x2")
    found = planner.roofline(program(), topology)
    peak = 4 * 197e12
    self.assertAlmostEqual(found["compute_s"], 4e15 / peak)
    self.assertAlmostEqual(found["step_s_in_turn"], 4e15 / peak + 0.5)
    self.assertAlmostEqual(found["mfu_overlapped"], 3 / 4)  # compute is the highest roof
    slow = planner.roofline(program(wire_seconds=100.0), topology)
    self.assertAlmostEqual(slow["step_s_overlapped"], 100.0)
    self.assertAlmostEqual(slow["mfu_overlapped"], 3e15 / peak / 100)

  def test_what_does_not_fit_is_still_told(self):
    row = planner.describe(
      program(wire_seconds=math.nan, read_seconds=math.nan), hardware.parse("v5e:2x2")
    )
    self.assertNotIn("mfu_in_turn", row)
    self.assertEqual(planner.budget(row, 8, 100, 4, 1.0), {})
    self.assertNotIn("NaN", json.dumps(row))

  def test_fits_with_headroom(self):
    topology = hardware.parse("v5e:2x2")
    self.assertTrue(planner.fits(program(), topology)[2])
    self.assertFalse(planner.fits(program(hbm={"parameters": int(15.5 * 2**30)}), topology)[2])

  @parameterized.parameters(
    ("v5ee:16x16", "no chip 'v5ee' \\(nearest valid: v5e\\)"),
    ("v5e:16", "expected v5e:16x16 or the like"),
    ("v5p:4x4", "expected v5p:4x4x4"),
    ("v5e", "expected v5e:16x16"),
  )
  def test_bad_topology(self, text, message):
    with self.assertRaisesRegex(types.UserError, message):
      hardware.parse(text)

  @parameterized.parameters(("", {"vae", "llm", "byt5"}), (",text=features", {"vae", "byt5"}))
  def test_what_the_step_reads(self, option, parts):
    config = pretrain.get_config(f"nano,content=latent{option}")
    layout = open_lib.lay_out(config, jax.devices()[:1])
    batch = planner.batch_of(config, layout.stage, (64, 64))
    self.assertEqual(set(planner._read(layout.frozen, batch)), parts)
    self.assertEqual(batch["train"]["latent_BHWC"].shape, (16, 8, 8, 16))
    self.assertEqual(planner.default_size(config), (64, 64))

  def test_streams_of_post_training(self):
    refl = rlhf.get_config("nano,content=latent")
    found = planner.batch_of(refl, open_lib.make_stage(refl), (64, 64))
    self.assertEqual(set(found), {"train", "prompts"})
    self.assertEqual(found["prompts"]["latent_BHWC"].shape, (8, 8, 8, 16))
    pairs = rlhf.get_config("nano,mode=reward")
    found = planner.batch_of(pairs, open_lib.make_stage(pairs), (64, 64))
    self.assertEqual(found["train"]["image_BRHWC"].shape, (64, 2, 64, 64, 3))
    with self.assertRaisesRegex(types.UserError, "--size: not given, and stage reward"):
      planner.default_size(pairs)
    pairs = rlhf.get_config("nano,mode=dpo,content=latent")
    found = planner.batch_of(pairs, open_lib.make_stage(pairs), (64, 64))
    self.assertEqual(found["train"]["latent_BRHWC"].shape, (16, 2, 8, 8, 16))
    labelled = ct.get_config("nano,content=latent")
    found = planner.batch_of(labelled, open_lib.make_stage(labelled), (64, 64))
    self.assertEqual(found["train"]["label_BA"].shape, (16, 4))

  @pytest.mark.heavy
  def test_a_step_here_has_its_parts(self):
    """On this machine's devices, where memory and FLOPs can be added up by hand."""
    config = pretrain.get_config("nano,content=latent")
    config.sharding.mesh = dict(data=1, fsdp=8, tensor=1, context=1)
    config.data.streams.train.text_buckets = (16,)
    topology = hardware.parse("v5e:2x4")
    layout, found = planner.plan_step(config, topology, (64, 64), jax.devices())
    self.assertGreaterEqual(found.executed_flops, found.model_flops)
    params = planner.parameters(layout)["dit"]
    self.assertBetween(found.hbm["parameters"], 4 * params / 8, 4 * params / 2)
    self.assertBetween(
      found.hbm["optimizer"], 2 * found.hbm["parameters"], 2.1 * found.hbm["parameters"]
    )
    gathered = found.collectives["all-gather"]["wire_bytes"]
    self.assertGreater(gathered, 4 * params * 7 / 8)  # every kernel at least once
    self.assertEmpty(found.warnings)

  def test_meshes_use_every_chip(self):
    topology = hardware.parse("v5e:4x4")
    found = list(planner.meshes(topology, 64))
    self.assertIn(dict(data=1, fsdp=16, tensor=1, context=1), found)
    for shape in found:
      self.assertEqual(math.prod(shape.values()), 16)

  def test_verb_refuses(self):
    command = [
      sys.executable,
      "-m",
      "seedream_jax.plan",
      "--config",
      "experiments/pretrain.py:nano",
    ]
    done = subprocess.run([*command, "--topology", "h100:8"], capture_output=True, text=True)
    self.assertEqual(done.returncode, 2, done.stderr)
    self.assertIn("GPUs cannot be compiled for", done.stderr)
    self.assertNotIn("Traceback", done.stderr)


@pytest.mark.heavy
class GoldenPlanTest(parameterized.TestCase):
  """`python -m tests.run.planner_test` writes the file anew."""

  @parameterized.parameters(*PLANS)
  def test_plan(self, preset, topology):
    want = json.loads(GOLDEN.read_text())[f"{preset} {topology}"]
    got = plan(preset, topology)
    for name, value in want.items():
      np.testing.assert_allclose(got[name], value, rtol=0.02, err_msg=name)
    self.assertTrue(got["fits"])
    self.assertBetween(got["executed_over_model"], 1.0, 1.38)


def plan(preset: str, topology: str) -> dict[str, float]:
  """The golden numbers of one plan, from the verb."""
  out = os.path.join(tempfile.mkdtemp(), "plan.json")
  config = f"experiments/pretrain.py:{preset},content=latent,text=features"
  command = [sys.executable, "-m", "seedream_jax.plan", "--config", config, "--topology", topology]
  env = os.environ | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "XLA_FLAGS": ""}
  subprocess.run([*command, "--noencoders", "--json", out], check=True, env=env)
  step = json.loads(pathlib.Path(out).read_text())["programs"][0]
  keys = (
    "fits",
    "gib_per_chip",
    "model_flops",
    "executed_over_model",
    "links_s",
    "mfu_overlapped",
    "mfu_in_turn",
  )
  return {key: step[key] for key in keys}


if __name__ == "__main__":
  GOLDEN.write_text(json.dumps({f"{p} {t}": plan(p, t) for p, t in PLANS}, indent=1) + "\n")
