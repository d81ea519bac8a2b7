"""Checkpoints: whole or not there, whatever happens to the files."""

import glob
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.engine import checkpoint, mesh, sharding

RULES = ((".*kernel", ("fsdp?", "tensor?")), (".*", ()))


def make_state(device_mesh, scale=1.0):
  params = {"kernel": scale * jnp.arange(7 * 8 * 16.0).reshape(7, 8, 16), "bias": jnp.arange(5.0)}
  adam = optax.ScaleByAdamState(jnp.int32(3), params, jax.tree.map(jnp.square, params))
  state = types.TrainState(
    jnp.int32(3), {"dit": params}, {"dit": {"adamw": adam}}, {"dit": {"eval": params}}, jnp.int32(0)
  )
  # Through jit, so that no two leaves share a buffer and all may be donated.
  return jax.jit(lambda x: x, out_shardings=sharding.infer(state, RULES, device_mesh))(state)


def abstract_of(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def largest_file(folder):
  return max(
    (f for f in glob.glob(f"{folder}/**", recursive=True) if os.path.isfile(f)), key=os.path.getsize
  )


class CheckpointTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.directory = os.path.join(folder.name, "checkpoints")
    self.mesh = mesh.make({"fsdp": 4, "data": 2})
    self.state = make_state(self.mesh)

  def checkpointer(self, **kwargs):
    made = checkpoint.Checkpointer(self.directory, **kwargs)
    self.addCleanup(made.close)
    return made

  def assert_same(self, got, expected):
    self.assertEqual(jax.tree.structure(got), jax.tree.structure(expected))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(got), jax.device_get(expected))

  def folder(self, step):
    return os.path.join(self.directory, f"step_{step:08d}")

  def save(self, *steps):
    checkpointer = self.checkpointer()
    for step in steps:
      checkpointer.save(step, make_state(self.mesh, step), {"step": step}, wait=True)
    return checkpointer

  def test_nothing_to_restore(self):
    checkpointer = self.checkpointer()
    self.assertIsNone(checkpointer.restore(abstract_of(self.state)))
    self.assertIsNone(checkpointer.latest())

  def test_round_trip(self):
    checkpointer = self.checkpointer()
    checkpointer.save(7, self.state, {"config": {"a": [1, "春"]}})
    state, step, meta = checkpointer.restore(abstract_of(self.state))
    self.assert_same(state, self.state)
    self.assertEqual((step, meta), (7, {"config": {"a": [1, "春"]}}))
    self.assertEqual(checkpointer.latest(), 7)

  def test_other_mesh(self):
    self.save(1)
    other = make_state(mesh.make({"fsdp": 2, "tensor": 4}))
    state, _, _ = self.checkpointer().restore(abstract_of(other))
    self.assert_same(state, make_state(self.mesh, 1))
    kernel = state.params["dit"]["kernel"]
    self.assertEqual(kernel.sharding, other.params["dit"]["kernel"].sharding)
    self.assertEqual(kernel.addressable_shards[0].data.shape, (7, 4, 4))

  def test_state_may_be_donated_while_it_is_written(self):
    expected = jax.tree.map(np.array, jax.device_get(self.state))
    checkpointer = self.checkpointer()
    state = self.state
    wipe = jax.jit(lambda s: jax.tree.map(lambda x: 0 * x - 7, s), donate_argnums=0)
    jax.block_until_ready(wipe(abstract_zeros(state)))  # compiled before the race
    checkpointer.save(1, state, {})
    state = jax.block_until_ready(wipe(state))
    self.assert_same(checkpointer.restore(abstract_of(state))[0], expected)

  def test_save_returns_before_the_commit(self):
    checkpointer, gate = self.checkpointer(), threading.Event()
    commit = checkpointer._commit
    checkpointer._commit = lambda *args: (gate.wait(30), commit(*args))
    checkpointer.save(1, self.state, {})
    self.assertEmpty(checkpointer.steps())
    gate.set()
    checkpointer.wait()
    self.assertEqual(checkpointer.steps(), [1])

  @parameterized.parameters("truncated", "corrupt", "missing file", "no manifest", "bad manifest")
  def test_falls_back_and_says_why(self, damage):
    self.save(1, 2)
    victim = largest_file(self.folder(2) + "/state")
    manifest = os.path.join(self.folder(2), "manifest.json")
    reason = damage
    if damage == "truncated":
      os.truncate(victim, os.path.getsize(victim) - 1)
    elif damage == "corrupt":
      with open(victim, "r+b") as f:
        f.seek(os.path.getsize(victim) // 2)
        byte = f.read(1)[0]
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte ^ 1]))
    elif damage == "missing file":
      os.remove(victim)
      reason = "is missing"
    elif damage == "no manifest":
      os.remove(manifest)
      reason = "manifest.json is missing"
    else:
      with open(manifest, encoding="utf-8") as f:
        text = f.read()
      with open(manifest, "w", encoding="utf-8") as f:
        f.write(text.replace('"size": ', '"size": 1', 1))
      reason = "manifest.json: corrupt"
    with self.assertLogs(level="WARNING") as logs:
      state, step, meta = self.checkpointer().restore(abstract_of(self.state))
    self.assertEqual((step, meta["step"]), (1, 1))
    self.assert_same(state, make_state(self.mesh, 1))
    self.assertRegex("\n".join(logs.output), f"checkpoint 2 refused: .*{reason}")

  def test_flipped_byte_in_meta(self):
    self.save(1, 2)
    path = os.path.join(self.folder(2), "meta.json")
    with open(path, "w", encoding="utf-8") as f:
      json.dump({"step": 3}, f, indent=1)
    self.assertEqual(self.checkpointer().restore(abstract_of(self.state))[1], 1)

  def test_all_damaged_is_an_error_not_a_fresh_start(self):
    self.save(1)
    victim = largest_file(self.folder(1))
    os.truncate(victim, 3)
    with self.assertRaisesRegex(types.UserError, r"\[1\] is whole .*truncated.*start from scratch"):
      self.checkpointer().restore(abstract_of(self.state))

  def test_saving_over_a_damaged_step(self):
    self.save(1, 2)
    os.remove(os.path.join(self.folder(2), "manifest.json"))
    self.save(2)
    self.assertEqual(self.checkpointer().restore(abstract_of(self.state))[1], 2)

  def test_keep(self):
    checkpointer = self.checkpointer(keep=2, keep_every=4)
    os.makedirs(self.folder(3))  # left over from a killed save
    for step in (4, 5, 6, 7):
      checkpointer.save(step, self.state, {}, wait=True)
    self.assertEqual(checkpointer.steps(), [4, 6, 7])
    self.assertLen(os.listdir(self.directory), 3)

  def test_killed_in_the_middle_of_a_save(self):
    child = subprocess.Popen(
      [sys.executable, "-m", "tests.engine.checkpoint_test", "save_and_hang", self.directory],
      stdout=subprocess.PIPE,
      text=True,
    )
    self.assertEqual(child.stdout.readline(), "hanging\n")
    child.send_signal(signal.SIGKILL)
    child.communicate()
    self.assertTrue(os.path.isdir(self.folder(2)))
    state, step, _ = self.checkpointer().restore(abstract_of(self.state))
    self.assertEqual(step, 1)
    self.assert_same(state, make_state(self.mesh, 1))

  def test_background_error_is_raised(self):
    checkpointer = self.checkpointer()
    checkpointer._prune = lambda: 1 / 0
    checkpointer.save(1, self.state, {})
    with self.assertRaises(ZeroDivisionError):
      checkpointer.wait()

  @parameterized.parameters(
    (lambda p: {**p, "kernel": p["kernel"][:, :4]}, r"'params/dit/kernel' is float32\[7,8,16\]"),
    (lambda p: {**p, "bias": p["bias"].astype(jnp.bfloat16)}, r"wants bfloat16\[5\]"),
    (lambda p: {**p, "extra": p["bias"]}, r"no leaf 'params/dit/extra'"),
    (lambda p: {"kernel": p["kernel"]}, r"'params/dit/bias' has no place"),
  )
  def test_other_config_names_the_leaf(self, change, message):
    self.save(1)
    wanted = self.state.replace(params={"dit": change(self.state.params["dit"])})
    with self.assertRaisesRegex(types.UserError, message):
      self.checkpointer().restore(abstract_of(wanted))

  def test_unwritable_directory(self):
    with open(self.directory, "w", encoding="utf-8"):
      pass  # a file where a folder should be stops even root
    with self.assertRaisesRegex(types.UserError, "cannot write there"):
      checkpoint.Checkpointer(os.path.join(self.directory, "checkpoints"))

  def test_read_only_makes_nothing(self):
    checkpointer = self.checkpointer(read_only=True)
    self.assertIsNone(checkpointer.restore(abstract_of(self.state)))
    self.assertFalse(os.path.exists(self.directory))


def abstract_zeros(state):
  return jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding), state)


def save_and_hang(directory):
  """Saves step 1, then hangs with step 2 written but its manifest not yet."""
  device_mesh = mesh.make({"fsdp": 4, "data": 2})
  checkpointer = checkpoint.Checkpointer(directory)
  checkpointer.save(1, make_state(device_mesh, 1), {}, wait=True)

  def hang(folder):
    print("hanging", flush=True)
    threading.Event().wait()

  checkpoint._hash_files = hang
  checkpointer.save(2, make_state(device_mesh, 2), {})
  checkpointer.wait()


if __name__ == "__main__":
  if sys.argv[1:2] == ["save_and_hang"]:
    jax.config.update("jax_num_cpu_devices", 8)
    save_and_hang(sys.argv[2])
  else:
    absltest.main()
