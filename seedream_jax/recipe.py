r"""Runs every stage of a recipe in order; skips what is done, resumes what was cut, stops at a failed gate.

  python -m seedream_jax.recipe --config experiments/recipes/nano.py --workdir /tmp/nano

A recipe is a list of steps, each a command line of another verb or pipeline, run as its own process:
`{workdir}` stands for the recipe's workdir. A step may carry a gate on the JSON object its command prints
last: (metric, ">=", bound). What ran, how long and what the gates saw stand in WORKDIR/recipe.json.
"""

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import flags, logging
from ml_collections import config_flags

from seedream_jax import types
from seedream_jax.run import cli
from seedream_jax.run import open as open_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Recipe, e.g. experiments/recipes/nano.py", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Where the stages' workdirs and data go.")
_UNTIL = flags.DEFINE_string("until", None, "Stop after the step of this name.")
flags.mark_flags_as_required(["config", "workdir"])


def run_step(command: str, workdir: str) -> dict:
  """Runs one command with this interpreter; returns the JSON object on its last stdout line, or {}."""
  argv = shlex.split(command.replace("{workdir}", workdir))
  logging.info("$ python -m %s", shlex.join(argv))
  process = subprocess.Popen(
    [sys.executable, "-m", *argv], stdout=subprocess.PIPE, text=True, encoding="utf-8"
  )
  last = ""
  for line in process.stdout:
    print(line, end="", flush=True)
    last = line.strip() or last
  code = process.wait()
  if code != 0:  # of a mistake of the user's it has told, in the one line there is to be
    logging.warning("stopped with exit code %d: python -m %s", code, shlex.join(argv))
    raise SystemExit(code)
  try:
    result = json.loads(last)
  except ValueError:
    return {}
  return result if isinstance(result, dict) else {}


def check_gates(name: str, gates: Sequence[Sequence], result: dict) -> dict:
  """{metric: value} of the gates that passed; raises UserError naming the first that did not."""
  seen = {}
  for metric, bound in gates:
    if metric not in result:
      raise types.UserError(
        f"recipe step {name}: its command printed no {metric!r}; it printed {sorted(result)}"
      )
    value = result[metric]
    if not value >= bound:
      raise types.UserError(f"gate {name}: {metric} = {value:.4f}, needs >= {bound}")
    seen[metric] = value
  return seen


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  workdir = os.path.abspath(_WORKDIR.value)
  with cli.claim(workdir):
    return run_recipe(workdir)


def run_recipe(workdir: str) -> int:
  """Runs or skips every step; the exit code."""
  steps = _CONFIG.value.get("steps")
  if steps is None:
    raise types.UserError("--config: holds no steps; expected one of experiments/recipes")
  names = [s["name"] for s in steps]
  if _UNTIL.value and _UNTIL.value not in names:
    raise types.UserError(
      f"--until: no step {_UNTIL.value!r}{open_lib.nearest(_UNTIL.value, names)}"
    )
  log_path = os.path.join(workdir, "recipe.json")
  log = {}
  if os.path.exists(log_path):
    try:
      with open(log_path) as f:
        log = json.load(f)
    except ValueError as e:
      raise types.UserError(f"{log_path}: not JSON ({e}); move it away to start over") from e
  redo = False
  for step in steps:
    name, command = step["name"], " ".join(step["command"].split())
    key = hashlib.sha256(command.encode()).hexdigest()
    if not redo and log.get(name, {}).get("key") == key:
      logging.info("%s: done (%.0f s)", name, log[name]["seconds"])
    else:
      redo = redo or name in log  # a changed step invalidates those after it
      start = time.time()
      result = run_step(command, workdir)
      gates = check_gates(name, step["gates"], result)
      log[name] = {
        "key": key,
        "command": command,
        "seconds": time.time() - start,
        "gates": gates,
        "result": result,
      }
      with open(log_path + ".tmp", "w") as f:
        json.dump(log, f, indent=1, ensure_ascii=False)
      os.replace(log_path + ".tmp", log_path)
    if name == _UNTIL.value:
      break
  print(
    json.dumps(
      {n: log[n]["gates"] for n in names if n in log and log[n]["gates"]}, ensure_ascii=False
    )
  )
  return 0


if __name__ == "__main__":
  cli.run(main)
