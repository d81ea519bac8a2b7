"""One optimiser per player: freeze by regex, clip, AdamW or Muon, schedule, multipliers, EMA.

The optimiser speaks flat trees, {path: array}, of *trained* leaves only: the loop splits a player's
parameters before taking the gradient, so frozen leaves cost neither backward FLOPs nor moments.
Update of a leaf p at schedule value lr:

  p <- p - lr * mult * (direction + weight_decay * p)

with `direction` from optax: Adam's, or Muon's orthogonalised momentum (arXiv:2502.16982) for the
matrices that the `muon` rules name, scaled to Adam's RMS, so that the two share one lr.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P
from optax import contrib

from seedream_jax import types
from seedream_jax.engine import trees

Flat = dict[str, jax.Array]

# Name -> fraction of the peak lr, from the progress in [0, 1] after warm-up and the final fraction.
SCHEDULES = {
  "constant": lambda progress, final: jnp.ones_like(progress),
  "linear": lambda progress, final: 1.0 - (1.0 - final) * progress,
  "cosine": lambda progress, final: (
    final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
  ),
}
OPTIMIZERS = ("adamw", "muon")
_PARAM_AXES = (
  types.FSDP,
  types.TENSOR,
  types.CONTEXT,
)  # `data` may cross slices: nothing is sent there


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """What `optim.players.NAME` may hold. Rules are (regex, value), first match wins."""

  lr: float  # peak
  optimizer: str = "adamw"  # OPTIMIZERS
  b1: float = 0.9
  b2: float = 0.99
  eps: float = 1e-8
  weight_decay: float = 0.0
  decay_mask: tuple[str, ...] = (r"(.*/)?kernel",)  # leaves that decay
  clip_norm: float | None = 1.0  # over all trained leaves of the player
  warmup_steps: int = 0  # the first step already moves, by lr / warmup_steps
  schedule: str = "cosine"  # SCHEDULES
  final_lr_fraction: float = 0.0
  lr_mults: tuple[tuple[str, float], ...] = ((".*", 1.0),)
  trainable: tuple[tuple[str, bool], ...] = ((".*", True),)
  every: int = 1  # moves on each `every`-th step of the loop
  start_steps: int = 0  # first step on which it moves; warm-up and schedule count from here
  ema: Any = dataclasses.field(default_factory=dict)  # {name: (regex, decay)}
  mu_dtype: str = "float32"  # first moment
  # Which matrices Muon takes: (regex, (n_in, n_out)), how many trailing dims are inputs, then
  # outputs; dims before them are a stack. None, or no rule, leaves the leaf to AdamW.
  muon: tuple[tuple[str, tuple[int, int] | None], ...] = ((r"(.*/)?layers/.*kernel", (1, 1)),)
  muon_momentum: float = 0.95
  muon_ns_steps: int = 5
  muon_rms: float = 0.2  # RMS of an update, as Adam's in practice (arXiv:2502.16982, sec. 2.2)

  def __post_init__(self):
    """Rejects what no run could mean."""
    for field, value, valid in (
      ("optimizer", self.optimizer, OPTIMIZERS),
      ("schedule", self.schedule, tuple(SCHEDULES)),
    ):
      if value not in valid:
        raise types.UserError(
          f"optim.{field}={value!r}, expected one of {valid}{_nearest(value, valid)}"
        )
    lows = {"every": 1, "start_steps": 0, "warmup_steps": 0, "lr": 0.0, "weight_decay": 0.0}
    for field, low in lows.items():
      if getattr(self, field) < low:
        raise types.UserError(f"optim.{field}={getattr(self, field)!r}, expected >= {low}")
    for name, (_, decay) in self.ema.items():
      if not 0.0 <= decay < 1.0:
        raise types.UserError(f"optim.ema.{name}: decay={decay!r}, expected 0 <= decay < 1")


def make_config(config: "OptimConfig | Mapping[str, Any]") -> OptimConfig:
  """An OptimConfig from a mapping; an unknown field is a `types.UserError` naming the nearest."""
  if isinstance(config, OptimConfig):
    return config
  fields = [field.name for field in dataclasses.fields(OptimConfig)]
  for name in config:
    if name not in fields:
      raise types.UserError(f"optim: unknown field {name!r}{_nearest(name, fields)}")
  if "lr" not in config:
    raise types.UserError("optim: field 'lr' is required")
  values = {name: dict(v.items()) if hasattr(v, "items") else v for name, v in config.items()}
  return OptimConfig(**values)


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """The chain of one player; see `make`. Every method may be called inside jit."""

  config: OptimConfig
  total_steps: int
  trained_paths: tuple[str, ...]
  muon_dims: dict[str, tuple[int, int]]  # of the trained leaves that Muon takes
  mults: dict[str, float]
  decayed: frozenset[str]

  @property
  def every(self) -> int:
    """The player moves on each `every`-th step of the loop."""
    return self.config.every

  @property
  def start(self) -> int:
    """The first step of the loop on which the player moves."""
    return self.config.start_steps

  @property
  def ema(self) -> dict[str, tuple[str, float]]:
    """{name: (regex, decay)}."""
    return dict(self.config.ema)

  def moves(self, step: int) -> bool:
    """Whether the player is updated on `step`."""
    return step >= self.start and (step - self.start) % self.every == 0

  def split(self, params: types.Params) -> tuple[Flat, Flat]:
    """(trained, frozen) leaves by path."""
    flat, trained = trees.flatten(params), set(self.trained_paths)
    return (
      {path: x for path, x in flat.items() if path in trained},
      {path: x for path, x in flat.items() if path not in trained},
    )

  def merge(self, trained: Flat, frozen: Flat) -> types.Params:
    """The inverse of `split`."""
    return trees.unflatten({**trained, **frozen})

  def lr(self, step: jax.typing.ArrayLike) -> jax.Array:
    """The schedule at `step` (steps done before this update), before multipliers."""
    cfg = self.config
    step = jnp.maximum(jnp.asarray(step, jnp.float32) - cfg.start_steps, 0.0)
    decay_steps = max(self.total_steps - cfg.start_steps - cfg.warmup_steps, 1)
    progress = jnp.clip((step - cfg.warmup_steps) / decay_steps, 0.0, 1.0)
    warmup = jnp.minimum((step + 1.0) / max(cfg.warmup_steps, 1), 1.0)
    return cfg.lr * warmup * SCHEDULES[cfg.schedule](progress, cfg.final_lr_fraction)

  def init(self, trained: Flat) -> dict[str, Any]:
    """{chain name: optax state}; moments have their parameter's path, shape and sharding."""
    return {name: tx.init(part) for name, (tx, part) in self._chains(trained).items()}

  def update(
    self, grads: Flat, opt_state: dict[str, Any], trained: Flat, step: jax.typing.ArrayLike
  ) -> tuple[Flat, dict[str, Any], dict[str, jax.Array]]:
    """One update; returns (trained, opt_state, {grad_norm before the clip, update_rms, lr})."""
    grad_norm = optax.tree.norm(grads)
    if self.config.clip_norm is not None:
      scale = jnp.minimum(1.0, self.config.clip_norm / jnp.maximum(grad_norm, 1e-12))
      grads = {path: g * scale for path, g in grads.items()}
    directions, new_state = {}, {}
    for name, (tx, part) in self._chains(grads).items():
      directions_of_part, new_state[name] = tx.update(part, opt_state[name])
      directions.update(directions_of_part)
    lr, updates = self.lr(step), {}
    for path, p in trained.items():
      decay = self.config.weight_decay * p if path in self.decayed else 0.0
      updates[path] = -lr * self.mults[path] * (directions[path] + decay)
    new_trained = optax.apply_updates(trained, updates)
    update_rms = optax.tree.norm(updates) / jnp.sqrt(float(max(trees.count(trained), 1)))
    return new_trained, new_state, {"grad_norm": grad_norm, "update_rms": update_rms, "lr": lr}

  def ema_init(self, params: Any) -> dict[str, Flat]:
    """EMA of the trained leaves each name's regex selects; `params` is the tree or its leaves."""
    flat = trees.flatten(params)
    return ema_init(self.ema, {path: flat[path] for path in self.trained_paths})

  def ema_update(
    self, ema: dict[str, Flat], params: Any, step: jax.typing.ArrayLike
  ) -> dict[str, Flat]:
    """See the function `ema_update`."""
    return ema_update(self.ema, ema, params, step)

  def _chains(self, flat: Flat) -> dict[str, tuple[optax.GradientTransformation, Flat]]:
    """{name: (transform, its leaves)}; chains without leaves are left out."""
    cfg = self.config
    adam = {path: x for path, x in flat.items() if path not in self.muon_dims}
    muon = {path: x for path, x in flat.items() if path in self.muon_dims}
    chains = {
      "adamw": (optax.scale_by_adam(cfg.b1, cfg.b2, cfg.eps, mu_dtype=cfg.mu_dtype), adam),
      "muon": (self._muon(muon), muon),
    }
    return {name: chain for name, chain in chains.items() if chain[1]}

  def _muon(self, flat: Flat) -> optax.GradientTransformation:
    """Orthogonalised Nesterov momentum, scaled to Adam's RMS."""
    cfg, scales = self.config, {}
    for path, x in flat.items():
      n_in, n_out = self.muon_dims[path]
      inputs, outputs = x.shape[x.ndim - n_in - n_out : x.ndim - n_out], x.shape[x.ndim - n_out :]
      scales[path] = cfg.muon_rms * math.sqrt(max(math.prod(inputs), math.prod(outputs)))

    def direction(momentum: Flat, _) -> Flat:
      return {
        path: scales[path] * _orthogonalize(m, *self.muon_dims[path], cfg.muon_ns_steps)
        for path, m in momentum.items()
      }

    momentum = optax.trace(cfg.muon_momentum, nesterov=True, accumulator_dtype=cfg.mu_dtype)
    return optax.chain(momentum, optax.stateless(direction))


def make(
  player_config: OptimConfig | Mapping[str, Any], abstract_params: types.Params, total_steps: int
) -> Optimizer:
  """The optimiser of one player.

  Args:
    player_config: an OptimConfig or the mapping `config.optim.players.NAME`.
    abstract_params: the player's tree, shapes only.
    total_steps: of the whole run; the schedule ends there.

  Raises:
    types.UserError: unknown field or value, an uncovered leaf, a rule that matches nothing.
  """
  config = make_config(player_config)
  flat = trees.flatten(abstract_params)
  trees.check_used(config.trainable, flat, "optim.trainable rule")
  trees.check_used(config.lr_mults, flat, "optim.lr_mults rule")
  trainable = trees.match_all(config.trainable, flat, "optim.trainable rule")
  trained = tuple(path for path in flat if trainable[path])
  if not trained:
    raise types.UserError(f"optim.trainable={config.trainable} freezes every parameter")
  trees.check_used([(regex, None) for regex, _ in config.ema.values()], flat, "optim.ema regex")
  decayed = (p for p in trained if any(trees.matches(regex, p) for regex in config.decay_mask))
  return Optimizer(
    config=config,
    total_steps=total_steps,
    trained_paths=trained,
    muon_dims=_muon_dims(config, {path: flat[path] for path in trained}),
    mults=trees.match_all(config.lr_mults, trained, "optim.lr_mults rule"),
    decayed=frozenset(decayed),
  )


def ema_init(rules: Mapping[str, tuple[str, float]], params: Any) -> dict[str, Flat]:
  """{name: {path: float32 copy}} of the leaves each name's regex selects."""
  flat = trees.flatten(params)
  return {
    name: {p: jnp.array(x, jnp.float32) for p, x in flat.items() if trees.matches(regex, p)}
    for name, (regex, _) in rules.items()
  }


def ema_update(
  rules: Mapping[str, tuple[str, float]],
  ema: dict[str, Flat],
  params: Any,
  step: jax.typing.ArrayLike,
) -> dict[str, Flat]:
  """ema + (1 - d) (params - ema), with d = min(decay, (1 + n) / (10 + n)) n = `step` steps."""
  flat, n = trees.flatten(params), jnp.asarray(step, jnp.float32)
  new = {}
  for name, copies in ema.items():
    rate = 1.0 - jnp.minimum(rules[name][1], (1.0 + n) / (10.0 + n))
    new[name] = {p: x + rate * (flat[p].astype(jnp.float32) - x) for p, x in copies.items()}
  return new


def _orthogonalize(x: jax.Array, n_in: int, n_out: int, num_steps: int) -> jax.Array:
  """Each matrix of the stack `x` made orthogonal, by optax's Newton-Schulz iteration.

  Left to itself the partitioner gathers a sharded matrix three times an iteration. Here the devices
  share out the stack, whole matrices to each, padded with zeros to a multiple of their number: one
  exchange an axis on the way in and on the way out. A lone matrix is gathered once.
  """
  dims = tuple(range(x.ndim))
  numbers = contrib.MuonDimensionNumbers(
    dims[x.ndim - n_in - n_out : x.ndim - n_out], dims[x.ndim - n_out :]
  )
  # Without momentum (beta=0) the transform is the orthogonalisation alone.
  muon = contrib.scale_by_muon(
    ns_steps=num_steps, beta=0.0, nesterov=False, weight_dimension_numbers=numbers
  )
  shape = jax.sharding.get_abstract_mesh().shape
  axes = tuple(axis for axis in _PARAM_AXES if shape.get(axis, 1) > 1)
  if not axes:
    return muon.update(x, muon.init(x))[0]
  if x.ndim == n_in + n_out:
    whole = jax.lax.with_sharding_constraint(x, P())
    return jax.lax.with_sharding_constraint(muon.update(whole, muon.init(whole))[0], P())
  pad = -x.shape[0] % math.prod(shape[axis] for axis in axes)
  padded = jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1))
  # One axis at a time, each an all-to-all; at once is an involuntary full rematerialisation.
  free = (P.UNCONSTRAINED,) * (x.ndim - 1)
  stages = [P(axes[:i], *free) for i in range(1, len(axes))]
  for spec in (*stages, P(axes)):
    padded = jax.lax.with_sharding_constraint(padded, spec)
  padded = muon.update(padded, muon.init(padded))[0]
  for spec in (P(axes), *reversed(stages)):
    padded = jax.lax.with_sharding_constraint(padded, spec)
  return padded[: x.shape[0]]


def _muon_dims(config: OptimConfig, trained: dict[str, Any]) -> dict[str, tuple[int, int]]:
  """{path: (n_in, n_out)} of the leaves that Muon takes."""
  if config.optimizer != "muon":
    return {}
  dims = trees.match_all((*config.muon, (".*", None)), trained)
  dims = {path: tuple(d) for path, d in dims.items() if d is not None}
  for path, d in dims.items():
    if len(trained[path].shape) < sum(d):
      raise types.UserError(
        f"optim.muon: {path!r} has shape {trained[path].shape}, too few dims for {d}"
      )
  if not dims:
    raise types.UserError(f"optim.muon={config.muon} selects no trained parameter")
  return dims


def _nearest(value: Any, valid: Any) -> str:
  near = difflib.get_close_matches(str(value), list(valid), n=1, cutoff=0.0)
  return f", did you mean {near[0]!r}?" if near else ""
