"""One optimiser step for any stage: microbatches, gradient, update, EMA, NaN policy, all under jit.

The step knows no token, image or reward: it moves trees. Leaves are split into trained and frozen *before*
the gradient, so frozen leaves cost neither FLOPs nor memory in the backward pass.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from seedream_jax import types
from seedream_jax.engine import flops, optim, sharding, trees


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, for the cache of executables
class Trainer:
  """What the compiled step closes over; arrays come as arguments.

  Attributes:
    stage: supplies the loss.
    optimizers: {player: Optimizer}.
    seed: of the run; step k's key is fold_in(key(seed), k), the same on every host and mesh.
    accum_steps: microbatches per step.
    state_shardings, frozen_shardings: trees of NamedSharding.
    mesh: the device mesh.
  """

  stage: types.Stage
  optimizers: Mapping[str, optim.Optimizer]
  seed: int
  accum_steps: int
  state_shardings: Any
  frozen_shardings: Any
  mesh: jax.sharding.Mesh

  def movers(self, step: int) -> tuple[str, ...]:
    """The players that update at `step`, in the stage's order."""
    return tuple(p for p in self.stage.players if self.optimizers[p].moves(step))

  @functools.cache  # noqa: B019  one jitted function per (players, fused steps), for the run's life
  def compiled(self, movers: tuple[str, ...], num_steps: int):
    """jitted (state, frozen, batch) -> (state, metrics of each step); batch leaves lead with num_steps if > 1."""
    batch_sharding = sharding.batch(self.mesh)
    if num_steps == 1:
      fn = functools.partial(self._step, movers=movers)
    else:
      fn = functools.partial(self._steps, movers=movers)
      batch_sharding = sharding.batch(self.mesh, num_steps)
    return jax.jit(
      fn,
      in_shardings=(self.state_shardings, self.frozen_shardings, batch_sharding),
      out_shardings=(self.state_shardings, sharding.replicated(self.mesh)),
      donate_argnums=(0,),
    )

  def flops(
    self, state: types.TrainState, frozen, batch, movers: tuple[str, ...], num_steps: int
  ) -> int:
    """Model FLOPs of one step of `movers`, from its jaxpr; `batch` leads with num_steps if > 1."""

    def shape(x, skip):
      return jax.ShapeDtypeStruct(x.shape[skip:], x.dtype)

    abstract = jax.tree.map(lambda x: shape(x, 0), (state, frozen))
    one = jax.tree.map(lambda x: shape(x, int(num_steps > 1)), batch)
    return flops.count(functools.partial(self._step, movers=movers), *abstract, one)

  def _steps(self, state, frozen, batches, *, movers):
    def body(state, batch):
      return self._step(state, frozen, batch, movers=movers)

    return jax.lax.scan(body, state, batches)

  def _step(self, state: types.TrainState, frozen, batch, *, movers: tuple[str, ...]):
    rng = jax.random.fold_in(jax.random.key(self.seed), state.step)
    params, opt, ema = dict(state.params), dict(state.opt), dict(state.ema)
    all_finite, metrics = jnp.bool_(True), {}
    for player in movers:
      optimizer = self.optimizers[player]
      trained, rest = optimizer.split(params[player])
      loss, grads = self._gradient(
        player, trained, rest, params, frozen, ema, batch, rng, state.step
      )
      grads = {path: g / loss.weight for path, g in grads.items()}
      new_trained, new_opt, stats = optimizer.update(grads, opt[player], trained, state.step)
      finite = jnp.isfinite(loss.total) & jnp.isfinite(stats["grad_norm"])
      all_finite &= finite
      assigned = {**rest, **trained, **loss.assign}
      new = optimizer.merge({**assigned, **new_trained}, {})
      new_ema = optim.ema_update(optimizer.ema, ema[player], new, state.step)
      keep = functools.partial(jnp.where, finite)  # a bad update leaves no trace but the count
      params[player] = jax.tree.map(keep, new, params[player])
      opt[player] = jax.tree.map(keep, new_opt, opt[player])
      ema[player] = jax.tree.map(keep, new_ema, ema[player])
      metrics |= {f"{player}/{k}": v for k, v in stats.items()}
      metrics |= {f"{player}/loss": loss.total / loss.weight}
      metrics |= {f"{player}/{k}": s / jnp.maximum(w, 1e-8) for k, (s, w) in loss.metrics.items()}
    bad_steps = jnp.where(all_finite, 0, state.bad_steps + 1)
    metrics["train/bad_steps"] = bad_steps
    return types.TrainState(state.step + 1, params, opt, ema, bad_steps), metrics

  def _gradient(self, player, trained, rest, params, frozen, ema, batch, rng, step):
    """Sums of loss and gradient over the microbatches; accumulators keep the parameters' sharding."""
    merge = self.optimizers[player].merge
    shards = trees.flatten(self.state_shardings.params[player])

    def constrain(grads):
      return {k: jax.lax.with_sharding_constraint(g, shards[k]) for k, g in grads.items()}

    def micro_loss(trained, micro):
      all_params = {**params, player: merge(trained, rest)}
      loss = self.stage.loss(all_params, frozen, ema, micro, rng, player=player, step=step)
      return loss.total, loss

    grad_fn = jax.value_and_grad(micro_loss, has_aux=True)
    if self.accum_steps == 1:
      (_, loss), grads = grad_fn(trained, batch)
      return loss, constrain(grads)

    def split(x):  # strided, so that each microbatch stays spread over the whole mesh
      return jnp.moveaxis(x.reshape(-1, self.accum_steps, *x.shape[1:]), 1, 0)

    def body(carry, micro):
      (_, loss), grads = grad_fn(trained, micro)
      new = jax.tree.map(jnp.add, carry, (loss, grads))
      return (new[0], constrain(new[1])), None

    micros = jax.tree.map(split, batch)
    first = jax.tree.map(lambda x: x[0], micros)
    zeros = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype),
      jax.eval_shape(lambda m: (grad_fn(trained, m)[0][1], trained), first),
    )
    (loss, grads), _ = jax.lax.scan(body, (zeros[0], constrain(zeros[1])), micros)
    # `assign` leaves are values, not sums: average them.
    return loss._replace(assign=jax.tree.map(lambda x: x / self.accum_steps, loss.assign)), grads


def init_state(
  stage: types.Stage,
  optimizers: Mapping[str, optim.Optimizer],
  rng: jax.Array,
  frozen: dict[str, types.Params],
) -> types.TrainState:
  """The state at step 0, from scratch; call under jit with out_shardings so nothing is allocated twice."""
  return state_of(optimizers, stage.init(rng, frozen))


def state_of(
  optimizers: Mapping[str, optim.Optimizer], params: dict[str, types.Params]
) -> types.TrainState:
  """The state at step 0 around given parameters."""
  opt = {p: o.init(o.split(params[p])[0]) for p, o in optimizers.items()}
  ema = {p: o.ema_init(params[p]) for p, o in optimizers.items()}
  return types.TrainState(jnp.int32(0), params, opt, ema, jnp.int32(0))
