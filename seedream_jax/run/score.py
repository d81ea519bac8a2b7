"""One suite from prompts to report: what `evaluate` does for a model that draws.

Classifier B's answers (experiments/judge.py) stand beside the matched filter's as *_b, each with its own ceiling, and
suite heldout gets the FD-judge. Rows of an earlier run of the same prompts and noise can be subtracted.
"""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np
import tqdm

from seedream_jax.eval import judges as judges_lib
from seedream_jax.eval import report as report_lib
from seedream_jax.eval import suites
from seedream_jax.run import judge, pipeline

Prompt = suites.Prompt


@dataclasses.dataclass(frozen=True)
class Request:
  """What to score; each field is a flag of `evaluate`.

  Attributes:
    suite: one of `suites.SUITES`.
    world: of the judges.
    prompts: folder of WORLD_SUITE.jsonl.
    num: prompts used, from the first; 0 = all.
    images_per_prompt: with different noise.
    classifier: folder of classifier B; None takes weights/WORLD/judge where it is, "" has none.
    against: rows of the run to subtract, or "".
  """

  suite: str = "heldout"
  world: str = "nano"
  prompts: str = "benchmarks/prompts"
  num: int = 0
  images_per_prompt: int = 1
  classifier: str | None = None
  against: str = ""


def score(
  request: Request, open_model: Callable[[], pipeline.Pipeline], options: pipeline.Options
) -> suites.Result:
  """Samples and judges a suite; what can be refused is refused before the model is opened."""
  path = os.path.join(request.prompts, f"{request.world}_{request.suite}.jsonl")
  prompts = suites.load_prompts(path)[: request.num or None]
  base = _base(request, prompts)
  classifier = open_classifier(request)
  judged = _judging(request, classifier, prompts)
  model = open_model()

  def sample_fn(chosen, seeds):
    size = tuple(chosen[0]["scene"]["size"])
    noise = np.concatenate([model.noise([0], size, int(s) & 0x7FFFFFFF) for s in seeds])
    return model.sample([p["prompt"] for p in chosen], noise, options)[0]

  result = suites.run_suite(
    request.suite,
    sample_fn,
    prompts,
    images_per_prompt=request.images_per_prompt,
    batch_size=4 * options.batch_size,
    alike=lambda prompt: model.text_bucket(prompt["prompt"]),  # a call pads each bucket apart
    progress=lambda batches: tqdm.tqdm(batches, desc=request.suite, unit="batch"),
    **judged,
  )
  report = result.report | {"sampler": dataclasses.asdict(options)}
  if classifier is not None:
    report["classifier"] = {"path": classifier.folder, "sha256": classifier.sha256()}
  if base:
    found = _subtract(base, result)
    report["against"] = {"rows": request.against, "differences": found}
  return dataclasses.replace(result, report=report)


def open_classifier(request: Request) -> judge.ClassifierB | None:
  """The classifier asked for, or the world's where there is one."""
  folder, default = request.classifier, os.path.join("weights", request.world, "judge")
  if folder is None:
    folder = default if os.path.exists(os.path.join(default, judge.WEIGHTS)) else ""
  return judge.ClassifierB(folder) if folder else None


def write(path: str, result: suites.Result) -> None:
  """The report, and beside it STEM.rows.jsonl, a sheet of samples and an HTML page."""
  report_lib.write_json(path, result.report)
  stem, name = os.path.splitext(path)[0], result.report["suite"]
  suites.write_rows(f"{stem}.rows.jsonl", result.rows)
  shown = report_lib.Sheet(name, result.images[:32], [p["prompt"] for p in result.prompts[:32]])
  report_lib.sample_sheet(shown, columns=8).save(f"{stem}.png")
  report_lib.html_page(
    f"{stem}.html", title=f"seedream_jax: {name}", reports=[result.report], sheets=[shown]
  )


def table(differences: dict[str, dict]) -> str:
  """A line a metric: this run's value minus the other's, with its 95% interval."""
  lines = [f"{'this run - the other':32} {'value':>8}  {'95% interval':16} {'n':>6}"]
  for name, d in differences.items():
    interval = f"[{d['lo']:+.3f}, {d['hi']:+.3f}]"
    lines.append(
      f"{name:32} {d['value']:+8.3f}  {interval:16} {d['n']:6}  {d['verdict']}, {d['strength']}"
    )
  return "\n".join(lines)


def _base(request: Request, prompts: Sequence[Prompt]) -> list[dict]:
  """The rows to subtract, known to be of the same prompts and noise."""
  if not request.against:
    return []
  base = suites.read_rows(request.against)
  jobs = suites.jobs_of(prompts, request.images_per_prompt)
  suites.check_pairs(base, [(prompt["id"], seed) for prompt, seed in jobs])
  return base


def _judging(
  request: Request, classifier: judge.ClassifierB | None, prompts: Sequence[Prompt]
) -> dict:
  """The arguments of `run_suite` that say who judges."""
  world = suites.load_world(request.world)
  ceilings = world["ceilings"][request.suite]
  if classifier is None:
    return dict(judges=suites.make_judges(world), ceilings=ceilings)
  truth = judge.read_truth(classifier.folder, request.world)
  out = dict(
    judges=suites.make_judges(world, second=judges_lib.SecondJudge(classifier.answers)),
    ceilings=ceilings | truth.ceilings[request.suite],
  )
  if request.suite == judge.FD_SUITE:
    out["distribution"] = judge.distribution(classifier, truth, prompts, request.images_per_prompt)
  return out


def _subtract(base: Sequence[dict], result: suites.Result) -> dict[str, dict]:
  """{metric: this run - base} of what both runs judged and the report does not refuse."""
  theirs = {name for row in base for name in row["outcomes"]}
  shared = [name for name in result.report["metrics"] if name in theirs]
  return suites.compare(base, result.rows, shared)
