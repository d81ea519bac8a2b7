"""transformer.onnx of an exported folder: the door to TensorRT and to onnxruntime.

Batch, latent height and width and the length of the prompt stay open; weights are those of the folder.
"""

import importlib.util
import os

import torch
from torch.export import Dim

_OPSET = 20


def load_twin(folder: str, **kwargs):
  """The folder's SeedreamTransformer, from its own Python file."""
  path = os.path.join(folder, "transformer", "transformer.py")
  spec = importlib.util.spec_from_file_location("exported_transformer", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.SeedreamTransformer.from_pretrained(os.path.dirname(path), **kwargs).eval()


def example_inputs(twin, batch: int, size: tuple[int, int], length: int, seed: int = 0) -> dict:
  """Random arguments of the transformer for a latent of `size` and a prompt bucket of `length`."""
  generator, cfg = torch.Generator().manual_seed(seed), twin.config
  randn = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
  llm_mask = torch.arange(length)[None] < torch.arange(length, length - batch, -1)[:, None]
  glyph_mask = (torch.arange(cfg.glyph_len)[None] < cfg.glyph_len - 1).expand(batch, -1)
  labels = {}
  if cfg.labels:
    labels["tags"] = torch.ones(batch, cfg.labels, dtype=torch.long)
    labels["tag_strength"] = torch.rand(batch, generator=generator)
  if "origin" in cfg.conds:
    labels["origin"] = torch.zeros(batch, dtype=torch.long)
  return labels | {
    "hidden_states": randn(batch, cfg.latent_channels, *size),
    "timestep": torch.rand(batch, generator=generator),
    "encoder_hidden_states": randn(batch, length, cfg.text_dim),
    "encoder_attention_mask": llm_mask,
    "glyph_hidden_states": randn(batch, cfg.glyph_len, cfg.glyph_dim),
    "glyph_attention_mask": glyph_mask.contiguous(),
  }


def export(folder: str) -> str:
  """Writes FOLDER/transformer/transformer.onnx in float32; returns its path."""
  twin = load_twin(folder, torch_dtype=torch.float32)
  p, most = twin.config.patch, twin.config.max_text_len
  inputs = example_inputs(twin, 3, (4 * p, 6 * p), min(16, most))
  batch, length = Dim("batch", max=1024), Dim("length", min=2, max=most)
  height, width = p * Dim("rows", min=2, max=1024), p * Dim("columns", min=2, max=1024)
  shapes = {
    "hidden_states": {0: batch, 2: height, 3: width},
    "timestep": {0: batch},
    "encoder_hidden_states": {0: batch, 1: length},
    "encoder_attention_mask": {0: batch, 1: length},
    "glyph_hidden_states": {0: batch},
    "glyph_attention_mask": {0: batch},
  }
  shapes |= {name: {0: batch} for name in inputs if name not in shapes}
  path = os.path.join(folder, "transformer", "transformer.onnx")
  program = torch.onnx.export(
    twin, (), kwargs=inputs, dynamic_shapes=shapes, opset_version=_OPSET, dynamo=True,
    input_names=list(inputs), output_names=["velocity"], verbose=False,
  )  # fmt: skip
  program.save(path)
  return path
