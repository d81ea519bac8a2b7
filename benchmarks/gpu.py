r"""On one NVIDIA GPU, in one call: train step and sampler at 512 px in bfloat16, MFU, the PyTorch twin, a profile.

  python -m benchmarks.gpu --out benchmarks/results/gpu-h100.json --profile out/gpu_profile
  python -m benchmarks.gpu --smoke          the same path in miniature, on a CPU

The DiT has the width, depth and text of a preset (`base`, 1536 wide, where 70 GiB of memory allow it, else 1152) and
sees latents of 64x64x16 at patch 2. The batch is doubled while the program fits and pictures a second rise by 3%.
MFU is model FLOPs, counted on the program's jaxpr without what remat computes again, over the 16-bit peak of the card
(989 TFLOP/s for H100 and H200). Both sides hold float32 weights and AdamW and compute in bfloat16 (the twin by
autocast). The twin takes the same batch, halved until it fits; ratios are of pictures a second, above 1 where ours is
quicker. Each measurement is a child that has the card to itself; passes go through all sides in turn. The twin needs
torch with CUDA beside JAX; without it its rows say so. What is measured is written after each child, so that a call
that is cut off leaves what it had. Not yet run on a GPU.
"""

import argparse
import glob
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import machine, rounds, sides
from seedream_jax import types
from seedream_jax.run import cli

# preset and changes to it; the first that fits the card's memory in GiB
_SHAPES = (
  (70, "base", {}),
  (0, "base", dict(width=1152, depth=14, num_heads=9)),
)
_SIDE, _LENGTH = 64, 256  # of the latents, and LLM tokens
_SMOKE = dict(
  width=64,
  depth=2,
  num_heads=2,
  text_dim=32,
  glyph_dim=32,
  glyph_len=4,
  max_text_len=16,
  rope_base=4,
)
_SMOKE_SIDE, _SMOKE_LENGTH = 8, 16
_GAIN = 1.03  # a doubled batch must bring this much more pictures a second
_FULL = 0.94  # share of the card's memory that a program may ask for
_TORCH = ("torch.compile", "torch eager")
_TOP = 15  # operations in the profile's summary


def shape_of(job: dict[str, Any]) -> tuple[Any, Callable[[int], Any]]:
  """(config, batch size -> batch) of a job."""
  from seedream_jax.models import dit

  cfg = dit.make_config(job["preset"], **job["changes"])
  return cfg, lambda batch: sides.draw_batch(cfg, batch, job["side_len"], job["length"])


def probe(_: dict[str, Any]) -> dict[str, Any]:
  """The device that JAX sees, and whether torch sees it too."""
  import jax

  from seedream_jax.engine import flops

  device = jax.devices()[0]
  found = {
    "platform": device.platform,
    "device": device.device_kind,
    "memory_GiB": (device.memory_stats() or {}).get("bytes_limit", 0) / 2**30,
    "peak_flops": flops.peak(device.device_kind),
    "jax": jax.__version__,
  }
  try:
    import torch

    kind = f"torch {torch.__version__}"
    found["torch"] = kind if torch.cuda.is_available() or device.platform == "cpu" else ""
    found["no_torch"] = "" if found["torch"] else f"{kind} sees no GPU"
  except ImportError as e:
    found |= {"torch": "", "no_torch": f"no torch: {e}"}
  return found


def _seconds(fn: Callable, steps: int) -> float:
  """Median of single calls, each waited for; two warm up."""
  found = []
  for i in range(steps + 2):
    start = time.perf_counter()
    fn()
    if i >= 2:
      found.append(time.perf_counter() - start)
  return statistics.median(found)


def _our_task(cfg: Any, batch: Any, task: str) -> Callable:
  import jax

  init = jax.jit(sides.our_part(cfg).init)
  return sides.ours(cfg, lambda: init(jax.random.key(0)), batch, task)


def _flops(cfg: Any, batch: Any, task: str) -> int:
  """Model FLOPs of one call; nothing is allocated."""
  import jax

  from seedream_jax.engine import flops

  params = sides.our_part(cfg).abstract
  opt = (jax.eval_shape(sides.our_optimizer().init, params),) if task == "train step" else ()
  return flops.count(sides.our_functions(cfg)[task], params, *opt, batch)


def search(job: dict[str, Any]) -> dict[str, Any]:
  """The batch of the train step, what was tried on the way, and the model FLOPs a picture of each task."""
  import jax

  (cfg, draw), tried, batch = shape_of(job), [], job["batch"]
  limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", float("inf"))
  params = sides.our_part(cfg).abstract
  opt = jax.eval_shape(sides.our_optimizer().init, params)
  step = jax.jit(sides.our_functions(cfg)["train step"], donate_argnums=(0, 1))
  while batch <= job["max_batch"]:
    inputs = draw(batch)
    memory = step.lower(params, opt, inputs).compile().memory_analysis()
    needs = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    row = {"batch": batch, "program_GiB": needs / 2**30}
    if needs > _FULL * limit:
      tried.append(row | {"why_not": "does not fit"})
      break
    try:
      row["images/s"] = batch / _seconds(_our_task(cfg, inputs, "train step"), job["steps"] // 2)
    except jax.errors.JaxRuntimeError as e:
      if "RESOURCE_EXHAUSTED" not in str(e):
        raise
      tried.append(row | {"why_not": "out of memory"})
      break
    tried.append(row)
    if len(tried) > 1 and row["images/s"] < _GAIN * tried[-2]["images/s"]:
      break
    batch *= 2
  ran = [row for row in tried if "images/s" in row]
  best = max(ran, key=lambda row: row["images/s"], default=None)
  image_flops = {task: _flops(cfg, draw(1), task) for task in sides.TASKS}
  return {"batch": best["batch"] if best else 0, "tried": tried, "image_flops": image_flops}


def measure(job: dict[str, Any]) -> dict[str, Any]:
  """One side's task: seconds a call, pictures a second, MFU, peak memory; {} where it does not fit."""
  (cfg, draw), task, batch = shape_of(job), job["task"], job["batch"]
  inputs, found = draw(batch), {}
  if job["side"] == "ours":
    import jax

    seconds = _seconds(_our_task(cfg, inputs, task), job["steps"])
    if stats := jax.devices()[0].memory_stats():
      found["hbm_peak_GiB"] = stats["peak_bytes_in_use"] / 2**30
  else:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32, as XLA does on its own
    fields, _ = sides.translate(cfg)
    compiled = job["side"] == "torch.compile"
    try:
      fn = sides.theirs(fields, None, inputs, task, compiled=compiled, device=device, bf16=True)
      seconds = _seconds(fn, job["steps"])
    except torch.OutOfMemoryError:
      return {}
    if device == "cuda":
      found["hbm_peak_GiB"] = torch.cuda.max_memory_allocated() / 2**30
  rate = job["image_flops"][task] * batch / seconds
  return {
    "batch": batch,
    "ms": seconds * 1e3,
    "images/s": batch / seconds,
    "TFLOP/s": rate / 1e12,
    "MFU": rate / job["peak_flops"],
    **found,
  }


def profile(job: dict[str, Any]) -> dict[str, Any]:
  """Three train steps of ours under JAX's profiler, and the operations that took longest."""
  import jax

  cfg, draw = shape_of(job)
  step = _our_task(cfg, draw(job["batch"]), "train step")
  for _ in range(2):
    step()
  start = time.perf_counter()
  with jax.profiler.trace(job["folder"]):
    for _ in range(3):
      step()
  return {"wall_s": time.perf_counter() - start, "steps": 3, "top": top(job["folder"])}


def top(folder: str) -> list[dict[str, Any]]:
  """Operations by their share of device time, numbers at the end of names struck off."""
  import jax

  path = max(glob.glob(os.path.join(folder, "**", "*.xplane.pb"), recursive=True))
  with open(path, "rb") as f:
    data = f.read()
  seconds: dict[str, float] = {}
  calls: dict[str, int] = {}
  for plane in jax.profiler.ProfileData.from_serialized_xspace(data).planes:
    on_device, on_host = plane.name.startswith("/device:GPU"), plane.name.startswith("/host:CPU")
    for line in plane.lines:
      # A GPU's lines are its streams; on a CPU the thunks run on XLA's own threads.
      wanted = (on_device and "Stream" in line.name) or (on_host and line.name.startswith("tf_XLA"))
      if not wanted:
        continue
      for event in line.events:
        name = re.sub(r"[._]?\d+$", "", event.name)
        seconds[name] = seconds.get(name, 0.0) + event.duration_ns * 1e-9
        calls[name] = calls.get(name, 0) + 1
  total = sum(seconds.values()) or 1.0
  longest = sorted(seconds, key=seconds.get, reverse=True)[:_TOP]
  return [
    {"op": n, "share": seconds[n] / total, "seconds": seconds[n], "calls": calls[n]}
    for n in longest
  ]


JOBS = {"probe": probe, "search": search, "measure": measure, "profile": profile}


def plan(device: dict[str, Any], smoke: bool) -> dict[str, Any]:
  """What all children share: the shape, and how long to measure."""
  if smoke:
    shape = dict(preset="base", changes=_SMOKE, side_len=_SMOKE_SIDE, length=_SMOKE_LENGTH)
    return shape | dict(batch=1, max_batch=2, steps=2, peak_flops=device["peak_flops"])
  preset, changes = next((p, c) for least, p, c in _SHAPES if device["memory_GiB"] >= least)
  shape = dict(preset=preset, changes=changes, side_len=_SIDE, length=_LENGTH)
  return shape | dict(batch=8, max_batch=256, steps=12, peak_flops=device["peak_flops"])


def run(args: argparse.Namespace, report: dict[str, Any]) -> None:
  """Fills `report`, written after each child."""

  def child(job: dict[str, Any]) -> dict[str, Any]:
    env = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95"}
    if job.get("side") in _TORCH:
      env["JAX_PLATFORMS"] = "cpu"  # it would take the card's memory
    return rounds.child("benchmarks.gpu", job, **env)

  device = report["device"] = child({"kind": "probe"})
  if device["platform"] != "gpu" and not args.smoke:
    raise types.UserError(
      f"benchmarks.gpu needs an NVIDIA GPU that JAX sees (pip install 'seedream_jax[gpu]'); JAX sees "
      f"{device['device']}; --smoke runs the same path on it in miniature"
    )
  if device["peak_flops"] is None:
    raise types.UserError(
      f"no peak FLOP/s known of {device['device']}; expected a card in flops.py"
    )
  job = report["job"] = plan(device, args.smoke)
  report["search"] = child({**job, "kind": "search"})
  if not report["search"]["batch"]:
    raise types.UserError(f"a batch of {job['batch']} does not fit {device['device']}")
  job["image_flops"] = report["search"]["image_flops"]
  names = ["ours", *(_TORCH if device["torch"] else ())]
  batches = {(n, t): report["search"]["batch"] for n in names for t in sides.TASKS}
  rows: dict[str, dict[str, list]] = {t: {n: [] for n in names} for t in sides.TASKS}
  report["passes"] = rows
  for task in [t for _ in range(args.passes) for t in sides.TASKS]:
    for name in names:
      row = {}
      while not row and batches[name, task]:
        settings = dict(side=name, task=task, batch=batches[name, task])
        row = child({**job, **settings, "kind": "measure"})
        batches[name, task] //= 1 if row else 2
      rows[task][name] += [row] if row else []
      rounds.write(args.out, report)
  os.makedirs(args.profile, exist_ok=True)
  settings = {"folder": args.profile, "batch": report["search"]["batch"]}
  report["profile"] = child({**job, **settings, "kind": "profile"})


def show(report: dict[str, Any]) -> dict[str, Any]:
  """Prints the tables; returns the ratios."""
  ratios = {}
  for task, rows in report["passes"].items():
    found = {name: row for name, row in rows.items() if row}
    result = rounds.compare(found, [("ours", name) for name in _TORCH if name in found])
    print(rounds.table(task, result))
    ratios[task] = {pair: ratio["images/s"] for pair, ratio in result["ratio"].items()}
    missing = report["device"]["no_torch"] or "does not fit, whatever the batch"
    for name in set(_TORCH) - set(found):
      print(f"{name}: not measured: {missing}")
  for row in report["profile"]["top"]:
    print(f"{row['share']:6.1%}  {row['calls']:6d} calls  {row['op'][:90]}")
  return ratios


def main() -> int:
  """Entry point."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--smoke", action="store_true", help="in miniature, on whatever JAX sees")
  parser.add_argument("--passes", type=int, default=2, help="through all sides and tasks")
  parser.add_argument("--profile", default="out/gpu_profile", help="folder of the trace")
  parser.add_argument("--out", default="", help="results, .json")
  parser.add_argument("--child", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    cli.prepare_jax()
    job = json.loads(args.child)
    print(json.dumps(JOBS[job["kind"]](job)))
    return 0
  report = machine.origin()
  try:
    run(args, report)
  except types.UserError as e:
    cli.fail(str(e))
  report["ratio"] = show(report)
  rounds.write(args.out, report)
  print(json.dumps({"ratio": report["ratio"], "batch": report["search"]["batch"]}))
  return 0


if __name__ == "__main__":
  sys.exit(main())
