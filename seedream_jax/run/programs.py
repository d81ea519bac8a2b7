"""The programs of a run, laid out on hardware that need not be here, traced and not compiled.

The train step, the sampler and each frozen encoder; `planner` says what they cost.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections
import numpy as np

from seedream_jax import types
from seedream_jax.engine import flops, hardware, sharding, trees
from seedream_jax.models import vae
from seedream_jax.run import open as open_lib

ENCODERS = ("llm", "byt5")
SAMPLER = dict(num_steps=25, guidance=4.0)


@dataclasses.dataclass(frozen=True)
class Task:
  """One program.

  Attributes:
    name: step, sampler, llm, byt5, vae.
    layout: of the run.
    jitted, fn: what is compiled, and what it jits.
    arguments: its ShapeDtypeStructs with shardings.
    held: {category: those of them that fill it}.
  """

  name: str
  layout: open_lib.Layout
  jitted: Any
  fn: Callable
  arguments: tuple[Any, ...]
  held: Mapping[str, Any]

  def flops(self, executed: bool = False) -> int:
    """Of all chips together, recomputation too where `executed`."""
    with jax.set_mesh(self.layout.mesh):
      return flops.count(self.fn, *_abstract(self.arguments), executed=executed)

  def held_bytes(self) -> dict[str, int]:
    """Of one chip, by category."""
    return {what: _per_chip(tree) for what, tree in self.held.items()}

  def least_bytes(self) -> int:
    """What a chip holds at least: the arguments, and the most that one scan hands on (activations or gradients)."""
    with jax.set_mesh(self.layout.mesh):
      jaxpr = jax.make_jaxpr(self.fn)(*_abstract(self.arguments)).jaxpr
    return sum(self.held_bytes().values()) + _handed_on(jaxpr) // self.layout.mesh.size

  def lower(self) -> Any:
    """The jax.stages.Lowered."""
    with jax.set_mesh(self.layout.mesh):
      return self.jitted.lower(*self.arguments)


def make(
  name: str, config: ml_collections.ConfigDict, topology: hardware.Topology, size: tuple[int, int]
) -> Task:
  """The program `name` of `config` on the topology's chips, for pictures of `size` pixels."""
  chips = devices(topology)
  if name == "step":
    return make_step(config, size, chips)
  layout, stream = open_lib.lay_out(config, chips), config.data.streams.train
  return _sampler(layout, stream, size) if name == "sampler" else _part(name, layout, stream, size)


def devices(topology: hardware.Topology) -> list[Any]:
  """The topology's devices, none of which is here.

  Raises:
    types.UserError: libtpu is not installed, or knows no such shape.
  """
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault(
    "ALLOW_MULTIPLE_LIBTPU_LOAD", "1"
  )  # no TPU is opened: plans may run at once
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


def make_step(config: ml_collections.ConfigDict, size: tuple[int, int], chips: list[Any]) -> Task:
  """The train step of step 0's movers on `chips`, which may be of any hardware."""
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
  held = {
    "parameters": layout.state.params, "optimizer": layout.state.opt, "ema": layout.state.ema,
    **{f"frozen {name}": tree for name, tree in frozen.items()}, "batch": placed,
  }  # fmt: skip
  return Task("step", layout, jitted, step, (layout.state, frozen, placed), held)


def _read(frozen: Mapping[str, Any], batch: types.Batch) -> dict[str, Any]:
  """The frozen parts that the loss reads: precomputed features need no LLM; the VAE keeps its latent statistics."""
  cached = all("llm_features_BLE" in stream for stream in batch.values())
  return {name: tree for name, tree in frozen.items() if name != "llm" or not cached}


def _part(part: str, layout: open_lib.Layout, stream: Any, size: tuple[int, int]) -> Task:
  """One frozen part's forward pass on what the step would feed it, a batch of `stream`."""
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
  return Task(part, layout, jax.jit(run), run, (tree, x), held)


def _sampler(layout: open_lib.Layout, stream: Any, size: tuple[int, int]) -> Task:
  """The sampler of latents, text encoders included, for a batch of `stream`."""
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
  predict = functools.partial(layout.stage.predict_fns()["latents"], **SAMPLER)
  frozen = {name: tree for name, tree in layout.frozen.items() if name in ENCODERS}
  params = layout.state.params
  held = {"parameters": params, **{f"frozen {k}": v for k, v in frozen.items()}, "batch": batch}
  return Task("sampler", layout, jax.jit(predict), predict, (params, frozen, batch), held)


def parameters(layout: open_lib.Layout) -> dict[str, int]:
  """Scalars of every part."""
  counts = {name: trees.count(tree) for name, tree in types.by_part(layout.state.params).items()}
  return counts | {name: trees.count(tree) for name, tree in layout.frozen.items()}


def _abstract(arguments: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)


def _handed_on(jaxpr: Any) -> int:
  """Bytes of what a scan stacks, of the one that stacks the most."""
  most = 0
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == "scan":
      stacked = [v.aval for v in eqn.outvars[eqn.params["num_carry"] :]]
      sizes = (x.size * x.dtype.itemsize for x in stacked if isinstance(x.dtype, np.dtype))
      most = max(most, sum(sizes))
    most = max([most, *map(_handed_on, flops.subjaxprs(eqn.params))])
  return most


def _per_chip(tree: Any) -> int:
  """Bytes that one chip holds of a tree of ShapeDtypeStructs with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )
