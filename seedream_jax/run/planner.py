"""What a run would need and could reach on hardware that is not here.

The run's own programs are compiled for the topology (libtpu does that on a machine without a TPU, see `ahead`) and
read: memory as XLA lays it out, collectives with the turns of their loops. FLOPs are counted on the jaxpr,
recomputation and kernels' backward passes included.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from seedream_jax import types
from seedream_jax.engine import hardware, hlo, links, traffic
from seedream_jax.run import ahead, programs

_INVOLUNTARY = re.compile(r"Involuntary full rematerialization[^\n]*")
_OUT_OF_MEMORY = re.compile(r"required for HLO temporaries \(([\d.]+)([KMG])\)")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_GIB = 1 << 30
_HEADROOM = 0.05  # of HBM, for fragmentation, machine code and what the runtime keeps


@dataclasses.dataclass
class Program:
  """One program of a run, compiled; where it does not fit, its links and traffic are not known and NaN.

  Attributes:
    name: step, sampler, llm, byt5, vae.
    model_flops, executed_flops: of one call, over all chips; executed takes recomputation too.
    hbm: bytes a chip by category.
    collectives: {kind: how often, the bytes that a chip sends, the seconds that its links need}.
    wire_seconds, read_seconds: what the links and the main memory need for it, one after the other.
    compile_seconds, cpu_seconds: all but machine code, tracing included.
    warnings: what the partitioner copies whole.
    mesh, parameters: of the run, scalars by part.
    frozen: its frozen parts.
  """

  name: str
  model_flops: int
  executed_flops: int
  hbm: dict[str, int]
  collectives: dict[str, dict[str, float]]
  wire_seconds: float
  read_seconds: float
  compile_seconds: float
  cpu_seconds: float
  warnings: list[str] = dataclasses.field(default_factory=list)
  mesh: dict[str, int] = dataclasses.field(default_factory=dict)
  parameters: dict[str, int] = dataclasses.field(default_factory=dict)
  frozen: tuple[str, ...] = ()


def plan(
  name: str, config: ml_collections.ConfigDict, topology: hardware.Topology, size: tuple[int, int]
) -> Program:
  """Compiles the program `name` of programs.make."""
  made = ahead.compile_apart(_make, name, config, topology, size)
  facts, hbm = made.facts, dict(made.facts["held"])
  of_run = dict(mesh=facts["mesh"], parameters=facts["parameters"], frozen=facts["frozen"])
  counts = name, facts["model_flops"], facts["executed_flops"], hbm
  if made.error:
    refused = _OUT_OF_MEMORY.search(made.error)
    if refused is None:
      raise RuntimeError(made.error)
    hbm["temporaries"] = int(float(refused[1]) * _UNITS[refused[2]])
    return Program(*counts, {}, math.nan, math.nan, made.seconds, made.cpu_seconds, **of_run)
  memory = made.memory
  hbm["padding to tiles"] = max(memory["arguments"] - sum(hbm.values()), 0)
  hbm["temporaries"] = memory["temporaries"]
  hbm["outputs beyond the donated"] = max(memory["outputs"] - memory["donated"], 0)
  by_kind = collectives(made.text, facts["places"], topology)
  return Program(
    *counts,
    by_kind,
    sum(row["seconds"] for row in by_kind.values()),
    traffic.moved(made.text) / topology.chip.hbm_rate,
    made.seconds,
    made.cpu_seconds,
    sorted(set(_INVOLUNTARY.findall(made.said))),
    **of_run,
  )


def _make(
  name: str, config: ml_collections.ConfigDict, topology: hardware.Topology, size: tuple[int, int]
) -> tuple[dict[str, Any], Any]:
  """What `ahead` compiles in a process of its own, and all that is read of the program before."""
  task = programs.make(name, config, topology, size)
  mesh, axes = task.layout.mesh, len(topology.shape)
  return {
    "model_flops": task.flops(),
    "executed_flops": task.flops(executed=True),
    "held": task.held_bytes(),
    "places": [tuple(chip.coords[:axes]) for chip in mesh.devices.flat],
    "mesh": dict(mesh.shape),
    "parameters": programs.parameters(task.layout),
    "frozen": tuple(task.layout.frozen),
  }, task.lower()


def collectives(
  text: str, places: Sequence[Sequence[int]], topology: hardware.Topology
) -> dict[str, dict[str, float]]:
  """See `Program`; `places` are the coordinates of its chips."""
  by_kind: dict[str, dict[str, float]] = {}
  for c in hlo.collectives(text):
    row = by_kind.setdefault(c.kind, {"count": 0, "wire_bytes": 0.0, "seconds": 0.0})
    row["count"] += c.times
    row["wire_bytes"] += c.wire_bytes
    row["seconds"] += links.seconds(c, places, topology)
  return by_kind


def roofline(program: Program, topology: hardware.Topology) -> dict[str, float]:
  """Seconds of one call by roof, and the MFU that they allow with and without overlap of communication."""
  peak = topology.chip.flops * topology.num_chips
  compute = program.executed_flops / peak
  busy = float(np.maximum(compute, program.read_seconds))  # unlike max, it hands NaN on
  overlapped = float(np.maximum(busy, program.wire_seconds))
  in_turn = busy + program.wire_seconds
  return {
    "compute_s": compute,
    "hbm_s": program.read_seconds,
    "links_s": program.wire_seconds,
    "step_s_overlapped": overlapped,
    "step_s_in_turn": in_turn,
    "mfu_overlapped": program.model_flops / peak / overlapped,
    "mfu_in_turn": program.model_flops / peak / in_turn,
  }


def fits(needed: int, topology: hardware.Topology) -> bool:
  """Whether so many bytes fit on one chip, with headroom."""
  return needed <= topology.chip.hbm_bytes * (1 - _HEADROOM)


def describe(program: Program, topology: hardware.Topology) -> dict[str, Any]:
  """One program's numbers, all per call; `hbm` in bytes a chip."""
  needed = sum(program.hbm.values())
  if program.warnings:
    raise types.UserError(
      f"{program.name}: the partitioner copies whole arrays: {program.warnings[0]}"
    )
  roofs = roofline(program, topology)
  return {
    "name": program.name,
    "fits": fits(needed, topology),
    "gib_per_chip": round(needed / _GIB, 3),
    "gib_there": round(topology.chip.hbm_bytes / _GIB, 3),
    "hbm": program.hbm,
    "model_flops": program.model_flops,
    "executed_flops": program.executed_flops,
    "executed_over_model": round(program.executed_flops / program.model_flops, 4),
    "collectives": program.collectives,
    "compile_s": round(program.compile_seconds, 1),
    "compile_cpu_s": round(program.cpu_seconds, 1),
    # Absent (JSON has no NaN) where the program does not fit: its links are not known then.
    **{k: float(f"{v:.5g}") for k, v in roofs.items() if math.isfinite(v)},
  }


def budget(
  row: Mapping[str, Any], batch: int, steps: int, chips: int, price: float
) -> dict[str, float]:
  """At the two ends, everything overlapped and nothing; empty for what does not fit."""
  out: dict[str, float] = {}
  for name in ("overlapped", "in_turn"):
    if f"step_s_{name}" not in row:
      continue
    seconds = row[f"step_s_{name}"]
    hours = seconds * steps * chips / 3600
    out |= {
      f"images_per_day_{name}": round(batch * 86_400 / seconds),
      f"chip_hours_{name}": round(hours, 1),
      f"cost_{name}": round(hours * price, 2),
    }
  return out


def meshes(topology: hardware.Topology, batch_size: int) -> Iterator[dict[str, int]]:
  """Mesh shapes worth trying: all chips, batch divided by data x fsdp, tensor at most 8."""
  n = topology.num_chips
  for tensor, data in itertools.product((1, 2, 4, 8), (1, 2, 4, 8, 16)):
    if n % (tensor * data) or batch_size % (n // tensor):
      continue
    yield dict(data=data, fsdp=n // (tensor * data), tensor=tensor, context=1)
