"""Safetensors files: exact round trips, and errors that name the leaf."""

import json
import os
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.engine import checkpoint, mesh, sharding

TREE = {
  "a": {"kernel": jnp.arange(6.0).reshape(2, 3).T / 7, "scale": jnp.float32(0.3)},
  "ids": jnp.arange(5),
}


def abstract(tree=TREE):
  return jax.eval_shape(lambda: tree)


class WeightsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = tempfile.TemporaryDirectory()
    self.addCleanup(folder.cleanup)
    self.path = os.path.join(folder.name, "new", "x.safetensors")

  @parameterized.parameters(None, "bfloat16", jnp.float16)
  def test_round_trip(self, dtype):
    checkpoint.save_weights(self.path, TREE, dtype=dtype, metadata={"step": 3, "名": "春"})
    got = checkpoint.load_weights(self.path)
    expected = jax.tree.map(
      lambda x: x.astype(dtype) if dtype and jnp.issubdtype(x.dtype, jnp.floating) else x, TREE
    )
    self.assertEqual(jax.tree.structure(got), jax.tree.structure(TREE))
    jax.tree.map(np.testing.assert_array_equal, got, jax.device_get(expected))
    self.assertEqual(
      jax.tree.map(lambda x: x.dtype, got), jax.tree.map(lambda x: x.dtype, expected)
    )
    leaves, metadata = checkpoint.read_header(self.path)
    self.assertEqual(list(leaves), ["a/kernel", "a/scale", "ids"])
    self.assertEqual(metadata, {"step": "3", "名": "春"})

  def test_plain_safetensors_reads_it(self):
    checkpoint.save_weights(self.path, TREE, metadata={"b": "2", "a": "1"})
    with safetensors.safe_open(self.path, framework="np") as f:
      np.testing.assert_array_equal(f.get_tensor("a/kernel"), TREE["a"]["kernel"])
      self.assertEqual(f.metadata(), {"a": "1", "b": "2"})

  def test_same_tree_same_bytes(self):
    digests = set()
    for _ in range(4):  # safetensors orders eight keys by chance the same once in 40,320
      checkpoint.save_weights(self.path, TREE, metadata={c: c for c in "abcdefgh"})
      digests.add(checkpoint.sha256(self.path))
    self.assertLen(digests, 1)

  def test_onto_a_mesh_in_the_wanted_dtype(self):
    tree = {"kernel": jnp.arange(8 * 16.0).reshape(8, 16), "scale": jnp.float32(2)}
    checkpoint.save_weights(self.path, tree, dtype="bfloat16")
    rules = (("kernel", ("fsdp", "tensor")), (".*", ()))
    shardings = sharding.infer(tree, rules, mesh.make({"fsdp": 4, "tensor": 2}))
    got = checkpoint.load_weights(self.path, sharding.abstract(tree, shardings))
    self.assertEqual(jax.tree.map(lambda x: x.sharding, got), shardings)
    self.assertEqual(got["kernel"].dtype, jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, got, tree)

  @parameterized.parameters(
    ({**TREE, "ids": jnp.arange(4)}, r"leaf 'ids' has shape \(5,\), expected \(4,\)"),
    ({**TREE, "idx": jnp.arange(4)}, r"no leaf 'idx' \(4,\) \(nearest is 'ids'\)"),
    ({"a": TREE["a"]}, r"leaf 'ids' has no place"),
  )
  def test_misfit_names_the_leaf(self, tree, message):
    checkpoint.save_weights(self.path, TREE)
    with self.assertRaisesRegex(types.UserError, message):
      checkpoint.load_weights(self.path, abstract(tree))

  def test_allowed_misfits(self):
    checkpoint.save_weights(self.path, TREE)
    wanted = abstract({"a": TREE["a"], "new": jnp.ones(2)})
    got = checkpoint.load_weights(self.path, wanted, allow_missing=["new"], allow_extra=["ids"])
    self.assertEqual(list(got), ["a"])

  @parameterized.parameters("cut", "longer", "no header", "huge header", "offsets", "missing")
  def test_not_whole(self, damage):
    checkpoint.save_weights(self.path, TREE)
    size = os.path.getsize(self.path)
    with open(self.path, "rb") as f:
      data = f.read()
    if damage == "cut":
      os.truncate(self.path, size - 1)
    elif damage == "longer":
      data += b"x"
    elif damage == "no header":
      data = b"\x80\x04pickle, say"
    elif damage == "huge header":
      data = (1 << 40).to_bytes(8, "little") + data[8:]
    elif damage == "offsets":
      length = int.from_bytes(data[:8], "little")
      header = json.loads(data[8 : 8 + length])
      header["ids"]["shape"] = [500]
      text = json.dumps(header).encode()
      data = len(text).to_bytes(8, "little") + text + data[8 + length :]
    if damage == "missing":
      os.remove(self.path)
    elif damage != "cut":
      with open(self.path, "wb") as f:
        f.write(data)
    for read in (checkpoint.read_header, checkpoint.load_weights):
      with self.assertRaisesRegex(types.UserError, self.path):
        read(self.path)

  def test_failed_write_leaves_the_old_file(self):
    checkpoint.save_weights(self.path, TREE)
    before = checkpoint.sha256(self.path)
    with self.assertRaises(Exception):  # noqa: B017  numpy's or safetensors' own
      checkpoint.save_weights(self.path, {"x": np.asarray(["no", "numbers"])})
    self.assertEqual(checkpoint.sha256(self.path), before)

  def test_unwritable(self):
    checkpoint.save_weights(self.path, TREE)
    with self.assertRaisesRegex(types.UserError, "cannot write"):
      checkpoint.save_weights(os.path.join(self.path, "x.safetensors"), TREE)


if __name__ == "__main__":
  absltest.main()
