r"""Bad cases: the prompts whose pictures the rewards like least, to draw candidates of again.

  python -m data_pipelines.preferences mine --data out/candidates --reward RM1/weights --reward RM2/weights \
    --text_reward RM3/weights --num 1500 --out out/bad.jsonl
  python -m data_pipelines.preferences sample --prompts out/bad.jsonl --model round1=W --out out/again

A set's score is the mean over its pictures that a model drew, the renders left out. Each reward's scores are brought
to mean 0 and deviation 1 over the prompts, so that none rules by its scale, and averaged; --text_reward is asked only
where the prompt quotes text. --num prompts of the lowest average are written, the worst first.

Dims: N candidate sets, K of them that a reward is asked about.
"""

import json
import os
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm
from absl import flags

from data_pipelines.preferences import asked, candidates, scorer
from seedream_jax import types
from seedream_jax.run import cli


def scores(reader: candidates.Reader, rows: Sequence[int], reward: scorer.Scorer) -> np.ndarray:
  """score_K float64: the mean over a set's model pictures, of the sets at `rows`."""

  def pictures() -> Iterator[tuple[str, np.ndarray]]:
    for row in tqdm.tqdm(rows, unit="set", desc="mine"):
      found = reader[row]
      drawn = [
        k for k, origin in enumerate(found.origins) if origin["model"] not in candidates.RENDERS
      ]
      if not drawn:
        raise types.UserError(f"--data: set {row} has no picture that a model drew")
      yield found.prompt.text, np.stack([found.decode(k) for k in drawn])

  return np.array([np.mean(score_R, dtype=np.float64) for score_R in reward(pictures())])


def worst(num_sets: int, given: Sequence[tuple[np.ndarray, np.ndarray]], num: int) -> np.ndarray:
  """Rows of the `num` sets of the lowest mean standard score, the lowest first; ties in the rows' order.

  Args:
    num_sets: N.
    given: (rows_K, score_K) of each reward.
    num: rows wanted.
  """
  total_N, count_N = np.zeros(num_sets), np.zeros(num_sets)
  for rows_K, score_K in given:
    deviation = np.std(score_K)
    total_N[rows_K] += (score_K - np.mean(score_K)) / (deviation if deviation > 0 else 1.0)
    count_N[rows_K] += 1
  asked_N = np.flatnonzero(count_N)
  order = np.argsort(total_N[asked_N] / count_N[asked_N], kind="stable")
  return asked_N[order[:num]]


def line(prompt: asked.Prompt) -> str:
  """The line of a prompt file."""
  row = {"id": prompt.id, "prompt": prompt.text, "lang": prompt.lang}
  if prompt.scene is not None:
    row["scene"] = prompt.scene
  return json.dumps(row, ensure_ascii=False)


def mine(data: str, rewards: Sequence[str], text_reward: str, num: int) -> list[asked.Prompt]:
  """The `num` worst prompts of the candidate sets at `data`.

  Args:
    data: folder[:split].
    rewards: weights folders of stage reward.
    text_reward: one that is asked only about prompts that quote text, or "".
    num: prompts wanted.

  Raises:
    types.UserError: when there is no reward, or one of the folders is not what it should be.
  """
  if not rewards and not text_reward:
    raise types.UserError("--reward: none given; expected weights folders of stage reward")
  reader = candidates.Reader(candidates.open_sets(data))
  jobs = [(folder, np.arange(len(reader))) for folder in rewards]
  if text_reward:
    quoting = [found.row for found in reader if found.prompt.tags]
    jobs += [(text_reward, np.array(quoting))] if quoting else []
  given = [(rows_K, scores(reader, rows_K, scorer.Scorer(folder))) for folder, rows_K in jobs]
  return [reader[int(row)].prompt for row in worst(len(reader), given, num)]


def define_flags() -> None:
  """Called once, by the program."""
  flags.DEFINE_string("data", None, "Candidate sets: folder[:split].", required=True)
  flags.DEFINE_multi_string("reward", [], "Weights folder of stage reward; several times.")
  flags.DEFINE_string("text_reward", "", "One that is asked only where the prompt quotes text.")
  flags.DEFINE_integer("num", None, "Prompts to write.", required=True, lower_bound=1)
  flags.DEFINE_string("out", None, "JSON lines of prompts.", required=True)


def main(argv: list[str]) -> None:
  """Prints how many were written, and how many of them quote text."""
  del argv
  cli.prepare_jax()
  values = flags.FLAGS
  cli.check_out("--out", values.out)
  found = mine(values.data, values.reward, values.text_reward, values.num)
  with open(f"{values.out}.tmp", "w", encoding="utf-8") as f:
    f.writelines(f"{line(prompt)}\n" for prompt in found)
  os.replace(f"{values.out}.tmp", values.out)
  print(json.dumps({"written": len(found), "quoting": sum(bool(p.tags) for p in found)}))
