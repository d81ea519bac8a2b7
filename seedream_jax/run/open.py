"""From a config, a workdir or a weights folder to everything a verb needs: mesh, stage, parameters, data.

Where parameters come from, in this order: a checkpoint in the workdir (resume), `init.path` (init_from),
scratch. Frozen parts come from weights folders named in `frozen`; a checkpoint remembers their sha256.
"""

import dataclasses
import difflib
import functools
import importlib
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging

from seedream_jax import types
from seedream_jax.data import glyphs, loader, tokenizers
from seedream_jax.engine import checkpoint, mesh, optim, sharding, trees
from seedream_jax.models import llm, two_tower
from seedream_jax.run import step as step_lib

GROUPS = (
  "seed", "stage", "model", "frozen", "init", "data", "optim", "sharding", "train", "ckpt", "eval",
)  # fmt: skip
_DTYPES = ("float32", "bfloat16", "float16")
RANDOM = "random"  # a frozen part drawn from the seed: for tests and shape checks only


@dataclasses.dataclass
class Experiment:
  """An opened run."""

  config: ml_collections.ConfigDict
  workdir: str
  mesh: jax.sharding.Mesh
  stage: types.Stage
  trainer: step_lib.Trainer
  frozen: dict[str, types.Params]
  provenance: dict[str, dict[str, str]]  # frozen part -> {path, sha256}
  abstract_state: types.TrainState  # ShapeDtypeStructs with shardings
  checkpointer: checkpoint.Checkpointer
  state: types.TrainState | None = None


def nearest(name: str, valid: Sequence[str]) -> str:
  """' (nearest: X)' or ''."""
  match = difflib.get_close_matches(name, valid, n=1)
  return f" (nearest valid: {match[0]})" if match else f" (valid: {', '.join(valid)})"


def read_config(folder: str) -> ml_collections.ConfigDict:
  """The config.json that a training run or a weights folder keeps."""
  path = os.path.join(folder, "config.json")
  if not os.path.exists(path):
    raise types.UserError(
      f"--workdir {folder}: no config.json there; expected a training workdir or a weights folder"
    )
  try:
    with open(path, encoding="utf-8") as f:
      found = json.load(f)
  except ValueError as e:
    raise types.UserError(f"{path}: not JSON ({e})") from e
  if not isinstance(found, dict):
    raise types.UserError(
      f"{path}: holds a {type(found).__name__}, expected the object of a config"
    )
  return ml_collections.ConfigDict(_tuples(found))


def _tuples(value: Any) -> Any:
  """JSON's lists as the tuples that configs are made of."""
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def make_stage(config: ml_collections.ConfigDict) -> types.Stage:
  """The stage named by `config.stage.name`, found by module path."""
  for group in GROUPS:
    if group not in config:
      raise types.UserError(f"config has no group {group!r}; groups are {', '.join(GROUPS)}")
  name = config.stage.name
  here = os.path.join(os.path.dirname(os.path.dirname(__file__)), "stages")
  valid = sorted(f[:-3] for f in os.listdir(here) if f.endswith(".py") and f != "__init__.py")
  if name not in valid:
    raise types.UserError(f"stage.name: no stage {name!r}{nearest(name, valid)}")
  return importlib.import_module(f"seedream_jax.stages.{name}").make(config)


def _check_train(train: ml_collections.ConfigDict) -> None:
  """What would else come out only after the first call, or the last."""
  for key in ("total_steps", "accum_steps", "steps_per_call", "log_every_steps", "max_bad_steps"):
    if train[key] < 1:
      raise types.UserError(f"train.{key}: {train[key]}, expected at least 1")
  for key in ("frozen_dtype", "export_dtype"):
    if train[key] not in _DTYPES:
      raise types.UserError(f"train.{key}: no dtype {train[key]!r}{nearest(train[key], _DTYPES)}")


def _check_batches(config: ml_collections.ConfigDict, device_mesh: jax.sharding.Mesh) -> None:
  """A batch is cut into microbatches, and over devices; neither cut may leave a rest."""
  shards = math.prod(device_mesh.shape[axis] for axis in types.BATCH_AXES)
  cuts = {"train.accum_steps": config.train.accum_steps, "sharding.mesh: data x fsdp": shards}
  for name in train_streams(config):
    size = config.data.streams[name].batch_size
    for what, count in cuts.items():
      if size % count:
        raise types.UserError(
          f"data.streams.{name}.batch_size: {size}, {what} = {count} does not divide it; "
          f"nearest: {max(round(size / count), 1) * count}"
        )


def player_config(config: ml_collections.ConfigDict, player: str) -> dict[str, Any]:
  """`optim` without `players`, overlaid with `optim.players.PLAYER`."""
  base = {k: v for k, v in config.optim.to_dict().items() if k != "players"}
  return base | config.optim.players.to_dict().get(player, {})


@dataclasses.dataclass
class Layout:
  """A run's shapes and where they live: nothing is read or allocated, so that it may be of any size and hardware."""

  stage: types.Stage
  mesh: jax.sharding.Mesh
  trainer: step_lib.Trainer
  state: types.TrainState  # ShapeDtypeStructs with shardings
  frozen: dict[str, types.Params]  # likewise


def lay_out(
  config: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Layout:
  """The layout of `config` over `devices`, by default this machine's; what is wrong with it is a `types.UserError`."""
  stage = make_stage(config)  # first: it looks whether this is an experiment's config at all
  devices = jax.devices()[: config.sharding.num_devices or None] if devices is None else devices
  _check_train(config.train)
  device_mesh = mesh.make(config.sharding.mesh.to_dict(), devices)
  _check_batches(config, device_mesh)
  parts = stage.parts()
  for player in config.optim.players:
    if player not in stage.players:
      raise types.UserError(f"optim.players: no player {player!r}{nearest(player, stage.players)}")
  optimizers = {
    p: optim.make(player_config(config, p), parts[p].abstract, config.train.total_steps)
    for p in stage.players
  }
  rules = config.sharding.rules
  frozen_shardings = {
    name: sharding.infer(part.abstract, rules, device_mesh)
    for name, part in parts.items()
    if name not in stage.players
  }
  frozen = {
    name: sharding.abstract(_with_dtype(parts[name].abstract, config.train.frozen_dtype), found)
    for name, found in frozen_shardings.items()
  }
  abstract = jax.eval_shape(
    functools.partial(step_lib.init_state, stage, optimizers), jax.random.key(0), frozen
  )
  shardings = _state_shardings(abstract, rules, device_mesh)
  trainer = step_lib.Trainer(
    stage,
    optimizers,
    config.seed,
    config.train.accum_steps,
    shardings,
    frozen_shardings,
    device_mesh,
  )
  return Layout(stage, device_mesh, trainer, sharding.abstract(abstract, shardings), frozen)


def open_config(config: ml_collections.ConfigDict, workdir: str) -> Experiment:
  """Builds an experiment; allocates frozen parts but not yet the state (see `load_state`)."""
  layout = lay_out(config)
  frozen, provenance = load_frozen(config, layout)
  checkpointer = checkpoint.Checkpointer(
    os.path.join(workdir, "checkpoints"),
    keep=config.ckpt.keep,
    keep_every=config.ckpt.keep_every or None,
  )
  return Experiment(
    config,
    workdir,
    layout.mesh,
    layout.stage,
    layout.trainer,
    frozen,
    provenance,
    layout.state,
    checkpointer,
  )


def load_frozen(
  config: ml_collections.ConfigDict, layout: Layout
) -> tuple[dict[str, types.Params], dict[str, dict[str, str]]]:
  """The frozen parts where `config.frozen` says they are, and {part: {path, sha256}}."""
  for name in config.frozen:
    if name not in layout.frozen and config.frozen[name]:
      raise types.UserError(
        f"frozen: stage {config.stage.name} has no part {name!r}{nearest(name, list(layout.frozen))}"
      )
  frozen, provenance = {}, {}
  for name, abstract in layout.frozen.items():
    if name not in config.frozen or not config.frozen[name]:
      raise types.UserError(
        f"frozen.{name}: stage {config.stage.name} needs a weights folder for it"
      )
    path = config.frozen[name]
    if path == RANDOM:
      part = layout.stage.parts()[name]
      init = jax.jit(
        lambda rng, part=part: _with_dtype(part.init(rng), config.train.frozen_dtype),
        out_shardings=layout.trainer.frozen_shardings[name],
      )
      frozen[name], digest = init(jax.random.key(config.seed)), RANDOM
    else:
      file = path if path.endswith(".safetensors") else os.path.join(path, f"{name}.safetensors")
      try:
        frozen[name], digest = checkpoint.load_weights(file, abstract), checkpoint.sha256(file)
      except types.UserError as e:
        raise types.UserError(f"frozen.{name}: {e}") from e
    provenance[name] = {"path": path, "sha256": digest}
  return frozen, provenance


def load_state(exp: Experiment) -> types.TrainState:
  """resume > init_from > scratch."""
  restored = exp.checkpointer.restore(exp.abstract_state)
  if restored is not None:
    state, step, meta = restored
    _check_provenance(meta.get("frozen", {}), exp.provenance)
    logging.info("resumed from step %d", step)
    return state
  optimizers, shardings = exp.trainer.optimizers, exp.trainer.state_shardings
  rng = jax.random.key(exp.config.seed)
  init = jax.jit(
    functools.partial(step_lib.init_state, exp.stage, optimizers), out_shardings=shardings
  )
  state = init(rng, exp.frozen)
  if exp.config.init.path:
    params = {p: init_from(tree, exp.config.init, p) for p, tree in state.params.items()}
    rebuild = jax.jit(functools.partial(step_lib.state_of, optimizers), out_shardings=shardings)
    state = rebuild(jax.device_put(params, shardings.params))
    logging.info("initialised from %s", exp.config.init.path)
  return state


def init_from(params: types.Params, config: ml_collections.ConfigDict, player: str) -> types.Params:
  """`params` overlaid with `init.path/PART.safetensors`; leaves it lacks must match `init.allow_missing`."""
  found = {}
  for name, tree in types.by_part({player: params}).items():
    path = os.path.join(config.path, f"{name}.safetensors")
    if not os.path.exists(path) and re.fullmatch(config.allow_missing_players, name):
      found[name] = tree
      continue
    try:
      loaded = checkpoint.load_weights(
        path, tree, allow_missing=config.allow_missing, allow_extra=config.allow_extra
      )
    except types.UserError as e:
      raise types.UserError(f"init.path: {e}") from e
    found[name] = trees.unflatten({**trees.flatten(tree), **trees.flatten(loaded)})
  return found if "+" in player else found[player]


def open_tokenizer(config: ml_collections.ConfigDict) -> tokenizers.Tokenizer | None:
  """The config's tokenizer, where it names one; UserError where the config's LLM cannot read its ids."""
  if not config.data.tokenizer:
    return None
  tokenizer = tokenizers.open_tokenizer(config.data.tokenizer)
  if "llm" in config.model:
    check_tokenizer(tokenizer, llm.make_config(**config.model.llm))
  return tokenizer


def check_tokenizer(tokenizer: tokenizers.Tokenizer, cfg: llm.LLMConfig) -> None:
  """UserError unless the model's pad and end tokens are the tokenizer's and its table has all ids.

  JAX clamps an id beyond the table, and a mask made of another pad id hides the wrong tokens: both go unseen.
  """
  for key in ("pad_id", "eos_id"):
    ours, theirs = getattr(cfg, key), getattr(tokenizer, key)
    if ours != theirs:
      raise types.UserError(
        f"model.llm.{key}: {ours}, but the tokenizer {tokenizer.path} has {theirs}"
      )
  if tokenizer.vocab_size > cfg.vocab_size:
    raise types.UserError(
      f"model.llm.vocab_size: {cfg.vocab_size}, but the tokenizer {tokenizer.path} has {tokenizer.vocab_size} ids"
    )


def check_tower_tokenizer(
  tokenizer: tokenizers.Tokenizer, cfg: two_tower.TwoTowerConfig, tokens: int = 1
) -> None:
  """`check_tokenizer` of a published two-tower model, whose texts are `tokens` long."""
  text, where = cfg.text, f"the tokenizer {tokenizer.path} has"
  if tokenizer.vocab_size > text.vocab_size:
    raise types.UserError(
      f"model.tower.text.vocab_size: {text.vocab_size}, but {where} {tokenizer.vocab_size} ids"
    )
  if isinstance(text, two_tower.BertConfig):
    key, ours, theirs = "pad_id", text.pad_id, tokenizer.pad_id
  else:  # the first models read a text at its highest id
    ours = text.vocab_size - 1 if text.eos_id is None else text.eos_id
    key, theirs = "eos_id", tokenizer.eos_id
  if ours != theirs:
    raise types.UserError(f"model.tower.text.{key}: {ours}, but {where} {theirs}")
  if tokens > text.length:
    raise types.UserError(
      f"data.streams: tower_tokens={tokens}, but model.tower.text.length is {text.length}"
    )


def encode_prompts(
  config: ml_collections.ConfigDict, prompts: Sequence[str]
) -> dict[str, np.ndarray]:
  """llm_ids_BL in the smallest text bucket of the `train` stream that holds all prompts, and byt5_ids_BG."""
  tokenizer, stream = open_tokenizer(config), config.data.streams.train
  if tokenizer is None:
    raise types.UserError("data.tokenizer: not given, but an evaluator has prompts to encode")
  buckets = sorted(stream.text_buckets)
  ids, byt5_ids_BG = tokenizers.encode_prompts(tokenizer, prompts, buckets[-1], stream.glyph_bytes)
  length = next(b for b in buckets if b >= max(map(len, ids)))
  llm_ids_BL = np.stack([tokenizer.pad(row, length) for row in ids])
  return {"llm_ids_BL": llm_ids_BL, "byt5_ids_BG": byt5_ids_BG}


def open_loaders(config: ml_collections.ConfigDict, names: Sequence[str]) -> dict[str, Any]:
  """{stream: Loader or GlyphLoader} for the named streams of `config.data.streams`."""
  tokenizer = open_tokenizer(config)
  loaders = {}
  for name in names:
    if name not in config.data.streams:
      raise types.UserError(
        f"data.streams: no stream {name!r}{nearest(name, list(config.data.streams))}"
      )
    fields = config.data.streams[name].to_dict()
    hosts = dict(process_index=jax.process_index(), process_count=jax.process_count())
    if (
      "source" in fields
    ):  # sheets of glyphs come from one data set, captioned pictures from a mixture
      loaders[name] = glyphs.GlyphLoader(fields, **hosts)
    else:
      loaders[name] = loader.Loader(loader.make_config(fields), tokenizer, **hosts)
      _check_towers(config, loaders[name].tower_tokenizer, fields)
  return loaders


def _check_towers(
  config: ml_collections.ConfigDict, tokenizer: tokenizers.Tokenizer | None, fields: dict[str, Any]
) -> None:
  """Of every published tower in the config, whose ids a stream holds."""
  if tokenizer is None:
    return
  towers = config.model.rewards.values() if "rewards" in config.model else (config.model.tower,)
  for tower in towers:
    if two_tower.is_published(tower):
      check_tower_tokenizer(tokenizer, two_tower.make_config(**tower), fields["tower_tokens"])


def train_streams(config: ml_collections.ConfigDict) -> tuple[str, ...]:
  """Streams a training step consumes: all but those that evaluators name."""
  return tuple(s for s in config.data.streams if s not in config.data.eval_streams)


def meta_of(exp: Experiment) -> dict[str, Any]:
  """What a checkpoint records beside the state."""
  return {"config": json.loads(exp.config.to_json_best_effort()), "frozen": exp.provenance}


def _state_shardings(abstract: types.TrainState, rules, device_mesh) -> types.TrainState:
  params = {p: sharding.infer(t, rules, device_mesh) for p, t in abstract.params.items()}
  replicated = sharding.replicated(device_mesh)
  follow = {
    group: {p: sharding.follow(t, params[p], device_mesh) for p, t in trees_of.items()}
    for group, trees_of in (("opt", abstract.opt), ("ema", abstract.ema))
  }
  return types.TrainState(replicated, params, follow["opt"], follow["ema"], replicated)


def _with_dtype(tree: Any, dtype: str) -> Any:
  def cast(x):
    if not jnp.issubdtype(x.dtype, jnp.floating):
      return x
    return (
      jax.ShapeDtypeStruct(x.shape, dtype)
      if isinstance(x, jax.ShapeDtypeStruct)
      else x.astype(dtype)
    )

  return jax.tree.map(cast, tree)


def _check_provenance(
  saved: Mapping[str, Mapping[str, str]], now: Mapping[str, Mapping[str, str]]
) -> None:
  for name, entry in saved.items():
    if name in now and entry["sha256"] != now[name]["sha256"]:
      raise types.UserError(
        f"frozen.{name}: {now[name]['path']} has sha256 {now[name]['sha256'][:12]}..., the checkpoint was trained "
        f"with {entry['path']} ({entry['sha256'][:12]}...)"
      )
