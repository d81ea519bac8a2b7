"""Two-way tables between our parameter paths and the names that PyTorch checkpoints use.

A table is a list of rules (regex on our path, their name, move). Their name may use the regex's groups, and `{i}`,
the layer, where our leaf is stacked over layers. A table is read from our side in both directions: `entries` lists,
for one model, every tensor of the other side with its place in ours, so that what one direction covers the other does.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from seedream_jax.engine import trees


@dataclasses.dataclass(frozen=True)
class Move:
  """How an array changes on its way: `axes` takes ours to theirs, then come `lead` dims of size one."""

  axes: tuple[int, ...] | None = None
  lead: int = 0

  def to_theirs(self, x: np.ndarray) -> np.ndarray:
    """Ours as theirs."""
    x = x if self.axes is None else np.transpose(x, self.axes)
    return x.reshape((1,) * self.lead + x.shape)

  def to_ours(self, x: np.ndarray) -> np.ndarray:
    """Theirs as ours."""
    x = x.reshape(x.shape[self.lead :])
    return x if self.axes is None else np.transpose(x, np.argsort(self.axes))

  def shape(self, ours: Sequence[int]) -> tuple[int, ...]:
    """Their shape of an array that has shape `ours` here."""
    return (1,) * self.lead + self._order(ours)

  def index(self, ours: Sequence[slice]) -> tuple[slice, ...]:
    """Their index of what `ours` indexes here."""
    return (slice(0, 1),) * self.lead + self._order(ours)

  def _order(self, ours: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(ours) if self.axes is None else tuple(ours[a] for a in self.axes)


SAME = Move()
LINEAR = Move((1, 0))  # [in, out] -> [out, in]
CONV = Move((3, 2, 0, 1))  # [h, w, in, out] -> [out, in, h, w]
LEAD_1, LEAD_2 = Move(lead=1), Move(lead=2)

# (regex on our path, their name, move). A name of None: kept in the other side's config, not among its tensors.
Table = Sequence[tuple[str, str | None, Move]]


@dataclasses.dataclass(frozen=True)
class Entry:
  """One tensor of theirs: its place in ours is leaf `path`, row `layer` where the leaf is stacked."""

  name: str
  path: str
  layer: int | None
  move: Move
  shape: tuple[int, ...]  # theirs

  def read(
    self, read: Callable[[str, tuple[slice, ...]], np.ndarray], index: tuple[slice, ...]
  ) -> np.ndarray:
    """The part `index` of ours."""
    return self.move.to_ours(read(self.name, self.move.index(index)))


def entries(table: Table, abstract: Any) -> list[Entry]:
  """Every tensor of theirs that the model with leaves `abstract` stands for.

  Raises:
    types.UserError: a leaf that no rule covers.
  """
  rules = [(regex, (regex, name, move)) for regex, name, move in table]
  found = []
  for path, leaf in trees.flatten(abstract).items():
    regex, name, move = trees.match(rules, path, "weight-name rule")
    if name is None:
      continue
    name = trees.expand(regex, name, path)
    if "{i}" in name:
      for i in range(leaf.shape[0]):
        place = name.replace("{i}", str(i))
        found.append(Entry(place, path, i, move, move.shape(leaf.shape[1:])))
    else:
      found.append(Entry(name, path, None, move, move.shape(leaf.shape)))
  return found


def to_theirs(table: Table, params: Any) -> dict[str, np.ndarray]:
  """{their name: array} of a tree of ours, dtypes kept; arrays are contiguous copies."""
  flat = trees.flatten(params)
  out = {}
  for entry in entries(table, params):
    x = np.asarray(flat[entry.path] if entry.layer is None else flat[entry.path][entry.layer])
    # Not ascontiguousarray, which makes a scalar a vector.
    out[entry.name] = np.array(entry.move.to_theirs(x), order="C")
  return out


def read_leaf(
  found: Sequence[Entry],
  read: Callable[[str, tuple[slice, ...]], np.ndarray],
  index: tuple[slice, ...],
  dtype: Any,
) -> np.ndarray:
  """A part of one leaf of ours from the tensors that make it, beside which it holds one of them.

  Args:
    found: the entries of the leaf, in the order of layers.
    read: fn(their name, part of theirs) -> array.
    index: the part wanted of ours.
    dtype: what it is cast to.
  """
  if found[0].layer is None:
    return found[0].read(read, index).astype(dtype, copy=False)
  out = np.empty([len(range(s.start, s.stop)) for s in index], dtype)
  for row, entry in zip(out, found[index[0]], strict=True):
    row[...] = entry.read(read, index[1:])
  return out


def by_leaf(found: Sequence[Entry]) -> Mapping[str, list[Entry]]:
  """Entries grouped by the leaf they make."""
  groups: dict[str, list[Entry]] = {}
  for entry in found:
    groups.setdefault(entry.path, []).append(entry)
  return groups


# Qwen3, Qwen2.5 and Llama, as of the base model; a causal model's file says "model." before all but lm_head.
LLM: Table = (
  (r"embed_tokens/embedding", "embed_tokens.weight", SAME),
  (r"blocks/layers/(input_layernorm|post_attention_layernorm)/scale", r"layers.{i}.\1.weight", SAME),
  (r"blocks/layers/self_attn/(._proj)/kernel", r"layers.{i}.self_attn.\1.weight", LINEAR),
  (r"blocks/layers/self_attn/(._proj)/bias", r"layers.{i}.self_attn.\1.bias", SAME),
  (r"blocks/layers/self_attn/(._norm)/scale", r"layers.{i}.self_attn.\1.weight", SAME),
  (r"blocks/layers/mlp/(.*_proj)/kernel", r"layers.{i}.mlp.\1.weight", LINEAR),
  (r"norm/scale", "norm.weight", SAME),
  (r"lm_head/kernel", "lm_head.weight", LINEAR),
)  # fmt: skip

_T5 = "encoder.block.{i}.layer"
# T5 v1.1, mT5 and ByT5 encoders.
T5: Table = (
  (r"embed/embedding", "shared.weight", SAME),
  (
    r"relative_attention_bias/embedding",
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    SAME,
  ),
  (r"blocks/layers/self_attention_norm/scale", f"{_T5}.0.layer_norm.weight", SAME),
  (r"blocks/layers/self_attention/(.)/kernel", _T5 + r".0.SelfAttention.\1.weight", LINEAR),
  (r"blocks/layers/mlp_norm/scale", f"{_T5}.1.layer_norm.weight", SAME),
  (r"blocks/layers/mlp/(w.*)/kernel", _T5 + r".1.DenseReluDense.\1.weight", LINEAR),
  (r"final_norm/scale", "encoder.final_layer_norm.weight", SAME),
)

_LEVEL = r"(encoder|decoder)/(down|up)_blocks_(\d)/"
_MID = r"(encoder|decoder)/mid_block/"
# diffusers' AutoencoderKL without quant convs.
VAE: Table = (
  (r"stats/(mean|std)", None, SAME),
  (r"(encoder|decoder)/(conv_in|conv_out)/kernel", r"\1.\2.weight", CONV),
  (r"(encoder|decoder)/(conv_in|conv_out|conv_norm_out)/bias", r"\1.\2.bias", SAME),
  (r"(encoder|decoder)/conv_norm_out/scale", r"\1.conv_norm_out.weight", SAME),
  (_LEVEL + r"resnets_(\d)/(conv.*)/kernel", r"\1.\2_blocks.\3.resnets.\4.\5.weight", CONV),
  (_LEVEL + r"resnets_(\d)/(norm.)/scale", r"\1.\2_blocks.\3.resnets.\4.\5.weight", SAME),
  (_LEVEL + r"resnets_(\d)/(.*)/bias", r"\1.\2_blocks.\3.resnets.\4.\5.bias", SAME),
  (_LEVEL + r"(down|up)samplers_0/conv/kernel", r"\1.\2_blocks.\3.\4samplers.0.conv.weight", CONV),
  (_LEVEL + r"(down|up)samplers_0/conv/bias", r"\1.\2_blocks.\3.\4samplers.0.conv.bias", SAME),
  (_MID + r"resnets_(\d)/(conv.*)/kernel", r"\1.mid_block.resnets.\2.\3.weight", CONV),
  (_MID + r"resnets_(\d)/(norm.)/scale", r"\1.mid_block.resnets.\2.\3.weight", SAME),
  (_MID + r"resnets_(\d)/(.*)/bias", r"\1.mid_block.resnets.\2.\3.bias", SAME),
  (_MID + r"attentions_0/to_out_0/kernel", r"\1.mid_block.attentions.0.to_out.0.weight", LINEAR),
  (_MID + r"attentions_0/to_out_0/bias", r"\1.mid_block.attentions.0.to_out.0.bias", SAME),
  (_MID + r"attentions_0/group_norm/scale", r"\1.mid_block.attentions.0.group_norm.weight", SAME),
  (_MID + r"attentions_0/(to_.)/kernel", r"\1.mid_block.attentions.0.\2.weight", LINEAR),
  (_MID + r"attentions_0/(.*)/bias", r"\1.mid_block.attentions.0.\2.bias", SAME),
)

_SIDE = r"(vision|text)_model/"
_LAYER = _SIDE + r"blocks/layers/"
# CLIP's blocks; in Chinese-CLIP the vision tower's alone.
_CLIP_BLOCKS: Table = (
  (_LAYER + r"(self_attn|mlp)/(.*)/kernel", r"\1_model.encoder.layers.{i}.\2.\3.weight", LINEAR),
  (_LAYER + r"(self_attn|mlp)/(.*)/bias", r"\1_model.encoder.layers.{i}.\2.\3.bias", SAME),
  (_LAYER + r"(layer_norm.)/scale", r"\1_model.encoder.layers.{i}.\2.weight", SAME),
  (_LAYER + r"(layer_norm.)/bias", r"\1_model.encoder.layers.{i}.\2.bias", SAME),
)
# What both have around them.
_CLIP_FRAME: Table = (
  (r"logit_scale", "logit_scale", SAME),
  (r"(visual|text)_projection/kernel", r"\1_projection.weight", LINEAR),
  (r"vision_model/class_embedding", "vision_model.embeddings.class_embedding", SAME),
  (r"vision_model/patch_embedding/kernel", "vision_model.embeddings.patch_embedding.weight", CONV),
  (r"vision_model/position_embedding", "vision_model.embeddings.position_embedding.weight", SAME),
  (r"vision_model/pre_norm/scale", "vision_model.pre_layrnorm.weight", SAME),  # spelled so
  (r"vision_model/pre_norm/bias", "vision_model.pre_layrnorm.bias", SAME),
  (r"vision_model/post_norm/scale", "vision_model.post_layernorm.weight", SAME),
  (r"vision_model/post_norm/bias", "vision_model.post_layernorm.bias", SAME),
)
# transformers' CLIPModel.
CLIP: Table = (
  *_CLIP_FRAME,
  *_CLIP_BLOCKS,
  (r"text_model/(.*_embedding)/embedding", r"text_model.embeddings.\1.weight", SAME),
  (r"text_model/final_norm/scale", "text_model.final_layer_norm.weight", SAME),
  (r"text_model/final_norm/bias", "text_model.final_layer_norm.bias", SAME),
)


def _blocks(prefix: str, theirs: str, layers: dict[str, str]) -> Table:
  """Rules of blocks whose layers are called otherwise: {ours: theirs}, norms told by their name."""
  out = []
  for ours, name in layers.items():
    weight = ("scale", SAME) if "norm" in ours else ("kernel", LINEAR)
    out.append((f"{prefix}blocks/layers/{ours}/{weight[0]}", f"{theirs}.{name}.weight", weight[1]))
    out.append((f"{prefix}blocks/layers/{ours}/bias", f"{theirs}.{name}.bias", SAME))
  return tuple(out)


# transformers' ChineseCLIPModel; its text tower is a BERT.
CHINESE_CLIP: Table = (
  *_CLIP_FRAME,
  *_blocks(
    "text_model/",
    "text_model.encoder.layer.{i}",
    {
      "self_attn/q_proj": "attention.self.query",
      "self_attn/k_proj": "attention.self.key",
      "self_attn/v_proj": "attention.self.value",
      "self_attn/out_proj": "attention.output.dense",
      "layer_norm1": "attention.output.LayerNorm",
      "mlp/fc1": "intermediate.dense",
      "mlp/fc2": "output.dense",
      "layer_norm2": "output.LayerNorm",
    },
  ),
  *_CLIP_BLOCKS,
  (r"text_model/(.*_embeddings)/embedding", r"text_model.embeddings.\1.weight", SAME),
  (r"text_model/norm/scale", "text_model.embeddings.LayerNorm.weight", SAME),
  (r"text_model/norm/bias", "text_model.embeddings.LayerNorm.bias", SAME),
)

# transformers' Dinov2Model, and Dinov2WithRegistersModel.
DINOV2: Table = (
  (r"class_embedding", "embeddings.cls_token", LEAD_2),
  (r"position_embedding", "embeddings.position_embeddings", LEAD_1),
  (r"register_tokens", "embeddings.register_tokens", LEAD_1),
  (r"patch_embedding/kernel", "embeddings.patch_embeddings.projection.weight", CONV),
  (r"patch_embedding/bias", "embeddings.patch_embeddings.projection.bias", SAME),
  (r"post_norm/scale", "layernorm.weight", SAME),
  (r"post_norm/bias", "layernorm.bias", SAME),
  (r"blocks/layers/(layer_scale.)", r"encoder.layer.{i}.\1.lambda1", SAME),
  *_blocks(
    "",
    "encoder.layer.{i}",
    {
      "self_attn/q_proj": "attention.attention.query",
      "self_attn/k_proj": "attention.attention.key",
      "self_attn/v_proj": "attention.attention.value",
      "self_attn/out_proj": "attention.output.dense",
      "layer_norm1": "norm1",
      "layer_norm2": "norm2",
      "mlp/fc1": "mlp.fc1",
      "mlp/fc2": "mlp.fc2",
      "mlp/weights_in": "mlp.weights_in",
      "mlp/weights_out": "mlp.weights_out",
    },
  ),
)

# torch_twin.Transformer: our own paths with dots.
DIT: Table = (
  (r"blocks/layers/(.*)/kernel", r"blocks.{i}.\1.weight", LINEAR),
  (r"blocks/layers/(.*)/scale", r"blocks.{i}.\1.weight", SAME),
  (r"blocks/layers/(.*)", r"blocks.{i}.\1", SAME),
  (r"position", "position", SAME),
  (r"(.*)/table", r"\1.table", SAME),
  (r"vmix/(labels|mix)", r"vmix.\1", SAME),
  (r"(.*)/kernel", r"\1.weight", LINEAR),
  (r"(.*)/scale", r"\1.weight", SAME),
  (r"(.*)/bias", r"\1.bias", SAME),
)

# PEFT's names for the adapters of `DIT`, as diffusers' load_lora_adapter takes them.
DIT_LORA: Table = (
  (r"blocks/layers/(.*)/lora_a", r"transformer.blocks.{i}.\1.lora_A.weight", LINEAR),
  (r"blocks/layers/(.*)/lora_b", r"transformer.blocks.{i}.\1.lora_B.weight", LINEAR),
  (r"(.*)/lora_a", r"transformer.\1.lora_A.weight", LINEAR),
  (r"(.*)/lora_b", r"transformer.\1.lora_B.weight", LINEAR),
)
