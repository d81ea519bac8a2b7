"""The model card of an export, from what its run wrote down: config, metrics, provenance, judges' reports."""

import json
import os
from typing import Any

from seedream_jax.engine import metrics, trees
from seedream_jax.interop import diffusers

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
    f'pipe = DiffusionPipeline.from_pretrained("{name}", torch_dtype=torch.{dtype}, trust_remote_code=True)',
    "image = pipe('a poster that says \"LOVE\" with a panda', generator=torch.Generator().manual_seed(0)).images[0]",
    'image.save("out.png")', "```", "",
    "`trust_remote_code` runs `pipeline.py` and `transformer/transformer.py` of this folder; read them first.", "",
    "## Parts", "", "| part | parameters | class |", "|---|---:|---|",
  ]  # fmt: skip
  for part, (folder, _, cls) in diffusers.COMPONENTS.items():
    lines.append(f"| {folder} | {trees.count(model.params[part]):,} | {cls} |")
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
  rows = metrics.read(workdir) if os.path.exists(os.path.join(workdir, "metrics.jsonl")) else []
  steps = [row["step"] for row in rows if "step" in row]
  losses = [row for row in rows if "val/loss" in row]
  found["steps"] = str(max(steps)) if steps else "unknown (no metrics.jsonl there)"
  if losses:
    found["validation loss"] = f"{losses[-1]['val/loss']:.4f} at step {losses[-1]['step']}"
  return found


def _scores(workdir: str) -> list[str]:
  lines = []
  for suite in _SUITES:
    path = os.path.join(workdir, f"{suite}.json")
    if os.path.exists(path):
      with open(path, encoding="utf-8") as f:
        lines += [
          f"{suite}:",
          "",
          "```json",
          json.dumps(json.load(f).get("metrics", {}), indent=1),
          "```",
        ]
  return lines or ["None found beside the weights."]
