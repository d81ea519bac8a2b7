"""Evaluators inside the training loop: predict functions and batches in, numbers and pictures out.

`config.eval.evaluators` names them: {name: dict(kind="ValLoss", predict="val_loss", stream="val",
...)}. The loop calls `run` every `config.eval.every_steps` with EMA weights where the run keeps an
`eval` EMA.

Dimension key: B batch, H W height, width (pixel or latent), C channels, L LLM tokens, G glyph bytes.
"""

import difflib
import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from seedream_jax import types
from seedream_jax.data import reader, transforms
from seedream_jax.engine import sharding, trees
from seedream_jax.eval import report

TRAIN = "train"  # the stream name predict functions read

PredictFn = Callable[..., Any]  # (params, frozen, batch, rng) -> arrays


class Stream(Protocol):
  """Batches by number; this host's part of each."""

  def batch(self, step: int) -> Mapping[str, np.ndarray]:
    """Batch `step`."""


class Run(Protocol):
  """The part of an open experiment that an evaluator sees."""

  stage: types.Stage
  frozen: Mapping[str, types.Params]
  workdir: str
  mesh: jax.sharding.Mesh


class Writer(Protocol):
  """Where pictures go."""

  def images(self, step: int, name: str, image: np.ndarray) -> None:
    """Keeps one picture."""


class Evaluator(Protocol):
  """One plugin of the loop."""

  def run(self, run: Run, state: types.TrainState, step: int, writer: Writer) -> dict[str, float]:
    """Scalars named group/name; pictures go to the writer."""


class ValLoss:
  """The mean of a (sum, weight) predict function over the first batches of a stream.

  Sums may be vectors: each slot is reported too, as the eight timesteps of a denoiser's loss are. A predict function
  may also return several such pairs by name, as the rewards of samples.
  """

  def __init__(
    self, name: str, predict_fn: PredictFn, stream: Stream, *, batches: int = 8, seed: int = 0
  ):
    self._name, self._stream, self._batches, self._seed = name, stream, batches, seed
    self._fn = jax.jit(predict_fn)

  def run(self, run: Run, state: types.TrainState, step: int, writer: Writer) -> dict[str, float]:
    """NAME/loss, or NAME/KEY of each pair; and NAME/loss_K for each slot K that saw examples."""
    del step, writer
    params, sums = eval_params(state), []
    for i in range(self._batches):
      batch = _place(self._stream.batch(i), run.mesh)
      rng = jax.random.fold_in(jax.random.key(self._seed), i)
      sums.append(self._fn(params, run.frozen, {TRAIN: batch}, rng))
    sums, out = jax.device_get(sums), {}
    for key in sums[0] if isinstance(sums[0], dict) else ("loss",):
      pairs = [s[key] for s in sums] if isinstance(sums[0], dict) else sums
      total, weight = (np.sum(x, axis=0, dtype=np.float64) for x in zip(*pairs))
      out[f"{self._name}/{key}"] = float(total.sum() / max(weight.sum(), 1e-8))
      if np.ndim(total):
        slots = enumerate(zip(total, weight))
        out |= {f"{self._name}/{key}_{k}": float(t / w) for k, (t, w) in slots if w > 0}
    return out


class Guard(ValLoss):
  """Ends a run whose rewards rise while a score that nobody optimises falls, and goes back to where that was best.

  ReFL raises its rewards for ever; past a point it exploits them. The predict function returns the held-out score and
  the rewards by name, as for ValLoss. What was seen stands in WORKDIR/NAME.json, so that a run that is cut and started
  again decides as if it had not been.
  """

  def __init__(
    self,
    name: str,
    predict_fn: PredictFn,
    stream: Stream,
    *,
    score: str,
    rewards: Sequence[str],
    margin: float = 0.0,
    patience: int = 2,
    batches: int = 8,
    seed: int = 0,
  ):
    """Compiles nothing yet.

    Args:
      name: of the file and of the scalars.
      predict_fn: {score or reward: (sum, weight)} of a batch.
      stream: what it reads.
      score: the held-out one: neither a reward nor a judge.
      rewards: names whose mean has to rise for a fall of the score to be exploitation.
      margin: how far below its best the score may lie.
      patience: looks in a row that end the run.
      batches: read at each look.
      seed: of the noise.
    """
    super().__init__(name, predict_fn, stream, batches=batches, seed=seed)
    self._score, self._rewards = score, tuple(rewards)
    self._margin, self._patience = margin, patience
    self._seen: list[dict[str, float]] | None = (
      None  # rows of this process; before, those of the file
    )

  def run(self, run: Run, state: types.TrainState, step: int, writer: Writer) -> dict[str, float]:
    """NAME/KEY of the score and of each reward, and NAME/best, the step where the score was highest."""
    out = super().run(run, state, step, writer)
    reward = float(np.mean([out[f"{self._name}/{name}"] for name in self._rewards]))
    rows = [row for row in self._rows(run.workdir) if row["step"] < step]
    rows.append({"step": step, "score": out[f"{self._name}/{self._score}"], "reward": reward})
    if jax.process_index() == 0:
      path = self._path(run.workdir)
      with open(path + ".tmp", "w", encoding="utf-8") as f:
        json.dump(rows, f, indent=1)
      os.replace(path + ".tmp", path)
    self._seen = rows
    return out | {f"{self._name}/best": float(_best(rows)["step"])}

  def back_to(self, workdir: str) -> int | None:
    """The best step, once the run is to end; else None."""
    rows = self._seen if self._seen is not None else self._rows(workdir)
    if len(rows) <= self._patience:
      return None
    best = _best(rows)
    for row in rows[-self._patience :]:
      fell = row["score"] < best["score"] - self._margin
      if not (fell and row["reward"] > best["reward"]):
        return None
    return best["step"]

  def _path(self, workdir: str) -> str:
    return os.path.join(workdir, f"{self._name}.json")

  def _rows(self, workdir: str) -> list[dict[str, float]]:
    if not os.path.exists(self._path(workdir)):
      return []
    with open(self._path(workdir), encoding="utf-8") as f:
      return json.load(f)


def _best(rows: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
  return max(rows, key=lambda row: row["score"])  # the first of equals


class SampleGrid:
  """A sheet of samples, always of the same prompts from the same noise.

  Pictures are drawn in the size of those in the stream's first batch, so no size is configured.
  """

  def __init__(
    self,
    name: str,
    predict_fn: PredictFn,
    stream: Stream,
    *,
    prompts: Sequence[str],
    encode: Callable[[Sequence[str]], Mapping[str, np.ndarray]],
    columns: int = 4,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
  ):
    """Compiles nothing yet.

    Args:
      name: of the picture.
      predict_fn: "sample": images in [-1, 1] from what `encode` returns and noise_BHWC; its stage
        has a `model` that encodes images.
      stream: its pictures, pixels or latents, one a prompt or several, give the size.
      prompts: one picture each.
      encode: prompts to llm_ids_BL and byt5_ids_BG.
      columns: of the sheet.
      seed: of the noise.
      options: of the sampler: num_steps, solver, guidance, ...
    """
    self._name, self._stream, self._prompts = name, stream, tuple(prompts)
    self._columns, self._seed = columns, seed
    self._texts = dict(encode(self._prompts))
    self._fn = functools.partial(predict_fn, **dict(options or {}))
    self._sample = functools.cache(self._compiled)

  def run(self, run: Run, state: types.TrainState, step: int, writer: Writer) -> dict[str, float]:
    """Writes the sheet; no scalars."""
    image = jax.device_get(self._sample(run.mesh, run.stage)(eval_params(state), run.frozen))
    pixels = transforms.to_uint8(image)
    sheet = report.Sheet(f"{self._name}, step {step}", list(pixels), self._prompts)
    try:
      drawn = np.asarray(report.sample_sheet(sheet, columns=self._columns))
    except types.UserError as error:  # a missing font must not end a training
      logging.warning("%s: pictures without their prompts, %s", self._name, error)
      drawn = _tile(pixels, self._columns)
    writer.images(step, self._name, drawn)
    return {}

  def _compiled(self, mesh: jax.sharding.Mesh, stage: types.Stage) -> Callable[..., jax.Array]:
    first, count = self._stream.batch(0), len(self._prompts)
    data = dict(self._texts)
    if "size_B2" in first:
      data["size_B2"] = np.repeat(first["size_B2"][:1], count, axis=0)
    picture = next(x for name, x in first.items() if name in reader.PICTURES)
    like_BHWC = jax.ShapeDtypeStruct((count, *picture.shape[-3:]), picture.dtype)

    def sample(params, frozen):
      latent = jax.eval_shape(stage.model.encode_image, {**frozen, **params}, like_BHWC)
      rng = jax.random.key(self._seed)
      noise_BHWC = jax.vmap(  # picture i's is a function of (seed, i) alone
        lambda i: jax.random.normal(jax.random.fold_in(rng, i), latent.shape[1:])
      )(jnp.arange(count))
      return self._fn(params, frozen, {TRAIN: data | {"noise_BHWC": noise_BHWC}}, rng)

    return jax.jit(sample, out_shardings=sharding.replicated(mesh))


def make_all(
  config: Mapping[str, Any],
  predict_fns: Mapping[str, PredictFn],
  open_stream: Callable[[str], Stream],
  *,
  encode: Callable[[Sequence[str]], Mapping[str, np.ndarray]] | None = None,
) -> list[Evaluator]:
  """The evaluators that `config.evaluators` names; streams are opened once each.

  Args:
    config: the eval group.
    predict_fns: the stage's.
    open_stream: by name.
    encode: prompts to text arrays, for `SampleGrid`.

  Raises:
    types.UserError: an unknown kind, predict function or option, naming the nearest.
  """
  open_stream = functools.cache(open_stream)
  out = []
  for name, spec in config["evaluators"].items():
    options = dict(spec)
    where = f"eval.evaluators.{name}"
    kind = _known(f"{where}.kind", options.pop("kind", None), KINDS)
    fn = _known(f"{where}.predict", options.pop("predict", None), predict_fns)
    stream = options.pop("stream", "val")
    if kind is SampleGrid:
      options["encode"] = encode
    takes = [
      p for p in inspect.signature(kind).parameters if p not in ("name", "predict_fn", "stream")
    ]
    for option in options:
      _known(where, option, dict.fromkeys(takes))
    needs = [
      p for p in takes if inspect.signature(kind).parameters[p].default is inspect.Parameter.empty
    ]
    for option in needs:
      if option not in options:
        raise types.UserError(f"{where}: {kind.__name__} needs {option}")
    out.append(kind(name, fn, open_stream(stream), **options))
  return out


def eval_params(state: types.TrainState) -> dict[str, types.Params]:
  """Every player's parameters, with its `eval` EMA, where it keeps one, laid over them."""
  return {
    player: trees.unflatten({**trees.flatten(params), **state.ema[player].get("eval", {})})
    for player, params in state.params.items()
  }


def _place(batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
  shard = sharding.batch(mesh)
  return {name: jax.make_array_from_process_local_data(shard, x) for name, x in batch.items()}


def _tile(images_BHWC: np.ndarray, columns: int) -> np.ndarray:
  """A grid; the last row is filled with black."""
  count, height, width, channels = images_BHWC.shape
  rows = -(-count // columns)
  grid = np.zeros((rows * columns, height, width, channels), np.uint8)
  grid[:count] = images_BHWC
  grid = grid.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
  return grid.reshape(rows * height, columns * width, channels)


def _known(where: str, name: Any, valid: Mapping[str, Any]) -> Any:
  if name in valid:
    return valid[name]
  near = difflib.get_close_matches(str(name), list(valid), n=1)
  hint = f"nearest: {near[0]}" if near else f"valid: {', '.join(valid)}"
  raise types.UserError(f"{where}: unknown {name!r}; {hint}")


KINDS: dict[str, Callable[..., Evaluator]] = {
  "ValLoss": ValLoss,
  "SampleGrid": SampleGrid,
  "Guard": Guard,
}
