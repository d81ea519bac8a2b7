"""Gates on the text encoders before a DiT is trained on them: can what a caption says be read off?

  language   a linear probe on frozen, pooled LLM features names subject, colour, count, place, in
  each language retrieval  a rendered string finds its own ByT5 embedding among hard negatives, and
  the other way round

B batch, L LLM tokens, E feature width, M strings, N = 1 + hard negatives (0 is the true one), P
joint embedding. Functions of features come from the caller, so nothing here knows how they were
trained.
"""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seedream_jax import types
from seedream_jax.data import records, tokenizers

LANGUAGE_GATE, RETRIEVAL_GATE = 0.99, 0.95

Scene = Mapping[str, Any]


def _subject(scene: Scene) -> str | None:
  kinds = {s["emoji"] for s in scene["subjects"]}
  return kinds.pop() if len(kinds) == 1 else None


# What a caption that says everything says of its scene; None where there is no one answer.
LABELS: dict[str, Callable[[Scene], Any]] = {
  "subject": _subject,
  "colour": lambda scene: scene["background"]["color"],
  "count": lambda scene: scene["count"] or None,
  "place": lambda scene: scene["subjects"][0]["place"] if scene["count"] == 1 else None,
  "text_colour": lambda scene: scene["text"]["color"] if scene["text"] else None,
  "text_place": lambda scene: scene["text"]["place"] if scene["text"] else None,
}
GATED = ("subject", "colour", "count", "place")


@dataclasses.dataclass(frozen=True)
class Example:
  """A tokenized caption and what it says."""

  ids: tuple[int, ...]
  lang: str
  labels: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Probe:
  """How well a linear probe reads one label."""

  accuracy: float
  train_accuracy: float
  examples: int  # tested on
  classes: int


def examples(
  spec: str,
  tokenizer: tokenizers.Tokenizer,
  *,
  limit: int,
  kinds: Sequence[str] = ("long",),
) -> list[Example]:
  """Captions of the given kinds from the first `limit` records of "path[:split]".

  Args:
    spec: the data set; its scenes are known.
    tokenizer: of the LLM.
    limit: records read.
    kinds: of caption; only "long" ones name everything that LABELS asks for.
  """
  found: list[tuple[str, str, dict[str, Any]]] = []
  for record in itertools.islice(
    records.iterate(records.open_split(spec), "scene", "captions"), limit
  ):
    scene = json.loads(record["scene"] or b"{}")
    if not scene:
      raise types.UserError(
        f"data set {spec}: records hold no scene, so there is nothing to probe for"
      )
    labels = {name: label(scene) for name, label in LABELS.items()}
    captions = record["captions"]
    for text, lang, kind in zip(captions["text"], captions["lang"], captions["kind"]):
      if kind.decode() in kinds:
        found.append((text.decode(), lang.decode(), labels))
  ids = tokenizer.encode_batch([text for text, _, _ in found])
  return [Example(tuple(i), lang, labels) for i, (_, lang, labels) in zip(ids, found)]


def language(
  features_fn: Callable[[np.ndarray], jax.Array],
  train: Sequence[Example],
  test: Sequence[Example],
  *,
  names: Sequence[str] = tuple(LABELS),
  batch_size: int = 256,
  pad_id: int = tokenizers.PAD,
) -> dict[str, Probe]:
  """Probes each label in each language.

  Args:
    features_fn: ids_BL to features_BE; jitted by the caller, called with one shape.
    train: what probes are fitted on.
    test: what they are judged on.
    names: of LABELS.
    batch_size: B.
    pad_id: of the tokenizer that made the examples.

  Returns:
    {"subject/zh": Probe}.
  """
  length = max(len(e.ids) for e in itertools.chain(train, test))
  out = {}
  for lang in sorted({e.lang for e in test}):
    ours = [[e for e in side if e.lang == lang] for side in (train, test)]
    fit_BE, judge_BE = (_features(features_fn, side, length, batch_size, pad_id) for side in ours)
    for name in names:
      fit, judge = ([e.labels[name] for e in side] for side in ours)
      out[f"{name}/{lang}"] = linear_probe(fit_BE, fit, judge_BE, judge)
  return out


def linear_probe(
  train_BE: np.ndarray,
  train_labels: Sequence[Any],
  test_BE: np.ndarray,
  test_labels: Sequence[Any],
) -> Probe:
  """Logistic regression on standardised features; examples labelled None are left out."""
  fit, judge = (
    [i for i, x in enumerate(side) if x is not None] for side in (train_labels, test_labels)
  )
  classes = sorted({train_labels[i] for i in fit})
  if not judge or len(classes) < 2:
    raise ValueError(f"{len(judge)} test examples over {len(classes)} classes: nothing to probe")
  number = {x: i for i, x in enumerate(classes)}
  fit_BE, judge_BE = train_BE[fit], test_BE[judge]
  mean_E, std_E = fit_BE.mean(axis=0), fit_BE.std(axis=0) + 1e-6
  fit_BE, judge_BE = ((x - mean_E[None]) / std_E[None] for x in (fit_BE, judge_BE))
  fit_B = np.array([number[train_labels[i]] for i in fit])
  judge_B = np.array([number.get(test_labels[i], -1) for i in judge])
  weights = _fit(jnp.asarray(fit_BE), jnp.asarray(fit_B), len(classes))
  right = [
    np.argmax(_scores(weights, x), axis=1) == y for x, y in ((judge_BE, judge_B), (fit_BE, fit_B))
  ]
  return Probe(float(right[0].mean()), float(right[1].mean()), len(judge), len(classes))


def retrieval(
  embed_fn: Callable[[Mapping[str, np.ndarray]], tuple[jax.Array, jax.Array]],
  batches: Iterable[Mapping[str, np.ndarray]],
) -> dict[str, float]:
  """How often the true pair beats every hard negative; a tie is a loss.

  Args:
    embed_fn: batch to x_MNP of boxes and y_MNP of strings, in the order of `byt5_ids_BJNG`.
    batches: of `data.glyphs.FEATURES`.

  Returns:
    "zh", "en": mean of both directions, by the true string's language; "box_to_text",
    "text_to_box": over both languages; "strings": judged; "chance".
  """
  hits: dict[str, list[np.ndarray]] = {"box_to_text": [], "text_to_box": []}
  chinese, cells = [], 0
  for batch in batches:
    x_MNP, y_MNP = (np.asarray(v, np.float32) for v in embed_fn(batch))
    cells = x_MNP.shape[1]
    hits["box_to_text"].append(_wins(np.einsum("mp,mnp->mn", x_MNP[:, 0], y_MNP)))
    hits["text_to_box"].append(_wins(np.einsum("mnp,mp->mn", x_MNP, y_MNP[:, 0])))
    true_MG = batch["byt5_ids_BJNG"][:, :, 0].reshape(len(x_MNP), -1)
    chinese.append((np.asarray(true_MG) >= 128 + tokenizers.BYT5_OFFSET).any(axis=1))
  if not chinese:
    raise ValueError("no batch to judge")
  both = {k: np.concatenate(v) for k, v in hits.items()}
  zh_M, mean_M = np.concatenate(chinese), np.mean(list(both.values()), axis=0)
  out = {k: float(v.mean()) for k, v in both.items()}
  out.update({k: float(mean_M[m].mean()) for k, m in (("zh", zh_M), ("en", ~zh_M)) if m.any()})
  return {**out, "strings": len(zh_M), "chance": 1 / cells}


def failing(scores: Mapping[str, float], gate: float) -> dict[str, float]:
  """The scores below a gate, to stop a recipe with."""
  return {k: v for k, v in scores.items() if not v >= gate}


def _wins(score_MN: np.ndarray) -> np.ndarray:
  return score_MN[:, 0] > score_MN[:, 1:].max(axis=1)


def _features(
  features_fn: Callable[[np.ndarray], jax.Array],
  side: Sequence[Example],
  length: int,
  batch_size: int,
  pad_id: int,
) -> np.ndarray:
  out = []
  for start in range(0, len(side), batch_size):
    ids_BL = np.full((batch_size, length), pad_id, np.int32)
    some = side[start : start + batch_size]
    filled = itertools.chain(some, itertools.repeat(some[-1]))  # up to the batch
    for row, example in zip(ids_BL, filled):
      row[: len(example.ids)] = example.ids
    out.append(np.asarray(features_fn(ids_BL), np.float32)[: len(some)])
  return np.concatenate(out)


def _scores(weights: tuple[jax.Array, jax.Array], x_BE: jax.Array) -> np.ndarray:
  matrix, bias = weights
  return np.asarray(x_BE @ matrix + bias[None])


@functools.partial(jax.jit, static_argnums=2)
def _fit(
  x_BE: jax.Array, y_B: jax.Array, classes: int, steps: int = 400, decay: float = 1e-4
) -> tuple[jax.Array, jax.Array]:
  """Full-batch Adam to the optimum of a convex loss, from zero: no seed."""

  def loss(weights):
    matrix, bias = weights
    nll_B = optax.softmax_cross_entropy_with_integer_labels(x_BE @ matrix + bias[None], y_B)
    return jnp.mean(nll_B) + decay * jnp.sum(jnp.square(matrix))

  optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))

  def step(carry, _):
    weights, state = carry
    updates, state = optimizer.update(jax.grad(loss)(weights), state)
    return (optax.apply_updates(weights, updates), state), None

  weights = (jnp.zeros((x_BE.shape[1], classes)), jnp.zeros((classes,)))
  return jax.lax.scan(step, (weights, optimizer.init(weights)), None, length=steps)[0][0]
