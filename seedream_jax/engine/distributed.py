"""Joins the processes of one run, from whatever the cluster puts into the environment.

In this order, the first that is there:
  explicit   JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES, JAX_PROCESS_ID
  JobSet     JOBSET_NAME, REPLICATED_JOB_NAME, JOB_COMPLETION_INDEX, JAX_NUM_PROCESSES (GKE)
  Ray, torch MASTER_ADDR, MASTER_PORT, WORLD_SIZE, RANK (Ray Train sets them on each worker)
  SLURM      a step of more than one task (srun)
  TPU        a pod or several slices: TPU_WORKER_HOSTNAMES, MEGASCALE_COORDINATOR_ADDRESS
Otherwise the run is one process and nothing is done.

A run of several processes ends as one: when any of them is killed or fails, the others leave within
a minute, and the same command to all goes on from the newest whole checkpoint.
"""

import contextlib
import dataclasses
import os
import sys
import traceback
from collections.abc import Iterator, Mapping

import jax
from absl import logging

from seedream_jax import types

LOST = (
  75  # exit code, EX_TEMPFAIL of sysexits.h: nothing is wrong here, give the same command again
)
_JOBSET_PORT = 8476
_HEARTBEAT_S = (
  30  # silence after which a process counts as dead; JAX's own 100 s pay for a dead pod
)


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Where this process stands; None leaves a field to JAX's own detection."""

  source: str
  coordinator: str | None = None
  num_processes: int | None = None
  process_id: int | None = None


def detect(env: Mapping[str, str]) -> Cluster | None:
  """The cluster `env` describes, None for a single process.

  Raises:
    types.UserError: a description that is begun but not complete, or not a number.
  """
  if "JAX_COORDINATOR_ADDRESS" in env:
    return _cluster(
      "explicit", env["JAX_COORDINATOR_ADDRESS"], "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", env
    )
  if "JOBSET_NAME" in env and "JAX_NUM_PROCESSES" in env:
    jobset, job = env["JOBSET_NAME"], _need(env, "REPLICATED_JOB_NAME", "JobSet")
    address = f"{jobset}-{job}-0-0.{jobset}:{_JOBSET_PORT}"
    return _cluster("JobSet", address, "JAX_NUM_PROCESSES", "JOB_COMPLETION_INDEX", env)
  if "MASTER_ADDR" in env and env.get("WORLD_SIZE", "1") != "1":
    address = f"{env['MASTER_ADDR']}:{_need(env, 'MASTER_PORT', 'Ray')}"
    return _cluster("Ray", address, "WORLD_SIZE", "RANK", env)
  if env.get("SLURM_STEP_NUM_TASKS", "1") != "1":  # unlike SLURM_NTASKS, set by srun alone
    return Cluster("SLURM")
  if "," in env.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in env:
    return Cluster("TPU")
  return None


def initialize(env: Mapping[str, str] | None = None) -> Cluster | None:
  """Calls `jax.distributed.initialize` where there is a cluster; before any device is touched."""
  cluster = detect(os.environ if env is None else env)
  if cluster is None or jax.distributed.is_initialized():
    return cluster
  # Only asked for by CPU devices, and then collectives across processes need it.
  jax.config.update("jax_cpu_collectives_implementation", "gloo")
  jax.distributed.initialize(
    cluster.coordinator,
    cluster.num_processes,
    cluster.process_id,
    heartbeat_timeout_seconds=_HEARTBEAT_S,
  )
  logging.info(
    "process %d of %d, found by %s", jax.process_index(), jax.process_count(), cluster.source
  )
  return cluster


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Makes a failure in one of several processes the end of this process, at once.

  Python's way out would run JAX's exit handler, which waits at a barrier for processes that wait in a
  collective for this one. An error of the runtime itself is most often the first sign that another
  process is gone, and exits with `LOST`. Where no connection breaks, JAX ends the process after
  `_HEARTBEAT_S` seconds of silence.
  """
  try:
    yield
  except (Exception, SystemExit) as error:
    code = error.code if isinstance(error, SystemExit) else 1
    if not jax.distributed.is_initialized() or code not in (1, 2):
      raise  # done, or stopped by a signal: all processes leave together, and JAX's barrier is right
    # A jitted call that runs at once raises the broken CPU connection as a ValueError.
    if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
      code = LOST
      print(_lost(error), file=sys.stderr)
    elif not isinstance(error, SystemExit):
      traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _lost(error: BaseException) -> str:
  """One line: what failed, and what to do."""
  return (
    f"error: process {jax.process_index()} of {jax.process_count()} lost another one, or could not compute "
    f"({str(error).splitlines()[0]}); see the others' logs, then give the same command to all: "
    "it goes on from the newest whole checkpoint"
  )


def _cluster(source: str, address: str, count: str, index: str, env: Mapping[str, str]) -> Cluster:
  """A fully described cluster."""
  numbers = []
  for name in (count, index):
    text = _need(env, name, source)
    if not text.isdigit():
      raise types.UserError(f"{source} environment: {name}={text!r}, expected a whole number")
    numbers.append(int(text))
  if numbers[1] >= numbers[0]:
    raise types.UserError(
      f"{source} environment: {index}={numbers[1]}, expected less than {count}={numbers[0]}"
    )
  return Cluster(source, address, *numbers)


def _need(env: Mapping[str, str], name: str, source: str) -> str:
  if name not in env:
    raise types.UserError(f"{source} environment: {name} is not set")
  return env[name]
