"""The one loop: it moves state, batches and metrics, and knows no token, image or reward."""

import contextlib
import functools
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from seedream_jax import types
from seedream_jax.engine import checkpoint, metrics, sharding
from seedream_jax.eval import evaluators
from seedream_jax.run import cli
from seedream_jax.run import open as open_lib

TERMINATED = 143  # 128 + SIGTERM: saved, but the work is not done


def train(config, workdir: str) -> int:
  """Trains `config` in `workdir` from wherever it stands; returns the exit code (0 = finished)."""
  lock = cli.claim(workdir) if jax.process_index() == 0 else contextlib.nullcontext()
  with lock:
    return _train(config, workdir)


def _train(config, workdir: str) -> int:
  exp = open_lib.open_config(config, workdir)
  with jax.set_mesh(exp.mesh):
    loaders = open_lib.open_loaders(config, open_lib.train_streams(config))
    state = open_lib.load_state(exp)
    plugins = _evaluators(exp)  # before anything is written: it may find its data missing
    if jax.process_index() == 0:
      _write_config(workdir, config)
    code, state = _run(exp, state, loaders, plugins)
    exp.checkpointer.wait()
    if code == 0:
      export_weights(exp, state, os.path.join(workdir, "weights"))
  return code


def _run(
  exp: open_lib.Experiment, state: types.TrainState, loaders, plugins
) -> tuple[int, types.TrainState]:
  config = exp.config
  total, fused = config.train.total_steps, config.train.steps_per_call
  step = int(state.step)
  if (best := _back_to(plugins, exp.workdir)) is not None:  # this run has ended
    return 0, _go_back(exp, best)
  writer = metrics.Writer(exp.workdir, start_step=step)
  progress = metrics.Progress(total, step, _batch_size(loaders), desc=config.stage.name)
  stop_asked = _stop_asked()
  pending: tuple[int, dict[str, jax.Array]] | None = None
  rows: list[dict[str, float]] = []  # since the last line of metrics
  last_saved = step
  meta = open_lib.meta_of(exp)
  if step == 0 and exp.checkpointer.latest() is None:
    _look_at_the_start(exp, state, plugins, writer, meta)
  batches = _batches(exp, loaders, step, total, fused)
  step_flops: dict[tuple, int] = {}  # by what is compiled
  for call, (first, count, movers, batch) in enumerate(batches):
    update = exp.trainer.compiled(movers, count)
    if config.train.count_flops:
      key = (movers, count, tuple(np.shape(x) for x in jax.tree.leaves(batch)))
      if key not in step_flops:
        step_flops[key] = exp.trainer.flops(exp.abstract_state, exp.frozen, batch, movers, count)
      progress.set_flops(step_flops[key])
    with jax.transfer_guard("disallow"):
      state, stats = update(state, exp.frozen, batch)
    step, stop = first + count, stop_asked(call)
    if pending is not None:  # read call k-1 while call k runs
      bad = _log(writer, progress, config, rows, *pending)
      if bad >= config.train.max_bad_steps:
        return _give_up(exp, bad, pending[0]), state
    pending = (first, stats)
    if _due(config.eval.every_steps, first, step, total):
      with progress.pause():
        for plugin in plugins:
          writer.scalars(step, plugin.run(exp, state, step, writer))
      best = _back_to(plugins, exp.workdir)
    if _due(config.ckpt.every_steps, first, step, total) or stop:
      bad = _log(writer, progress, config, rows, *pending)
      pending = None
      if bad == 0:
        with progress.pause():
          exp.checkpointer.save(
            step, state, meta | {"data": {n: l.report() for n, l in loaders.items()}}
          )
        last_saved = step
      elif bad >= config.train.max_bad_steps:
        return _give_up(exp, bad, step), state
    if best is not None:
      progress.close()
      return 0, _go_back(exp, best)
    if stop and step < total:
      logging.info("SIGTERM: saved step %d, leaving", last_saved)
      progress.close()
      return TERMINATED, state
  for name, l in loaders.items():
    logging.info("data %s: %s", name, l.report())
  progress.close()
  writer.close()
  return 0, state


def _evaluators(exp: open_lib.Experiment) -> list[evaluators.Evaluator]:
  return evaluators.make_all(
    exp.config.eval.to_dict(),
    exp.stage.predict_fns(),
    lambda name: open_lib.open_loaders(exp.config, [name])[name],
    encode=functools.partial(open_lib.encode_prompts, exp.config),
  )


def _batches(
  exp, loaders, start: int, total: int, fused: int
) -> Iterator[tuple[int, int, tuple[str, ...], Any]]:
  """Yields (first step, count, movers, device batch). Aligned runs of `fused` equal steps go out in one call."""
  iterators = {n: l.iterate(start) for n, l in loaders.items()}
  data_sharding = sharding.batch(exp.mesh)
  fused_sharding = sharding.batch(exp.mesh, fused)

  def host_batch():
    return {n: next(it)[1] for n, it in iterators.items()}

  def place(batch, shard):
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(shard, x), batch)

  step = start
  while step < total:
    movers = exp.trainer.movers(step)
    group = range(step, min(step + fused, total))
    alike = (
      fused > 1
      and step % fused == 0
      and len(group) == fused
      and all(exp.trainer.movers(s) == movers for s in group)
      and all(len({l.bucket(s) for s in group}) == 1 for l in loaders.values())
    )
    if alike:
      many = [host_batch() for _ in group]
      yield step, fused, movers, place(jax.tree.map(lambda *x: np.stack(x), *many), fused_sharding)
      step += fused
    else:
      yield step, 1, movers, place(host_batch(), data_sharding)
      step += 1


def export_weights(exp: open_lib.Experiment, state: types.TrainState, folder: str) -> None:
  """Writes each trained part's final parameters (its `eval` EMA over them, where kept) as a weights folder."""
  metadata = {"step": str(int(state.step)), "stage": exp.config.stage.name}
  for name, params in types.by_part(evaluators.eval_params(state)).items():
    path = os.path.join(folder, f"{name}.safetensors")
    checkpoint.save_weights(path, params, dtype=exp.config.train.export_dtype, metadata=metadata)
  if jax.process_index() == 0:
    _write_config(folder, exp.config)
    logging.info("weights written to %s", folder)


def _log(writer, progress, config, rows, first: int, stats: dict[str, jax.Array]) -> int:
  """Fetches one call's metrics, writes the mean of `rows` when due; returns the count of consecutive bad steps."""
  stats = jax.device_get(stats)
  bad_steps = np.atleast_1d(stats["train/bad_steps"])
  for i, bad in enumerate(bad_steps):
    step = first + i + 1
    row = {k: float(np.atleast_1d(v)[i]) for k, v in stats.items()}
    progress.update(step, row)
    if bad:  # a line of its own: its loss is no number
      writer.scalars(step, row)
      continue
    rows.append(row)
    if step % config.train.log_every_steps == 0:
      writer.scalars(step, metrics.mean(rows) | progress.speed())
      rows.clear()
  return int(bad_steps[-1])


def _give_up(exp, bad: int, step: int) -> int:
  exp.checkpointer.wait()
  good = exp.checkpointer.latest()
  where = f"step {good} in {exp.workdir}/checkpoints" if good is not None else "none was saved"
  raise types.UserError(
    f"{bad} steps in a row had a non-finite loss or gradient (at step {step}); last good checkpoint: {where}"
  )


def _look_at_the_start(exp, state, plugins, writer, meta) -> None:
  """A guard's first look, and the checkpoint it may go back to: a score may fall from the first step on."""
  guards = [plugin for plugin in plugins if isinstance(plugin, evaluators.Guard)]
  for guard in guards:
    writer.scalars(0, guard.run(exp, state, 0, writer))
  if guards:
    exp.checkpointer.save(0, state, meta)


def _back_to(plugins, workdir: str) -> int | None:
  """The step that a guard wants the run to end with, if one does."""
  wanted = [p.back_to(workdir) for p in plugins if isinstance(p, evaluators.Guard)]
  return min((step for step in wanted if step is not None), default=None)


def _go_back(exp: open_lib.Experiment, step: int) -> types.TrainState:
  """The state of `step`, or of the last checkpoint before it; later ones are dropped, so all verbs see this one."""
  exp.checkpointer.drop_after(step)
  restored = exp.checkpointer.restore(exp.abstract_state)
  if restored is None:
    raise types.UserError(
      f"{exp.workdir}: the guard goes back to step {step}, of which no checkpoint was kept; "
      "expected ckpt.every_steps to divide eval.every_steps, and ckpt.keep_every to keep them"
    )
  logging.warning("the guard ended the run: back to step %d", restored[1])
  return restored[0]


def _due(every: int, first: int, step: int, total: int) -> bool:
  """Whether a multiple of `every`, or the end, lies in (first, step]."""
  return step >= total or (every > 0 and step // every > first // every)


def _batch_size(loaders) -> int:
  return next(iter(loaders.values())).batch_size


def _stop_asked() -> Callable[[int], bool]:
  """fn(call): whether a SIGTERM asks to save and leave after this call; every process hears the same."""
  if jax.process_count() > 1:
    # JAX's own handler tells all processes of a SIGTERM to any, and they settle on one call: were each to act on its
    # own signal, one would save at step k and the other wait in step k+1 for ever.
    return multihost_utils.reached_preemption_sync_point
  stop = threading.Event()
  with contextlib.suppress(ValueError):  # not the main thread (tests)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
  return lambda call: stop.is_set()


def _write_config(workdir: str, config) -> None:
  tmp = os.path.join(workdir, "config.json.tmp")
  with open(tmp, "w", encoding="utf-8") as f:
    f.write(config.to_json_best_effort(indent=1))
  os.replace(tmp, os.path.join(workdir, "config.json"))
