r"""Chooses between candidates by raters that share nothing with the judges, with declared noise.

  python -m data_pipelines.preferences rate --data out/candidates --alignment RATERS/objects \
    --text RATERS/glyphs --noise alignment=0.1,text=0.1,aesthetic=0.1 --out out/pairs.jsonl

Each dimension's score gets Gaussian noise of the deviation given, keyed by (pair, seed), as people
disagree; every line and FILE.summary.json say what share of the choices the noise leaves as they were:
no reward trained on the file can be expected to agree with it more often. Lines hold what
`data_pipelines.preferences.pairs` documents. experiments/rater.py trains the two networks; without one
its dimension is left out. Text counts only where the prompt asks for it.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tqdm
from absl import flags

from data_pipelines.preferences import candidates, pairs, raters
from seedream_jax import types
from seedream_jax.run import cli

_CHUNK = 64  # sets rated at once
_NOISE = dict(alignment=0.05, text=0.05, aesthetic=0.05)
_WEIGHTS = dict(alignment=1.0, text=1.0, aesthetic=0.5)


def rate(
  reader: candidates.Reader,
  many: Sequence[raters.Rater],
  *,
  data: str,
  noise: Mapping[str, float],
  weights: Mapping[str, float],
  margin: float = 0.0,
  pairs_per_set: int = 4,
  seed: int = 0,
  rater: str = "rate",
  progress: Callable[[int], None] = lambda sets: None,
) -> tuple[list[pairs.Pair], dict[str, Any]]:
  """(the choices, their summary) over every candidate set.

  Args:
    reader: the candidate sets.
    many: at most one rater a dimension.
    data: how the choices name the data set.
    noise: {dimension: standard deviation}.
    weights: {dimension: its weight in `preferred`}.
    margin: gap of the weighted mean up to which it is a tie.
    pairs_per_set: pairs of each set, chosen by hash.
    seed: of the choice of pairs and of the noise.
    rater: name written into the lines.
    progress: told of sets.
  """
  clean, noised = [], []
  made: list[pairs.Pair] = []
  for start in range(0, len(reader), _CHUNK):
    sets = [reader[row] for row in range(start, min(start + _CHUNK, len(reader)))]
    scores = _scores(sets, many)
    for at, found in enumerate(sets):
      for a, b in pairs.choose(found.prompt.id, len(found.images), pairs_per_set, seed):
        pair = pairs.make(found, a, b, data, rater, scores={}, preferred=pairs.TIE)
        both = {
          name: (got[at, a], got[at, b]) for name, got in scores.items() if got[at, a] is not None
        }
        if not both:
          continue
        heard = {
          name: _noisy(*both[name], a < b, noise[name], pair.id, seed, name) for name in both
        }
        clean.append(_choices(both, weights, margin))
        noised.append(_choices(heard, weights, margin))
        made.append(dataclasses.replace(pair, scores=heard, preferred=noised[-1]["preferred"]))
    progress(len(sets))
  ceilings = {
    name: pairs.ceiling(
      *([choices[name] for choices in arm if name in choices] for arm in (clean, noised))
    )
    for name in ("preferred", *(r.dimension for r in many))
  }
  stated = {
    "std": {r.dimension: noise[r.dimension] for r in many},
    "seed": seed,
    "ceiling": {name: found["value"] for name, found in ceilings.items()},
  }
  summary = {
    "pairs": len(made),
    **pairs.counts(made),
    "ceilings": ceilings,
    "truth_preferred": truth_preferred(made, clean),
    "noise": stated["std"],
    "seed": seed,
    "weights": {r.dimension: weights[r.dimension] for r in many},
    "margin": margin,
    "raters": {r.dimension: r.describe() for r in many},
  }
  return [dataclasses.replace(pair, noise=stated) for pair in made], summary


def truth_preferred(
  made: Sequence[pairs.Pair], clean: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, dict[str, float]]]:
  """{dimension: {damage or slip: share of pairs where ground truth is preferred, n}}, by the scores without noise.

  A rater that is fit for its dimension finds what that is about, and nothing else.
  """
  found: dict[str, dict[str, list[bool]]] = collections.defaultdict(
    lambda: collections.defaultdict(list)
  )
  for pair, choices in zip(made, clean, strict=True):
    models = [image.get("model") for image in pair.images]
    kinds = [image.get("damage") for image in pair.images]
    if candidates.TRUTH in models and any(kinds):
      for name, choice in choices.items():
        if choice != pairs.TIE:
          found[name][next(filter(None, kinds))].append(models[choice] == candidates.TRUTH)
  return {
    name: {
      kind: {"share": round(sum(x) / len(x), 4), "n": len(x)} for kind, x in sorted(of.items())
    }
    for name, of in found.items()
  }


def _scores(
  sets: Sequence[candidates.CandidateSet], many: Sequence[raters.Rater]
) -> dict[str, dict[tuple[int, int], float | None]]:
  """{dimension: {(set, picture): score}}."""
  places = [(at, k) for at, found in enumerate(sets) for k in range(len(found.images))]
  images = [sets[at].decode(k) for at, k in places]
  asked = [sets[at].prompt for at, _ in places]
  return {r.dimension: dict(zip(places, r(images, asked), strict=True)) for r in many}


def _noisy(
  one: float, other: float, is_ordered: bool, std: float, pair_id: str, seed: int, name: str
) -> list[float]:
  """The two scores with their noise; rounded, so that a line is short."""
  low_high = (one, other) if is_ordered else (other, one)
  got = [round(value, 5) for value in pairs.noisy(low_high, std, pair_id, seed, name)]
  return got if is_ordered else got[::-1]


def _choices(
  scores: Mapping[str, Sequence[float]], weights: Mapping[str, float], margin: float
) -> dict[str, Any]:
  """The choice over all dimensions, and by each alone."""
  alone = {name: pairs.preferred({name: got}, {name: 1.0}, 0.0) for name, got in scores.items()}
  return {"preferred": pairs.preferred(scores, weights, margin), **alone}


def parse_numbers(
  flag: str, given: Sequence[str], default: Mapping[str, float]
) -> dict[str, float]:
  """["alignment=0.1", ...] over the defaults.

  Raises:
    types.UserError: on an unknown dimension, or what is no number of at least 0.
  """
  out = dict(default)
  for item in given:
    name, _, value = item.partition("=")
    try:
      number = float(value)
    except ValueError:
      number = -1.0
    if name not in out or not 0 <= number < float("inf"):
      raise types.UserError(
        f"--{flag} {item!r}: expected DIMENSION=NUMBER, at least 0, of {', '.join(out)}"
      )
    out[name] = number
  return out


def define_flags() -> None:
  """Called once, by the program."""
  flags.DEFINE_string("data", None, "Candidate sets: folder[:split].", required=True)
  flags.DEFINE_string("out", None, "JSON lines to write.", required=True)
  flags.DEFINE_string("alignment", "", "Weights folder of classifier A.")
  flags.DEFINE_string("text", "", "Weights folder of the glyph reader.")
  flags.DEFINE_boolean("aesthetic", True, "Pixel statistics of the four aesthetic axes.")
  flags.DEFINE_list("noise", [], f"DIMENSION=DEVIATION,...; default: {_NOISE}.")
  flags.DEFINE_list("weights", [], f"DIMENSION=WEIGHT,... of the choice; default: {_WEIGHTS}.")
  flags.DEFINE_float("margin", 0.0, "Gap up to which it is a tie.", lower_bound=0.0)
  flags.DEFINE_integer("pairs_per_set", 4, "Pairs of each prompt.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Of the choice of pairs and the noise.", lower_bound=0)
  flags.DEFINE_string("rater", "rate", "Name in the lines.")


def main(argv: list[str]) -> int:
  """Entry point; the last line printed is the summary as JSON."""
  del argv
  values = flags.FLAGS
  cli.check_out("--out", values.out)
  noise = parse_numbers("noise", values.noise, _NOISE)
  weights = parse_numbers("weights", values.weights, _WEIGHTS)
  split = candidates.open_sets(values.data)
  cli.prepare_jax()
  many: list[raters.Rater] = []
  if values.alignment:
    many.append(raters.Alignment(values.alignment))
  if values.text:
    many.append(raters.Text(values.text))
  if values.aesthetic:
    many.append(raters.Aesthetic())
  if not many:
    raise types.UserError("--noaesthetic: no rater is left; give --alignment or --text")
  with tqdm.tqdm(total=len(split), desc="rate", unit="set", dynamic_ncols=True, delay=1) as bar:
    made, summary = rate(
      candidates.Reader(split),
      many,
      data=pairs.relative(values.data, values.out),
      noise=noise,
      weights=weights,
      margin=values.margin,
      pairs_per_set=values.pairs_per_set,
      seed=values.seed,
      rater=values.rater,
      progress=bar.update,
    )
  if not made:
    raise types.UserError(f"--data {values.data}: no rater has anything to say of its prompts")
  pairs.write(values.out, made)
  summary = {"candidates": split.manifest_sha256(), **summary}
  with open(f"{os.path.splitext(values.out)[0]}.summary.json", "w", encoding="utf-8") as f:
    json.dump(summary, f, indent=1)
    f.write("\n")
  print(json.dumps(summary))
  return 0
