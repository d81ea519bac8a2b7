r"""Kills a training at random moments, reruns it until it ends, compares its weights with undisturbed runs'.

  python -m benchmarks.kill --workdir /tmp/kill --kills 20 --seed 0
  python -m benchmarks.kill --workdir /tmp/kill --config experiments/pretrain.py:nano --config.train.total_steps=50

Two runs are left alone; the faster tells how long a run takes, its compile cache warm. The same command is then killed
(SIGKILL, its whole process group) and started again until it ends, in one fresh workdir after the other until all kills
have landed. Moments are uniform from Python's start to its exit; the third and fourth of every four kills wait on from
there for a checkpoint's commit and for the weights' export, and fall uniformly into it: chance alone would seldom hit
these. Where a kill landed is read from the files it left. The last line is one JSON object; exit code 0 = same bytes.
"""

import argparse
import collections
import contextlib
import glob
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import logging

from benchmarks import machine
from seedream_jax.engine import weights

AIMS = ("", "", "commit", "export")
_POLL_SECONDS = 0.002
# One text bucket is one compile; with three steps between them, a commit is nearly always under way.
_OVERRIDES = (
  "train.log_every_steps=1 train.count_flops=false ckpt.every_steps=3 eval.every_steps=18 "
  "eval.evaluators.val.batches=1 optim.warmup_steps=10 data.streams.train.batch_size=8 "
  "data.streams.train.text_buckets=(64,) data.streams.val.batch_size=8 data.streams.val.text_buckets=(64,)"
)


def small_config(folder: str) -> list[str]:
  """Renders posters and trains a tokenizer; the flags of a small training on them."""
  data, tokenizer = os.path.join(folder, "data"), os.path.join(folder, "tokenizer.model")
  posters = f"data_pipelines.posters --world nano --size 64x64 --out {data} --split"
  tokens = f"data_pipelines.tokenizer --data {data}:train --out {tokenizer}"
  for command in (f"{posters} train --num 512", f"{posters} val --num 64", tokens):
    subprocess.run([sys.executable, "-m", *command.split()], check=True, stdout=subprocess.DEVNULL)
  config = f"experiments/align.py:nano,mode=lm,data={data},tokenizer={tokenizer},steps=36"
  return [f"--config={config}", *(f"--config.{x}" for x in _OVERRIDES.split())]


def doing(workdir: str, since: float) -> str:
  """What a run started at `since` is at, by the files it has written: commit, export, exit, or ""."""

  def is_new(path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
      return os.path.getmtime(path) >= since
    return False

  if is_new(f"{workdir}/weights/config.json"):  # the export's last file
    return "exit"
  if any(map(is_new, glob.glob(f"{workdir}/weights/*"))):
    return "export"
  steps = filter(is_new, glob.glob(f"{workdir}/checkpoints/step_*"))
  return "" if all(os.path.exists(f"{step}/manifest.json") for step in steps) else "commit"


def run(command: Sequence[str], workdir: str, aim: str = "", after=math.inf, then=0.0):
  """Runs until the end, or is killed `then` seconds into the first `aim` seen `after` seconds.

  Returns (exit code, {what it did: seconds of the last time; "all": of all}, (where, after which step) it ended).
  """
  start = entered = time.time()
  now, seconds, step, logged = "", {}, 0, 0.0
  with open(f"{workdir}.log", "a") as log:
    process = subprocess.Popen(command, stdout=log, stderr=log, process_group=0)
  try:
    while process.poll() is None:
      if (new := doing(workdir, start)) != now:
        seconds[now] = time.time() - entered
        now, entered = new, time.time()
      if time.time() - start >= after and aim in ("", now):
        time.sleep(then)
        break
      time.sleep(0.005)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
    code = process.wait()
  with contextlib.suppress(FileNotFoundError), open(f"{workdir}/metrics.jsonl") as f:
    for line in f:
      with contextlib.suppress(ValueError):  # the last may be cut off
        step, logged = (json.loads(line)[key] for key in ("step", "time"))
  where = doing(workdir, start) or ("steps" if logged >= start else "start")
  return code, {**seconds, "all": time.time() - start}, (where, step)


def main() -> int:
  """Entry point."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
  parser.add_argument("--workdir", required=True, help="a new folder, for data and runs")
  parser.add_argument("--kills", type=int, default=20, help="how many must land")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  args, config = parser.parse_known_args()  # the rest is train's: --config and --config.*
  folder, rng, begin = os.path.abspath(args.workdir), random.Random(args.seed), time.time()
  if os.path.exists(folder) and os.listdir(folder):
    parser.error(f"--workdir {folder}: not empty; expected a new folder")
  os.makedirs(folder, exist_ok=True)
  logging.set_verbosity(logging.INFO)
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no child behind
  command = [sys.executable, "-m", "seedream_jax.train", *(config or small_config(folder))]
  digests, landed, code, spans = [], [], 0, {}
  while code == -signal.SIGKILL or (code == 0 and len(landed) < args.kills):
    workdir, draw = f"{folder}/run{len(digests)}", {}
    if len(digests) >= 2 and len(landed) < args.kills:
      aim = AIMS[len(landed) % len(AIMS)]
      after = rng.uniform(0, spans["all"]) if aim != "export" else 0.0
      draw = dict(aim=aim, after=after, then=rng.random() * spans.get(aim, 0.0) if aim else 0.0)
    code, seconds, place = run([*command, f"--workdir={workdir}"], workdir, **draw)
    if draw and code == -signal.SIGKILL:
      landed.append(place)
      logging.info("kill %d of %d: %s, step %d", len(landed), args.kills, *place)
    else:
      if len(digests) < 2:
        spans = {what: min(s, spans.get(what, s)) for what, s in seconds.items()}
      paths = sorted(glob.glob(f"{workdir}/weights/*"))
      digests.append({os.path.basename(path): weights.sha256(path) for path in paths})
      logging.info("%s ended after %.1f s, exit code %d", workdir, seconds["all"], code)
  report = {
    "identical": code == 0 and bool(digests[0]) and all(d == digests[0] for d in digests),
    "kills": len(landed),
    "restarts": len(landed),
    "where": collections.Counter(where for where, _ in landed),
    "steps": [step for _, step in landed],
    "runs": len(digests) - 2,
    "whole_run_seconds": round(spans["all"], 1),
    "seconds": round(time.time() - begin, 1),
    "commit": machine.commit(),
    "cpu": machine.cpu(),
    "sha256": digests[0],
  }
  print(json.dumps(report))
  return 0 if report["identical"] else 1


if __name__ == "__main__":
  sys.exit(main())
