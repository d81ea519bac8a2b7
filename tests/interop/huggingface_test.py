"""Published families against the real PyTorch classes with random weights; what must be refused."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.data import tokenizers
from seedream_jax.engine import mesh, sharding, trees
from seedream_jax.interop import huggingface, names
from seedream_jax.models import byt5, llm
from tests.data import datasets
from tests.interop import parity


def tiny_llm(folder: str, **changes) -> str:
  """A Qwen3 folder as published, made without torch: config.json and two shards with an index."""
  cfg = llm.LLMConfig(
    vocab_size=32, width=8, depth=2, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=12
  )
  part = types.Part.from_module(lambda rngs: llm.LLM(cfg, rngs=rngs))
  tensors = names.to_theirs(names.LLM, part.init(jax.random.key(0)))
  tensors = {f"model.{name}": x for name, x in tensors.items()}
  with open(os.path.join(folder, "config.json"), "w") as f:
    json.dump(huggingface.llm_json(cfg) | changes, f)
  shards, files = [sorted(tensors)[::2], sorted(tensors)[1::2]], {}
  for i, shard in enumerate(shards):
    file = f"model-{i + 1:05d}-of-00002.safetensors"
    safetensors.numpy.save_file({name: tensors[name] for name in shard}, os.path.join(folder, file))
    files |= dict.fromkeys(shard, file)
  with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
    json.dump({"metadata": {}, "weight_map": files}, f)
  return folder


class RefusalsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.folder = tiny_llm(parity.folder())

  def _edit(self, file: str, change) -> None:
    path = os.path.join(self.folder, file)
    with open(path) as f:
      found = json.load(f)
    change(found)
    with open(path, "w") as f:
      json.dump(found, f)

  def test_loads_sharded(self):
    part, params = parity.load("llm", self.folder)
    device_mesh = mesh.make(dict(data=1, fsdp=4, tensor=2, context=1), jax.devices())
    rules = ((".*(q_proj|gate_proj)/kernel", (None, "fsdp", "tensor")), (".*", ()))
    abstract = sharding.abstract(part.abstract, sharding.infer(part.abstract, rules, device_mesh))
    spread = huggingface.load_part("llm", huggingface.Source(self.folder), abstract)
    leaf = trees.flatten(spread)["blocks/layers/mlp/gate_proj/kernel"]
    self.assertEqual(leaf.addressable_shards[0].data.shape, (2, 2, 6))
    for path, x in trees.flatten(spread).items():
      np.testing.assert_array_equal(x, trees.flatten(params)[path], err_msg=path)

  @parameterized.parameters(
    (dict(model_type="gpt2"), "model_type='gpt2', expected one of qwen3"),
    (dict(hidden_act="gelu"), "hidden_act='gelu', this model can only 'silu'"),
    (dict(use_sliding_window=True), "use_sliding_window=True"),
    (dict(num_hidden_layers=-1), "num_hidden_layers=-1, expected a number above 0"),
    (dict(rope_parameters={"rope_type": "yarn"}), "rope_type='yarn', expected default or llama3"),
  )
  def test_config(self, change, message):
    self._edit("config.json", lambda found: found.update(change))
    with self.assertRaisesRegex(types.UserError, message):
      parity.load("llm", self.folder)

  def test_pad_and_end_tokens(self):
    cfg = huggingface.llm_config(self.folder)
    self.assertEqual((cfg.pad_id, cfg.eos_id), (0, 3))
    for ids, want in (
      (dict(eos_token_id=7, pad_token_id=9), (9, 7)),
      (dict(eos_token_id=[5, 7], pad_token_id=None), (5, 5)),
      (dict(eos_token_id=None, pad_token_id=None), (0, 3)),
    ):
      self._edit("config.json", lambda found, ids=ids: found.update(ids))
      cfg = huggingface.llm_config(self.folder)
      self.assertEqual((cfg.pad_id, cfg.eos_id), want)
    self._edit("config.json", lambda found: found.update(eos_token_id="</s>"))
    with self.assertRaisesRegex(types.UserError, "eos_token_id='</s>', expected a token's id"):
      huggingface.llm_config(self.folder)
    # The tokenizer that stands beside the weights knows better.
    made = tokenizers.open_tokenizer(datasets.fast_tokenizer(self.folder))
    cfg = huggingface.llm_config(self.folder)
    self.assertEqual((cfg.pad_id, cfg.eos_id), (made.pad_id, made.eos_id))

  def test_index(self):
    def elsewhere(found):
      found["weight_map"]["model.norm.weight"] = "../../norm.safetensors"

    def unknown(found):
      found["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"

    self._edit("model.safetensors.index.json", unknown)
    with self.assertRaisesRegex(types.UserError, "has no tensor 'model.extra.weight'"):
      parity.load("llm", self.folder)
    self._edit("model.safetensors.index.json", elsewhere)
    with self.assertRaisesRegex(types.UserError, "is no .safetensors file of that folder"):
      parity.load("llm", self.folder)

  def test_leftover_and_shape(self):
    file = os.path.join(self.folder, "model.safetensors")
    tensors = {
      n: np.zeros(s, np.float32) for n, s in huggingface.Source(self.folder).shapes.items()
    }
    os.remove(os.path.join(self.folder, "model.safetensors.index.json"))
    for change, message in (
      (
        {"model.layers.0.mlp.extra.weight": np.zeros(3, np.float32)},
        "'model.layers.0.mlp.extra.weight' has no place",
      ),
      (
        {"model.norm.weight": np.zeros(9, np.float32)},
        r"'norm.weight' has shape \(9,\), expected \(8,\)",
      ),
    ):
      safetensors.numpy.save_file(tensors | change, file)
      with self.assertRaisesRegex(types.UserError, message):
        parity.load("llm", self.folder)

  def test_pickle(self):
    for name in os.listdir(self.folder):
      if "safetensors" in name:
        os.remove(os.path.join(self.folder, name))
    with open(os.path.join(self.folder, "pytorch_model.bin"), "wb"):
      pass
    with self.assertRaisesRegex(types.UserError, "pytorch_model.bin is a pickle"):
      parity.load("llm", self.folder)


@pytest.mark.heavy
class ParityTest(parameterized.TestCase):
  """Random weights of the real classes; float32 to 2e-5, bfloat16 within 1.5 times torch's own error."""

  @parameterized.product(
    family=("qwen3", "qwen2", "llama"),
    sizes=(
      dict(
        hidden_size=36,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=10,
        intermediate_size=52,
      ),
      dict(
        hidden_size=40,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=72,
      ),
    ),
    tied=(True, False),
  )
  def test_llm(self, family, sizes, tied):
    import torch
    import transformers

    classes = {
      "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
      "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
      "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    more = {}
    if family == "qwen2":  # it has no head_dim key of its own
      sizes = sizes | dict(head_dim=sizes["hidden_size"] // sizes["num_attention_heads"])
    if family == "llama":
      keys = dict(
        factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
      )
      more = dict(rope_parameters={"rope_theta": 5e5, "rope_type": "llama3", **keys})
    config = classes[family][0](
      vocab_size=101,
      num_hidden_layers=3,
      tie_word_embeddings=tied,
      max_position_embeddings=512,
      **sizes,
      **more,
    )
    torch.manual_seed(0)
    reference = classes[family][1](config).eval()
    parity.randomise(reference)
    ids = np.random.RandomState(0).randint(1, 101, (3, 130))
    mask = np.arange(130)[None] < np.array([[130], [41], [1]])
    part, params = parity.load("llm", parity.save(reference))
    self.assertEqual(part.bind(params).cfg.tied, tied)

    def ours(dtype):
      model = types.Part.from_module(
        lambda rngs: llm.LLM(huggingface.llm_config(self._folder, dtype=dtype), rngs=rngs)
      )
      bound = model.bind(jax.tree.map(lambda x: x.astype(dtype), params))
      features = bound(jnp.asarray(ids), jnp.asarray(mask))
      return np.asarray(bound.logits(features))[mask]

    self._folder = parity.save(reference)

    def theirs(model):
      with torch.no_grad():
        out = model(torch.tensor(ids), attention_mask=torch.tensor(mask).long())
      return out.logits.float().numpy()[mask]

    parity.assert_parity(self, ours, theirs, reference)

  @parameterized.parameters(
    (dict(), ""),
    (dict(eos_token="<|endoftext|>"), ""),
    (dict(bos_token="<|im_start|>"), "<|im_start|> $A"),
  )
  def test_tokenizer(self, config, template):
    """The published tokenizer's ids, with the end token that a text here always has."""
    import transformers

    folder = datasets.fast_tokenizer(parity.folder(), template=template, **config)
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    made = tokenizers.open_tokenizer(folder)
    self.assertEqual((made.pad_id, made.eos_id), (reference.pad_token_id, reference.eos_token_id))
    texts = ["a red panda", "写着“春”的海报", "  two  spaces", "", "a<|im_end|>b"]
    theirs = reference(texts, split_special_tokens=True)["input_ids"]
    self.assertEqual(made.encode_batch(texts), [[*ids, made.eos_id] for ids in theirs])

  @parameterized.parameters(
    dict(d_model=36, d_kv=10, num_heads=3, d_ff=52, num_layers=3),
    dict(
      d_model=40, d_kv=16, num_heads=5, d_ff=56, num_layers=2, relative_attention_num_buckets=16
    ),
  )
  def test_t5(self, **sizes):
    import torch
    import transformers

    config = transformers.T5Config(vocab_size=384, feed_forward_proj="gated-gelu", **sizes)
    reference = transformers.T5EncoderModel(config).eval()
    parity.randomise(reference)
    ids = np.random.RandomState(0).randint(1, 384, (3, 150))
    mask = np.arange(150)[None] < np.array([[150], [33], [1]])
    folder = parity.save(reference)
    _, params = parity.load("byt5", folder)

    def ours(dtype):
      cfg = huggingface.t5_config(folder, dtype=dtype)
      part = types.Part.from_module(lambda rngs: byt5.ByT5(cfg, rngs=rngs))
      bound = part.bind(jax.tree.map(lambda x: x.astype(dtype), params))
      return np.asarray(bound(jnp.asarray(ids), jnp.asarray(mask)), np.float32)[mask]

    def theirs(model):
      with torch.no_grad():
        out = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask).long())
      return out.last_hidden_state.float().numpy()[mask]

    parity.assert_parity(self, ours, theirs, reference)

  @parameterized.parameters(
    (dict(block_out_channels=[12, 24], layers_per_block=1, norm_num_groups=3), (24, 40)),
    (dict(block_out_channels=[8, 16, 16], layers_per_block=2, norm_num_groups=4, scaling_factor=1.5305,
          shift_factor=0.0609), (48, 20)),
  )  # fmt: skip
  def test_vae(self, sizes, size):
    import diffusers
    import torch

    levels = len(sizes["block_out_channels"])
    reference = diffusers.AutoencoderKL(
      latent_channels=6, use_quant_conv=False, use_post_quant_conv=False,
      down_block_types=["DownEncoderBlock2D"] * levels, up_block_types=["UpDecoderBlock2D"] * levels, **sizes,
    ).eval()  # fmt: skip
    parity.randomise(reference)
    folder = parity.save(reference)
    part, params = parity.load("vae", folder)
    bound = part.bind(params)
    self.assertAlmostEqual(float(bound.stats.mean[0]), sizes.get("shift_factor", 0.0), places=6)
    image = np.random.RandomState(0).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    mean, logvar = bound.encode(jnp.asarray(image))
    with torch.no_grad():
      posterior = reference.encode(torch.tensor(image).permute(0, 3, 1, 2)).latent_dist
      decoded = reference.decode(posterior.mean).sample
    nhwc = lambda x: x.permute(0, 2, 3, 1).numpy()  # noqa: E731
    self.assertLess(parity.relative(mean, nhwc(posterior.mean)), 2e-5)
    self.assertLess(parity.relative(logvar, nhwc(posterior.logvar)), 2e-5)
    self.assertLess(
      parity.relative(bound.decode(jnp.asarray(nhwc(posterior.mean))), nhwc(decoded)), 2e-5
    )


if __name__ == "__main__":
  absltest.main()
