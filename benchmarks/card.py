r"""Writes what a recipe run showed: results with curves, and the model card that lies beside the weights.

  python -m benchmarks.card --recipe /tmp/nano --weights weights/nano --results benchmarks/results/nano

Numbers are read from the run: commands, seconds and gates from recipe.json, curves from each stage's metrics.jsonl,
scores from the reports of evaluate. --command, --commit and --note are the caller's word.
"""

import glob
import json
import math
import os
import platform
import time
from collections.abc import Sequence

import jax
from absl import flags

from benchmarks import machine
from seedream_jax import types
from seedream_jax.engine import checkpoint
from seedream_jax.eval import report as report_lib
from seedream_jax.eval import suites
from seedream_jax.run import cli

_RECIPE = flags.DEFINE_string("recipe", None, "Workdir of the recipe that made the weights.")
_COMMAND = flags.DEFINE_string(
  "command",
  "python -m seedream_jax.recipe --config experiments/recipes/nano.py --workdir W",
  "The command that made them.",
)
_COMMIT = flags.DEFINE_string("commit", "", "The commit that made them; default: this tree's.")
_NOTE = flags.DEFINE_string("note", "", "What a reader must know before the scores.")
_WEIGHTS = flags.DEFINE_string("weights", None, "Weights folder; README.md is written there.")
_RESULTS = flags.DEFINE_string("results", None, "Folder for summary.json, curves.html and reports.")
flags.mark_flags_as_required(["recipe", "weights", "results"])

# Curves worth a plot, by stage.
CURVES = {
  "autoencoder": ("vae/l1", "vae/psnr", "val/loss"),
  "autoencoder_noise": ("vae/l1", "val/loss"),
  "lm": ("lm/loss", "lm/accuracy", "lm/recall"),
  "pair": ("pair/accuracy", "lm/loss", "lm/recall"),
  "glyph": ("glyph/box_loss", "glyph/hard_loss", "glyph/hard_accuracy"),
  "pretrain": ("dit/loss", "dit/grad_norm", "val/loss"),
  "continued": ("dit/loss", "dit/grad_norm", "val/loss"),
}
# What a reader asks first: metric and the bar it was made for.
BARS = (
  ("subject", "lower bound >= 0.80; aim 0.90"),
  ("color", "lower bound >= 0.90"),
  ("R_a/zh", "aim 0.78"),
  ("R_a/en", "aim 0.89"),
)


def curves(workdir: str, names: Sequence[str]) -> dict[str, list[report_lib.Curve]]:
  """{metric: [curve]} of one stage; a metric's name may stand under its player's."""
  with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as f:
    rows = [json.loads(line) for line in f]
  out = {}
  for name in names:
    keys = sorted({k for row in rows for k in row if k == name or k.endswith("/" + name)})
    for key in keys:
      points = [(row["step"], row[key]) for row in rows if key in row]
      out[key] = [report_lib.Curve(key, *zip(*points))]
  return out


def seconds_in_steps(workdir: str) -> float:
  """Seconds a stage spent in training steps, over all its runs; recipe.json knows only the last run of a step."""
  try:
    with open(os.path.join(workdir, "metrics.jsonl"), encoding="utf-8") as f:
      rows = [row for row in map(json.loads, f) if "speed/step_s" in row]
  except FileNotFoundError:
    return 0.0
  last, total = 0, 0.0
  for row in rows:
    total += max(row["step"] - last, 0) * row["speed/step_s"]
    last = row["step"]
  return total


def reports(recipe: str) -> dict[str, dict]:
  """{suite: report} of those that were judged, heldout first."""
  found = {}
  for suite in suites.SUITES:
    path = os.path.join(recipe, f"{suite}.json")
    if os.path.exists(path):
      with open(path, encoding="utf-8") as f:
        found[suite] = json.load(f)
  if "heldout" not in found:
    raise types.UserError(
      f"--recipe {recipe}: no heldout.json there, the report the card opens with"
    )
  return found


def card(summary: dict, judged: dict[str, dict]) -> str:
  """The model card, markdown."""
  heldout = judged["heldout"]
  steps = summary["steps"]
  hours = sum(s["seconds"] for s in steps.values()) / 3600
  sampler = heldout["sampler"]
  lines = [
    "# weights/nano",
    "",
    "A bilingual text-to-image model of posters, 64x64 pixels, made from nothing by this repository's own code:",
    "a SentencePiece tokenizer, a decoder-only LLM, a glyph-aligned ByT5, a VAE (f8, 16 channels) and an MMDiT.",
    "Its world is 64 emoji subjects on eight grounds, one or two of 128 Chinese characters, or up to five capitals;",
    "the scores below say how much of it has been learned. It is what the demo and every later stage start from.",
    "",
    *((_NOTE.value, "") if _NOTE.value else ()),
    "    " + summary["command"],
    "",
    "Commit {commit}, {date}, {cpu}, jax {jax};".format(**summary),
    f"{hours:.2f} hours in all. Files are safetensors.",
    "",
    "| file | bytes | parameters | trained for |",
    "|---|---:|---:|---|",
    *(
      f"| {f['file']} | {f['bytes']:,} | {f['parameters']:,} | {f['step']} steps |"
      for f in summary["files"]
    ),
    "",
    f"## Scores (heldout, {heldout['n']} pictures of {heldout['clusters']} scenes never trained on)",
    "",
    f"{sampler['num_steps']} {sampler['solver']} steps, guidance {sampler['guidance']}. Judges had no part in training;"
    " the ceiling is what they give ground truth.",
    "",
    "| metric | value | 95% interval | ceiling | n | bar |",
    "|---|---:|---|---:|---:|---|",
    *(
      "| {} | {value:.3f} | {lo:.3f} - {hi:.3f} | {ceiling:.3f} | {n} | {} |".format(
        name, bar, **heldout["metrics"][name]
      )
      for name, bar in BARS
      if name in heldout["metrics"]
    ),
    "",
    "By suite, value (95% interval):",
    "",
    "| metric | " + " | ".join(judged) + " |",
    "|---|" + "---|" * len(judged),
    *(
      f"| {name} | "
      + " | ".join(
        "{value:.3f} ({lo:.3f} - {hi:.3f})".format(**r["metrics"][name])
        if name in r["metrics"]
        else "-"
        for r in judged.values()
      )
      + " |"
      for name in ("subject", "color", "count", "place", "R_a/zh", "R_a/en", "R_h/zh", "R_h/en")
    ),
    "",
    "## Gates and wall time",
    "",
    "| step | seconds | gate |",
    "|---|---:|---|",
    *(
      f"| {name} | {s['seconds']:.0f} | "
      + ", ".join(f"{k} {v:.4f}" for k, v in s["gates"].items())
      + " |"
      for name, s in steps.items()
    ),
    "",
  ]
  return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  recipe, weights, results = _RECIPE.value, _WEIGHTS.value, _RESULTS.value
  with open(os.path.join(recipe, "recipe.json"), encoding="utf-8") as f:
    steps = json.load(f)
  for name, entry in steps.items():
    entry["seconds"] = max(entry["seconds"], seconds_in_steps(os.path.join(recipe, name)))
  judged = reports(recipe)
  files = []
  for path in sorted(glob.glob(os.path.join(weights, "*.safetensors"))):
    header, metadata = checkpoint.read_header(path)
    files.append(
      {
        "file": os.path.basename(path),
        "bytes": os.path.getsize(path),
        "parameters": sum(math.prod(leaf.shape) for leaf in header.values()),
        "step": metadata.get("step", "?"),
      }
    )
  summary = {
    "command": _COMMAND.value,
    "commit": _COMMIT.value or machine.commit(),
    "date": time.strftime("%Y-%m-%d"),
    "cpu": machine.cpu(),
    "python": platform.python_version(),
    "jax": jax.__version__,
    "files": files,
    "steps": steps,
  }
  report_lib.write_json(os.path.join(results, "summary.json"), summary)
  for suite, report in judged.items():
    report_lib.write_json(os.path.join(results, f"{suite}.json"), report)
  report_lib.html_page(
    os.path.join(results, "curves.html"),
    title="weights/nano",
    subtitle=f"{summary['command']}; commit {summary['commit']}, {summary['date']}, {summary['cpu']}",
    plots={
      f"{stage}: {name}": curve
      for stage, names in CURVES.items()
      if os.path.exists(os.path.join(recipe, stage, "metrics.jsonl"))
      for name, curve in curves(os.path.join(recipe, stage), names).items()
    },
    reports=list(judged.values()),
  )
  with open(os.path.join(weights, "README.md"), "w", encoding="utf-8") as f:
    f.write(card(summary, judged))
  print(json.dumps({"results": results, "files": len(files)}))
  return 0


if __name__ == "__main__":
  cli.run(main)
