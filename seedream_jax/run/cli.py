"""How every verb starts and fails: exit 2 and one line for what the user got wrong, never a traceback."""

import fcntl
import logging as py_logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import IO, NoReturn

from absl import app, flags, logging

from seedream_jax import types

# Batched matmuls and attention on CPU are faster through the library kernels; no effect elsewhere.
_CPU_XLA_FLAG = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT"


def fail(message: str) -> NoReturn:
  """Prints one line to stderr and exits with code 2."""
  print("error: " + " ".join(str(message).split()), file=sys.stderr)
  sys.stderr.flush()
  sys.exit(2)


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(list(argv))
  except flags.Error as e:
    fail(str(e))
  except (AttributeError, KeyError, TypeError, ValueError, FileNotFoundError, ImportError) as e:
    # ml_collections raises these for an unknown key ("Did you mean ...?") or a value of the wrong type.
    fail(f"config: {e}")


def claim(workdir: str) -> IO[str]:
  """Makes a workdir and locks it for this process; keep what is returned open. The lock dies with the process.

  Raises:
    types.UserError: the folder cannot be written, or another process is at work in it: two would race for the
      same checkpoints.
  """
  try:
    os.makedirs(workdir, exist_ok=True)
    lock = open(os.path.join(workdir, ".lock"), "w")  # noqa: SIM115  held for the process's life
  except OSError as e:
    raise types.UserError(f"--workdir {workdir}: cannot write there ({e.strerror})") from e
  try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as e:
    lock.close()
    raise types.UserError(f"--workdir {workdir}: another process is at work there") from e
  return lock


def _is_ours(record: py_logging.LogRecord) -> bool:
  """Ours, or a warning: Orbax and TFDS tell more than a user wants to read, through the same logger."""
  return record.levelno >= py_logging.WARNING or "site-packages" not in record.pathname


def run(main: Callable[[Sequence[str]], int | None]) -> None:
  """Runs a verb's `main(argv)`; its return value is the exit code (None = 0)."""

  def guarded(argv):
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().addFilter(_is_ours)
    try:
      sys.exit(main(argv) or 0)
    except types.UserError as e:
      fail(str(e))

  app.run(guarded, flags_parser=_parse)


def prepare_jax(compile_cache: str = "~/.cache/seedream_jax/xla") -> None:
  """Settings a verb wants before the first computation: the CPU kernel choice and the compile cache."""
  if _CPU_XLA_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_CPU_XLA_FLAG}".strip()
  import jax  # after XLA_FLAGS

  if compile_cache:
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(compile_cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
