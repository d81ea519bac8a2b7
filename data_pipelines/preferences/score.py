r"""How often a reward model agrees with held-out choices, beside how often it could.

  python -m data_pipelines.preferences score --reward W --data out/pairs_text:heldout --dimension text --out report.json

Choices carry declared noise, so no model can agree with all of them. The noise is a function of the pair, and can be
taken off again: the ceiling is the share of choices that the noise left as they were. Pairs are also cut in thirds by
the gap without noise: the hardest third is where a reward earns its keep. Pairs that a person chose, or that come
without scores, have no ceiling and no thirds.

Dims: B pairs, R = 2 (preferred, rejected).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import flags

from data_pipelines.preferences import pairs
from seedream_jax import types
from seedream_jax.data import records, tokenizers, transforms
from seedream_jax.eval import evaluators, stats
from seedream_jax.run import cli
from seedream_jax.run import open as open_lib

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
  right_B: np.ndarray, gap_B: Sequence[float | None], langs: Sequence[str], prompts: Sequence[str]
) -> dict[str, dict[str, float]]:
  """{all, a language or a third: accuracy with its interval, ceiling, their ratio, n}; intervals by prompt."""
  known_B = np.array([gap is not None for gap in gap_B])
  gap_B = np.array([np.nan if gap is None else gap for gap in gap_B])
  kept_B = (gap_B > 0).astype(float)  # the noise did not turn the choice round
  groups = {"all": np.ones(len(right_B), bool)}
  groups |= {lang: np.array([found == lang for found in langs]) for lang in sorted(set(langs))}
  if known_B.sum() >= len(THIRDS):
    cuts = np.quantile(np.abs(gap_B[known_B]), (1 / 3, 2 / 3))
    third_B = np.searchsorted(cuts, np.abs(gap_B))
    groups |= {name: known_B & (third_B == i) for i, name in enumerate(THIRDS)}
  out = {}
  for name, members_B in groups.items():
    at = np.flatnonzero(members_B)
    got = stats.bootstrap(right_B[at].astype(float), np.ones(len(at)), [prompts[i] for i in at])
    out[name] = {"accuracy": got.value, "lo": got.lo, "hi": got.hi, "n": len(at)}
    if known_B[at].all():
      ceiling = float(kept_B[at].mean())
      out[name] |= {"ceiling": ceiling, "of_ceiling": got.value / ceiling if ceiling else None}
  return out


def reading(config: ml_collections.ConfigDict) -> Callable[[str], dict[str, np.ndarray]]:
  """fn(prompt) -> one example's text features, as the reward's own run read them."""
  stream = config.data.streams.train
  if "tower_ids_BL" in stream.features:  # it started from a published model
    own = tokenizers.open_tokenizer(stream.tower_tokenizer)
    length = stream.tower_tokens
    return lambda text: {"tower_ids_BL": own.pad(own.encode(text), length, cut=True)}
  tokenizer, length = open_lib.open_tokenizer(config), max(stream.text_buckets)

  def fn(text: str) -> dict[str, np.ndarray]:
    ids, glyphs_BG = tokenizers.encode_prompts(tokenizer, [text], length, stream.glyph_bytes)
    return {"llm_ids_BL": tokenizer.pad(ids[0], length), "byt5_ids_BG": glyphs_BG[0]}

  return fn


def read(
  split: records.Split, encode: Callable[[str], dict[str, np.ndarray]]
) -> Iterator[dict[str, Any]]:
  """Every pair: features (one example of what `scores` takes), lang, prompt, about."""
  source = split.source()
  parse = split.parser(*_KEYS, extra={"about": tfds.features.Text()})
  for row in range(len(split)):
    got = parse(source[row])
    text, lang = (got["captions"][key][0].decode() for key in ("text", "lang"))
    pair = np.stack([transforms.decode(encoded) for encoded in got["images"]])
    yield {
      "features": {"image_BRHWC": pair, **encode(text)},
      "lang": lang,
      "prompt": text,
      "about": json.loads(got["about"]),
    }


def score(workdir: str, spec: str, dimension: str, batch_size: int = 64) -> dict[str, Any]:
  """The report of a training workdir of stage reward on a split of pairs."""
  config = open_lib.read_config(workdir)
  if config.get("stage", {}).get("name") != "reward":
    raise types.UserError(f"--reward {workdir}: its config is not of stage reward")
  split = records.open_split(spec)
  if split.content != "images":
    raise types.UserError(f"--data {spec}: holds no pairs; expected what import writes")
  exp = open_lib.open_config(config, workdir)
  restored = exp.checkpointer.restore(exp.abstract_state)
  if restored is None:
    raise types.UserError(f"--reward {workdir}: no whole checkpoint there yet")
  params, fn = evaluators.eval_params(restored[0]), jax.jit(exp.stage.predict_fns()["scores"])
  rows, right, chunk = [], [], []
  found = read(split, reading(config))
  for at, row in enumerate(tqdm.tqdm(found, total=len(split), unit="pair", desc="score")):
    rows.append({key: row[key] for key in ("lang", "prompt", "about")})
    chunk.append(row)
    if len(chunk) == batch_size or at + 1 == len(split):
      padded = chunk + chunk[-1:] * (batch_size - len(chunk))  # one program for every batch
      batch = {
        name: np.stack([r["features"][name] for r in padded]) for name in padded[0]["features"]
      }
      score_BR = np.asarray(fn(params, exp.frozen, {"train": batch}))[: len(chunk)]
      right.extend(score_BR[:, 0] > score_BR[:, 1])  # a tie is wrong
      chunk = []
  gaps = [clean_gap(row["about"], dimension) for row in rows]
  groups = summarize(
    np.array(right), gaps, [row["lang"] for row in rows], [row["prompt"] for row in rows]
  )
  return {
    "reward": workdir,
    "data": spec,
    "dimension": dimension,
    "pairs": len(rows),
    "groups": groups,
  }


def define_flags() -> None:
  """Called once, by the program."""
  flags.DEFINE_string("reward", None, "Training workdir of stage reward.", required=True)
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
      f"{name:8} {got['accuracy']:.3f} [{got['lo']:.3f}, {got['hi']:.3f}] {ceiling} of {got['n']}"
    )
  if values.out:
    with open(values.out, "w", encoding="utf-8") as f:
      json.dump(report, f, indent=1, ensure_ascii=False)
  print(json.dumps(report, ensure_ascii=False))
