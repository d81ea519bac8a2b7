r"""Judges a model on a held-out suite, or one trained part on its gate; prints one JSON object as its last line.

  python -m seedream_jax.evaluate --workdir weights/nano --suite heldout --out report.json
  python -m seedream_jax.evaluate --workdir W/weights --suite heldout --out new.json --against report.rows.jsonl
  python -m seedream_jax.evaluate --workdir W/autoencoder/weights --suite vae --data DATA:val

Suites: heldout, bench, text, hard, val (prompts; judges with their ceilings and 95% intervals) and the gates vae,
language, glyph (see run/gates.py). Beside the report stand a sheet of samples, an HTML page and, for --against, the
outcomes of every image. With classifier B (experiments/judge.py) its answers stand beside the matched filter's as
*_b, and suite heldout has the FD-judge, "smoke" below 5,000 images (--images_per_prompt 11).
"""

from collections.abc import Sequence

from absl import flags

from seedream_jax import types
from seedream_jax.eval import report as report_lib
from seedream_jax.eval import suites
from seedream_jax.run import cli, gates, pipeline, score
from seedream_jax.run import open as open_lib

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
pipeline.define_flags()
flags.adopt_module_key_flags(pipeline)  # --help shows them
_CLASSIFIER = flags.DEFINE_string(
  "classifier", None, "Folder of classifier B; default weights/WORLD/judge where it is; '' = none."
)
_AGAINST = flags.DEFINE_string("against", "", "ROWS.jsonl of a run to subtract, image by image.")
_DATA = flags.DEFINE_string("data", "", "Data set a gate reads.")
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", "", "SentencePiece model or tokenizer.json, for the language gate."
)
flags.mark_flags_as_required(["workdir"])


def run_gate(name: str) -> dict:
  """The gate's numbers."""
  num = _NUM.value or 2048
  if not _DATA.value:
    raise types.UserError(f"--suite {name} needs --data")
  if name == "language" and not _TOKENIZER.value:
    raise types.UserError(f"--suite {name} needs --tokenizer")
  if name == "vae":
    return gates.vae(_WORKDIR.value, _DATA.value, _WORLD.value, num)
  if name == "language":
    return gates.language(_WORKDIR.value, _DATA.value, _TOKENIZER.value, num)
  return gates.glyph(_WORKDIR.value, _DATA.value, num)


def run_suite() -> suites.Result:
  """Scores the suite the flags ask for."""
  request = score.Request(
    suite=_SUITE.value,
    world=_WORLD.value,
    prompts=_PROMPTS.value,
    num=_NUM.value,
    images_per_prompt=_PER_PROMPT.value,
    classifier=_CLASSIFIER.value,
    against=_AGAINST.value,
  )
  options = pipeline.options_of_flags()
  result = score.score(request, lambda: pipeline.open_pipeline(_WORKDIR.value), options)
  result.report["weights"] = _WORKDIR.value
  if "against" in result.report:
    print(score.table(result.report["against"]["differences"]))
  return result


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  cli.prepare_jax()
  name, out = _SUITE.value, _OUT.value
  if name not in (*suites.SUITES, *GATES):
    near = open_lib.nearest(name, (*suites.SUITES, *GATES))
    raise types.UserError(f"--suite: no suite {name!r}{near}")
  if out:
    cli.check_out("--out", out)
  if name in GATES:
    report = run_gate(name)
    if out:
      report_lib.write_json(out, report)
  else:
    result = run_suite()
    report = result.report
    if out:
      score.write(out, result)
  print(suites.last_line(report))
  return 0


if __name__ == "__main__":
  cli.run(main)
