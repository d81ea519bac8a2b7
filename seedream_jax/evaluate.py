r"""Judges a model on a held-out suite, or one trained part on its gate; prints one JSON object as its last line.

  python -m seedream_jax.evaluate --workdir weights/nano --suite heldout --out report.json
  python -m seedream_jax.evaluate --workdir W/autoencoder/weights --suite vae --data DATA:val

Suites: heldout, bench, text, hard, val (prompts; judges with their ceilings and 95% intervals) and the gates vae,
language, glyph (see run/gates.py). Beside the report stand a sheet of samples and an HTML page.
"""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
import tqdm
from absl import flags

from seedream_jax import types
from seedream_jax.eval import report as report_lib
from seedream_jax.eval import suites
from seedream_jax.flow import solvers
from seedream_jax.run import cli, gates, pipeline

GATES = ("vae", "language", "glyph")
_WORKDIR = flags.DEFINE_string("workdir", None, "Training workdir or weights folder.")
_SUITE = flags.DEFINE_string("suite", "heldout", f"One of {', '.join((*suites.SUITES, *GATES))}.")
_OUT = flags.DEFINE_string("out", "", "The report, .json.")
_WORLD = flags.DEFINE_string("world", "nano", "World of the judges.")
_PROMPTS = flags.DEFINE_string("prompts", "benchmarks/prompts", "Folder of WORLD_SUITE.jsonl.")
_NUM = flags.DEFINE_integer(
  "num", 0, "Prompts (or examples of a gate) used, from the first; 0 = all (2,048).", lower_bound=0
)
_PER_PROMPT = flags.DEFINE_integer("images_per_prompt", 1, "Pictures a prompt.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 25, "Solver steps.", lower_bound=1, upper_bound=1000)
_GUIDANCE = flags.DEFINE_float("guidance", 4.0, "Classifier-free guidance scale.", lower_bound=0.0)
_SOLVER = flags.DEFINE_enum("solver", "euler", sorted(solvers.SOLVERS), "ODE solver.")
_DATA = flags.DEFINE_string("data", "", "Data set a gate reads.")
_TOKENIZER = flags.DEFINE_string("tokenizer", "", "SentencePiece model, for the language gate.")
flags.mark_flags_as_required(["workdir"])


def evaluate(
  model: pipeline.Pipeline, options: pipeline.Options, prompts: Sequence[dict]
) -> suites.Result:
  """Samples and judges `prompts`."""
  world = suites.load_world(_WORLD.value)

  def sample_fn(chosen, seeds):
    size = tuple(chosen[0]["scene"]["size"])
    noise = np.concatenate([model.noise([0], size, int(s) & 0x7FFFFFFF) for s in seeds])
    return model.sample([p["prompt"] for p in chosen], noise, options)[0]

  return suites.run_suite(
    _SUITE.value,
    sample_fn,
    prompts,
    judges=suites.make_judges(world),
    ceilings=world["ceilings"][_SUITE.value],
    images_per_prompt=_PER_PROMPT.value,
    batch_size=4 * options.batch_size,
    progress=lambda batches: tqdm.tqdm(batches, desc=_SUITE.value, unit="batch"),
  )


def run_gate(name: str) -> dict:
  """The gate's numbers."""
  num = _NUM.value or 2048
  if not _DATA.value:
    raise types.UserError(f"--suite {name} needs --data")
  if name == "vae":
    return gates.vae(_WORKDIR.value, _DATA.value, _WORLD.value, num)
  if name == "language":
    return gates.language(_WORKDIR.value, _DATA.value, _TOKENIZER.value, num)
  return gates.glyph(_WORKDIR.value, _DATA.value, num)


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  cli.prepare_jax()
  name, out = _SUITE.value, _OUT.value
  if name not in (*suites.SUITES, *GATES):
    raise types.UserError(f"--suite {name}: expected one of {', '.join((*suites.SUITES, *GATES))}")
  if name in GATES:
    report = run_gate(name)
    if out:
      report_lib.write_json(out, report)
    print(suites.last_line(report))
    return 0
  prompts = suites.load_prompts(os.path.join(_PROMPTS.value, f"{_WORLD.value}_{name}.jsonl"))
  prompts = prompts[: _NUM.value or None]
  model = pipeline.open_pipeline(_WORKDIR.value)
  options = pipeline.Options(_STEPS.value, _GUIDANCE.value, _SOLVER.value)
  result = evaluate(model, options, prompts)
  report = result.report | {
    "sampler": dataclasses.asdict(options),
    "weights": _WORKDIR.value,
  }
  if out:
    report_lib.write_json(out, report)
    stem = os.path.splitext(out)[0]
    shown = report_lib.Sheet(name, result.images[:32], [p["prompt"] for p in result.prompts[:32]])
    report_lib.sample_sheet(shown, columns=8).save(f"{stem}.png")
    report_lib.html_page(
      f"{stem}.html", title=f"seedream_jax: {name}", reports=[report], sheets=[shown]
    )
  print(suites.last_line(report))
  return 0


if __name__ == "__main__":
  cli.run(main)
