r"""Start-up: seconds from the command to the first training step done, compile cache empty and filled.

  python -m benchmarks.startup --what verb --rounds 2 --out benchmarks/results/startup-verb.json
  python -m benchmarks.startup --what dit --rounds 2 --out benchmarks/results/startup-dit.json

verb: `python -m seedream_jax.train` of experiments/pretrain.py:nano on fresh posters, indexed before, VAE and text
encoders in the step, until its first line of metrics; then it is killed. "import" ends when the workdir is claimed,
"open" (weights, data, state) when the config is written, "step" is the rest. "xla" is the compiler's share of it all,
or the reading of its cache, from JAX's own log; "cpu" the CPU seconds of all cores, whoever else had them.
dit: a train step of the nano DiT alone, and its PyTorch twin's under torch.compile and eager, in children of their own:
"import", "build" (model and data), "step" (the first, compiled or read from the cache), "cpu" (without what torch's
compile workers spend, should they outlive their parent).
A cold child has an empty home and temporary folder, in which both keep their caches; a cached one has the last cold
one's. Ratios are ours over theirs.
"""

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import machine, rounds, sides

_POLL_SECONDS = 0.02
_COMPILED = re.compile(r"Finished XLA compilation of .* in ([\d.e+-]+) sec")
_SHAPE = dict(batch=16, side=8, length=32)  # nano's, as in benchmarks.twin


def cached_in(home: str) -> dict[str, str]:
  """The environment of a child whose caches, ours and torch's, lie in `home`."""
  return {"HOME": home, "TMPDIR": home, "TORCHINDUCTOR_CACHE_DIR": os.path.join(home, "inductor")}


def xla_seconds(log: str) -> float:
  """What the log of a run says that XLA took, reading its cache included."""
  return sum(float(seconds) for seconds in _COMPILED.findall(log))


def start_training(data: str, home: str) -> rounds.Measures:
  """Runs the verb until its first line of metrics."""
  with tempfile.TemporaryDirectory() as folder:
    workdir, begin = os.path.join(folder, "run"), time.time()
    options = f"--config experiments/pretrain.py:nano,data={data} --workdir {workdir}"
    command = [sys.executable, "-m", "seedream_jax.train", *options.split()]
    command.append("--config.train.log_every_steps=1")
    with open(os.path.join(folder, "log"), "w+", encoding="utf-8") as log:
      process = subprocess.Popen(
        command,
        stdout=log,
        stderr=log,
        process_group=0,
        env={**os.environ, **cached_in(home), "JAX_LOG_COMPILES": "1"},
      )
      try:
        metrics = os.path.join(workdir, "metrics.jsonl")
        while not os.path.exists(metrics) or not os.path.getsize(metrics):
          if process.poll() is not None:
            log.seek(0)
            sys.stderr.write(log.read())
            raise RuntimeError(f"{' '.join(command)}: exit code {process.returncode}")
          time.sleep(_POLL_SECONDS)
      finally:
        if process.poll() is None:
          os.killpg(process.pid, signal.SIGKILL)
        process.wait()
      log.seek(0)
      claimed, opened = (
        os.path.getmtime(os.path.join(workdir, name)) for name in (".lock", "config.json")
      )
      first = os.path.getmtime(metrics)
      return {
        "all_s": first - begin,
        "import_s": claimed - begin,
        "open_s": opened - claimed,
        "step_s": first - opened,
        "xla_s": xla_seconds(log.read()),
      }


def write_twin(folder: str) -> None:
  """What a child of the twin reads, so that it need not import JAX."""
  from seedream_jax.models import dit

  rounds.write(os.path.join(folder, "fields.json"), sides.translate(dit.make_config("nano"))[0])


def measure(job: dict[str, Any]) -> rounds.Measures:
  """In a child: from the start to one step of the DiT or of its twin."""
  begin = job["begin"]
  if job["side"] == "ours":
    from seedream_jax.run import cli

    cli.prepare_jax()
    import jax

    from seedream_jax.models import dit

    jax.devices()
    imported, cfg = time.time(), dit.make_config("nano")
    batch = sides.draw_batch(cfg, **_SHAPE)
    init = jax.jit(sides.our_part(cfg).init)
    step = sides.ours(cfg, lambda: init(jax.random.key(0)), batch, "train step")
  else:
    import torch

    from seedream_jax.interop import torch_twin  # noqa: F401

    imported = time.time()
    with open(os.path.join(job["folder"], "fields.json"), encoding="utf-8") as f:
      fields = json.load(f)
    torch.manual_seed(0)
    batch = sides.draw_batch(argparse.Namespace(**fields), **_SHAPE)
    compiled = job["side"] == "torch.compile"
    step = sides.theirs(fields, None, batch, "train step", compiled=compiled)
  built = time.time()
  step()
  done = time.time()
  return {
    "all_s": done - begin,
    "import_s": imported - begin,
    "build_s": built - imported,
    "step_s": done - built,
  }


def with_cpu(make: Any) -> Any:
  """`make(home)` with the CPU seconds of its processes, of all cores, whoever else had them."""

  def run(home: str) -> rounds.Measures:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = make(home)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**found, "cpu_s": spent}

  return run


def both(make: Any, folder: str) -> dict[str, Any]:
  """{"cold": fn, "cached": fn} of make(home); a cached run follows the cold one whose home it takes."""
  home, make = os.path.join(folder, "home"), with_cpu(make)

  def cold() -> rounds.Measures:
    shutil.rmtree(home, ignore_errors=True)
    os.makedirs(home)
    return make(home)

  return {"cold": cold, "cached": lambda: make(home)}


def prepare(what: str, folder: str) -> tuple[dict[str, Any], list[tuple[str, str]]]:
  """(sides, pairs) of rounds."""
  if what == "verb":
    from seedream_jax.data import index, records, tokenizers

    data = os.path.join(folder, "data")
    for split, num in (("train", 512), ("val", 128)):
      command = (
        f"data_pipelines.posters --world nano --size 64x64 --split {split} --num {num} --out {data}"
      )
      subprocess.run(
        [sys.executable, "-m", *command.split()], check=True, stdout=subprocess.DEVNULL
      )
      # The index of a data set is made once, not at every start.
      records_split = records.open_split(f"{data}:{split}")
      index.open_index(records_split, tokenizers.LLMTokenizer("weights/nano/tokenizer.model"))
    found = both(lambda home: start_training(data, home), folder)
    return {f"train, {name}": fn for name, fn in found.items()}, [("train, cached", "train, cold")]
  write_twin(folder)

  def child(name: str) -> Any:
    job = {"side": name, "folder": folder}
    return lambda home: rounds.child(
      "benchmarks.startup", {**job, "begin": time.time()}, **cached_in(home)
    )

  out = {}
  for name in ("ours", "torch.compile"):
    found = both(child(name), os.path.join(folder, name))
    out |= {f"{name}, {state}": fn for state, fn in found.items()}
  out["torch eager"] = both(child("torch eager"), os.path.join(folder, "eager"))["cold"]
  pairs = [(f"ours, {state}", f"torch.compile, {state}") for state in ("cold", "cached")]
  return out, [*pairs, ("ours, cold", "torch eager")]


def main() -> int:
  """Entry point."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--what", choices=("verb", "dit"), default="verb", help="see above")
  parser.add_argument("--rounds", type=int, default=2, help="how many")
  parser.add_argument("--out", default="", help="results, .json")
  parser.add_argument("--child", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    print(json.dumps(measure(json.loads(args.child))))
    return 0
  report, folder = machine.origin(), tempfile.mkdtemp()
  try:
    timed, pairs = prepare(args.what, folder)
    found = rounds.alternate(timed, args.rounds, desc=f"start-up: {args.what}")
  finally:
    shutil.rmtree(folder)
  report["results"] = rounds.compare(found, pairs)
  rounds.tell(f"start-up: {args.what}", report, args.out)
  return 0


if __name__ == "__main__":
  sys.exit(main())
