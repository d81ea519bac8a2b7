"""CLIP, Chinese-CLIP and DINOv2 against transformers' classes with random weights; what must be refused."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.engine import mesh, sharding, trees
from seedream_jax.interop import huggingface, names
from tests.interop import parity

VISION = dict(hidden_size=12, intermediate_size=20, num_hidden_layers=2, num_attention_heads=3,
              image_size=15, patch_size=5)  # fmt: skip
TEXT = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=3, num_attention_heads=2,
            vocab_size=31, max_position_embeddings=9)  # fmt: skip
CONFIGS = {
  "clip": dict(model_type="clip", projection_dim=7, vision_config=VISION, text_config=TEXT),
  "chinese_clip": dict(
    model_type="chinese_clip", projection_dim=7, vision_config=VISION, text_config=TEXT
  ),
  "dinov2": dict(model_type="dinov2", mlp_ratio=2, **VISION),
  "swiglu": dict(model_type="dinov2", use_swiglu_ffn=True, **VISION),
  "registers": dict(
    model_type="dinov2_with_registers", mlp_ratio=2, num_register_tokens=3, **VISION
  ),
}


def table_of(config: dict) -> str:
  """A key of huggingface.TABLES."""
  return config["model_type"].removesuffix("_with_registers")


def publish(config: dict, change=None) -> str:
  """A folder as published, made without torch: random tensors in the shapes that `config` asks for.

  Args:
    config: config.json.
    change: fn(tensors) that edits them.
  """
  folder = parity.folder()
  with open(os.path.join(folder, "config.json"), "w") as f:
    json.dump(config, f)
  name = table_of(config)
  rng, params = np.random.default_rng(0), parity.part(name, folder).abstract
  params = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), params)
  tensors = names.to_theirs(huggingface.TABLES[name], params)
  if change is not None:
    change(tensors)
  safetensors.numpy.save_file(tensors, os.path.join(folder, "model.safetensors"))
  return folder


class TablesTest(parameterized.TestCase):
  @parameterized.parameters(*CONFIGS)
  def test_what_is_written_is_read(self, name):
    config = CONFIGS[name]
    folder = publish(config)
    _, params = parity.load(table_of(config), folder)
    again = names.to_theirs(huggingface.TABLES[table_of(config)], params)
    source = huggingface.Source(folder)
    self.assertEqual(again.keys(), source.shapes.keys())
    for key, x in again.items():
      self.assertEqual(x.shape, source.shapes[key], key)
      np.testing.assert_array_equal(x, source.read(key), err_msg=key)

  def test_loads_sharded_scalars_and_leading_ones_too(self):
    device_mesh = mesh.make(dict(data=1, fsdp=4, tensor=2, context=1), jax.devices())
    rules = (
      ("(.*/)?position_embedding", (None, "fsdp")),
      ("(.*/)?class_embedding", ("tensor",)),
      (".*", ()),
    )
    for name in ("clip", "dinov2"):
      folder = publish(CONFIGS[name])
      part, params = parity.load(name, folder)
      abstract = sharding.abstract(part.abstract, sharding.infer(part.abstract, rules, device_mesh))
      spread = huggingface.load_part(name, huggingface.Source(folder), abstract)
      for path, x in trees.flatten(spread).items():
        np.testing.assert_array_equal(x, trees.flatten(params)[path], err_msg=path)
    self.assertEqual(spread["position_embedding"].addressable_shards[0].data.shape, (10, 3))
    self.assertEqual(spread["class_embedding"].addressable_shards[0].data.shape, (6,))

  def test_published_names(self):
    """A few of each file's real names: two tables that agree on a wrong one pass the tests above."""
    for name, key, shape in (
      ("clip", "logit_scale", ()),
      ("clip", "vision_model.pre_layrnorm.weight", (12,)),
      ("clip", "text_model.encoder.layers.2.self_attn.q_proj.bias", (8,)),
      ("chinese_clip", "text_model.encoder.layer.2.attention.output.LayerNorm.weight", (8,)),
      ("chinese_clip", "text_model.encoder.layer.2.intermediate.dense.weight", (12, 8)),
      ("dinov2", "embeddings.cls_token", (1, 1, 12)),
      ("dinov2", "embeddings.position_embeddings", (1, 10, 12)),
      ("dinov2", "encoder.layer.1.layer_scale2.lambda1", (12,)),
      ("swiglu", "encoder.layer.1.mlp.weights_in.weight", (64, 12)),
      ("registers", "embeddings.register_tokens", (1, 3, 12)),
    ):
      source = huggingface.Source(publish(CONFIGS[name]))
      self.assertEqual(source.shapes[key], shape, key)


class RefusalsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("clip", "logit_scale"),
    ("clip", "vision_model.embeddings.class_embedding"),
    ("chinese_clip", "text_model.embeddings.LayerNorm.bias"),
    ("dinov2", "encoder.layer.1.layer_scale1.lambda1"),
  )
  def test_missing(self, name, key):
    folder = publish(CONFIGS[name], lambda tensors: tensors.pop(key))
    with self.assertRaisesRegex(types.UserError, f"has no tensor '{key}'"):
      parity.load(name, folder)

  @parameterized.parameters(
    ("clip", "text_model.encoder.layers.3.mlp.fc1.bias"),
    ("chinese_clip", "text_model.pooler.dense.weight"),
    ("dinov2", "embeddings.register_tokens"),
  )
  def test_leftover(self, name, key):
    folder = publish(
      CONFIGS[name], lambda tensors: tensors.update({key: np.zeros((3, 2), np.float32)})
    )
    with self.assertRaisesRegex(types.UserError, f"tensor '{key}' has no place in the model"):
      parity.load(name, folder)

  def test_what_no_forward_pass_reads_is_left_out(self):
    for name, unread in (
      ("clip", {"text_model.embeddings.position_ids": np.arange(9)[None]}),
      ("dinov2", {"embeddings.mask_token": np.zeros((1, 12), np.float32)}),
    ):
      _, want = parity.load(name, publish(CONFIGS[name]))
      folder = publish(CONFIGS[name], lambda tensors, unread=unread: tensors.update(unread))
      _, got = parity.load(name, folder)
      self.assertEqual(jax.tree.structure(got), jax.tree.structure(want))

  @parameterized.parameters(
    ("clip", dict(model_type="siglip"), "model_type='siglip', expected one of clip"),
    ("clip", dict(text_config=TEXT | dict(hidden_act="silu")),
     "text_config.hidden_act='silu', expected one of gelu, quick_gelu"),
    ("clip", dict(text_config=TEXT | dict(eos_token_id=[2, 3])),
     r"text_config.eos_token_id=\[2, 3\], expected a token's id"),
    ("clip", dict(vision_config=VISION | dict(num_attention_heads=5)),
     "vision_config.num_attention_heads=5, expected a divisor of hidden_size=12"),
    ("clip", dict(vision_config=VISION | dict(image_size=[15, 20])),
     r"vision_config.image_size=\[15, 20\], expected one number"),
    ("clip", dict(text_config_dict=dict(hidden_size=9)),
     "text_config_dict.hidden_size=9, expected 8 as in text_config"),
    ("clip", dict(projection_dim=0), "projection_dim=0, expected a number above 0"),
    ("clip", dict(text_config=3), "text_config=3, expected an object"),
    ("chinese_clip", dict(text_config=TEXT | dict(position_embedding_type="relative_key")),
     "text_config.position_embedding_type='relative_key', this model can only 'absolute'"),
    ("dinov2", dict(hidden_act="silu"), "hidden_act='silu', this model can only 'gelu'"),
    ("dinov2", dict(model_type="dinov3_vit"), "expected one of dinov2, dinov2_with_registers"),
  )  # fmt: skip
  def test_config(self, name, change, message):
    folder = publish(CONFIGS[name])
    with open(os.path.join(folder, "config.json"), "w") as f:
      json.dump(CONFIGS[name] | change, f)
    with self.assertRaisesRegex(types.UserError, message):
      parity.load(name, folder)

  def test_pixels_come_from_the_preprocessor(self):
    folder = publish(CONFIGS["dinov2"])
    path = os.path.join(folder, "preprocessor_config.json")
    self.assertEqual(huggingface.CONFIGS["dinov2"](folder).mean, (0.485, 0.456, 0.406))
    for found, message in (
      (dict(image_std=[0.5, 0.0, 0.5]), "image_std=.*, expected numbers above 0"),
      (dict(image_mean="half"), "image_mean='half', expected a list of numbers"),
      (dict(do_normalize=False), "do_normalize=False, this model can only True"),
    ):
      with open(path, "w") as f:
        json.dump(found, f)
      with self.assertRaisesRegex(types.UserError, message):
        huggingface.CONFIGS["dinov2"](folder)
    with open(path, "w") as f:
      json.dump(dict(image_mean=[0.5, 0.25, 0.1], image_std=[0.2, 0.4, 0.6]), f)
    cfg = huggingface.CONFIGS["dinov2"](folder)
    self.assertEqual((cfg.mean, cfg.std), ((0.5, 0.25, 0.1), (0.2, 0.4, 0.6)))


def pixel_values(image_BHWC: np.ndarray, cfg):
  """What transformers' image processor hands to the model."""
  import torch

  unit = (torch.tensor(image_BHWC).permute(0, 3, 1, 2) + 1) / 2
  mean, std = (torch.tensor(x).view(1, -1, 1, 1) for x in (cfg.mean, cfg.std))
  return (unit - mean) / std


def image(height: int, width: int) -> np.ndarray:
  return np.random.RandomState(0).uniform(-1, 1, (2, height, width, 3)).astype(np.float32)


def run(name: str, folder: str, params, dtype: str, call):
  """`call(module)` of the model at a compute dtype, its weights in it too."""
  bound = parity.part(name, folder, dtype=dtype).bind(
    jax.tree.map(lambda x: x.astype(dtype), params)
  )
  return call(bound)


@pytest.mark.heavy
class ParityTest(parameterized.TestCase):
  """Random weights of the real classes; float32 to 2e-5, bfloat16 within 1.5 times torch's own error."""

  @parameterized.parameters(
    dict(sizes=dict(hidden_size=36, num_attention_heads=3, num_hidden_layers=3), at=(35, 49)),
    dict(sizes=dict(hidden_size=40, num_attention_heads=5, num_hidden_layers=2, mlp_ratio=3), at=(35, 35)),
    dict(sizes=dict(hidden_size=36, num_attention_heads=3, num_hidden_layers=3, use_swiglu_ffn=True), at=(21, 14)),
    dict(sizes=dict(hidden_size=40, num_attention_heads=5, num_hidden_layers=2, qkv_bias=False,
                    use_swiglu_ffn=True), at=(49, 63)),
  )  # fmt: skip
  def test_dinov2(self, sizes, at):
    import transformers

    config = transformers.Dinov2Config(image_size=35, patch_size=7, **sizes)
    self.assert_dinov2_agrees(transformers.Dinov2Model(config).eval(), at)

  def assert_dinov2_agrees(self, reference, at):
    import torch

    parity.randomise(reference)
    folder, picture = parity.save(reference), image(*at)
    part, params = parity.load("dinov2", folder)
    pixels = pixel_values(picture, part.bind(params).cfg)

    def ours(dtype):
      return run("dinov2", folder, params, dtype, lambda model: model(jnp.asarray(picture)))

    def theirs(model):
      with torch.no_grad():
        return model(pixels.to(model.dtype)).last_hidden_state.float().numpy()

    parity.assert_parity(self, ours, theirs, reference)

  @parameterized.parameters(
    dict(sizes=dict(hidden_size=36, num_attention_heads=3, num_hidden_layers=3), at=(21, 56)),
    dict(sizes=dict(hidden_size=40, num_attention_heads=5, num_hidden_layers=2, num_register_tokens=1,
                    use_swiglu_ffn=True), at=(63, 35)),
    dict(sizes=dict(hidden_size=36, num_attention_heads=3, num_hidden_layers=2), at=(35, 35)),
  )  # fmt: skip
  def test_dinov2_with_registers(self, sizes, at):
    import transformers

    config = transformers.Dinov2WithRegistersConfig(image_size=35, patch_size=7, **sizes)
    self.assert_dinov2_agrees(transformers.Dinov2WithRegistersModel(config).eval(), at)

  @parameterized.product(
    family=("clip", "chinese_clip"),
    size=(
      dict(text=dict(hidden_size=36, num_attention_heads=3, intermediate_size=52, num_hidden_layers=3),
           vision=dict(hidden_size=40, num_attention_heads=5, intermediate_size=44, num_hidden_layers=2),
           at=(14, 35), eos=7, act="quick_gelu"),
      dict(text=dict(hidden_size=40, num_attention_heads=5, intermediate_size=72, num_hidden_layers=2),
           vision=dict(hidden_size=36, num_attention_heads=3, intermediate_size=56, num_hidden_layers=3),
           at=(28, 28), eos=2, act="gelu"),
    ),
  )  # fmt: skip
  def test_two_towers(self, family, size):
    import torch
    import transformers

    classes = {
      "clip": (transformers.CLIPConfig, transformers.CLIPModel),
      "chinese_clip": (transformers.ChineseCLIPConfig, transformers.ChineseCLIPModel),
    }
    text = dict(vocab_size=101, max_position_embeddings=23, hidden_act=size["act"], **size["text"])
    if family == "clip":
      text |= dict(eos_token_id=size["eos"], bos_token_id=0)
    vision = dict(image_size=28, patch_size=7, hidden_act=size["act"], **size["vision"])
    config = classes[family][0](text_config=text, vision_config=vision, projection_dim=27)
    reference = classes[family][1](config).eval()
    parity.randomise(reference)
    folder, picture = parity.save(reference), image(*size["at"])
    part, params = parity.load(family, folder)
    pixels = pixel_values(picture, part.bind(params).cfg.vision)
    # CLIP's text is read at the first 7, or the first of the highest id; padding repeats it, as published.
    end = 7 if size["eos"] == 7 else 100
    lengths, ids = np.array([[19], [7], [1]]), np.random.RandomState(0).randint(10, 99, (3, 19))
    mask = np.arange(19)[None] < lengths
    ids = np.where(mask, ids, end)
    np.put_along_axis(ids, lengths - 1, end, axis=1)

    def theirs(model):
      with torch.no_grad():
        out = model(
          input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long(),
          pixel_values=pixels.to(model.dtype), interpolate_pos_encoding=True,
        )  # fmt: skip
      found = (out.image_embeds, out.text_embeds, model.logit_scale.exp())
      return tuple(x.detach().float().numpy() for x in found)

    def ours(dtype):
      def call(model):
        texts = jnp.asarray(ids), jnp.asarray(mask)
        return model.image(jnp.asarray(picture)), model.text(*texts), model.scale()

      return run(family, folder, params, dtype, call)

    parity.assert_parity(self, ours, theirs, reference)


if __name__ == "__main__":
  absltest.main()
