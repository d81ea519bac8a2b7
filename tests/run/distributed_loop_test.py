"""Two processes over gloo train as one device does; SIGTERM to one of them stops both, and so does kill -9."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import pytest
from absl.testing import absltest

from seedream_jax.engine import checkpoint, distributed, metrics
from seedream_jax.run import loop
from seedream_jax.run import open as open_lib
from tests.run import loop_test

STEPS = 6


def config_of(**mesh: int):
  """Four examples a step to each of two processes, a validation loss every second step."""
  config = loop_test.tiny_config(STEPS, **mesh)
  config.sharding.num_devices = 0
  config.eval.evaluators = dict(
    val=dict(kind="ValLoss", predict="val_loss", stream="val", batches=1)
  )
  for stream in config.data.streams.values():
    stream.text_buckets = (64,)  # one compile
  config.eval.every_steps, config.ckpt.every_steps = 2, 100
  return config


def curve(workdir: str) -> tuple[np.ndarray, list[float]]:
  """Loss and gradient norm of each step; the validation losses."""
  rows = metrics.read(workdir)
  train = [[row["llm/loss"], row["llm/grad_norm"]] for row in rows]
  return np.array(train), [row["val/loss"] for row in rows if "val/loss" in row]


@functools.cache
def _on_one_device() -> str:
  """The workdir of the run that two processes must equal."""
  config = config_of()
  config.sharding.num_devices = 1
  return loop_test.run(config)


class TwoProcessesTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self._root = tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir())

  def test_curves_of_one_device_even_across_a_stop(self):
    want = _on_one_device()
    fsdp, data = self._workdir("fsdp", fsdp=2), self._workdir("data", data=2)
    self._two(loop.TERMINATED, "term", fsdp)
    stopped = checkpoint.Checkpointer(os.path.join(fsdp, "checkpoints")).latest()
    self.assertBetween(stopped, 1, STEPS - 1)
    self.assertLen(loop_test.losses(fsdp), stopped)
    lost = self._lost(1)
    self._two(0, "run", fsdp, data, lost)
    for workdir in (fsdp, data):
      for got, expected in zip(curve(workdir), curve(want)):
        np.testing.assert_allclose(got, expected, rtol=2e-5, err_msg=workdir)
      for name, x in loop_test.final(want).items():
        np.testing.assert_allclose(loop_test.final(workdir)[name], x, atol=2e-5, err_msg=name)
    for name, x in loop_test.final(data).items():  # bit for bit, as if none had been killed
      np.testing.assert_array_equal(loop_test.final(lost)[name], x, err_msg=name)

  @pytest.mark.heavy
  def test_without_its_coordinator_it_goes_on_elsewhere(self):
    lost = self._lost(0)
    config = open_lib.read_config(lost)  # another mesh, another chip count, the same order of data
    config.sharding.mesh, config.sharding.num_devices = config_of(data=1).sharding.mesh, 1
    self.assertEqual(loop.train(config, lost), 0)
    got, want = loop_test.final(lost), loop_test.final(_on_one_device())
    for name, x in want.items():
      np.testing.assert_allclose(got[name], x, atol=2e-5, err_msg=name)

  def _workdir(self, name: str, every_steps: int = 100, **mesh: int) -> str:
    """A new one that holds the config which `child` reads."""
    folder = os.path.join(self._root, name)
    os.makedirs(folder)
    config = config_of(**mesh)
    config.ckpt.every_steps = every_steps
    with open(os.path.join(folder, "config.json"), "w") as f:
      f.write(config.to_json())
    return folder

  def _lost(self, victim: int) -> str:
    """The workdir of a run of two that ended because process `victim` was killed; step 2 is saved."""
    workdir = self._workdir(f"lost_{victim}", every_steps=2, data=2)
    codes, output = self._run_both(f"kill{victim}", workdir)
    self.assertEqual(codes[victim], -signal.SIGKILL, output)
    # Where the connection breaks first, the survivor says so; where it misses the coordinator first, JAX aborts it.
    self.assertIn(codes[1 - victim], (distributed.LOST, -signal.SIGABRT), output)
    self.assertRegex(output, "lost another one|oordination service")
    saved = checkpoint.Checkpointer(os.path.join(workdir, "checkpoints")).latest()
    self.assertBetween(saved, 1, STEPS - 1)
    return workdir

  def _two(self, code: int, *args: str) -> None:
    """Runs `child` in two processes; both must end with `code`."""
    codes, output = self._run_both(*args)
    self.assertEqual(codes, [code] * 2, output)

  def _run_both(self, *args: str) -> tuple[list[int], str]:
    """Exit codes of two processes that run `child`, and what they said."""
    with socket.socket() as s:
      s.bind(("localhost", 0))
      port = s.getsockname()[1]
    command = [sys.executable, "-m", "tests.run.distributed_loop_test", "child", *args]
    children = []
    with tempfile.TemporaryFile("w+") as output:  # unlike a pipe, never full
      for i in range(2):
        env = os.environ | {
          "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2",
          "JAX_PROCESS_ID": str(i), "JAX_PLATFORMS": "cpu",
        }  # fmt: skip
        children.append(subprocess.Popen(command, env=env, stdout=output, stderr=output))
      try:
        codes = [child.wait(timeout=900) for child in children]
      finally:
        for child in children:
          child.kill()
      output.seek(0)
      return codes, output.read()


def child(how: str, *workdirs: str) -> int:
  """Trains in each workdir; "term" tells process 1 alone to stop early on, "killK" kills process K in mid-run."""
  distributed.initialize()
  assert jax.process_count() == jax.device_count() == 2
  if how == "term" and jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)  # both hear of it, well before the last step
  if how == f"kill{jax.process_index()}":
    loop._log = functools.partial(_die_after_a_checkpoint, loop._log, workdirs[0])
  codes = [loop.train(open_lib.read_config(workdir), workdir) for workdir in workdirs]
  print(json.dumps(codes), flush=True)
  return max(codes)


def _die_after_a_checkpoint(log, workdir: str, *args) -> int:
  """`log`, until step 3; then waits for the checkpoint of step 2 and kills this process in the midst of step 4."""
  first = args[-2]
  if first >= 3:
    checkpoints = checkpoint.Checkpointer(os.path.join(workdir, "checkpoints"), read_only=True)
    while checkpoints.latest() is None:
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
  return log(*args)


if __name__ == "__main__":
  if sys.argv[1:2] == ["child"]:
    jax.config.update("jax_num_cpu_devices", 1)
    with distributed.together():
      sys.exit(child(*sys.argv[2:]))
  else:
    absltest.main()
