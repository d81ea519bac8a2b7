"""How every verb starts and fails: exit 2 and one line for what the user got wrong, never a traceback."""

import contextlib
import ctypes
import difflib
import fcntl
import glob
import importlib.metadata
import importlib.util
import logging as py_logging
import os
import pathlib
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from absl import app, flags, logging

from seedream_jax import types
from seedream_jax.engine import distributed

_COMPILE_CACHE = "~/.cache/seedream_jax/xla"
# Batched matmuls and attention on CPU are faster through the library kernels; no effect elsewhere.
_CPU_XLA_FLAG = "--xla_cpu_experimental_ynn_fusion_type=LIBRARY_FUSION_TYPE_DOT"
# Where JAX itself looks for TPUs (jax/_src/hardware_utils.py), and the maker's PCI number.
_PCI_VENDORS, _GOOGLE = "/sys/bus/pci/devices/*/vendor", "0x1ae0"
# mallopt's M_TRIM_THRESHOLD never, M_MMAP_MAX no block of its own, M_ARENA_MAX one (numbers of malloc.h).
_KEEP_FREED = ((-1, -1), (-4, 0), (-8, 1))


def fail(message: str) -> NoReturn:
  """Prints one line to stderr and exits with code 2."""
  print("error: " + " ".join(str(message).split()), file=sys.stderr)
  sys.stderr.flush()
  sys.exit(2)


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(list(argv))
    if "config" in flags.FLAGS:
      _ = flags.FLAGS.config.keys  # raises now what ml_collections could not read
  except flags.Error as e:
    fail(_without_trace(str(e)))
  except OSError as e:
    fail(f"--config: {_unreadable(e)}")
  except (AttributeError, KeyError, TypeError, ValueError, ImportError, SyntaxError) as e:
    # ml_collections raises these for an unknown key ("Did you mean ...?") or a value of the wrong type.
    fail(f"--config: {e.args[0] if isinstance(e, KeyError) else e}")
  if len(rest) > 1:
    fail(f"unexpected argument {rest[1]!r}: a value with spaces needs quotes, a flag two dashes")
  return rest


def _without_trace(message: str) -> str:
  """ml_collections puts the whole traceback into what absl tells of a config file that refuses its argument."""
  where, _, trace = message.partition("Error whilst parsing config file:")
  return where + trace.strip().splitlines()[-1].partition(": ")[2] if trace else message


def _unreadable(error: OSError) -> str:
  """Why a config file could not be read, and the nearest that could."""
  reason = str(error).strip().splitlines()[-1].split("failure to load:")[-1].strip()
  named = re.search(r"\] (.*): '(.*)'$", reason)
  if not named:
    return reason
  folder, name = os.path.split(named[2])
  names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
  near = difflib.get_close_matches(name, [n for n in names if n.endswith(".py")], n=1, cutoff=0.0)
  hint = f"; nearest: {os.path.join(folder, near[0])}" if near else ""
  return f"{named[2]}: {named[1]}{hint}"


@contextlib.contextmanager
def claim(workdir: str) -> Iterator[None]:
  """Makes a workdir and locks it for this process; one made here goes again when nothing was written to it.

  Raises:
    types.UserError: the folder cannot be written, or another process is at work in it: two would race for the
      same checkpoints.
  """
  is_new = not os.path.exists(workdir)
  try:
    os.makedirs(workdir, exist_ok=True)
    lock = open(os.path.join(workdir, ".lock"), "w")  # noqa: SIM115  closed below
  except OSError as e:
    raise types.UserError(f"--workdir {workdir}: cannot write there ({e.strerror})") from e
  with lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      raise types.UserError(f"--workdir {workdir}: another process is at work there") from e
    try:
      yield
    finally:
      if is_new and all(set(files) <= {".lock"} for _, _, files in os.walk(workdir)):
        shutil.rmtree(workdir)


def check_out(flag: str, path: str, *, folder: bool = False) -> None:
  """Makes nothing; UserError unless `path` can be written, said before the work and not after it."""
  kinds = ("file", "folder")
  if os.path.exists(path) and os.path.isdir(path) != folder:
    raise types.UserError(f"{flag} {path}: is a {kinds[not folder]}; expected a {kinds[folder]}")
  parent = os.path.abspath(path if folder else os.path.dirname(path))
  while not os.path.exists(parent):
    parent = os.path.dirname(parent)
  if not os.path.isdir(parent) or not os.access(parent, os.W_OK | os.X_OK):
    raise types.UserError(f"{flag} {path}: {parent} is no folder that can be written to")


def parse_size(text: str) -> tuple[int, int]:
  """'64x96' -> (64, 96)."""
  match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
  if not match:
    raise types.UserError(f"--size {text!r}: expected HxW, e.g. 64x64")
  return int(match[1]), int(match[2])


def _is_ours(record: py_logging.LogRecord) -> bool:
  """Ours, or a warning: Orbax and TFDS tell more than a user wants to read, through the same logger."""
  return record.levelno >= py_logging.WARNING or "site-packages" not in record.pathname


def run(main: Callable[[Sequence[str]], int | None]) -> None:
  """Runs a verb's `main(argv)`; its return value is the exit code (None = 0)."""

  def guarded(argv):
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().addFilter(_is_ours)
    with distributed.together():
      try:
        sys.exit(main(argv) or 0)
      except types.UserError as e:
        fail(str(e))

  app.run(guarded, flags_parser=_parse)


def keep_freed_memory() -> None:
  """Has glibc hand a step's temporaries to the next one; by default it unmaps them, and each page faults anew.

  Measured on 2 cores, DiT of width 512 and depth 8: 208,000 faults and 1 to 2.4 s of system time a step before, none
  after. One arena, for XLA allocates from threads of its own. The process keeps its peak (829 MB against
  411, scans of many sizes), so a host of accelerators is left as it is; other C libraries too.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None:
    for option, value in _KEEP_FREED:
      mallopt(option, value)


def _may_have_accelerator() -> bool:
  """Whether a plugin or a TPU is there; asking JAX would start it, before hosts have found each other.

  libtpu alone, with which a laptop plans for a pod, is no accelerator: JAX would load it in vain, and it complains.
  """
  vendors = [pathlib.Path(path).read_text().strip() for path in glob.glob(_PCI_VENDORS)]
  return bool(
    importlib.util.find_spec("jax_plugins")
    or importlib.metadata.entry_points(group="jax_plugins")
    or "TPU_WORKER_HOSTNAMES" in os.environ
    or _GOOGLE in vendors
  )


def prepare_jax() -> None:
  """Settings a verb wants before the first computation: CPU kernels, the platform, freed memory, the compile cache."""
  if _CPU_XLA_FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_CPU_XLA_FLAG}".strip()
  import jax  # after XLA_FLAGS

  if not jax.config.jax_platforms and not _may_have_accelerator():
    jax.config.update("jax_platforms", "cpu")
  if jax.config.jax_platforms == "cpu":
    keep_freed_memory()
  if not jax.config.jax_compilation_cache_dir:  # of JAX_COMPILATION_CACHE_DIR
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser(_COMPILE_CACHE))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
