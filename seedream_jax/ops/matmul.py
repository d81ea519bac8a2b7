"""A projection's matmul, and the gradient that XLA's CPU backend is slow at.

Dims: ... any leading dims, D input width, F output width.
XLA derives the gradient towards the kernel as a matmul over g^T, and fuses the elementwise backward
pass before it into a transposed copy that reads column by column. Asked for x^T g, it reads rows.
Measured on 2 cores with jax 0.10.2, nano DiT, batch 64: 1.4x faster with gradient. Elsewhere it is
the same arithmetic.
"""

from typing import Any

import jax
from jax import lax


def dot_general(
  x: jax.Array, kernel: jax.Array, dimension_numbers: Any, precision: Any = None, **kwargs: Any
) -> jax.Array:
  """`lax.dot_general` for nnx.Linear(dot_general=...): x's last dim with the kernel's first."""
  if dimension_numbers != (((x.ndim - 1,), (0,)), ((), ())) or kernel.ndim != 2:
    raise ValueError(f"{dimension_numbers} of {x.shape}, {kernel.shape} is not a projection")
  if precision is not None or any(value is not None for value in kwargs.values()):
    raise ValueError(f"precision={precision}, {kwargs}: expected the defaults")
  return _project(x, kernel)


def _dot(x, kernel_DF):
  return lax.dot_general(x, kernel_DF, (((x.ndim - 1,), (0,)), ((), ())))


_project = jax.custom_vjp(_dot)


def _forward(x, kernel_DF):  # the bare dot, for a remat policy to see
  return _dot(x, kernel_DF), (x, kernel_DF)


def _backward(residuals, g):
  x, kernel_DF = residuals
  leading = tuple(range(g.ndim - 1))
  dx = lax.dot_general(g, kernel_DF, (((g.ndim - 1,), (1,)), ((), ())))
  return dx, lax.dot_general(x, g, ((leading, leading), ((), ())))


_project.defvjp(_forward, _backward)
