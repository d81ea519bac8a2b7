"""Two processes over gloo train as one device does, and a SIGTERM to one of them stops both."""

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


class TwoProcessesTest(absltest.TestCase):
  def test_curves_of_one_device_even_across_a_stop(self):
    single = config_of()
    single.sharding.num_devices = 1
    want = loop_test.run(single)
    root = tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir())
    for name, mesh in (("fsdp", dict(fsdp=2)), ("data", dict(data=2))):
      os.makedirs(os.path.join(root, name))
      with open(os.path.join(root, name, "config.json"), "w") as f:
        f.write(config_of(**mesh).to_json())
    fsdp, data = os.path.join(root, "fsdp"), os.path.join(root, "data")
    self._two(loop.TERMINATED, "term", fsdp)
    stopped = checkpoint.Checkpointer(os.path.join(fsdp, "checkpoints")).latest()
    self.assertBetween(stopped, 1, STEPS - 1)
    self.assertLen(loop_test.losses(fsdp), stopped)
    self._two(0, "run", fsdp, data)
    for workdir in (fsdp, data):
      for got, expected in zip(curve(workdir), curve(want)):
        np.testing.assert_allclose(got, expected, rtol=2e-5, err_msg=workdir)
      for name, x in loop_test.final(want).items():
        np.testing.assert_allclose(loop_test.final(workdir)[name], x, atol=2e-5, err_msg=name)

  def _two(self, code: int, *args: str) -> None:
    """Runs `child` in two processes; both must end with `code`."""
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
      self.assertEqual(codes, [code] * 2, output.read())


def child(how: str, *workdirs: str) -> int:
  """Trains in each workdir; with `how` = "term", process 1 alone is told to stop early on."""
  distributed.initialize()
  assert jax.process_count() == jax.device_count() == 2
  if how == "term" and jax.process_index() == 1:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(3)  # both hear of it, well before the last step
  codes = [loop.train(open_lib.read_config(workdir), workdir) for workdir in workdirs]
  print(json.dumps(codes), flush=True)
  return max(codes)


if __name__ == "__main__":
  if sys.argv[1:2] == ["child"]:
    jax.config.update("jax_num_cpu_devices", 1)
    sys.exit(child(*sys.argv[2:]))
  else:
    absltest.main()
