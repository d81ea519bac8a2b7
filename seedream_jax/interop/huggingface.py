"""Published safetensors folders: their config.json as our configs, and their tensors streamed into sharded arrays.

Decoder-only LLMs of the Qwen3, Qwen2.5 and Llama families, encoders of the T5 v1.1, mT5 and ByT5 families,
diffusers' AutoencoderKL, and the vision and text towers of CLIP, Chinese-CLIP and DINOv2. What a config says that
the model here cannot do is an error that names the key: weights that load and compute something else are worse than
none.
"""

import difflib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors asks for by name
import numpy as np
import safetensors

from seedream_jax import types
from seedream_jax.data import tokenizers
from seedream_jax.engine import trees, weights
from seedream_jax.interop import config_json, names, towers
from seedream_jax.models import byt5, llm, vae

_Read = Callable[[str, tuple[slice, ...]], np.ndarray]  # fn(their name, part of theirs)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_STEMS = ("model", "diffusion_pytorch_model")
# What files hold beside the model: tied copies, buffers, and the half of T5 that writes.
_IGNORED = {
  "llm": (r"(model\.)?(.*\.)?rotary_emb\.inv_freq",),
  "byt5": (r"decoder\..*", r"lm_head\.weight", r"encoder\.embed_tokens\.weight"),
  "vae": (),
  "dit": (),  # an exported one
  "clip": (r".*\.position_ids",),
  "chinese_clip": (r".*\.position_ids",),
  "dinov2": (r"embeddings\.mask_token",),  # read in its pretraining only
}
TABLES = {
  "dit": names.DIT,
  "llm": names.LLM,
  "byt5": names.T5,
  "vae": names.VAE,
  "clip": names.CLIP,
  "chinese_clip": names.CHINESE_CLIP,
  "dinov2": names.DINOV2,
}


def llm_config(folder: str, **overrides: Any) -> llm.LLMConfig:
  """The LLMConfig of a published decoder-only model.

  Raises:
    types.UserError: another family, or a choice that `models.llm` does not have.
  """
  c = config_json.Reader.open(folder)
  kinds = {"qwen3": (True, False), "qwen2": (False, True), "llama": (False, False)}
  kind = c.raw.get("model_type")
  if kind not in kinds:
    raise types.UserError(f"{c.path}: model_type={kind!r}, expected one of {', '.join(kinds)}")
  qk_norm, qkv_bias = kinds[kind]
  c.expect("hidden_act", ("silu",))
  c.expect("use_sliding_window", (False, None))
  # Qwen2.5's biases on q, k and v have no key; this one is of an o bias too.
  c.expect("attention_bias", (False, None))
  c.expect("mlp_bias", (False, None))
  heads, width = c.number("num_attention_heads"), c.number("hidden_size")
  rope = dict(c.raw.get("rope_scaling") or {}) | dict(c.raw.get("rope_parameters") or {})
  return llm.LLMConfig(
    **{
      "vocab_size": c.number("vocab_size"),
      "width": width,
      "depth": c.number("num_hidden_layers"),
      "num_heads": heads,
      "num_kv_heads": c.number("num_key_value_heads", heads),
      "head_dim": c.number("head_dim", width // heads),
      "mlp_dim": c.number("intermediate_size"),
      "qk_norm": qk_norm,
      "qkv_bias": qkv_bias,
      "tied": bool(c.raw.get("tie_word_embeddings", kind == "qwen2")),
      "rope_theta": float(rope.get("rope_theta") or c.number("rope_theta", 10_000.0, float)),
      "rope_llama3": _llama3(c.path, rope),
      "norm_eps": c.number("rms_norm_eps", 1e-6, float),
      **_ends(folder, c),
      **overrides,
    }
  )


def _ends(folder: str, c: config_json.Reader) -> dict[str, int]:
  """pad_id and eos_id: the tokenizer's, where the folder holds one, else config.json's; {} where neither says.

  The tokenizer goes first: published configs of Qwen name no pad token, and texts are what it makes of them.
  """
  if os.path.exists(os.path.join(folder, "tokenizer.json")):
    tokenizer = tokenizers.open_tokenizer(folder)
    return {"pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id}
  ids = {}
  for key in ("eos_token_id", "pad_token_id"):
    value = c.raw.get(key)
    value = value[0] if isinstance(value, list) and value else value  # several may end a chat
    value = ids.get("eos_token_id") if value is None else value
    if value is None:
      return {}
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
      raise c.error(key, "a token's id")
    ids[key] = value
  return {"pad_id": ids["pad_token_id"], "eos_id": ids["eos_token_id"]}


def _llama3(path: str, rope: Mapping[str, Any]) -> tuple[float, ...]:
  """(factor, low, high, original length) of Llama 3's stretched frequencies; () for none."""
  kind = rope.get("rope_type", rope.get("type", "default"))
  if kind == "default":
    return ()
  if kind != "llama3":
    raise types.UserError(f"{path}: rope_type={kind!r}, expected default or llama3")
  keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
  for key in keys:
    if not isinstance(rope.get(key), (int, float)):
      raise types.UserError(f"{path}: rope_scaling.{key}={rope.get(key)!r}, expected a number")
  return tuple(float(rope[key]) for key in keys)


def llm_json(cfg: llm.LLMConfig) -> dict[str, Any]:
  """config.json of the stock base model (Qwen3Model, Qwen2Model, LlamaModel)."""
  kind = "qwen3" if cfg.qk_norm else "qwen2" if cfg.qkv_bias else "llama"
  if cfg.qk_norm and cfg.qkv_bias:
    raise types.UserError("model.llm: qk_norm with qkv_bias: no published family has both")
  rope: dict[str, Any] = {"rope_type": "default"}
  if cfg.rope_llama3:
    keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    rope = {"rope_type": "llama3", **dict(zip(keys, cfg.rope_llama3))}
    rope[keys[3]] = int(rope[keys[3]])
  return {
    "architectures": [{"qwen3": "Qwen3Model", "qwen2": "Qwen2Model", "llama": "LlamaModel"}[kind]],
    "model_type": kind,
    "vocab_size": cfg.vocab_size,
    "hidden_size": cfg.width,
    "num_hidden_layers": cfg.depth,
    "num_attention_heads": cfg.num_heads,
    "num_key_value_heads": cfg.num_kv_heads,
    "head_dim": cfg.head_dim,
    "intermediate_size": cfg.mlp_dim,
    "hidden_act": "silu",
    "rms_norm_eps": cfg.norm_eps,
    "tie_word_embeddings": cfg.tied,
    "attention_bias": False,
    "pad_token_id": cfg.pad_id,
    "eos_token_id": cfg.eos_id,
    "max_position_embeddings": 32_768,
    "rope_theta": cfg.rope_theta,  # transformers 4
    "rope_parameters": {"rope_theta": cfg.rope_theta, **rope},  # transformers 5
    **({"rope_scaling": rope} if cfg.rope_llama3 else {}),
  }


def t5_config(folder: str, **overrides: Any) -> byt5.ByT5Config:
  """The ByT5Config of a published T5 v1.1, mT5 or ByT5 model."""
  c = config_json.Reader.open(folder)
  c.expect("model_type", ("t5", "mt5"))
  kind = c.raw.get("feed_forward_proj")
  if kind != "gated-gelu":
    raise types.UserError(f"{c.path}: feed_forward_proj={kind!r}, expected 'gated-gelu' (T5 v1.1)")
  return byt5.ByT5Config(
    **{
      "width": c.number("d_model"),
      "depth": c.number("num_layers"),
      "num_heads": c.number("num_heads"),
      "head_dim": c.number("d_kv"),
      "mlp_dim": c.number("d_ff"),
      "vocab_size": c.number("vocab_size"),
      "num_buckets": c.number("relative_attention_num_buckets", 32),
      "max_distance": c.number("relative_attention_max_distance", 128),
      "norm_eps": c.number("layer_norm_epsilon", 1e-6, float),
      **overrides,
    }
  )


def t5_json(cfg: byt5.ByT5Config) -> dict[str, Any]:
  """config.json of the stock T5EncoderModel."""
  return {
    "architectures": ["T5EncoderModel"],
    "model_type": "t5",
    "d_model": cfg.width,
    "d_kv": cfg.head_dim,
    "d_ff": cfg.mlp_dim,
    "num_layers": cfg.depth,
    "num_heads": cfg.num_heads,
    "vocab_size": cfg.vocab_size,
    "relative_attention_num_buckets": cfg.num_buckets,
    "relative_attention_max_distance": cfg.max_distance,
    "layer_norm_epsilon": cfg.norm_eps,
    "feed_forward_proj": "gated-gelu",
    "is_gated_act": True,
    "dense_act_fn": "gelu_new",
    "is_encoder_decoder": False,
    "use_cache": False,
    "tie_word_embeddings": False,
    "dropout_rate": 0.0,
    "pad_token_id": byt5.PAD,
    "eos_token_id": byt5.EOS,
  }


def vae_config(folder: str, **overrides: Any) -> vae.VAEConfig:
  """The VAEConfig of a diffusers AutoencoderKL."""
  c = config_json.Reader.open(folder)
  c.expect("_class_name", ("AutoencoderKL",))
  c.expect("act_fn", ("silu",))
  for key in ("use_quant_conv", "use_post_quant_conv"):
    if c.raw.get(key, True):
      raise types.UserError(f"{c.path}: {key}=true, expected false (SD3, FLUX)")
  widths = c.raw.get("block_out_channels")
  if not isinstance(widths, list) or not widths or not all(isinstance(w, int) for w in widths):
    raise types.UserError(f"{c.path}: block_out_channels={widths!r}, expected a list of widths")
  c.expect("down_block_types", (["DownEncoderBlock2D"] * len(widths),))
  c.expect("up_block_types", (["UpDecoderBlock2D"] * len(widths),))
  layers = c.number("layers_per_block", 1)
  return vae.VAEConfig(
    **{
      "widths": tuple(widths),
      "encoder_layers": layers,
      "decoder_layers": layers + 1,
      "mid_attention": bool(c.raw.get("mid_block_add_attention", True)),
      "norm_groups": c.number("norm_num_groups", 32),
      "latent_channels": c.number("latent_channels", 4),
      "image_channels": c.number("in_channels", 3),
      "latent_shift": float(c.raw.get("shift_factor") or 0.0),
      "latent_scale": c.number("scaling_factor", 0.18215, float),
      **overrides,
    }
  )


def vae_stats(folder: str, cfg: vae.VAEConfig) -> dict[str, np.ndarray]:
  """stats/mean and stats/std of an AutoencoderKL: per channel where its config says so, else one for all."""
  raw, found = config_json.read_json(os.path.join(folder, "config.json")), {}
  defaults = {"mean": cfg.latent_shift, "std": 1.0 / cfg.latent_scale}
  for name, default in defaults.items():
    values = raw.get(f"latents_{name}")
    values = [default] * cfg.latent_channels if values is None else values
    if len(values) != cfg.latent_channels:
      raise types.UserError(
        f"{folder}/config.json: latents_{name} has {len(values)} values, latent_channels={cfg.latent_channels}"
      )
    found[f"stats/{name}"] = np.array(values, np.float32)
  return found


CONFIGS = {
  "llm": llm_config,
  "byt5": t5_config,
  "vae": vae_config,
  "clip": towers.clip_config,
  "chinese_clip": towers.chinese_clip_config,
  "dinov2": towers.dinov2_config,
}


class Source:
  """The tensors of a published folder, read by name and part; one file at a time is open, so one is in memory.

  Attributes:
    folder: of config.json and the safetensors files.
    shapes, dtypes: of every tensor, by name.

  Raises:
    types.UserError: no safetensors there (pickles are refused), or an index that points outside the folder.
  """

  def __init__(self, folder: str):
    self.folder, self._path, self._handle = folder, "", None
    self._files = self._find()
    headers = {file: weights.read_header(file)[0] for file in dict.fromkeys(self._files.values())}
    for name, file in self._files.items():
      if name not in headers[file]:
        raise types.UserError(f"{file}: has no tensor {name!r}, which the index puts there")
    self.shapes = {name: headers[file][name].shape for name, file in self._files.items()}
    self.dtypes = {name: headers[file][name].dtype for name, file in self._files.items()}

  def read(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
    """A tensor, or the part of it that `index` names."""
    if self._path != self._files[name]:
      # Let go first: what was read of a mapped file stays in memory until it is closed.
      self._path, self._handle = self._files[name], None
      self._handle = safetensors.safe_open(self._path, framework="np")
    handle = self._handle
    return handle.get_tensor(name) if index is None else handle.get_slice(name)[index]

  def _find(self) -> dict[str, str]:
    if not os.path.isdir(self.folder):
      raise types.UserError(f"{self.folder}: no such folder")
    for stem in _STEMS:
      index = os.path.join(self.folder, f"{stem}.safetensors.index.json")
      single = os.path.join(self.folder, f"{stem}.safetensors")
      if os.path.exists(index):
        return {name: self._inside(index, file) for name, file in self._weight_map(index).items()}
      if os.path.exists(single):
        return dict.fromkeys(weights.read_header(single)[0], single)
    pickles = sorted(f for f in os.listdir(self.folder) if f.endswith(_PICKLES))
    hint = (
      f"; {pickles[0]} is a pickle, which can run code: convert it to safetensors"
      if pickles
      else ""
    )
    raise types.UserError(f"{self.folder}: no {_STEMS[0]}.safetensors or index of one there{hint}")

  def _weight_map(self, index: str) -> dict[str, str]:
    found = config_json.read_json(index).get("weight_map")
    if not isinstance(found, dict) or not all(isinstance(f, str) for f in found.values()):
      raise types.UserError(f"{index}: weight_map is missing or no map of names to files")
    return found

  def _inside(self, index: str, file: str) -> str:
    if os.path.basename(file) != file or not file.endswith(".safetensors"):
      raise types.UserError(f"{index}: {file!r} is no .safetensors file of that folder")
    path = os.path.join(self.folder, file)
    if not os.path.exists(path):
      raise types.UserError(f"{index}: {file} is not there")
    return path


def load_part(
  part: str, source: Source, abstract: Any, *, given: Mapping[str, np.ndarray] | None = None
) -> types.Params:
  """Streams a published model into our tree, each process reading only what its shards hold.

  Beside the arrays it makes, the host holds one file of the folder and one device's part of one leaf.

  Args:
    part: a key of TABLES.
    source: the folder.
    abstract: ShapeDtypeStructs of our leaves, with shardings where wanted; they set the dtypes.
    given: leaves that the other side keeps in its config.

  Raises:
    types.UserError: a tensor that is missing, left over, or of another shape.
  """
  flat, out = trees.flatten(abstract), {}
  groups, read = _match(part, source, abstract)
  for path, group in groups.items():
    out[path] = _place(flat[path], group, read)
  for path, x in (given or {}).items():
    out[path] = _place_array(flat[path], x)
  return trees.unflatten({path: out[path] for path in flat})


def stream_part(
  part: str, source: Source, abstract: Any, *, given: Mapping[str, np.ndarray] | None = None
) -> tuple[dict[str, Any], Callable[[str], Iterator[np.ndarray]]]:
  """What `weights.stream_weights` takes to write a published model in our layout, a tensor of theirs at a time.

  Args and errors are `load_part`'s, but that the dtypes of `abstract` are not looked at.

  Returns:
    ({path: shape and dtype}, fn(path) -> its pieces); a leaf has the dtype that is stored.
  """
  flat, given = trees.flatten(abstract), given or {}
  groups, read = _match(part, source, abstract)
  stored = {_base(part, name): dtype for name, dtype in source.dtypes.items()}
  leaves = {}
  for path, group in groups.items():
    dtypes = sorted({str(stored[entry.name]) for entry in group})
    if len(dtypes) > 1:
      raise types.UserError(f"{source.folder}: {path} is stored as {' and '.join(dtypes)}")
    leaves[path] = jax.ShapeDtypeStruct(flat[path].shape, dtypes[0])
  leaves |= {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in given.items()}

  def pieces(path: str) -> Iterator[np.ndarray]:
    if path in given:
      yield given[path]
      return
    for entry in groups[path]:
      shape = flat[path].shape if entry.layer is None else flat[path].shape[1:]
      yield entry.read(read, tuple(slice(0, n) for n in shape))

  return leaves, pieces


def _match(
  part: str, source: Source, abstract: Any
) -> tuple[Mapping[str, list[names.Entry]], _Read]:
  """({leaf of ours: tensors of theirs}, fn(their base name, index) -> array), all of both accounted for."""
  theirs = {_base(part, name): name for name in source.shapes}
  found = names.entries(TABLES[part], abstract)
  wanted = {entry.name for entry in found}
  for entry in found:
    if entry.name not in theirs:
      raise types.UserError(
        f"{source.folder}: has no tensor {entry.name!r}{_near(entry.name, theirs)}"
      )
    shape = source.shapes[theirs[entry.name]]
    if shape != entry.shape:
      raise types.UserError(
        f"{source.folder}: {entry.name!r} has shape {shape}, expected {entry.shape}"
      )
  ignored = list(_IGNORED[part])
  if part == "llm" and "lm_head.weight" not in wanted:
    ignored.append(r"lm_head\.weight")  # tied: a copy of the embedding
  for name, stored in theirs.items():
    if name not in wanted and not any(re.fullmatch(regex, name) for regex in ignored):
      raise types.UserError(
        f"{source.folder}: tensor {stored!r} has no place in the model{_near(name, wanted)}"
      )
  return names.by_leaf(found), lambda name, index: source.read(theirs[name], index)


def _base(part: str, name: str) -> str:
  """A causal model's file puts "model." before its base model's names."""
  return name.removeprefix("model.") if part == "llm" else name


def _place(leaf: Any, group: Sequence[names.Entry], read: _Read) -> jax.Array:
  """One leaf, a device at a time: what this holds of the host is one device's part, not the leaf."""
  sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
    jax.local_devices()[0]
  )
  placed, seen, x = [], None, None
  for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
    whole = tuple(slice(*s.indices(n)) for s, n in zip(index, leaf.shape))
    if whole != seen:  # a copy's neighbour holds the same part
      seen, x = whole, names.read_leaf(group, read, whole, leaf.dtype)
    placed.append(jax.block_until_ready(jax.device_put(x, device)))
  return jax.make_array_from_single_device_arrays(leaf.shape, sharding, placed)


def _place_array(leaf: Any, x: np.ndarray) -> jax.Array:
  return jax.device_put(x.astype(leaf.dtype), getattr(leaf, "sharding", None))


def _near(name: str, valid) -> str:
  match = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.0)
  return f" (nearest: {match[0]!r})" if match else ""
