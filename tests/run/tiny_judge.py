"""A classifier B of a few hundred weights, in the folder that a training run would leave."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np

from experiments import judge
from seedream_jax.engine import checkpoint
from seedream_jax.run import open as open_lib


def write(folder: str, seed: int = 0) -> str:
  """Random weights of the nano world's heads; returns the folder."""
  config = judge.get_config("nano")
  config.model.classifier.update(dict(widths=(4,), norm_groups=2, feature_dim=5))
  abstract = open_lib.make_stage(config).parts()["classifier"].abstract
  rng = np.random.default_rng(seed)
  params = jax.tree.map(
    lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), jnp.float32), abstract
  )
  checkpoint.save_weights(os.path.join(folder, "classifier.safetensors"), params)
  with open(os.path.join(folder, "config.json"), "w") as f:
    json.dump(json.loads(config.to_json_best_effort()), f)
  return folder
