r"""Train step and sampler of the DiT against its PyTorch twin, eager and under torch.compile, in one alternating run.

  python -m benchmarks.twin --shape nano --rounds 12 --out benchmarks/results/twin-nano.json

Same parameters, same batch, AdamW on both sides, float32; losses are compared before anything is timed. A round is
one step of each in turn; ratios are ours over theirs: below 1 where we are quicker.
Needs `pip install seedream_jax[torch]` and a C++ compiler.
"""

import json
from collections.abc import Sequence

import numpy as np
from absl import flags

from benchmarks import machine, rounds, sides
from seedream_jax.run import cli

_SHAPE = flags.DEFINE_enum("shape", "nano", ["nano", "wide"], "nano, or width 512 and depth 8.")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "Rounds; two more warm up.", lower_bound=1)
_OUT = flags.DEFINE_string("out", "", "Results, .json.")

# changes to nano, batch, latent side, text bucket
_SHAPES = {
  "nano": ({}, 16, 8, 32),
  "wide": (dict(width=512, depth=8, num_heads=8, rope_base=16), 8, 16, 32),
}


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  cli.prepare_jax()
  import jax
  import jax.numpy as jnp

  from seedream_jax.models import dit

  report = machine.origin()
  changes, batch, side, length = _SHAPES[_SHAPE.value]
  cfg = dit.make_config("nano", **changes)
  random = np.random.RandomState(0)
  # A model at init is the identity, which some compiler might notice.
  params = jax.tree.map(
    lambda x: np.asarray(x) + 0.02 * random.randn(*x.shape).astype(np.float32),
    sides.our_part(cfg).init(jax.random.key(0)),
  )
  inputs, (fields, tensors) = (
    sides.draw_batch(cfg, batch, side, length),
    sides.translate(cfg, params),
  )
  report |= {"shape": _SHAPE.value, "batch": batch, "results": {}}
  for task in sides.TASKS:
    fns = {
      "ours": sides.ours(cfg, lambda: jax.tree.map(jnp.array, params), inputs, task),
      "torch.compile": sides.theirs(fields, tensors, inputs, task, compiled=True),
      "torch eager": sides.theirs(fields, tensors, inputs, task, compiled=False),
    }
    values = {name: fn() for name, fn in fns.items()}
    for name, value in values.items():
      np.testing.assert_allclose(
        value, values["torch eager"], rtol=2e-2, atol=1e-2, err_msg=f"{name}: {task}"
      )
    timed = {name: rounds.timed(fn) for name, fn in fns.items()}
    found = rounds.alternate(timed, _ROUNDS.value, skip=2, desc=f"{_SHAPE.value}: {task}")
    result = rounds.compare(found, [("ours", name) for name in fns if name != "ours"])
    print(rounds.table(task, result))
    report["results"][task] = result
  rounds.write(_OUT.value, report)
  print(json.dumps({task: result["ratio"] for task, result in report["results"].items()}))
  return 0


if __name__ == "__main__":
  cli.run(main)
