r"""What the arms of a recipe show: scores, and paired differences with intervals, seed by seed.

  python -m benchmarks.arms --folder out/ct --seeds 0,1 --metrics aes,subject,R_a --compare plain-@:labels-@-1 \
    --compare labels-@-0:labels-@-1 --out benchmarks/results/ct/arms.json

FOLDER/ARM.rows.jsonl are what evaluate --out wrote; @ stands for the seed. A comparison BASE:OTHER pairs pictures of
one prompt and one noise, and bootstraps prompts. Where one arm has fewer pictures, only what both have is compared.
A difference is called better or worse when its interval leaves 0 on the same side in every seed, and in at least two;
equal when every interval lies within 3 points.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import machine
from seedream_jax import types
from seedream_jax.eval import report as report_lib
from seedream_jax.eval import stats, suites
from seedream_jax.run import cli

_FOLDER = flags.DEFINE_string("folder", None, "Where the arms' rows are.")
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Of training.")
_METRICS = flags.DEFINE_list("metrics", None, "Whose differences are taken.")
_COMPARE = flags.DEFINE_multi_string("compare", None, "BASE:OTHER; @ is the seed.")
_OUT = flags.DEFINE_string("out", None, "The JSON file; the table is printed.")
flags.mark_flags_as_required(["folder", "metrics", "compare", "out"])


def shared_rows(
  base: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
  """The rows of both of which the other has the same picture: prompt and noise."""
  keys = {(row["id"], row["seed"]) for row in base} & {(row["id"], row["seed"]) for row in other}
  return tuple([row for row in arm if (row["id"], row["seed"]) in keys] for arm in (base, other))


def score(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, float]:
  """Value, interval and number of pictures of one arm."""
  found = [row for row in rows if metric in row["outcomes"]]
  num, den = zip(*(row["outcomes"][metric] for row in found))
  got = stats.bootstrap(num, den, [row["cluster"] for row in found])
  return {"value": got.value, "lo": got.lo, "hi": got.hi, "n": got.n}


def verdict(differences: Sequence[Mapping[str, Any]]) -> str:
  """What all seeds say together."""
  found = {difference["verdict"] for difference in differences}
  if len(differences) > 1 and len(found) == 1 and found <= {"better", "worse"}:
    return found.pop()
  return "equal" if all(d["within_margin"] for d in differences) else "undecided"


def read(folder: str, arm: str) -> list[dict[str, Any]]:
  """The rows of an arm."""
  return suites.read_rows(os.path.join(folder, f"{arm}.rows.jsonl"))


def collect(
  folder: str, seeds: Sequence[str], compare: Sequence[str], metrics: Sequence[str]
) -> dict[str, Any]:
  """{"arms": {arm: {metric: score}}, "differences": {comparison: {metric: {"seeds", "verdict"}}}}."""
  arms: dict[str, list[dict[str, Any]]] = {}
  out: dict[str, Any] = {"arms": {}, "differences": {}}
  for spec in compare:
    if spec.count(":") != 1:
      raise types.UserError(f"--compare {spec}: expected BASE:OTHER")
    by_metric: dict[str, list[dict[str, Any]]] = {metric: [] for metric in metrics}
    for seed in seeds:
      base, other = spec.replace("@", seed).split(":")
      for arm in (base, other):
        if arm not in arms:
          arms[arm] = read(folder, arm)
          out["arms"][arm] = {metric: score(arms[arm], metric) for metric in metrics}
      found = suites.compare(*shared_rows(arms[base], arms[other]), metrics)
      for metric in metrics:
        by_metric[metric].append({"seed": seed, **found[metric]})
    out["differences"][spec] = {
      metric: {"seeds": found, "verdict": verdict(found)} for metric, found in by_metric.items()
    }
  return out


def table(result: Mapping[str, Any], metrics: Sequence[str]) -> str:
  """Markdown: the arms, then the differences, a column a metric."""
  head = " | ".join(metrics)
  lines = [f"| arm | {head} |", "|---" * (len(metrics) + 1) + "|"]
  for arm, scores in result["arms"].items():
    cells = (f"{s['value']:.3f} ({s['lo']:.3f}, {s['hi']:.3f})" for s in scores.values())
    lines.append(f"| {arm} | {' | '.join(cells)} |")
  lines += ["", f"| other - base | {head} |", "|---" * (len(metrics) + 1) + "|"]
  for spec, by_metric in result["differences"].items():
    base, other = spec.split(":")
    cells = (
      "<br>".join(f"{d['value']:+.3f} ({d['lo']:+.3f}, {d['hi']:+.3f})" for d in found["seeds"])
      + f"<br>{found['verdict']}"
      for found in by_metric.values()
    )
    lines.append(f"| {other} - {base} | {' | '.join(cells)} |")
  return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
  """Prints the table and writes the JSON."""
  del argv
  result = collect(_FOLDER.value, _SEEDS.value, _COMPARE.value, _METRICS.value)
  print(table(result, _METRICS.value))
  report_lib.write_json(_OUT.value, {**machine.origin(), **result})
  print(json.dumps({"out": _OUT.value, "comparisons": len(result["differences"])}))
  return 0


if __name__ == "__main__":
  cli.run(main)
