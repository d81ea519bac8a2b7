"""The straight path of rectified flow: x_t = (1 - t) x0 + t eps, v = dx/dt = eps - x0.

Dims: B batch; everything else is trailing data dims. t = 0 is data, t = 1 is noise. The sign
convention of the code base is written here and nowhere else (SD3, FLUX and Seedream 3.0 share it).
"""

import jax
import jax.numpy as jnp


def expand(t_B: jax.Array, like: jax.Array) -> jax.Array:
  """t_B with trailing singleton dims up to `like`'s rank."""
  return jnp.expand_dims(t_B, tuple(range(t_B.ndim, like.ndim)))


def interpolate(x0: jax.Array, eps: jax.Array, t_B: jax.Array) -> jax.Array:
  """x_t on the path from data `x0` to noise `eps`."""
  t = expand(t_B, x0)
  return (1 - t) * x0 + t * eps


def velocity(x0: jax.Array, eps: jax.Array) -> jax.Array:
  """dx/dt, what the model predicts."""
  return eps - x0


def v_to_x0(xt: jax.Array, v: jax.Array, t_B: jax.Array) -> jax.Array:
  """The data a velocity points at; also the one-step estimate that ReFL scores."""
  return xt - expand(t_B, xt) * v


def v_to_eps(xt: jax.Array, v: jax.Array, t_B: jax.Array) -> jax.Array:
  """The noise a velocity comes from."""
  return xt + (1 - expand(t_B, xt)) * v


def x0_to_v(xt: jax.Array, x0: jax.Array, t_B: jax.Array) -> jax.Array:
  """Velocity of a data prediction; undefined at t = 0."""
  return (xt - x0) / expand(t_B, xt)


def eps_to_v(xt: jax.Array, eps: jax.Array, t_B: jax.Array) -> jax.Array:
  """Velocity of a noise prediction; undefined at t = 1."""
  return (eps - xt) / (1 - expand(t_B, xt))
