"""config.json of published CLIP, Chinese-CLIP and DINOv2 folders as our configs.

Defaults are those of transformers' config classes, since published files leave them out.
"""

import os
from typing import Any

from seedream_jax.interop import config_json
from seedream_jax.models import two_tower, vit

# Of pixels in [0, 1], where the folder has no preprocessor_config.json.
_CLIP_PIXELS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET_PIXELS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LEGACY_EOS = 2  # in CLIP's first configs, whose end token is in truth the highest id


def clip_config(folder: str, **overrides: Any) -> two_tower.TwoTowerConfig:
  """The config of a published CLIP (transformers' CLIPModel); `overrides` are of both towers.

  Raises:
    types.UserError: another family, or a choice that `models.two_tower` does not have.
  """
  c = config_json.Reader.open(folder)
  c.choice("model_type", "", ("clip",))
  text = _side(c, "text")
  eos = text.raw.get("eos_token_id", 49407)
  if isinstance(eos, bool) or not isinstance(eos, int):
    raise text.error("eos_token_id", "a token's id")
  tower = two_tower.CausalTextConfig(
    **{
      **_sizes(text, width=512, mlp=2048, heads=8),
      "vocab_size": text.number("vocab_size", 49408),
      "length": text.number("max_position_embeddings", 77),
      "activation": text.choice("hidden_act", "quick_gelu", tuple(vit.ACTIVATIONS)),
      "norm_eps": text.number("layer_norm_eps", 1e-5, float),
      "eos_id": None if eos == _LEGACY_EOS else eos,
      **overrides,
    }
  )
  return _two_tower(c, folder, tower, overrides)


def chinese_clip_config(folder: str, **overrides: Any) -> two_tower.TwoTowerConfig:
  """The config of a published Chinese-CLIP (transformers' ChineseCLIPModel); as `clip_config`."""
  c = config_json.Reader.open(folder)
  c.choice("model_type", "", ("chinese_clip",))
  text = _side(c, "text")
  text.expect("position_embedding_type", ("absolute",))
  pad = text.raw.get("pad_token_id", 0)
  if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0:
    raise text.error("pad_token_id", "a token's id")
  tower = two_tower.BertConfig(
    **{
      **_sizes(text, width=768, mlp=3072, heads=12),
      "vocab_size": text.number("vocab_size", 30522),
      "length": text.number("max_position_embeddings", 512),
      "segments": text.number("type_vocab_size", 2),
      "pad_id": pad,
      "activation": text.choice("hidden_act", "gelu", tuple(vit.ACTIVATIONS)),
      "norm_eps": text.number("layer_norm_eps", 1e-12, float),
      **overrides,
    }
  )
  return _two_tower(c, folder, tower, overrides)


def dinov2_config(folder: str, **overrides: Any) -> vit.ViTConfig:
  """The config of a published DINOv2 (transformers' Dinov2Model or Dinov2WithRegistersModel).

  Raises:
    types.UserError: another family, or a choice that `models.vit` does not have.
  """
  c = config_json.Reader.open(folder)
  kind = c.choice("model_type", "", ("dinov2", "dinov2_with_registers"))
  registers = kind == "dinov2_with_registers"
  c.expect("hidden_act", ("gelu",))
  gated = c.raw.get("use_swiglu_ffn", False)
  if not isinstance(gated, bool):
    raise c.error("use_swiglu_ffn", "true or false")
  width = c.number("hidden_size", 768)
  hidden = int(width * c.number("mlp_ratio", 4, float))
  if gated:
    hidden = (int(hidden * 2 / 3) + 7) // 8 * 8  # as Dinov2SwiGLUFFN rounds
  patch = _square(c, "patch_size", 16 if registers else 14)
  side = _square(c, "image_size", 224) // patch
  mean, std = _pixels(folder, _IMAGENET_PIXELS)
  return vit.ViTConfig(
    **{
      "width": width,
      "depth": c.number("num_hidden_layers", 12),
      "num_heads": _heads(c, width, 12),
      "mlp_dim": hidden,
      "gated": gated,
      "layer_scale": True,
      "qkv_bias": bool(c.raw.get("qkv_bias", True)),
      "norm_eps": c.number("layer_norm_eps", 1e-6, float),
      "patch": patch,
      "grid": (side, side),
      "channels": c.number("num_channels", 3),
      "registers": c.number("num_register_tokens", 4) if registers else 0,
      "antialias": registers,
      "mean": mean,
      "std": std,
      **overrides,
    }
  )


def _two_tower(
  c: config_json.Reader, folder: str, text: vit.BlockConfig, overrides: dict[str, Any]
) -> two_tower.TwoTowerConfig:
  """With the vision tower, which both families have alike."""
  v = _side(c, "vision")
  patch = _square(v, "patch_size", 32)
  side = _square(v, "image_size", 224) // patch
  mean, std = _pixels(folder, _CLIP_PIXELS)
  vision = vit.ViTConfig(
    **{
      **_sizes(v, width=768, mlp=3072, heads=12),
      "activation": v.choice("hidden_act", "quick_gelu", tuple(vit.ACTIVATIONS)),
      "norm_eps": v.number("layer_norm_eps", 1e-5, float),
      "pre_norm": True,
      "patch_bias": False,
      "patch": patch,
      "grid": (side, side),
      "channels": v.number("num_channels", 3),
      "mean": mean,
      "std": std,
      **overrides,
    }
  )
  return two_tower.TwoTowerConfig(vision, text, c.number("projection_dim", 512))


def _side(c: config_json.Reader, name: str) -> config_json.Reader:
  """text_config or vision_config; first files repeat it as *_config_dict, which transformers lets win."""
  side, again = c.within(f"{name}_config"), c.within(f"{name}_config_dict")
  for key, value in again.raw.items():
    if key in side.raw and side.raw[key] != value:
      raise again.error(key, f"{side.raw[key]!r} as in {name}_config")
  return config_json.Reader(side.path, {**again.raw, **side.raw}, side.prefix)


def _sizes(c: config_json.Reader, *, width: int, mlp: int, heads: int) -> dict[str, int]:
  width = c.number("hidden_size", width)
  return {
    "width": width,
    "depth": c.number("num_hidden_layers", 12),
    "num_heads": _heads(c, width, heads),
    "mlp_dim": c.number("intermediate_size", mlp),
  }


def _heads(c: config_json.Reader, width: int, default: int) -> int:
  heads = c.number("num_attention_heads", default)
  if width % heads:
    raise c.error("num_attention_heads", f"a divisor of hidden_size={width}")
  return heads


def _square(c: config_json.Reader, key: str, default: int) -> int:
  """One side of a size that is a number or a pair of equal ones."""
  value = c.raw.get(key)
  if isinstance(value, list):
    if len(value) != 2 or value[0] != value[1]:
      raise c.error(key, "one number: tables of positions are square")
    c = config_json.Reader(c.path, {key: value[0]}, c.prefix)
  return c.number(key, default)


def _pixels(
  folder: str, default: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Mean and std from preprocessor_config.json, or the family's where there is no such file."""
  name = "preprocessor_config.json"
  if not os.path.exists(os.path.join(folder, name)):
    return default
  c = config_json.Reader.open(folder, name)
  c.expect("do_normalize", (True,))
  found = []
  for key, usual in zip(("image_mean", "image_std"), default):
    values = c.raw.get(key, list(usual))
    if not isinstance(values, list) or not all(isinstance(x, (int, float)) for x in values):
      raise c.error(key, "a list of numbers, one a channel")
    if key == "image_std" and min(values, default=0) <= 0:
      raise c.error(key, "numbers above 0")
    found.append(tuple(float(x) for x in values))
  return found[0], found[1]
