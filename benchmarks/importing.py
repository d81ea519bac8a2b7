r"""Loading a published LLM into sharded JAX arrays, against transformers' from_pretrained, in alternating children.

  python -m benchmarks.importing --rounds 5 --out benchmarks/results/importing.json

The folder holds random bfloat16 weights of Qwen3-0.6B's shape (1.19 GB in shards), written into a temporary folder, so
the page cache is warm. A child starts, imports what it needs ("import_s"), loads ("load_s") and adds up every bit
pattern it holds ("sum_s"): sums that differ are an error, and a mapped file has been read by then. "cpu_s" is what
load and sum took of all cores, whoever else had them. "peak_GB" is the child's peak resident memory less what it had
after its imports, mapped pages of the files included; "held_GB" what it still has after the sum. Ratios are ours over
theirs: below 1 where we are quicker or smaller.
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import machine, rounds

SIDES = {  # name -> devices, 0 = transformers
  "ours, 1 device": 1,
  "ours, 4 devices (fsdp)": 4,
  "transformers": 0,
}
_VARIANT = "0.6B"
_SHARD_BYTES = 400 << 20


def write_folder(folder: str) -> int:
  """Random weights as they are published; returns their bytes."""
  import ml_dtypes
  from safetensors import numpy as safetensors_numpy

  from seedream_jax import types
  from seedream_jax.interop import huggingface, names
  from seedream_jax.models import llm

  cfg = llm.make_config(_VARIANT, tied=True)
  part = types.Part.from_module(lambda rngs: llm.LLM(cfg, rngs=rngs))
  random, shards, sizes = np.random.default_rng(0), [{}], [0]
  for entry in names.entries(names.LLM, part.abstract):
    x = random.standard_normal(entry.shape, np.float32).astype(ml_dtypes.bfloat16)
    if sizes[-1] + x.nbytes > _SHARD_BYTES and shards[-1]:
      shards, sizes = [*shards, {}], [*sizes, 0]
    shards[-1][entry.name] = x
    sizes[-1] += x.nbytes
  weight_map = {}
  for i, shard in enumerate(shards):
    name = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
    safetensors_numpy.save_file(shard, os.path.join(folder, name), {"format": "pt"})
    weight_map |= dict.fromkeys(shard, name)
  config = huggingface.llm_json(cfg) | {"dtype": "bfloat16"}
  index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
  for name, content in (("config.json", config), ("model.safetensors.index.json", index)):
    rounds.write(os.path.join(folder, name), content)
  return sum(sizes)


def _resident() -> float:
  """GB now, mapped pages included."""
  with open("/proc/self/statm", encoding="utf-8") as f:
    return int(f.read().split()[1]) * resource.getpagesize() / 1e9


def load_ours(folder: str, devices: int) -> list[np.ndarray]:
  """The bytes of every shard of every leaf, as they lie in memory."""
  import jax

  from experiments import common
  from seedream_jax import types
  from seedream_jax.engine import mesh, sharding
  from seedream_jax.interop import huggingface
  from seedream_jax.models import llm

  cfg = huggingface.llm_config(folder, dtype="bfloat16")
  part = types.Part.from_module(lambda rngs: llm.LLM(cfg, rngs=rngs), jax.numpy.bfloat16)
  axes = dict(data=1, fsdp=devices, tensor=1, context=1)
  device_mesh = mesh.make(axes, jax.devices()[:devices])
  shardings = sharding.infer(part.abstract, common.SHARDING_RULES, device_mesh)
  abstract = sharding.abstract(part.abstract, shardings)
  params = huggingface.load_part("llm", huggingface.Source(folder), abstract)
  leaves = jax.block_until_ready(jax.tree.leaves(params))
  return [
    np.asarray(shard.data)
    for leaf in leaves
    for shard in leaf.addressable_shards
    if shard.replica_id == 0
  ]


def load_theirs(folder: str) -> list[np.ndarray]:
  """The bytes of every parameter, as they lie in memory."""
  import torch
  import transformers

  model = transformers.AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
  return [p.detach().view(torch.int16).numpy() for p in model.parameters()]


def measure(job: dict[str, Any]) -> dict[str, Any]:
  """In a child: one load."""
  begin, devices = time.perf_counter(), SIDES[job["side"]]
  if devices:
    import jax

    from seedream_jax.interop import huggingface  # noqa: F401

    jax.config.update("jax_num_cpu_devices", devices)
    jax.devices()
  else:
    import torch  # noqa: F401
    from transformers import Qwen3Model  # noqa: F401  its module is imported lazily
  start, cpu, before = time.perf_counter(), time.process_time(), _resident()
  arrays = load_ours(job["folder"], devices) if devices else load_theirs(job["folder"])
  end = time.perf_counter()
  total = sum(int(x.view(np.uint16).sum(dtype=np.uint64)) for x in arrays)
  done, peak = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
  return {
    "import_s": start - begin,
    "load_s": end - start,
    "sum_s": done - end,
    "cpu_s": time.process_time() - cpu,
    "peak_GB": peak * 1.024 - before,
    "held_GB": _resident() - before,
    "checksum": total,
  }


def main() -> int:
  """Entry point."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--rounds", type=int, default=5, help="one more warms up")
  parser.add_argument("--out", default="", help="results, .json")
  parser.add_argument("--child", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    print(json.dumps(measure(json.loads(args.child))))
    return 0
  report, folder = machine.origin(), tempfile.mkdtemp()
  try:
    report["folder_GB"] = write_folder(folder) / 1e9
    checksums: dict[str, int] = {}

    def side(name: str) -> rounds.Measures:
      found = rounds.child("benchmarks.importing", {"side": name, "folder": folder})
      checksums[name] = found.pop("checksum")
      return found

    sides = {name: (lambda name=name: side(name)) for name in SIDES}
    found = rounds.alternate(sides, args.rounds, skip=1, desc="importing")
  finally:
    shutil.rmtree(folder)
  if len(set(checksums.values())) > 1:
    raise RuntimeError(f"the sides did not load the same weights: {checksums}")
  pairs = [(name, "transformers") for name, devices in SIDES.items() if devices]
  report["results"] = rounds.compare(found, pairs)
  rounds.tell(f"importing {report['folder_GB']:.2f} GB", report, args.out)
  return 0


if __name__ == "__main__":
  sys.exit(main())
