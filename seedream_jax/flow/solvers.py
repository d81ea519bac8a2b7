"""From noise to data: ODE solvers over a velocity, and classifier-free guidance.

Dims: B batch, H W C latent, M solver steps. A velocity function is fn(x_BHWC, t_B) -> v_BHWC.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from seedream_jax import types
from seedream_jax.flow import path

Velocity = Callable[[jax.Array, jax.Array], jax.Array]


def sample(
  velocity: Velocity,
  noise: jax.Array,
  grid: jax.Array,
  *,
  solver: str = "euler",
  steps: jax.Array | None = None,
) -> jax.Array:
  """Integrates dx/dt = velocity(x, t) from grid[0] to grid[-1], or to grid[steps].

  Args:
    velocity: the model, conditions already bound.
    noise: x at grid[0], [B, ...]; the solver works in float32.
    grid: [M + 1] decreasing times, from `timesteps.grid`.
    solver: a key of SOLVERS.
    steps: how many of the M to take, int32, may be traced; those not taken are not computed. None is all.
  """
  if solver not in SOLVERS:
    raise types.UserError(f"solver {solver!r}: expected one of {', '.join(SOLVERS)}")
  noise = noise.astype(jnp.float32)
  carry, step = SOLVERS[solver](_per_batch(velocity, noise.shape[0]), noise)
  # Each step also sees the step before it; the first has none, and its h_prev = 0 says so.
  times = (jnp.concatenate([grid[:1], grid])[: len(grid) - 1], grid[:-1], grid[1:])
  if steps is None:
    return jax.lax.scan(step, carry, times)[0][0]

  def body(carry, turn):  # a scan whose turns are known, not a while loop: FLOPs can be counted
    i, here = turn
    return jax.lax.cond(i < steps, lambda x: step(x, here)[0], lambda x: x, carry), None

  return jax.lax.scan(body, carry, (jnp.arange(len(grid) - 1), times))[0][0]


def guided(
  velocity: Callable[[jax.Array, jax.Array, Any], jax.Array],
  cond: Any,
  uncond: Any,
  scale: jax.Array | float,
  interval: tuple[float, float] = (0.0, 1.0),
) -> Velocity:
  """Classifier-free guidance v_u + scale (v_c - v_u), both branches in one batched call.

  Args:
    velocity: fn(x_BHWC, t_B, cond) -> v_BHWC.
    cond: condition tree, leaves [B, ...].
    uncond: the negative branch, same structure and shapes.
    scale: 1 is no guidance; a scalar or one per example.
    interval: guidance acts for lo <= t <= hi only (Kynkaanniemi et al. 2024), elsewhere scale is 1.
  """
  lo, hi = interval
  both = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), cond, uncond)

  def fn(x_BHWC: jax.Array, t_B: jax.Array) -> jax.Array:
    v = velocity(jnp.concatenate([x_BHWC, x_BHWC]), jnp.concatenate([t_B, t_B]), both)
    v_c, v_u = jnp.split(v.astype(jnp.float32), 2)
    scale_B = jnp.where((lo <= t_B) & (t_B <= hi), scale, 1.0)
    return v_u + path.expand(scale_B, v_u) * (v_c - v_u)

  return fn


def _per_batch(velocity: Velocity, batch: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """The velocity at one scalar time, in float32."""
  return lambda x, t: velocity(x, jnp.broadcast_to(t, (batch,))).astype(jnp.float32)


def _euler(velocity, noise):
  def step(carry, times):
    (x,), (_, t, t_next) = carry, times
    return (x + (t_next - t) * velocity(x, t),), None

  return (noise,), step


def _heun(velocity, noise):
  """Second order, two evaluations a step."""

  def step(carry, times):
    (x,), (_, t, t_next) = carry, times
    v = velocity(x, t)
    v_next = velocity(x + (t_next - t) * v, t_next)
    return (x + (t_next - t) * (v + v_next) / 2,), None

  return (noise,), step


def _dpmpp2m(velocity, noise):
  """DPM-Solver++(2M) (Lu et al. 2022, Alg. 2), alpha = 1 - t, sigma = t: one evaluation a step.

  In exponential form x' = (t'/t) x - (1 - t') expm1(-h) x0, h the step in log(alpha / sigma), and
  x0 is extrapolated from the step before. h is infinite at both ends of the path: there the
  extrapolation is dropped, which leaves the first-order update.
  """

  def log_snr(t):
    return jnp.log1p(-t) - jnp.log(t)

  def step(carry, times):
    (x, x0_prev), (t_prev, t, t_next) = carry, times
    x0 = x - t * velocity(x, t)
    h, h_prev = log_snr(t_next) - log_snr(t), log_snr(t) - log_snr(t_prev)
    usable = jnp.isfinite(h) & jnp.isfinite(h_prev) & (h_prev > 0)
    ratio = jnp.where(usable, h / jnp.where(usable, 2 * h_prev, 1.0), 0.0)
    x0_mid = x0 + ratio * (x0 - x0_prev)
    # -(1 - t') expm1(-h) without h: e^-h = t' (1 - t) / (t (1 - t')), finite at the ends too.
    return ((t_next / t) * x + ((1 - t_next) - t_next * (1 - t) / t) * x0_mid, x0), None

  return (noise, jnp.zeros_like(noise)), step


SOLVERS = {"euler": _euler, "heun": _heun, "dpmpp2m": _dpmpp2m}
