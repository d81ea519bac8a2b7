"""The smallest text encoders that still tell their dims apart, and draws that compile nothing."""

import jax
import jax.numpy as jnp
import numpy as np

LLM = dict(
  variant="nano",
  vocab_size=23,
  width=12,
  depth=2,
  num_heads=2,
  num_kv_heads=1,
  head_dim=6,
  mlp_dim=14,
)
BYT5 = dict(variant="nano", width=10, depth=2, num_heads=2, head_dim=5, mlp_dim=14)


def image(*shape: int) -> jax.Array:
  """Uniform in [-1, 1]."""
  return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)


def draw(abstract):
  """Parameters of no special kind, without compiling an initialiser."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), abstract
  )
