"""Settings of a verb's start."""

import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from unittest import mock

from absl.testing import absltest, parameterized

from seedream_jax.run import cli

_CODE = """
import resource
import sys
from seedream_jax.run import cli

if sys.argv[1] == "prepared":
  cli.prepare_jax()
import jax
import jax.numpy as jnp

# Their backward passes want results of 4 MB each, now more and now fewer.
def scanned(length):
  loss = lambda w: jax.lax.scan(lambda x, _: (jnp.tanh(x * w), None), w, None, length=length)[0].sum()
  return jax.jit(jax.grad(loss))

steps, w = [scanned(length) for length in (4, 8, 6)], jnp.ones(1 << 20)
for i in range(4):
  if i == 2:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for step in steps:
    step(w).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(how: str) -> int:
  """Page faults of the second half of the steps."""
  done = subprocess.run(
    [sys.executable, "-c", _CODE, how],
    capture_output=True, text=True, check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"},
  )  # fmt: skip
  return int(done.stdout.split()[-1])


class PrepareJaxTest(parameterized.TestCase):
  def test_steps_use_the_memory_of_those_before(self):
    self.assertLess(2 * _faults("prepared"), _faults("bare"))

  @parameterized.named_parameters(
    ("a virtual machine", ("0x1af4", "0x8086"), {}, False),
    ("a TPU", ("0x1af4", "0x1ae0"), {}, True),
    ("a host of a pod, its bus hidden", (), {"TPU_WORKER_HOSTNAMES": "a,b"}, True),
  )
  def test_libtpu_is_no_accelerator_without_a_tpu(self, vendors, env, want):
    root = self.enterContext(tempfile.TemporaryDirectory())
    for i, vendor in enumerate(vendors):
      pathlib.Path(root, f"{i}.vendor").write_text(f"{vendor}\n")
    with (
      mock.patch.object(cli, "_PCI_VENDORS", f"{root}/*.vendor"),
      mock.patch.object(importlib.util, "find_spec", lambda name: name == "libtpu" or None),
      mock.patch.object(importlib.metadata, "entry_points", lambda **_: []),
      mock.patch.dict(os.environ, env),
    ):
      self.assertEqual(cli._may_have_accelerator(), want)


if __name__ == "__main__":
  absltest.main()
