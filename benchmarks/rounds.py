"""Alternating rounds: each side once a round, medians over rounds, ours over theirs.

A ratio is the median over rounds of ours / theirs within one round, so that whatever else the machine does falls on
both. Imports neither JAX nor torch: a child that measures one side must not pay for the other.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm

Measures = dict[str, float]  # name -> number; "seconds", "images/s", ...


def timed(fn: Callable[[], Any]) -> Callable[[], Measures]:
  """`fn`, which blocks until it is done, as a side that measures its seconds."""

  def run() -> Measures:
    start = time.perf_counter()
    fn()
    return {"seconds": time.perf_counter() - start}

  return run


def child(module: str, job: Mapping[str, Any], **env: str) -> Any:
  """What `python -m module --child JOB` prints last, as JSON; its stderr is shown only if it fails."""
  command = [sys.executable, "-m", module, "--child", json.dumps(job)]
  done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
  if done.returncode:
    sys.stderr.write(done.stderr)
    raise RuntimeError(f"{module} --child '{json.dumps(job)}': exit code {done.returncode}")
  return json.loads(done.stdout.splitlines()[-1])


def alternate(
  sides: Mapping[str, Callable[[], Measures]], rounds: int, *, skip: int = 0, desc: str = ""
) -> dict[str, list[Measures]]:
  """{side: measures of each round}; `skip` more rounds come first and are thrown away."""
  found: dict[str, list[Measures]] = {name: [] for name in sides}
  for i in tqdm.tqdm(range(skip + rounds), desc=desc):
    for name, side in sides.items():
      measures = side()
      if i >= skip:
        found[name].append(measures)
  return found


def compare(
  found: Mapping[str, Sequence[Measures]], pairs: Sequence[tuple[str, str]]
) -> dict[str, Any]:
  """Medians of each side, and ratios "ours / theirs" of each pair, by measure; the rounds as they came."""

  def medians(rows: Sequence[Measures]) -> Measures:
    return {key: statistics.median(row[key] for row in rows) for key in rows[0]}

  ratios = {}
  for ours, theirs in pairs:
    both = [
      {key: a[key] / b[key] for key in a if b.get(key)}
      for a, b in zip(found[ours], found[theirs], strict=True)
    ]
    ratios[f"{ours} / {theirs}"] = medians(both)
  return {
    "median": {name: medians(rows) for name, rows in found.items()},
    "ratio": ratios,
    "rounds": {name: list(rows) for name, rows in found.items()},
  }


def table(title: str, result: Mapping[str, Any]) -> str:
  """The medians and the ratios of `compare`, a column for each measure."""
  rows = {**result["median"], **result["ratio"]}
  keys = list(dict.fromkeys(key for row in rows.values() for key in row))
  first = max(len(title), *map(len, rows))
  widths = [max(len(key), 9) for key in keys]
  lines = ["  ".join([title.ljust(first), *(k.rjust(w) for k, w in zip(keys, widths))])]
  for name, row in rows.items():
    cells = [f"{row[k]:.3f}".rjust(w) if k in row else "-".rjust(w) for k, w in zip(keys, widths)]
    lines.append("  ".join([name.ljust(first), *cells]))
  return "\n".join(lines)


def tell(title: str, report: Mapping[str, Any], path: str) -> None:
  """Writes a report whose `results` are of `compare`, and prints its table and, as the last line, its ratios."""
  write(path, report)
  print(table(title, report["results"]))
  print(json.dumps(report["results"]["ratio"]))


def write(path: str, report: Mapping[str, Any]) -> None:
  """Writes a report, whole or not at all; an empty path is nowhere."""
  if path:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(f"{path}.tmp", "w", encoding="utf-8") as f:
      json.dump(report, f, ensure_ascii=False, indent=1)
      f.write("\n")
    os.replace(f"{path}.tmp", path)
