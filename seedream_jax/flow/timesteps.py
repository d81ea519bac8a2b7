"""When to train and where to step: densities over t, the resolution shift, sampling grids.

Dims: B batch, M solver steps. The shift of SD3 (eq. 23) serves training draws and sampling grids
alike: both go through `shift_time`, so a model is sampled on the schedule it was trained on.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from seedream_jax import types


def shift_time(t: jax.Array, alpha: jax.Array | float) -> jax.Array:
  """alpha t / (1 + (alpha - 1) t): log-SNR moves by -2 log alpha; shifts compose by product.

  FLUX's e^mu / (e^mu + 1/t - 1) is this with mu = log alpha.
  """
  return alpha * t / (1 + (alpha - 1) * t)


def resolution_shift(h: int, w: int, base: float) -> float:
  """sqrt(h w) / base: noises an h x w grid as far as base x base, shift 1 (SD3, Sec. 5.3.2)."""
  return (h * w) ** 0.5 / base


def sample(
  rng: jax.Array,
  shape: tuple[int, ...] = (),
  *,
  density: str = "logit_normal",
  mean: float = 0.0,
  std: float = 1.0,
  shift: jax.Array | float = 1.0,
) -> jax.Array:
  """Draws t, then shifts it.

  Args:
    rng: a key.
    shape: of the draw.
    density: "logit_normal" (t = sigmoid(N(mean, std)), best in SD3's ranking) or "uniform".
    mean: of the logit; positive leans to noise.
    std: of the logit.
    shift: alpha of `shift_time`.
  """
  if density == "logit_normal":
    t = jax.nn.sigmoid(mean + std * jax.random.normal(rng, shape))
  elif density == "uniform":
    t = jax.random.uniform(rng, shape)
  else:
    raise types.UserError(f"time density {density!r}: expected logit_normal or uniform")
  return shift_time(t, shift)


def per_example(rng: jax.Array, id_B: jax.Array, fn: Callable[[jax.Array], jax.Array]) -> jax.Array:
  """Stacks fn(fold_in(rng, id)): randomness that follows the example, not its place in a batch."""
  return jax.vmap(lambda example_id: fn(jax.random.fold_in(rng, example_id)))(id_B)


def noise(rng: jax.Array, id_B: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Standard normal float32 [B, *shape] that follows the example's id."""
  return per_example(rng, id_B, lambda key: jax.random.normal(key, shape))


def grid(num_steps: int, shift: jax.Array | float = 1.0) -> jax.Array:
  """M + 1 times from 1 (noise) to 0 (data), evenly spaced before the shift."""
  return shift_time(jnp.linspace(1.0, 0.0, num_steps + 1), shift)


def eight_timesteps(id_B: jax.Array) -> jax.Array:
  """t = (id mod 8) / 8, fixed by the example: MLPerf text-to-image's validation loss."""
  return (id_B % 8).astype(jnp.float32) / 8
