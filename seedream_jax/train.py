r"""Trains the experiment of a config file.

  python -m seedream_jax.train --config experiments/pretrain.py:nano --workdir /tmp/run [--config.optim.lr=1e-4 ...]

Killed at any moment, the same command goes on from the newest whole checkpoint, bit for bit.
Exit codes: 0 finished; 2 the user's mistake, one line on stderr; 143 saved and left on SIGTERM; 75 another
process of the run is gone.
"""

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from seedream_jax.engine import distributed
from seedream_jax.run import cli, loop

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment, e.g. experiments/pretrain.py:nano", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, metrics and samples go.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  cli.prepare_jax()
  distributed.initialize()
  return loop.train(_CONFIG.value, _WORKDIR.value)


if __name__ == "__main__":
  cli.run(main)
