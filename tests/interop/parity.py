"""What parity tests share: published folders loaded, random weights of the real classes, error bounds."""

import os
import tempfile

import numpy as np
from absl.testing import absltest

from seedream_jax import types
from seedream_jax.interop import huggingface
from seedream_jax.models import byt5, llm, two_tower, vae, vit

MODELS = {
  "llm": llm.LLM,
  "byt5": byt5.ByT5,
  "vae": vae.VAE,
  "clip": two_tower.TwoTower,
  "chinese_clip": two_tower.TwoTower,
  "dinov2": vit.ViT,
}


def part(name: str, folder: str, **overrides) -> types.Part:
  """Of a published folder's config."""
  cfg = huggingface.CONFIGS[name](folder, **overrides)
  return types.Part.from_module(lambda rngs: MODELS[name](cfg, rngs=rngs))


def load(name: str, folder: str, **overrides):
  """(Part, params) of a published folder."""
  model, given = part(name, folder, **overrides), None
  if name == "vae":
    given = huggingface.vae_stats(folder, huggingface.vae_config(folder, **overrides))
  source = huggingface.Source(folder)
  return model, huggingface.load_part(name, source, model.abstract, given=given)


def relative(got, want) -> float:
  """max |got - want| / max |want|."""
  got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
  return float(np.max(np.abs(got - want)) / np.max(np.abs(want)))


def folder() -> str:
  """A new empty one."""
  root = absltest.get_default_test_tmpdir()
  os.makedirs(root, exist_ok=True)
  return tempfile.mkdtemp(dir=root)


def save(model) -> str:
  """A transformers or diffusers model as published, in several shards."""
  where = folder()
  model.save_pretrained(where, max_shard_size="40KB")
  return where


def randomise(model) -> None:
  """Weights far from their initialisers: zero biases and unit norms hide mistakes."""
  import torch

  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for x in model.parameters():
      noise = torch.randn(x.shape, generator=generator)
      x.add_(0.3 * noise if x.ndim < 2 else 0.5 * noise * x.shape[-1] ** -0.5)


def assert_parity(test, ours, theirs, reference) -> None:
  """float32 to 2e-5; bfloat16 within 1.5 times torch's own error plus 1e-3.

  Args:
    test: the TestCase.
    ours: fn(dtype) -> our output, an array or a tuple of them, each held to the bounds by itself.
    theirs: fn(model) -> the reference's output, alike.
    reference: the model, which ends in bfloat16.
  """
  import torch

  exact = _tuple(theirs(reference))
  for got, want in zip(_tuple(ours("float32")), exact, strict=True):
    test.assertLess(relative(got, want), 2e-5)
  rounded = _tuple(theirs(reference.to(torch.bfloat16)))
  for got, want, other in zip(_tuple(ours("bfloat16")), exact, rounded, strict=True):
    test.assertLess(relative(got, want), 1.5 * relative(other, want) + 1e-3)


def _tuple(x) -> tuple:
  return x if isinstance(x, tuple) else (x,)
