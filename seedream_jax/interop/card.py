"""The model card of an export, from what its run wrote down: config, metrics, provenance, judges' reports."""

import os
from typing import Any

from seedream_jax import types
from seedream_jax.engine import metrics, trees
from seedream_jax.interop import config_json, diffusers

_SUITES = ("heldout", "bench", "text", "hard")


def write(model: diffusers.Model, workdir: str, out: str, dtype: str, weights: str) -> str:
  """README.md of the exported folder; what is not known is said to be unknown."""
  name = os.path.basename(os.path.abspath(out))
  lines = [
    "---", "library_name: diffusers", "pipeline_tag: text-to-image", "language:", "- zh", "- en", "---", "",
    f"# {name}", "",
    "A bilingual text-to-image model: a decoder-only language model and a byte encoder read the prompt, a two-stream "
    "flow transformer draws latents, an autoencoder decodes them. Strings in quotes are drawn into the picture.", "",
    "```python", "import torch", "from diffusers import DiffusionPipeline", "",
    'folder = "."  # this folder; give its path from elsewhere',
    f"pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.{dtype}, trust_remote_code=True)",
    "image = pipe('a poster that says \"LOVE\" with a panda', generator=torch.Generator().manual_seed(0)).images[0]",
    'image.save("out.png")', "```", "",
    "`trust_remote_code` runs `pipeline.py` and `transformer/transformer.py` of this folder; read them first.", "",
    "## Parts", "", "| part | parameters | class | trained for |", "|---|---:|---|---|",
  ]  # fmt: skip
  made = _read(os.path.join(workdir, "provenance.json"))
  for part, (folder, _, _) in diffusers.COMPONENTS.items():
    cls, count = diffusers.class_name(part, model.configs[part]), trees.count(model.params[part])
    lines.append(f"| {folder} | {count:,} | {cls} | {_steps(made.get(part, {}))} |")
  lines += ["", "## Training", ""]
  lines += [f"- {k}: {v}" for k, v in _training(model.ours, workdir, dtype, weights).items()]
  lines += ["", "## Scores", "", *_scores(workdir)]
  lines += ["", "## Licence", "", "Not stated by the run: ask whoever trained these weights.", ""]
  return "\n".join(lines)


def _training(config: dict[str, Any], workdir: str, dtype: str, weights: str) -> dict[str, str]:
  stream = config["data"]["streams"]["train"]
  stage = config["stage"]
  found = {
    "objective": f"rectified flow, t {stage.get('density', 'logit_normal')}, shift {stage.get('shift', 1.0)}",
    "data": ", ".join(f"{path} ({share})" for path, share in stream["sources"]),
    "batch": str(stream["batch_size"]),
    "optimizer": f"{config['optim']['optimizer']}, learning rate {config['optim']['lr']}",
    "weights": f"{'EMA' if weights == 'ema' else 'raw parameters'}, {dtype}",
  }
  rows = _rows(workdir)
  losses = [row for row in rows if "val/loss" in row]
  if rows:
    found["last logged step"] = str(rows[-1]["step"])
  if losses:
    found["validation loss"] = f"{losses[-1]['val/loss']:.4f} at step {losses[-1]['step']}"
  return found


def _read(path: str) -> dict[str, Any]:
  return config_json.read_json(path) if os.path.exists(path) else {}


def _rows(workdir: str) -> list[dict[str, Any]]:
  path = os.path.join(workdir, "metrics.jsonl")
  try:
    return metrics.read(workdir) if os.path.exists(path) else []
  except (KeyError, TypeError, ValueError) as e:
    raise types.UserError(f"{path}: not lines of metrics ({e})") from e


def _steps(made: dict[str, Any]) -> str:
  """'12000 steps (denoise), after 27584', as far as provenance.json tells."""
  if "step" not in made:
    return "unknown"
  before = made.get("continued_from", {}).get("step")
  stage = f" ({made['stage']})" if "stage" in made else ""
  return f"{made['step']} steps{stage}" + (f", after {before}" if before else "")


def _scores(workdir: str) -> list[str]:
  """One table a suite that was judged."""
  lines = []
  for suite in _SUITES:
    scores = _read(os.path.join(workdir, f"{suite}.json")).get("metrics", {})
    if scores:
      lines += [f"| {suite} | value | 95% interval |", "|---|---:|---|"]
      lines += [
        "| {} | {value:.3f} | {lo:.3f} - {hi:.3f} |".format(n, **x) for n, x in scores.items()
      ]
      lines.append("")
  return lines or ["None found beside the weights."]
