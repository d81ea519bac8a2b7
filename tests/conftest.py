"""Eight CPU devices, strict rank promotion, quick compilation and a compile cache of this run's own for every test."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Many tests build the same program; in the environment, so that child processes share it, pytest's workers too.
_FIRST = "PYTEST_XDIST_WORKER" not in os.environ
_CACHE = tempfile.mkdtemp(prefix="seedream_jax_xla_") if _FIRST else ""
os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE or os.environ["JAX_COMPILATION_CACHE_DIR"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
# Nearly all the time goes into compiling programs that run once: LLVM is told not to try hard.
_QUICK = "--xla_backend_optimization_level=0"
if _QUICK not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

import jax  # noqa: E402  after what it reads

if _FIRST:
  atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
