"""A text-to-image model as a diffusers folder, and back.

  model_index.json, pipeline.py        the pipeline, in its own file
  transformer/transformer.py ...       SeedreamTransformer, in its own file
  vae/            stock AutoencoderKL
  text_encoder/   stock Qwen3Model *   tokenizer/      stock fast tokenizer
  text_encoder_2/ stock T5EncoderModel scheduler/      stock FlowMatchEulerDiscreteScheduler
  seedream_jax.json                    our config, for the way back
  * Qwen2Model or LlamaModel where the LLM is of those families

Two things are not as diffusers has them and are mapped exactly. AutoencoderKL's decoder has one residual block a level
more than its encoder; where ours has fewer, blocks of zero weights fill up, which add nothing to their input. Our
latents are normalised per channel, which its config says in latents_mean and latents_std.
"""

import contextlib
import dataclasses
import importlib.resources
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from seedream_jax import types
from seedream_jax.data import tokenizers
from seedream_jax.engine import trees
from seedream_jax.interop import huggingface, names
from seedream_jax.models import dit, lora, vae

OURS = "seedream_jax.json"  # also the mark by which a former export is known
ADAPTERS = "pytorch_lora_weights"  # diffusers' name, .safetensors
_SHARD_BYTES = 5 << 30
# part -> (folder, library or module, class)
COMPONENTS = {
  "dit": ("transformer", "transformer", "SeedreamTransformer"),
  "vae": ("vae", "diffusers", "AutoencoderKL"),
  "llm": ("text_encoder", "transformers", "Qwen3Model"),
  "byt5": ("text_encoder_2", "transformers", "T5EncoderModel"),
}
_FILLED = re.compile(r"decoder\.up_blocks\.\d+\.resnets\.(\d+)\..*")


@dataclasses.dataclass(frozen=True)
class Model:
  """What an export is made of.

  Attributes:
    configs: of dit, vae, llm, byt5.
    params: their trees.
    tokenizer: path of the SentencePiece model.
    shift, shift_base: of the denoise stage.
    text_buckets: of the data.
    default_size: side in pixels that the pipeline draws unless told.
    ours: JSON of the run's whole config.
  """

  configs: Mapping[str, Any]
  params: Mapping[str, types.Params]
  tokenizer: str
  shift: float
  shift_base: float
  text_buckets: tuple[int, ...]
  default_size: int
  ours: Mapping[str, Any]


def merged(model: Model) -> Model:
  """The model with its adapters in the kernels, in float32, and out of its configs."""
  return dataclasses.replace(
    model,
    configs={part: lora.without(cfg) for part, cfg in model.configs.items()},
    params={
      part: lora.merge(tree, getattr(model.configs[part], "lora", None))
      for part, tree in model.params.items()
    },
    ours=lora.strip(model.ours),
  )


def apart(model: Model) -> tuple[Model, dict[str, np.ndarray]]:
  """The model without the DiT's adapters, and these under PEFT's names; other parts' are merged.

  PEFT counts an adapter alpha / rank and takes alpha = rank unless told: our scale goes into B.

  Raises:
    types.UserError: the DiT has none.
  """
  cfg = model.configs["dit"].lora
  if cfg is None:
    raise types.UserError("--lora apart: model.dit has no lora")
  flat = trees.flatten(model.params["dit"])
  adapters = {path: x for path, x in flat.items() if trees.matches(lora.LEAVES, path)}
  scaled = {
    path: np.asarray(x, np.float32) * np.float32(cfg.scale if path.endswith("lora_b") else 1)
    for path, x in adapters.items()
  }
  base = trees.unflatten({path: x for path, x in flat.items() if path not in adapters})
  model = dataclasses.replace(model, params={**model.params, "dit": base})
  return merged(model), names.to_theirs(names.DIT_LORA, scaled)


def check_replaceable(folder: str) -> None:
  """UserError if something other than a former export stands at `folder`."""
  if os.path.lexists(folder) and not os.path.isfile(os.path.join(folder, OURS)):
    raise types.UserError(f"--out {folder}: exists and is no former export; give a new folder")


@contextlib.contextmanager
def replacing(folder: str) -> Iterator[str]:
  """A new empty folder that becomes `folder` when the block ends, and vanishes when it fails.

  A former export is moved aside, not emptied: killed at any moment, this leaves a whole export or none there.

  Raises:
    types.UserError: something else stands there.
  """
  check_replaceable(folder)
  parent, name = os.path.split(os.path.abspath(folder))
  os.makedirs(parent, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=parent, prefix=f".{name}.") as aside:
    new, old = os.path.join(aside, "new"), os.path.join(aside, "old")
    os.mkdir(new)
    yield new
    if os.path.lexists(folder):
      os.rename(os.path.abspath(folder), old)
    os.rename(new, os.path.abspath(folder))


def write(
  folder: str,
  model: Model,
  dtype: str,
  card: str,
  adapters: Mapping[str, np.ndarray] | None = None,
) -> None:
  """Fills an empty folder.

  Args:
    folder: from `replacing`.
    model: what to write.
    dtype: float32 or bfloat16, of all weights.
    card: README.md.
    adapters: what goes into ADAPTERS beside the model, under PEFT's names.

  Raises:
    types.UserError: a choice that the stock classes do not have.
  """
  if model.tokenizer.endswith(".json"):
    # The pipeline's mask is ids != pad and its texts end as the template says: not so of every published tokenizer.
    raise types.UserError(
      f"tokenizer {model.tokenizer}: only a SentencePiece tokenizer is exported"
    )
  configs = {
    "dit": transformer_json(model.configs["dit"]),
    "vae": vae_json(model.configs["vae"], model.params["vae"]["stats"]),
    "llm": huggingface.llm_json(model.configs["llm"]),
    "byt5": huggingface.t5_json(model.configs["byt5"]),
  }
  for part, (name, library, _) in COMPONENTS.items():
    place = os.path.join(folder, name)
    os.makedirs(place)
    key = "torch_dtype" if library == "transformers" else None
    _write_json(place, "config.json", configs[part] | ({key: dtype} if key else {}))
    stem = "model" if library == "transformers" else "diffusion_pytorch_model"
    _write_tensors(place, stem, tensors(part, model.configs[part], model.params[part]), dtype)
  index = {
    "_class_name": ["pipeline", "SeedreamPipeline"],
    **{
      name: [library, class_name(part, model.configs[part])]
      for part, (name, library, _) in COMPONENTS.items()
    },
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_buckets": list(model.text_buckets),
    "glyph_len": model.configs["dit"].glyph_len,
    "shift_base": model.shift_base,
    "default_size": model.default_size,
  }
  _write_json(folder, "model_index.json", index)
  _write_tokenizer(os.path.join(folder, "tokenizer"), model.tokenizer)
  _write_scheduler(os.path.join(folder, "scheduler"), model.shift)
  sources = importlib.resources.files("seedream_jax.interop")
  for source, target in (("twin", "transformer/transformer"), ("pipeline", "pipeline")):
    code = (sources / f"torch_{source}.py").read_text("utf-8")
    with open(os.path.join(folder, f"{target}.py"), "w", encoding="utf-8") as f:
      f.write(code)
  with open(os.path.join(folder, "README.md"), "w", encoding="utf-8") as f:
    f.write(card)
  _write_json(folder, OURS, model.ours)
  if adapters is not None:
    _write_tensors(folder, ADAPTERS, adapters, dtype)


def class_name(part: str, cfg: Any) -> str:
  """The PyTorch class of a part; an LLM's depends on its family."""
  return huggingface.llm_json(cfg)["architectures"][0] if part == "llm" else COMPONENTS[part][2]


def tensors(part: str, cfg: Any, params: types.Params) -> dict[str, np.ndarray]:
  """A part's tensors under the names of the PyTorch class."""
  out = names.to_theirs(huggingface.TABLES[part], params)
  return out if part != "vae" else out | _fill(cfg, out)


def read(folder: str, abstract: Mapping[str, Any]) -> dict[str, types.Params]:
  """The parts of an exported folder, {part: tree}, as `abstract` wants them.

  Raises:
    types.UserError: no such export, or tensors that do not fit.
  """
  out = {}
  for part, (name, _, _) in COMPONENTS.items():
    place = os.path.join(folder, name)
    source = huggingface.Source(place)
    given = None
    if part == "vae":
      source = _without_filling(source, abstract[part])
      stats = trees.flatten(abstract[part])["stats/mean"].shape[0]
      given = huggingface.vae_stats(place, vae.make_config(latent_channels=stats))
    out[part] = huggingface.load_part(part, source, abstract[part], given=given)
  return out


def transformer_json(cfg: dit.DiTConfig) -> dict[str, Any]:
  """config.json of the transformer."""
  if cfg.cond_channels:
    raise types.UserError(
      f"model.dit: cond_channels={cfg.cond_channels}, the PyTorch twin has none"
    )
  left_out = ("cond_channels", "attention", "remat", "dtype", "lora")
  fields = {k: v for k, v in dataclasses.asdict(cfg).items() if k not in left_out}
  return {"_class_name": "SeedreamTransformer", **fields, "conds": list(cfg.conds)}


def vae_json(cfg: vae.VAEConfig, stats: Mapping[str, Any]) -> dict[str, Any]:
  """config.json of the stock AutoencoderKL."""
  levels = len(cfg.widths)
  if cfg.decoder_layers > cfg.encoder_layers + 1:
    raise types.UserError(
      f"model.vae: decoder_layers={cfg.decoder_layers}, AutoencoderKL has encoder_layers + 1 = {cfg.encoder_layers + 1}"
    )
  return {
    "_class_name": "AutoencoderKL",
    "in_channels": cfg.image_channels,
    "out_channels": cfg.image_channels,
    "down_block_types": ["DownEncoderBlock2D"] * levels,
    "up_block_types": ["UpDecoderBlock2D"] * levels,
    "block_out_channels": list(cfg.widths),
    "layers_per_block": cfg.encoder_layers,
    "act_fn": "silu",
    "latent_channels": cfg.latent_channels,
    "norm_num_groups": cfg.norm_groups,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
    "latents_mean": [float(x) for x in np.asarray(stats["mean"], np.float32)],
    "latents_std": [float(x) for x in np.asarray(stats["std"], np.float32)],
    "use_quant_conv": False,
    "use_post_quant_conv": False,
    "mid_block_add_attention": cfg.mid_attention,
  }


def _fill(cfg: vae.VAEConfig, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Residual blocks of zero weights, up to the encoder_layers + 1 that AutoencoderKL's decoder has."""
  out = {}
  dtype = next(iter(like.values())).dtype
  for level, width in enumerate(cfg.widths[::-1]):
    for i in range(cfg.decoder_layers, cfg.encoder_layers + 1):
      stem = f"decoder.up_blocks.{level}.resnets.{i}"
      for conv in ("conv1", "conv2"):
        out[f"{stem}.{conv}.weight"] = np.zeros((width, width, 3, 3), dtype)
      for name in ("norm1", "norm2", "conv1", "conv2"):
        out[f"{stem}.{name}.bias"] = np.zeros((width,), dtype)
      for name in ("norm1", "norm2"):
        out[f"{stem}.{name}.weight"] = np.ones((width,), dtype)
  return out


def _without_filling(source: huggingface.Source, abstract: Any) -> huggingface.Source:
  """`source` without residual blocks that `abstract` lacks and that add nothing; others stay, to be refused."""
  known = {entry.name for entry in names.entries(names.VAE, abstract)}
  extra = [name for name in source.shapes if name not in known and _FILLED.fullmatch(name)]
  silent = {
    name.rpartition(".conv2")[0]
    for name in extra
    if name.endswith("conv2.weight") and not np.any(source.read(name))
    and not np.any(source.read(name.replace("weight", "bias")))
  }  # fmt: skip
  for name in extra:
    if ".".join(name.split(".")[:5]) in silent:
      del source.shapes[name]
  return source


def _write_tensors(folder: str, stem: str, arrays: Mapping[str, np.ndarray], dtype: str) -> None:
  """One .safetensors file, or several and an index."""
  cast = {
    k: x.astype(jnp.dtype(dtype)) if jnp.issubdtype(x.dtype, jnp.floating) else x
    for k, x in arrays.items()
  }
  shards: list[list[str]] = [[]]
  size = 0
  for name, x in cast.items():
    if size and size + x.nbytes > _SHARD_BYTES:
      shards.append([])
      size = 0
    shards[-1].append(name)
    size += x.nbytes
  files = [f"{stem}.safetensors"]
  if len(shards) > 1:
    files = [f"{stem}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    weight_map = {name: file for file, shard in zip(files, shards) for name in shard}
    total = sum(x.nbytes for x in cast.values())
    _write_json(
      folder,
      f"{stem}.safetensors.index.json",
      {"metadata": {"total_size": total}, "weight_map": weight_map},
    )
  for file, shard in zip(files, shards):
    part = {name: np.ascontiguousarray(cast[name]) for name in shard}
    safetensors_numpy.save_file(part, os.path.join(folder, file), metadata={"format": "pt"})


def _write_json(folder: str, name: str, value: Any) -> None:
  with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
    json.dump(value, f, indent=2, ensure_ascii=False)


def _write_tokenizer(folder: str, path: str) -> None:
  os.makedirs(folder)
  with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
    f.write(tokenizers.to_fast(path))
  special = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
  config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
  config |= {"split_special_tokens": True, **special}  # a typed "</s>" ends no prompt
  _write_json(folder, "tokenizer_config.json", config)


def _write_scheduler(folder: str, shift: float) -> None:
  os.makedirs(folder)
  config = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": shift,
    "use_dynamic_shifting": False,
  }
  _write_json(folder, "scheduler_config.json", config)
