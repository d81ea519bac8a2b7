"""Held-out suites: prompts in, images sampled, judged, and reported with intervals and ceilings.

A suite is a list of prompts; every judge that applies to a prompt's scene judges it. What a judge
scores on ground truth, its ceiling, stands beside each metric, and a judge below `MIN_CEILING` is
refused, not printed.
Clusters are scenes: one scene's prompts in two languages, and their images, share its difficulty.
"""

import dataclasses
import difflib
import hashlib
import importlib.resources
import json
import pathlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from seedream_jax import types
from seedream_jax.eval import frechet, stats
from seedream_jax.eval import judges as judges_lib

SUITES = ("heldout", "bench", "text", "hard", "val")
MIN_CEILING = 0.97
MIN_TRUTH = 100  # images; a finer ceiling is too noisy, and its parent's stands in

Prompt = Mapping[str, Any]
SampleFn = Callable[[Sequence[Prompt], np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Distribution:
  """What the Frechet distance needs: the fixed reference, and real images outside it."""

  features_fn: Callable[[np.ndarray], np.ndarray]
  reference: frechet.Moments
  floor_NF: np.ndarray


@dataclasses.dataclass(frozen=True)
class Result:
  """A suite's outcome.

  Attributes:
    report: one JSON object: suite, n, metrics, refused, ...
    rows: per image: id, seed, cluster, outcomes; two arms are compared row by row.
    images: uint8, in the rows' order.
    prompts: in the rows' order.
  """

  report: dict[str, Any]
  rows: list[dict[str, Any]]
  images: list[np.ndarray]
  prompts: list[Prompt]


def load_prompts(path: str) -> list[Prompt]:
  """Prompts from JSON lines."""
  prompts = _read_lines(
    path, "prompt file", "write it with python -m data_pipelines.posters --prompts ..."
  )
  for number, prompt in enumerate(prompts, 1):
    missing = {"id", "prompt", "lang", "scene"} - set(prompt)
    if missing:
      raise types.UserError(
        f"{path}:{number}: a prompt needs id, prompt, lang, scene; lacks {min(missing)}"
      )
  return prompts


def load_world(name: str) -> dict[str, Any]:
  """A world's subjects, colors, sizes, ceilings by suite, and the fonts they were measured with."""
  folder = importlib.resources.files(__package__) / "worlds"
  known = sorted(f.name.removesuffix(".json") for f in folder.iterdir() if f.name.endswith(".json"))
  if name not in known:
    near = difflib.get_close_matches(name, known, 1) or known
    raise types.UserError(
      f"judges: no world {name!r}; nearest: {near[0]} (data_pipelines.ceilings measures one)"
    )
  return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def make_judges(world: Mapping[str, Any], **options: Any) -> judges_lib.Judges:
  """The judges of a world as `load_world` returns it."""
  return judges_lib.Judges(
    world["subjects"], world["colors"], sizes=tuple(world["sizes"]), **options
  )


def run_suite(
  name: str,
  sample_fn: SampleFn,
  prompts: Sequence[Prompt],
  *,
  judges: judges_lib.Judges,
  ceilings: Mapping[str, Mapping[str, float]],
  images_per_prompt: int = 1,
  batch_size: int = 32,
  alike: Callable[[Prompt], Hashable] = lambda prompt: None,
  distribution: Distribution | None = None,
  progress: Callable[[Sequence], Sequence] = iter,
) -> Result:
  """Samples and judges a suite.

  Args:
    name: one of SUITES.
    sample_fn: (prompts, noise seeds [N] int64) -> uint8 images [N, H, W, 3]; all prompts of a call
      share a size.
    prompts: dicts of id, prompt, lang, scene and optionally category.
    judges: of the prompts' world.
    ceilings: {metric: {"value", "n"}} on ground truth of these prompts, from `measure_ceilings`.
    images_per_prompt: with different noise.
    batch_size: images per call of sample_fn; the last call of a size may be smaller.
    alike: prompts share a call only where this is equal; a sampler that pads says here what it pads to.
    distribution: enables the FD-judge.
    progress: wraps the list of batches, tqdm for one.
  """
  if name not in SUITES:
    near = difflib.get_close_matches(name, SUITES, 1)
    raise types.UserError(
      f"--suite {name}: expected one of {', '.join(SUITES)}"
      + (f"; nearest: {near[0]}" if near else "")
    )
  if not prompts:
    raise types.UserError(f"--suite {name}: no prompts")
  jobs = jobs_of(prompts, images_per_prompt)
  images: list[np.ndarray] = [np.empty(0)] * len(jobs)
  features = []
  for members in progress(list(_batches(jobs, batch_size, alike))):
    chosen = [jobs[i] for i in members]
    got = np.asarray(sample_fn([p for p, _ in chosen], np.array([s for _, s in chosen], np.int64)))
    _check(got, chosen)
    if distribution is not None:
      features.append(np.asarray(distribution.features_fn(got), np.float32))
    for i, image in zip(members, got):
      images[i] = image
  asked = [prompt for prompt, _ in jobs]
  rows = [
    {"id": prompt["id"], "seed": int(seed), "cluster": cluster_of(prompt), "outcomes": outcomes}
    for (prompt, seed), outcomes in zip(jobs, judges.judge(images, asked))
  ]
  add_categories(rows, asked)
  report = summarize(name, rows, ceilings)
  if distribution is not None and len(rows) > 1:  # one image has no covariance
    fd = frechet.fd_judge(
      np.concatenate(features), distribution.reference, floor_NF=distribution.floor_NF
    )
    report["fd_judge"] = fd
  return Result(report, rows, images, asked)


def jobs_of(prompts: Sequence[Prompt], images_per_prompt: int) -> list[tuple[Prompt, int]]:
  """(prompt, noise seed) of every image."""
  return [
    (prompt, noise_seed(prompt["id"], j)) for prompt in prompts for j in range(images_per_prompt)
  ]


def measure_ceilings(
  images: Sequence[np.ndarray], prompts: Sequence[Prompt], judges: judges_lib.Judges
) -> dict[str, dict[str, float]]:
  """{metric: value, lo, hi, n} of ground-truth images."""
  rows = [
    {"id": prompt["id"], "cluster": cluster_of(prompt), "outcomes": outcomes}
    for prompt, outcomes in zip(prompts, judges.judge(images, prompts))
  ]
  add_categories(rows, prompts)
  return {
    metric: {"value": got.value, "lo": got.lo, "hi": got.hi, "n": got.n}
    for metric, got in _intervals(rows).items()
  }


def summarize(
  name: str, rows: Sequence[Mapping[str, Any]], ceilings: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
  """The report of judged rows: metrics with intervals and ceilings, and what was refused."""
  metrics, refused = {}, {}
  for metric, got in _intervals(rows).items():
    ceiling = ceiling_of(metric, ceilings)
    if ceiling is None:
      refused[metric] = {"ceiling": None, "reason": "no ceiling was measured on ground truth"}
    elif ceiling < MIN_CEILING:
      refused[metric] = {"ceiling": ceiling, "reason": f"ceiling below {MIN_CEILING}"}
    else:
      metrics[metric] = {
        "value": got.value,
        "lo": got.lo,
        "hi": got.hi,
        "ceiling": ceiling,
        "n": got.n,
      }
  return {
    "suite": name,
    "n": len(rows),
    "clusters": len({row["cluster"] for row in rows}),
    "smoke": len(rows) < stats.SMOKE_IMAGES,
    "strength": stats.strength(len(rows)),
    "metrics": metrics,
    "refused": refused,
  }


def ceiling_of(metric: str, ceilings: Mapping[str, Mapping[str, float]]) -> float | None:
  """A metric's ceiling, or that of its nearest ancestor measured on MIN_TRUTH images."""
  value, name = None, metric
  while name:
    if name in ceilings:
      value = ceilings[name]["value"]
      if ceilings[name]["n"] >= MIN_TRUTH:
        break
    name = name.rpartition("@")[0] if "@" in name else name.rpartition("/")[0]
  return value


def compare(
  base: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
  """{metric: other - base, interval, verdict} over rows of two arms of equal prompts and noise."""
  check_pairs(base, [(row["id"], row["seed"]) for row in other])
  theirs = {(row["id"], row["seed"]): row for row in other}
  out = {}
  for metric in metrics:
    pairs = [(row, theirs[row["id"], row["seed"]]) for row in base if metric in row["outcomes"]]
    a, b = (
      np.array([row["outcomes"][metric] for row in arm]).reshape(-1, 2) for arm in zip(*pairs)
    )
    clusters = [row["cluster"] for row, _ in pairs]
    got = stats.paired_difference(a[:, 0], b[:, 0], a[:, 1], b[:, 1], clusters)
    out[metric] = {
      "value": got.value,
      "lo": got.lo,
      "hi": got.hi,
      "n": got.n,
      "verdict": stats.verdict(got),
      "within_margin": stats.within(got),
      "strength": stats.strength(got.n),
    }
  return out


def check_pairs(rows: Sequence[Mapping[str, Any]], images: Sequence[tuple[str, int]]) -> None:
  """UserError unless `rows` are of exactly these (prompt id, noise seed) images."""
  if sorted((row["id"], row["seed"]) for row in rows) != sorted(images):
    raise types.UserError(
      f"arms differ in prompts or noise ({len(rows)} and {len(images)} images): "
      "only the same (id, seed) rows can be paired"
    )


def last_line(report: Mapping[str, Any]) -> str:
  """The report as one line of JSON."""
  return json.dumps(report, ensure_ascii=False, allow_nan=False)


def write_rows(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
  """Rows as JSON lines, for `compare` in another run."""
  with open(path, "w", encoding="utf-8") as f:
    f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(path: str) -> list[dict[str, Any]]:
  """What `write_rows` wrote."""
  return _read_lines(path, "file of rows", "evaluate --out writes one")


def _read_lines(path: str, kind: str, advice: str) -> list[dict[str, Any]]:
  """The JSON objects of a file, one a line; `advice` says where a file of this kind comes from."""
  try:
    lines = pathlib.Path(path).read_text(encoding="utf-8").splitlines()
  except FileNotFoundError as e:
    raise types.UserError(f"{path}: no such {kind}; {advice}") from e
  except (OSError, UnicodeDecodeError) as e:
    why = e.strerror if isinstance(e, OSError) else "not UTF-8"
    raise types.UserError(f"{path}: no {kind} ({why}); {advice}") from e
  out = []
  for number, line in enumerate(lines, 1):
    try:
      out.append(json.loads(line or "null"))
    except json.JSONDecodeError as e:
      raise types.UserError(f"{path}:{number}: not JSON ({e}); {advice}") from e
    if not isinstance(out[-1], dict):
      raise types.UserError(f"{path}:{number}: expected one JSON object a line; {advice}")
  return out


def noise_seed(prompt_id: str, sample: int) -> int:
  """The noise of a prompt's sample: the same in every arm, whatever the order or batch."""
  return int.from_bytes(
    hashlib.blake2b(f"{prompt_id}/{sample}".encode(), digest_size=4).digest(), "big"
  )


def cluster_of(prompt: Prompt) -> str:
  """The scene's id: a prompt's id without its language."""
  return prompt.get("cluster") or prompt["id"].removesuffix(f"-{prompt['lang']}")


def add_categories(rows: Sequence[dict[str, Any]], prompts: Sequence[Prompt]) -> None:
  """Adds each judge's overall outcome under judge@category."""
  for row, prompt in zip(rows, prompts):
    if prompt.get("category"):
      whole = {
        name: pair
        for name, pair in row["outcomes"].items()
        if "/" not in name.removeprefix("styled/")
      }
      row["outcomes"] |= {f"{name}@{prompt['category']}": pair for name, pair in whole.items()}


def _intervals(rows: Sequence[Mapping[str, Any]]) -> dict[str, stats.Interval]:
  names = dict.fromkeys(name for row in rows for name in row["outcomes"])
  out = {}
  for name in sorted(names):
    held = [row for row in rows if name in row["outcomes"]]
    num, den = np.array([row["outcomes"][name] for row in held]).T
    out[name] = stats.bootstrap(num, den, [row["cluster"] for row in held])
  return out


def _batches(
  jobs: Sequence[tuple[Prompt, int]], batch_size: int, alike: Callable[[Prompt], Hashable]
) -> Iterator[list[int]]:
  """Indices of jobs of one image size and of prompts that are alike, batch by batch."""
  groups: dict[Hashable, list[int]] = {}
  for i, (prompt, _) in enumerate(jobs):
    groups.setdefault((tuple(prompt["scene"]["size"]), alike(prompt)), []).append(i)
  for members in groups.values():
    for start in range(0, len(members), batch_size):
      yield members[start : start + batch_size]


def _check(images: np.ndarray, jobs: Sequence[tuple[Prompt, int]]) -> None:
  want = (len(jobs), *jobs[0][0]["scene"]["size"], 3)
  if images.shape != want or images.dtype != np.uint8:
    raise ValueError(f"sample_fn returned {images.dtype}{images.shape}, expected uint8{want}")
