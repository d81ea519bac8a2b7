"""What a run would need and could reach on hardware that is not here.

The run's own step is compiled ahead of time for the topology (libtpu does that on a machine without a TPU) and read:
memory as XLA lays it out, collectives with the turns of their loops. FLOPs are counted on the jaxpr, recomputation and
kernels' backward passes included.
"""

import dataclasses
import functools
import itertools
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from seedream_jax import types
from seedream_jax.engine import flops, hardware, hlo, sharding, traffic, trees
from seedream_jax.models import vae
from seedream_jax.run import open as open_lib

_INVOLUNTARY = re.compile(rb"Involuntary full rematerialization[^\n]*")
_OUT_OF_MEMORY = re.compile(r"required for HLO temporaries \(([\d.]+)([KMG])\)")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_GIB = 1 << 30
ENCODERS = ("llm", "byt5")
_HEADROOM = 0.05  # of HBM, for fragmentation and what the runtime keeps


@dataclasses.dataclass
class Program:
  """One program of a run, compiled; where it does not fit, its links and traffic are not known and NaN.

  Attributes:
    name: step, sampler, llm, byt5, vae.
    model_flops, executed_flops: of one call, over all chips; executed takes recomputation too.
    hbm: bytes a chip by category.
    collectives: {kind: how often, and the bytes that a chip sends}.
    wire_seconds, read_seconds: what the links and the main memory need for it, one after the other.
    compile_seconds: lowering included.
    warnings: what the partitioner copies whole.
  """

  name: str
  model_flops: int
  executed_flops: int
  hbm: dict[str, int]
  collectives: dict[str, dict[str, float]]
  wire_seconds: float
  read_seconds: float
  compile_seconds: float
  warnings: list[str]


def devices(topology: hardware.Topology) -> list[Any]:
  """The topology's devices, none of which is here.

  Raises:
    types.UserError: libtpu is not installed, or knows no such shape.
  """
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  from jax.experimental import topologies

  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology.name).devices)
  except Exception as e:
    reason = str(e).splitlines()[0]
    hint = (
      "pip install 'seedream_jax[plan]'"
      if "libtpu" in reason
      else "see the shapes that the maker sells"
    )
    raise types.UserError(f"--topology {topology.name}: {reason}; {hint}") from e


def default_size(config: ml_collections.ConfigDict) -> tuple[int, int]:
  """Pixels of the grid at which RoPE positions are whole: what the preset is made for."""
  configs = open_lib.make_stage(config).model.configs
  if "dit" not in configs:
    raise types.UserError(
      f"--size: not given, and stage {config.stage.name} has no grid of its own"
    )
  dit_cfg, vae_cfg = configs["dit"], configs["vae"]
  return (int(dit_cfg.rope_base) * dit_cfg.patch * vae_cfg.factor,) * 2


def batch_of(
  config: ml_collections.ConfigDict, stage: types.Stage, size: tuple[int, int]
) -> types.Batch:
  """Abstract batches of every training stream, at the longest text bucket."""
  return {
    name: _stream(config.data.streams[name], stage, size) for name in open_lib.train_streams(config)
  }


def _stream(
  stream: Any, stage: types.Stage, size: tuple[int, int]
) -> dict[str, jax.ShapeDtypeStruct]:
  b, length = stream.batch_size, max(stream.text_buckets)
  configs = stage.model.configs
  vae_cfg = configs.get("vae") or vae.make_config()  # a reward sees pictures alone
  cells = tuple(side // vae_cfg.factor for side in size)
  width, picture = configs["llm"].width, (*size, vae_cfg.image_channels)
  shapes = {
    "id_B": ((b,), np.uint32),
    "image_BHWC": ((b, *picture), np.uint8),
    "image_BRHWC": ((b, 2, *picture), np.uint8),
    "latent_BHWC": ((b, *cells, vae_cfg.latent_channels), np.float16),
    "latent_BRHWC": ((b, 2, *cells, vae_cfg.latent_channels), np.float16),
    "size_B2": ((b, 2), np.int32),
    "llm_ids_BL": ((b, length), np.int32),
    "byt5_ids_BG": ((b, stream.glyph_bytes), np.int32),
    "llm_features_BLE": ((b, length, width), np.float16),
    "llm_empty_BE": ((b, width), np.float16),
    "label_BA": ((b, len(stream.get("labels", ()))), np.int32),
  }
  return {name: jax.ShapeDtypeStruct(*shapes[name]) for name in stream.features}


def plan_step(
  config: ml_collections.ConfigDict,
  topology: hardware.Topology,
  size: tuple[int, int],
  chips: list[Any],
) -> tuple[open_lib.Layout, Program]:
  """Compiles the train step of step 0's movers."""
  layout = open_lib.lay_out(config, chips)
  batch = batch_of(config, layout.stage, size)
  shard = sharding.batch(layout.mesh)
  placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shard), batch)
  frozen = _read(layout.frozen, batch)
  movers = layout.trainer.movers(0)
  step = functools.partial(layout.trainer._step, movers=movers)
  jitted = layout.trainer.compiled(movers, 1)
  if set(frozen) != set(layout.frozen):  # the step's shardings name all frozen parts
    trainer = dataclasses.replace(
      layout.trainer, frozen_shardings={k: layout.trainer.frozen_shardings[k] for k in frozen}
    )
    step, jitted = functools.partial(trainer._step, movers=movers), trainer.compiled(movers, 1)
  arguments = (layout.state, frozen, placed)
  held = {
    "parameters": layout.state.params, "optimizer": layout.state.opt, "ema": layout.state.ema,
    **{f"frozen {name}": tree for name, tree in frozen.items()}, "batch": placed,
  }  # fmt: skip
  return layout, _program("step", jitted, step, arguments, held, layout.mesh, topology)


def _read(frozen: Mapping[str, Any], batch: types.Batch) -> dict[str, Any]:
  """The frozen parts that the loss reads: precomputed features need no LLM; the VAE keeps its latent statistics."""
  cached = all("llm_features_BLE" in stream for stream in batch.values())
  return {name: tree for name, tree in frozen.items() if name != "llm" or not cached}


def plan_part(
  part: str,
  layout: open_lib.Layout,
  topology: hardware.Topology,
  stream: Any,
  size: tuple[int, int],
) -> Program:
  """Compiles one frozen part's forward pass on what the step would feed it, a batch of `stream`."""
  model, tree = layout.stage.parts()[part], layout.frozen[part]
  lengths = {"llm": max(stream.text_buckets), "byt5": stream.glyph_bytes}
  shape, dtype = ((*size, layout.stage.model.configs["vae"].image_channels), np.float32)
  if part in lengths:
    shape, dtype = (lengths[part],), np.int32
  x = jax.ShapeDtypeStruct((stream.batch_size, *shape), dtype, sharding=sharding.batch(layout.mesh))

  def run(params: types.Params, x: jax.Array) -> jax.Array:
    bound = model.bind(params)
    return bound.encode(x)[0] if part == "vae" else bound(x, x != 0)

  held = {f"frozen {part}": tree, "batch": x}
  return _program(part, jax.jit(run), run, (tree, x), held, layout.mesh, topology)


def plan_sampler(
  layout: open_lib.Layout,
  topology: hardware.Topology,
  stream: Any,
  size: tuple[int, int],
  options: Mapping[str, Any],
) -> Program:
  """Compiles the sampler of latents, text encoders included, for a batch of `stream`."""
  b, cells = (
    stream.batch_size,
    tuple(side // layout.stage.model.configs["vae"].factor for side in size),
  )
  shapes = {
    "llm_ids_BL": ((b, max(stream.text_buckets)), np.int32),
    "byt5_ids_BG": ((b, stream.glyph_bytes), np.int32),
    "noise_BHWC": ((b, *cells, layout.stage.model.configs["vae"].latent_channels), np.float32),
  }
  shard = sharding.batch(layout.mesh)
  batch = {"train": {k: jax.ShapeDtypeStruct(*v, sharding=shard) for k, v in shapes.items()}}
  predict = functools.partial(layout.stage.predict_fns()["latents"], **options)
  frozen = {name: tree for name, tree in layout.frozen.items() if name in ENCODERS}
  params = layout.state.params
  held = {"parameters": params, **{f"frozen {k}": v for k, v in frozen.items()}, "batch": batch}
  return _program(
    "sampler", jax.jit(predict), predict, (params, frozen, batch), held, layout.mesh, topology
  )


def _program(
  name: str, jitted: Any, fn: Callable, arguments: tuple, held: Mapping[str, Any], mesh: Any,
  topology: hardware.Topology,
) -> Program:  # fmt: skip
  abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)
  hbm = {what: _per_chip(tree) for what, tree in held.items()}
  with jax.set_mesh(mesh):
    model = flops.count(fn, *abstract)
    executed = flops.count(fn, *abstract, executed=True)
    start = time.monotonic()
    with _stderr() as said:
      try:
        compiled = jitted.lower(*arguments).compile()
      except jax.errors.JaxRuntimeError as e:
        size = _OUT_OF_MEMORY.search(str(e))
        if size is None:
          raise
        hbm["temporaries"] = int(float(size[1]) * _UNITS[size[2]])
        return Program(
          name, model, executed, hbm, {}, math.nan, math.nan, time.monotonic() - start, []
        )
  seconds = time.monotonic() - start
  stats = compiled.memory_analysis()
  hbm["temporaries"] = stats.temp_size_in_bytes
  hbm["outputs beyond the donated"] = max(stats.output_size_in_bytes - stats.alias_size_in_bytes, 0)
  text = compiled.as_text()
  found = hlo.collectives(text)
  by_kind: dict[str, dict[str, float]] = {}
  for c in found:
    row = by_kind.setdefault(c.kind, {"count": 0, "wire_bytes": 0.0})
    row["count"] += c.times
    row["wire_bytes"] += c.wire_bytes
  wire = sum(row["wire_bytes"] for row in by_kind.values())
  warnings = sorted({m.decode(errors="replace") for m in _INVOLUNTARY.findall(said())})
  chip = topology.chip
  return Program(
    name, model, executed, hbm, by_kind, wire / (chip.link_rate * chip.axes), 
    traffic.moved(text) / chip.hbm_rate,
    seconds, warnings,
  )  # fmt: skip


def _per_chip(tree: Any) -> int:
  """Bytes that one chip holds of a tree of ShapeDtypeStructs with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )


class _stderr:
  """What the compiler, which is not Python, writes to stderr; `with _stderr() as said: ...; said()`."""

  def __enter__(self) -> Callable[[], bytes]:
    self._saved, self._file = os.dup(2), tempfile.TemporaryFile()
    os.dup2(self._file.fileno(), 2)
    return self._read

  def __exit__(self, *error: Any) -> None:
    os.dup2(self._saved, 2)
    os.close(self._saved)

  def _read(self) -> bytes:
    self._file.seek(0)
    return self._file.read()


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


def fits(program: Program, topology: hardware.Topology) -> tuple[int, int, bool]:
  """(bytes needed, bytes there, whether it fits with headroom), of one chip."""
  needed, there = sum(program.hbm.values()), topology.chip.hbm_bytes
  return needed, there, needed <= there * (1 - _HEADROOM)


def describe(program: Program, topology: hardware.Topology) -> dict[str, Any]:
  """One program's numbers, all per call; `hbm` in bytes a chip."""
  needed, there, good = fits(program, topology)
  if program.warnings:
    raise types.UserError(
      f"{program.name}: the partitioner copies whole arrays: {program.warnings[0]}"
    )
  roofs = roofline(program, topology)
  return {
    "name": program.name,
    "fits": good,
    "gib_per_chip": round(needed / _GIB, 3),
    "gib_there": round(there / _GIB, 3),
    "hbm": program.hbm,
    "model_flops": program.model_flops,
    "executed_flops": program.executed_flops,
    "executed_over_model": round(program.executed_flops / program.model_flops, 4),
    "collectives": program.collectives,
    "compile_s": round(program.compile_seconds, 1),
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


def parameters(layout: open_lib.Layout) -> dict[str, int]:
  """Scalars of every part."""
  counts = {name: trees.count(tree) for name, tree in types.by_part(layout.state.params).items()}
  return counts | {name: trees.count(tree) for name, tree in layout.frozen.items()}
