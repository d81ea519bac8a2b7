r"""Says what a run needs and can reach on hardware that is not here.

  python -m seedream_jax.plan --config experiments/pretrain.py:full,content=latent,text=features --topology v5e:16x16
  ... --json plan.json --price_per_chip_hour 1.2 --search --what sampler

Compiles the run's own step for the topology, on a machine without it (TPU: `pip install seedream_jax[plan]`), as far
as its machine code: docs/plan.md.
Precomputed latents and features are a choice of the config; the frozen encoders are compiled apart either way, so that
both prices are known. The table goes to stdout, the last line is a JSON object.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from seedream_jax import types
from seedream_jax.engine import hardware
from seedream_jax.run import cli, planner, programs

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Experiment, e.g. experiments/pretrain.py:full.", lock_config=True
)
_TOPOLOGY = flags.DEFINE_string("topology", None, "v5e:16x16, v5p:4x4x4, v6e:16x16, ...")
_SIZE = flags.DEFINE_string(
  "size", "", "HxW in pixels; default: the grid at which RoPE positions are whole."
)
_WHAT = flags.DEFINE_enum("what", "step", ["step", "sampler"], "What to compile.")
_ENCODERS = flags.DEFINE_bool("encoders", True, "Also compile the frozen encoders, one by one.")
_SEARCH = flags.DEFINE_bool(
  "search", False, "Compile other meshes and remat policies too; recommend one."
)
_PRICE = flags.DEFINE_float(
  "price_per_chip_hour", 0.0, "For the cost of the config's steps.", lower_bound=0.0
)
_JSON = flags.DEFINE_string("json", "", "Where to write the plan as JSON.")
flags.mark_flags_as_required(["config", "topology"])

_GIB = 1 << 30
_REMATS = ("none", "dots", "full")


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  topology = hardware.parse(_TOPOLOGY.value)
  if not topology.is_tpu:
    raise types.UserError(
      f"--topology {topology.name}: GPUs cannot be compiled for without one; expected a TPU"
    )
  if _JSON.value:
    cli.check_out("--json", _JSON.value)
  cli.prepare_jax()
  config = _CONFIG.value
  programs.devices(topology)
  config.sharding.num_devices = 0
  size = cli.parse_size(_SIZE.value) if _SIZE.value else programs.default_size(config)
  plan = _plan(config, topology, size)
  if _SEARCH.value:
    plan["search"] = _search(config, topology, size)
  _print(plan)
  if _JSON.value:
    with open(_JSON.value, "w", encoding="utf-8") as f:
      json.dump(plan, f, indent=1)
  step = plan["programs"][0]
  print(
    json.dumps(
      {
        k: step.get(k)
        for k in ("fits", "gib_per_chip", "executed_over_model", "mfu_overlapped", "mfu_in_turn")
      }
    )
  )
  return 0


def _plan(config: Any, topology: hardware.Topology, size: tuple[int, int]) -> dict[str, Any]:
  stream, first = config.data.streams.train, planner.plan(_WHAT.value, config, topology, size)
  found = [first]
  if _ENCODERS.value:
    parts = [part for part in first.frozen if part in ("vae", *programs.ENCODERS)]
    found += [planner.plan(part, config, topology, size) for part in parts]
  rows = [planner.describe(program, topology) for program in found]
  return {
    "config": {"size": list(size), "batch": stream.batch_size, "steps": config.train.total_steps},
    "topology": {
      "name": topology.name,
      "chips": topology.num_chips,
      "chip": dataclasses.asdict(topology.chip),
    },
    "mesh": first.mesh,
    "remat": config.model.get("dit", {}).get("remat", "none"),
    "parameters": first.parameters,
    "programs": rows,
    "budget": planner.budget(
      rows[0], stream.batch_size, config.train.total_steps, topology.num_chips, _PRICE.value
    ),
  }


def _search(
  config: Any, topology: hardware.Topology, size: tuple[int, int]
) -> list[dict[str, Any]]:
  """Every mesh and policy, the quickest that fits first; what cannot fit by arithmetic is not compiled."""
  found = []
  for mesh in planner.meshes(topology, config.data.streams.train.batch_size):
    for remat in _REMATS:
      with config.unlocked():
        config.sharding.mesh, config.model.dit.remat = mesh, remat
      found.append({"mesh": mesh, "remat": remat, **_try(config, topology, size)})
      print(json.dumps(found[-1]), flush=True)
  return sorted(found, key=lambda r: (not r.get("fits"), r.get("step_s_in_turn", math.inf)))


def _try(config: Any, topology: hardware.Topology, size: tuple[int, int]) -> dict[str, Any]:
  """What the search keeps of one layout."""
  try:
    least = programs.make("step", config, topology, size).least_bytes()
    if not planner.fits(least, topology):
      return {"fits": False, "gib_per_chip_at_least": round(least / _GIB, 3)}
    row = planner.describe(planner.plan("step", config, topology, size), topology)
  except types.UserError as e:
    return {"error": str(e)}
  keys = ("fits", "gib_per_chip", "step_s_overlapped", "step_s_in_turn", "mfu_overlapped", "mfu_in_turn")  # fmt: skip
  return {k: row[k] for k in keys if k in row}


def _print(plan: dict[str, Any]) -> None:
  topology, mesh = plan["topology"], {k: v for k, v in plan["mesh"].items() if v > 1}
  batch, (h, w) = plan["config"]["batch"], plan["config"]["size"]
  chips = f"{topology['chips']} x {topology['chip']['name']}"
  print(
    f"\n{topology['name']}: {chips}, mesh {mesh}, batch {batch} of {h}x{w}, remat {plan['remat']}"
  )
  counts = (f"{k} {v / 1e6:,.1f} M" for k, v in plan["parameters"].items())
  print("\nparameters: " + ", ".join(counts))
  for row in plan["programs"]:
    _print_program(row)
  b, low, high = plan["budget"], "overlapped", "in_turn"
  if b:
    print(
      f"\n{plan['config']['steps']:,} calls: {b[f'images_per_day_{high}']:,} to {b[f'images_per_day_{low}']:,} "
      f"images a day, {b[f'chip_hours_{low}']:,} to {b[f'chip_hours_{high}']:,} chip-hours, "
      f"cost {b[f'cost_{low}']:,} to {b[f'cost_{high}']:,}"
    )
  if "search" in plan:
    print("\nrecommended: " + json.dumps(plan["search"][0]))


def _print_program(row: dict[str, Any]) -> None:
  good, there = "fits" if row["fits"] else "DOES NOT FIT", row["gib_there"]
  took = f"compiled in {row['compile_s']} s ({row['compile_cpu_s']} s of CPU)"
  print(f"\n{row['name']}: {row['gib_per_chip']:.2f} of {there:.2f} GiB a chip, {good}; {took}")
  for what, size in row["hbm"].items():
    print(f"  {what:28s} {size / _GIB:8.3f} GiB")
  ratio = f"{row['executed_flops']:.4g} = {row['executed_over_model']:.3f} times"
  print(f"  FLOPs: model {row['model_flops']:.4g}, executed {ratio}")
  for kind, c in row["collectives"].items():
    print(f"  {kind:28s} {c['wire_bytes'] / _GIB:8.3f} GiB a chip sends, in {c['count']} calls")
  if "links_s" not in row:
    return
  print(
    f"  roofs: compute {row['compute_s']:.4g} s, HBM {row['hbm_s']:.4g} s, links {row['links_s']:.4g} s"
  )
  both = (
    f"{row['mfu_overlapped']:.1%} with communication overlapped, {row['mfu_in_turn']:.1%} without"
  )
  print(f"  MFU allowed: {both}")


if __name__ == "__main__":
  cli.run(main)
