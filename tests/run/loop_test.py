"""The loop's promises: bit-exact resume, any mesh, any accumulation, one compile, nothing bad kept."""

import functools
import glob
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from experiments import align, pretrain
from seedream_jax import types
from seedream_jax.engine import checkpoint, metrics, trees
from seedream_jax.eval import evaluators
from seedream_jax.run import loop, step
from seedream_jax.run import open as open_lib
from seedream_jax.stages import align as stages_align
from tests.data import datasets
from tests.models import tiny


@functools.cache
def _world() -> tuple[str, str]:
  """(data set, tokenizer) shared by the tests of this file."""
  root = tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir())
  data = datasets.write(os.path.join(root, "world"), 96)
  return data, datasets.tokenizer(root).path


def tiny_config(total_steps: int = 4, **mesh: int):
  """A language model of a few thousand parameters on 8 captions a step."""
  data, tokenizer = _world()
  config = align.get_config(f"nano,mode=lm,data={data},tokenizer={tokenizer},steps={total_steps}")
  config.model.llm.update(
    dict(vocab_size=512, width=32, depth=2, num_heads=2, head_dim=16, mlp_dim=64)
  )
  for stream in config.data.streams.values():
    stream.batch_size = 8
    stream.sources = ((f"{data}:train", 1.0),)
  config.sharding.mesh = dict(data=1, fsdp=1, tensor=1, context=1) | mesh
  config.sharding.num_devices = 8 if mesh else 1
  config.optim.ema = dict(eval=(".*", 0.9))
  config.optim.warmup_steps = 2
  config.train.log_every_steps = 1
  config.train.count_flops = False
  config.ckpt.every_steps = 2 if total_steps < 10 else 4
  config.eval.evaluators = dict()
  return config


def final(workdir: str) -> dict[str, np.ndarray]:
  """The weights a finished run wrote."""
  return trees.flatten(checkpoint.load_weights(os.path.join(workdir, "weights", "llm.safetensors")))


def losses(workdir: str) -> list[float]:
  """The loss of every step in metrics.jsonl."""
  with open(os.path.join(workdir, "metrics.jsonl")) as f:
    rows = [json.loads(line) for line in f]
  return [row["llm/loss"] for row in rows if "llm/loss" in row]


def run(config) -> str:
  """Trains in a fresh workdir; returns it."""
  workdir = _fresh()
  assert loop.train(config, workdir) == 0
  return workdir


def _fresh() -> str:
  return os.path.join(tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir()), "run")


class LoopTest(parameterized.TestCase):
  def test_resume_is_bit_identical(self):
    whole = run(tiny_config())
    cut = _fresh()
    exp = open_lib.open_config(tiny_config(), cut)
    with jax.set_mesh(exp.mesh):
      loaders = open_lib.open_loaders(exp.config, ["train"])
      state = open_lib.load_state(exp)
      update = exp.trainer.compiled(("llm",), 1)
      for k in range(2):
        batch = jax.tree.map(jax.numpy.asarray, {"train": loaders["train"].batch(k)})
        state, _ = update(state, exp.frozen, batch)
      exp.checkpointer.save(2, state, open_lib.meta_of(exp), wait=True)
    self.assertEqual(loop.train(tiny_config(), cut), 0)
    want, got = final(whole), final(cut)
    self.assertEqual(want.keys(), got.keys())
    for name, x in want.items():
      np.testing.assert_array_equal(x, got[name], err_msg=name)
    self.assertLen(losses(cut), 2)  # only steps 3 and 4 ran again

  @parameterized.parameters(dict(fsdp=8), dict(fsdp=4, tensor=2), dict(data=2, fsdp=2, tensor=2))
  def test_any_mesh_gives_the_single_device_curve(self, **mesh):
    want = losses(run(tiny_config()))
    np.testing.assert_allclose(losses(run(tiny_config(**mesh))), want, rtol=2e-5)

  def test_accumulation_changes_nothing(self):
    config = tiny_config()
    config.train.accum_steps = 4
    np.testing.assert_allclose(losses(run(config)), losses(run(tiny_config())), rtol=2e-6)

  def _guarded(self, workdir: str, *looks: tuple[float, float]) -> None:
    """Trains with a guard that sees these held-out scores and rewards at steps 0, 2, 4, ..."""
    config = tiny_config(10)
    config.ckpt.every_steps = config.eval.every_steps = config.ckpt.keep_every = 2
    config.eval.evaluators = dict(
      guard=dict(
        kind="Guard", predict="scores", stream="val", score="held", rewards=("mine",), batches=1
      )
    )
    seen = iter(looks)

    def run_(self, run, state, step, writer):
      held, mine = next(seen)
      with mock.patch.object(
        evaluators.ValLoss, "run", lambda *_: {"guard/held": held, "guard/mine": mine}
      ):
        return guard_run(self, run, state, step, writer)

    guard_run = evaluators.Guard.run
    with (
      mock.patch.object(stages_align.LanguageModel, "predict_fns", lambda self: {"scores": len}),
      mock.patch.object(evaluators.Guard, "run", run_),
    ):
      self.assertEqual(loop.train(config, workdir), 0)

  def test_a_guard_ends_the_run_with_its_best_step_and_it_stays_ended(self):
    """A held-out score that falls from step 4 on, while the reward rises."""
    workdir = _fresh()
    self._guarded(workdir, (1.0, 0.0), (1.0, 1.0), (3.0, 2.0), (2.0, 3.0), (1.0, 4.0))
    first = final(workdir)
    self.assertEqual(len(losses(workdir)), 8)  # it looked at 0, 2, 4, 6 and 8
    self._guarded(workdir)  # and takes no step more
    self.assertEqual(len(losses(workdir)), 8)
    short = tiny_config(10)
    short.ckpt.every_steps, short.eval.every_steps, short.train.total_steps = 2, 0, 10
    cut = _fresh()
    with mock.patch.object(loop, "_stop_asked", lambda: lambda call: call == 3):
      self.assertEqual(loop.train(short, cut), loop.TERMINATED)
    exp = open_lib.open_config(short, cut)
    want = trees.flatten(
      evaluators.eval_params(exp.checkpointer.restore(exp.abstract_state)[0])["llm"]
    )
    for name, x in first.items():
      np.testing.assert_array_equal(x, want[name], err_msg=name)

  def test_a_guard_that_only_saw_a_fall_goes_back_to_the_start(self):
    workdir = _fresh()
    self._guarded(workdir, (3.0, 1.0), (2.0, 2.0), (1.0, 3.0))
    self.assertEqual(len(losses(workdir)), 4)
    exp = open_lib.open_config(open_lib.read_config(workdir), workdir)
    start = trees.flatten(evaluators.eval_params(open_lib.load_state(exp))["llm"])
    self.assertEqual(exp.checkpointer.latest(), 0)
    for name, x in final(workdir).items():
      np.testing.assert_array_equal(x, start[name], err_msg=name)

  def test_fused_steps_change_nothing(self):
    config = tiny_config()
    config.train.steps_per_call = 2
    config.data.streams.train.run_steps = 2
    plain = tiny_config()
    plain.data.streams.train.run_steps = 2
    np.testing.assert_allclose(losses(run(config)), losses(run(plain)), rtol=2e-6)

  def test_one_compile_per_bucket_and_players(self):
    exp = open_lib.open_config(tiny_config(), _fresh())
    with jax.set_mesh(exp.mesh):
      loader = open_lib.open_loaders(exp.config, ["train"])["train"]
      state = open_lib.load_state(exp)
      update = exp.trainer.compiled(("llm",), 1)
      seen = set()
      for k in range(6):
        seen.add(loader.bucket(k)[1])  # pictures are not read: text alone shapes the batch
        batch = jax.tree.map(jax.numpy.asarray, {"train": loader.batch(k)})
        state, _ = update(state, exp.frozen, batch)
      self.assertEqual(update._cache_size(), len(seen))
      self.assertIs(update, exp.trainer.compiled(("llm",), 1))

  def test_a_bad_step_leaves_no_trace_but_the_count(self):
    exp = _sick_from(0, tiny_config())
    with jax.set_mesh(exp.mesh):
      loader = open_lib.open_loaders(exp.config, ["train"])["train"]
      state = open_lib.load_state(exp)
      before = jax.device_get((state.params, state.opt, state.ema))
      batch = jax.tree.map(jax.numpy.asarray, {"train": loader.batch(0)})
      state, stats = exp.trainer.compiled(("llm",), 1)(state, exp.frozen, batch)
    jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.opt, state.ema))
    self.assertEqual((int(state.step), int(state.bad_steps)), (1, 1))
    self.assertTrue(np.isnan(stats["llm/loss"]))

  def test_several_bad_steps_stop_the_run(self):
    config = tiny_config(total_steps=8)
    config.train.max_bad_steps = 3
    exp = _sick_from(3, config)
    with jax.set_mesh(exp.mesh):
      state = open_lib.load_state(exp)
      loaders = open_lib.open_loaders(config, ["train"])
      with self.assertRaisesRegex(
        types.UserError, "3 steps in a row.*last good checkpoint: step 2"
      ):
        loop._run(exp, state, loaders, [])
      exp.checkpointer.wait()
      self.assertEqual(exp.checkpointer.steps(), [2])

  def test_another_frozen_part_is_refused(self):
    with self.assertRaisesRegex(types.UserError, "frozen.vae: b has sha256 22.*trained with a"):
      open_lib._check_provenance(
        {"vae": {"path": "a", "sha256": "1" * 64}}, {"vae": {"path": "b", "sha256": "2" * 64}}
      )

  def test_killed_at_any_moment_the_same_command_ends_bit_identical(self):
    whole = run(tiny_config(total_steps=16))
    workdir = _fresh()
    config_path = os.path.join(absltest.get_default_test_tmpdir(), "killed.py")
    with open(config_path, "w") as f:
      f.write(_CHILD.format(json=tiny_config(total_steps=16).to_json()))
    command = [sys.executable, config_path, workdir]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    child = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL)
    marker = os.path.join(workdir, "checkpoints", "step_00000004", "manifest.json")
    while not os.path.exists(marker) and child.poll() is None:
      pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    self.assertFalse(os.path.exists(os.path.join(workdir, "weights")))
    self.assertEqual(subprocess.run(command, env=env, stderr=subprocess.DEVNULL).returncode, 0)
    for name, x in final(whole).items():
      np.testing.assert_array_equal(x, final(workdir)[name], err_msg=name)

  def test_killed_inside_a_commit_and_inside_the_export_it_ends_bit_identical(self):
    config = tiny_config()
    config.data.streams.train.text_buckets = (64,)  # one compile
    whole, workdir = run(config), _fresh()
    script = os.path.join(absltest.get_default_test_tmpdir(), "lives.py")
    with open(script, "w") as f:
      f.write(_LIVES)
    os.makedirs(workdir)
    with open(os.path.join(workdir, "config.json"), "w") as f:
      f.write(config.to_json())
    deaths = ["step_00000004/manifest.json", "llm.safetensors", "never"]
    lives = subprocess.run(
      [sys.executable, script, workdir, *deaths],
      env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()},
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )
    left = [json.loads(line) for line in lives.stdout.splitlines()]
    steps = ["step_00000002/meta.json", "step_00000004/meta.json"]
    wholes = ["step_00000002/manifest.json", "step_00000004/manifest.json"]
    self.assertEqual([code for code, _ in left], [-9, -9, 0])
    first, second, last = (set(files) for _, files in left)
    self.assertContainsSubset([*steps, wholes[0]], first)  # step 4's files lie there, uncommitted
    self.assertNotIn(wholes[1], first)
    self.assertContainsSubset([*wholes, "weights/llm.safetensors.tmp"], second)
    self.assertNotIn("weights/llm.safetensors", second)
    self.assertEqual(
      {f for f in last if f.startswith("weights")},
      {"weights/llm.safetensors", "weights/config.json"},
    )
    self.assertLen(losses(workdir), 4)  # none told twice
    files = [os.path.join(w, "weights", "llm.safetensors") for w in (whole, workdir)]
    self.assertEqual(*map(checkpoint.sha256, files))

  def test_pretrain_draws_samples_of_its_averaged_weights(self):
    root, workdir = tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir()), _fresh()
    data = datasets.write(root, 24, content="latent", sizes=((32, 48),))
    config = pretrain.get_config(f"nano,content=latent,data={data},weights={root}")
    config.data.tokenizer = _world()[1]
    config.model = dict(
      llm=tiny.LLM | dict(vocab_size=512),
      byt5=tiny.BYT5,
      vae=dict(variant="nano", widths=(4, 6), norm_groups=2, latent_channels=5),
      dit=dict(
        variant="nano", width=16, depth=2, num_heads=2, latent_channels=5, text_dim=12,
        glyph_dim=10, max_text_len=64, glyph_len=8, downsample=2,
      ),
    )  # fmt: skip
    drawn = {n: tiny.draw(p.abstract) for n, p in open_lib.make_stage(config).parts().items()}
    for name in config.frozen:
      checkpoint.save_weights(os.path.join(root, f"{name}.safetensors"), drawn[name])
    for stream in config.data.streams.values():
      stream.update(batch_size=8, text_buckets=(64,), sources=((f"{data}:train", 1.0),))
    config.sharding.num_devices = 1
    exp = open_lib.open_config(config, workdir)
    fill = lambda value: jax.tree.map(lambda x: np.full(x.shape, value, x.dtype), drawn["dit"])  # noqa: E731
    writer, sheets = metrics.Writer(workdir), []
    with jax.set_mesh(exp.mesh):
      (grid,) = (p for p in loop._evaluators(exp) if isinstance(p, evaluators.SampleGrid))
      for raw, ema in ((fill(np.nan), drawn["dit"]), (drawn["dit"], {}), (fill(0.0), {})):
        ema = {"dit": {"eval": trees.flatten(ema)}}
        state = types.TrainState(np.int32(1), {"dit": raw}, {}, ema, np.int32(0))
        grid.run(exp, state, 1, writer)
        with Image.open(os.path.join(workdir, "images", "samples", "00000001.png")) as sheet:
          sheets.append(np.asarray(sheet))
    writer.close()
    np.testing.assert_array_equal(sheets[0], sheets[1])
    self.assertFalse(np.array_equal(sheets[0], sheets[2]))
    prompts = config.eval.evaluators.samples.prompts
    chinese = [any("\u4e00" <= c <= "\u9fff" for c in prompt) for prompt in prompts]
    self.assertEqual((len(prompts), sum(chinese)), (8, 4))
    board = glob.glob(os.path.join(workdir, "tensorboard", "*"))
    self.assertIn(b"samples", b"".join(pathlib.Path(path).read_bytes() for path in board))


# One life after the other of the same run, each dying as it is about to rename a file to what it is told; lives are
# forked before JAX makes threads, so that the imports are paid once.
_LIVES = """
import glob, json, os, signal, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from seedream_jax.run import loop, open as open_lib
workdir, *deaths = sys.argv[1:]
rename = os.replace
def live(death):
  def hook(source, target):
    if str(target).endswith(death):
      os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
  os.replace = hook
  os._exit(loop.train(open_lib.read_config(workdir), workdir))
for death in deaths:
  pid = os.fork()
  if pid == 0:
    live(death)
  code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
  paths = glob.glob(workdir + "/weights/*") + glob.glob(workdir + "/checkpoints/*/*.json")
  print(json.dumps([code, ["/".join(path.split("/")[-2:]) for path in paths]]), flush=True)
"""

_CHILD = """
import json, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
import ml_collections
from seedream_jax.run import loop, open as open_lib
config = ml_collections.ConfigDict(open_lib._tuples(json.loads('''{json}''')))
sys.exit(loop.train(config, sys.argv[1]))
"""


class _Sick:
  """A stage whose loss turns NaN from a step on."""

  def __init__(self, stage: types.Stage, from_step: int):
    self._stage, self._from = stage, from_step
    self.players = stage.players

  def __getattr__(self, name):
    return getattr(self._stage, name)

  def loss(self, *args, step, **kwargs):
    loss = self._stage.loss(*args, step=step, **kwargs)
    poison = jax.numpy.where(step >= self._from, jax.numpy.nan, 1.0)
    return loss._replace(total=loss.total * poison)


def _sick_from(first: int, config) -> open_lib.Experiment:
  """The experiment with its stage sick from step `first` on."""
  exp = open_lib.open_config(config, _fresh())
  trainer = exp.trainer
  exp.trainer = step.Trainer(
    _Sick(exp.stage, from_step=first),
    trainer.optimizers,
    config.seed,
    1,
    trainer.state_shardings,
    trainer.frozen_shardings,
    exp.mesh,
  )
  return exp


if __name__ == "__main__":
  absltest.main()
