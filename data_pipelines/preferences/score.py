r"""How often a reward model agrees with held-out choices, beside how often it could.

  python -m data_pipelines.preferences score --reward RM/weights --data out/pairs_text:heldout --dimension text

Choices carry declared noise, so no model can agree with all of them. The noise is a function of the pair, and can be
taken off again: the ceiling is the share of choices that the noise left as they were. Pairs are also cut in thirds by
the gap without noise: the hardest third is where a reward earns its keep. Pairs between two models' pictures are told
apart. Pairs that a person chose, or that come without scores, have no ceiling and no thirds.

Dims: B pairs, R = 2 (preferred, rejected).
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import flags

from data_pipelines.preferences import candidates, pairs, scorer
from seedream_jax import types
from seedream_jax.data import records, transforms
from seedream_jax.eval import stats
from seedream_jax.run import cli

THIRDS = ("hard", "middle", "easy")  # by the gap without noise
_KEYS = ("images", "captions", "bucket", "about")


def clean_gap(about: dict[str, Any], dimension: str) -> float | None:
  """Score of the preferred picture less that of the rejected one, without the noise; None where nothing is known."""
  scores, noise = about.get("scores", {}), about.get("noise")
  if dimension not in scores or not noise or None in about.get("candidates", (None,)):
    return None
  drawn = pairs.noisy((0.0, 0.0), noise["std"][dimension], about["id"], noise["seed"], dimension)
  low_first = about["candidates"][0] < about["candidates"][1]
  better, worse = drawn if low_first else drawn[::-1]
  return (scores[dimension][0] - better) - (scores[dimension][1] - worse)


def summarize(
  right_B: np.ndarray,
  gap_B: Sequence[float | None],
  langs: Sequence[str],
  prompts: Sequence[str],
  models: Sequence[Sequence[str]],
  damages: Sequence[Sequence[str]],
) -> dict[str, dict[str, float]]:
  """{group: accuracy with its interval, ceiling, their ratio, n}; intervals by prompt.

  Args:
    right_B: whether the reward prefers what was preferred.
    gap_B: from `clean_gap`.
    langs: of the prompts.
    prompts: of the pairs.
    models: who drew each pair's pictures.
    damages: what is wrong with each of them on purpose, "" for nothing known.

  Returns:
    Of all, each language, `drawn` (the pairs without a render), the thirds of the gap, and pairs where one picture has
    something wrong with it on purpose, by what it is and by which of the two was preferred: "subject won",
    "subject lost". A reward that knows renders by their look, not by what is wrong, has one right and the other not.
  """
  known_B = np.array([gap is not None for gap in gap_B])
  gap_B = np.array([np.nan if gap is None else gap for gap in gap_B])
  kept_B = (gap_B > 0).astype(float)  # the noise did not turn the choice round
  groups = {"all": np.ones(len(right_B), bool)}
  groups |= {lang: np.array([found == lang for found in langs]) for lang in sorted(set(langs))}
  groups["drawn"] = np.array([not set(both) & set(candidates.RENDERS) for both in models])
  if known_B.sum() >= len(THIRDS):
    cuts = np.quantile(np.abs(gap_B[known_B]), (1 / 3, 2 / 3))
    third_B = np.searchsorted(cuts, np.abs(gap_B))
    groups |= {name: known_B & (third_B == i) for i, name in enumerate(THIRDS)}
  found = {}
  for i, (preferred, rejected) in enumerate(damages):
    if bool(preferred) != bool(rejected):
      name = f"{preferred} won" if preferred else f"{rejected} lost"
      found.setdefault(name, np.zeros(len(right_B), bool))[i] = True
  groups |= dict(sorted(found.items()))
  out = {}
  for name, members_B in groups.items():
    at = np.flatnonzero(members_B)
    if not len(at):
      continue
    got = stats.bootstrap(right_B[at].astype(float), np.ones(len(at)), [prompts[i] for i in at])
    out[name] = {"accuracy": got.value, "lo": got.lo, "hi": got.hi, "n": len(at)}
    if known_B[at].all():
      ceiling = float(kept_B[at].mean())
      out[name] |= {"ceiling": ceiling, "of_ceiling": got.value / ceiling if ceiling else None}
  return out


def read(split: records.Split) -> Iterator[dict[str, Any]]:
  """Every pair: image_RHWC, lang, prompt, about."""
  source = split.source()
  parse = split.parser(*_KEYS, extra={"about": tfds.features.Text()})
  for row in range(len(split)):
    got = parse(source[row])
    text, lang = (got["captions"][key][0].decode() for key in ("text", "lang"))
    yield {
      "image_RHWC": np.stack([transforms.decode(encoded) for encoded in got["images"]]),
      "lang": lang,
      "prompt": text,
      "about": json.loads(got["about"]),
    }


def score(workdir: str, spec: str, dimension: str) -> dict[str, Any]:
  """The report of a weights folder of stage reward on a split of pairs."""
  split = records.open_split(spec)
  if split.content != "images":
    raise types.UserError(f"--data {spec}: holds no pairs; expected what import writes")
  reward = scorer.Scorer(workdir)
  rows: list[dict[str, Any]] = []

  def pictures() -> Iterator[tuple[str, np.ndarray]]:
    for row in tqdm.tqdm(read(split), total=len(split), unit="pair", desc="score"):
      rows.append({key: row[key] for key in ("lang", "prompt", "about")})
      yield row["prompt"], row["image_RHWC"]

  right_B = np.array([score_R[0] > score_R[1] for score_R in reward(pictures())])  # a tie is wrong
  gaps = [clean_gap(row["about"], dimension) for row in rows]
  about = [[row[key] for row in rows] for key in ("lang", "prompt")]
  models = [row["about"].get("models", ()) for row in rows]
  damages = [row["about"].get("damage") or ("", "") for row in rows]
  groups = summarize(right_B, gaps, *about, models, damages)
  return {
    "reward": workdir,
    "data": spec,
    "dimension": dimension,
    "pairs": len(rows),
    "groups": groups,
  }


def define_flags() -> None:
  """Called once, by the program."""
  flags.DEFINE_string("reward", None, "Weights folder of stage reward.", required=True)
  flags.DEFINE_string("data", None, "Pairs, FOLDER:SPLIT.", required=True)
  flags.DEFINE_enum("dimension", "alignment", pairs.DIMENSIONS, "Whose scores made the choices.")
  flags.DEFINE_string("out", "", "The report, .json.")


def main(argv: list[str]) -> None:
  """Prints a line a group, and the report as the last line."""
  del argv
  cli.prepare_jax()
  values = flags.FLAGS
  if values.out:
    cli.check_out("--out", values.out)
  report = score(values.reward, values.data, values.dimension)
  for name, got in report["groups"].items():
    ceiling = f"ceiling {got['ceiling']:.3f}" if "ceiling" in got else "no ceiling"
    print(
      f"{name:12} {got['accuracy']:.3f} [{got['lo']:.3f}, {got['hi']:.3f}] {ceiling} of {got['n']}"
    )
  if values.out:
    with open(values.out, "w", encoding="utf-8") as f:
      json.dump(report, f, indent=1, ensure_ascii=False)
  print(json.dumps(report, ensure_ascii=False))
