"""Eight CPU devices, strict rank promotion, kept memory, quick compilation; one compile cache and one folder a run."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
_FIRST = "PYTEST_XDIST_WORKER" not in os.environ
if _FIRST:
  _FOLDER = tempfile.mkdtemp(prefix="seedream_jax_tests_")
  # In the environment, so that child processes share them, pytest's workers too: many tests build the same program.
  os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_FOLDER, "xla")
  os.environ["TEST_TMPDIR"] = os.path.join(_FOLDER, "absl")
  os.mkdir(
    os.environ["TEST_TMPDIR"]
  )  # absl makes it where its own main runs, which pytest's does not
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
# Nearly all the time goes into compiling programs that run once: LLVM is told not to try hard, on one module a program,
# and loops come from the plain emitter, which compiles in less than half the time of the one with fusions in MLIR.
_QUICK = (
  "--xla_backend_optimization_level=0",
  "--xla_cpu_use_fusion_emitters=false",
  "--xla_cpu_parallel_codegen_split_count=1",
)
_GIVEN = os.environ.get("XLA_FLAGS", "").split()
os.environ["XLA_FLAGS"] = " ".join([*_GIVEN, *(flag for flag in _QUICK if flag not in _GIVEN)])

import jax  # noqa: E402  after what it reads

from seedream_jax.run import cli  # noqa: E402

cli.keep_freed_memory()  # as every verb does
if _FIRST:
  atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
