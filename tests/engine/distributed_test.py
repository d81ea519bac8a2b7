"""Clusters from their environment, and two real processes over gloo."""

import os
import socket
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.engine import checkpoint, distributed, mesh, sharding

EXPLICIT = {"JAX_COORDINATOR_ADDRESS": "h:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
JOBSET = {
  "JOBSET_NAME": "run", "REPLICATED_JOB_NAME": "workers", "JOB_COMPLETION_INDEX": "1",
  "JAX_NUM_PROCESSES": "2",
}  # fmt: skip
RAY = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "WORLD_SIZE": "8", "RANK": "5"}


class DetectTest(parameterized.TestCase):
  @parameterized.parameters(
    ({}, None),
    (EXPLICIT, distributed.Cluster("explicit", "h:1", 4, 3)),
    (JOBSET, distributed.Cluster("JobSet", "run-workers-0-0.run:8476", 2, 1)),
    (RAY, distributed.Cluster("Ray", "10.0.0.1:29500", 8, 5)),
    ({**RAY, "WORLD_SIZE": "1"}, None),
    ({"SLURM_STEP_NUM_TASKS": "2"}, distributed.Cluster("SLURM")),
    ({"SLURM_STEP_NUM_TASKS": "1"}, None),
    ({"SLURM_NTASKS": "2"}, None),  # inside sbatch, before srun: one process
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, distributed.Cluster("TPU")),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    (
      {**EXPLICIT, **RAY, "SLURM_STEP_NUM_TASKS": "2"},
      distributed.Cluster("explicit", "h:1", 4, 3),
    ),
  )
  def test_detect(self, env, expected):
    self.assertEqual(distributed.detect(env), expected)

  @parameterized.parameters(
    (EXPLICIT, "JAX_PROCESS_ID", None, "explicit environment: JAX_PROCESS_ID is not set"),
    (EXPLICIT, "JAX_NUM_PROCESSES", "two", "JAX_NUM_PROCESSES='two', expected a whole number"),
    (EXPLICIT, "JAX_PROCESS_ID", "4", "JAX_PROCESS_ID=4, expected less than JAX_NUM_PROCESSES=4"),
    (JOBSET, "REPLICATED_JOB_NAME", None, "JobSet environment: REPLICATED_JOB_NAME is not set"),
    (RAY, "MASTER_PORT", None, "Ray environment: MASTER_PORT is not set"),
    (RAY, "RANK", None, "Ray environment: RANK is not set"),
  )
  def test_incomplete(self, env, name, value, message):
    env = {k: v for k, v in env.items() if k != name} | ({name: value} if value else {})
    with self.assertRaisesRegex(types.UserError, message):
      distributed.detect(env)

  def test_single_process_does_nothing(self):
    self.assertIsNone(distributed.initialize({}))
    self.assertFalse(jax.distributed.is_initialized())


class TwoProcessesTest(absltest.TestCase):
  def test_sum_save_damage_restore(self):
    with socket.socket() as s:
      s.bind(("localhost", 0))
      port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
      children = []
      for i in range(2):
        env = {
          "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2",
          "JAX_PROCESS_ID": str(i), "JAX_PLATFORMS": "cpu",
        }  # fmt: skip
        children.append(
          subprocess.Popen(
            [sys.executable, "-m", "tests.engine.distributed_test", "child", folder],
            env=os.environ | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
          )
        )
      for child in children:
        output, _ = child.communicate(timeout=120)
        self.assertEqual(child.returncode, 0, output)
        self.assertIn("restored step 1 of 2", output)


def child(folder):
  """Both processes save twice; the second step is then damaged and both must agree on the first."""
  distributed.initialize()
  assert jax.process_count() == 2 and jax.device_count() == 4
  place = sharding.infer(
    {"kernel": jnp.zeros((8, 3))}, ((".*", ("fsdp", None)),), mesh.make({"fsdp": -1})
  )
  make = jax.jit(lambda c: {"kernel": c + jnp.arange(24.0).reshape(8, 3)}, out_shardings=place)
  assert float(jax.jit(jnp.sum)(make(0.0)["kernel"])) == 276.0
  checkpointer = checkpoint.Checkpointer(folder)
  for step in (1, 2):
    checkpointer.save(step, make(float(step)), {"step": step}, wait=True)
  jax.experimental.multihost_utils.sync_global_devices("saved")
  assert checkpointer.latest() == 2
  jax.experimental.multihost_utils.sync_global_devices("seen")
  if jax.process_index() == 0:
    os.truncate(os.path.join(folder, "step_00000002", "meta.json"), 1)
  abstract = sharding.abstract({"kernel": jnp.zeros((8, 3))}, place)
  state, step, meta = checkpointer.restore(abstract)
  assert meta == {"step": 1}
  for shard in state["kernel"].addressable_shards:
    expected = np.arange(24.0).reshape(8, 3)[shard.index] + 1.0
    np.testing.assert_array_equal(shard.data, expected)
  path = os.path.join(folder, "x.safetensors")
  checkpoint.save_weights(path, state)
  jax.experimental.multihost_utils.sync_global_devices("weights")
  weights = checkpoint.load_weights(path, abstract)
  for mine, theirs in zip(weights["kernel"].addressable_shards, state["kernel"].addressable_shards):
    np.testing.assert_array_equal(mine.data, theirs.data)
  checkpointer.close()
  print(f"restored step {step} of {checkpointer.latest()}", flush=True)


if __name__ == "__main__":
  if sys.argv[1:2] == ["child"]:
    jax.config.update("jax_num_cpu_devices", 2)
    child(sys.argv[2])
  else:
    absltest.main()
