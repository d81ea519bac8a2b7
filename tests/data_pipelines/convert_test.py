"""Published folders as weights folders: what experiments open, the same bytes after a kill, in how much memory."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest
import tokenizers as fast
from absl.testing import absltest, parameterized

from data_pipelines import convert
from data_pipelines.preferences import scorer
from experiments import common, pretrain, rlhf
from seedream_jax import types
from seedream_jax.data import tokenizers
from seedream_jax.engine import checkpoint, mesh, sharding, trees
from seedream_jax.interop import huggingface, names
from seedream_jax.models import byt5, llm, two_tower, vae
from seedream_jax.run import open as open_lib
from tests.data import datasets
from tests.interop import huggingface_test, parity, towers_test

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "red", "panda", "##s", "熊", "猫")
BYT5 = byt5.ByT5Config(width=10, depth=2, num_heads=2, head_dim=5, mlp_dim=14)
VAE = vae.VAEConfig(
  widths=(8, 16), encoder_layers=1, decoder_layers=2, mid_attention=True, norm_groups=4,
  latent_channels=5,
)  # fmt: skip
_BAR = 1 << 30  # beside one file's weights


def published(part: str, cfg, config: dict, dtype: str = "float32") -> str:
  """A folder as published, with random tensors, made without torch."""
  folder, rng = parity.folder(), np.random.default_rng(0)
  made = types.Part.from_module(lambda rngs: parity.MODELS[part](cfg, rngs=rngs)).abstract
  made = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(dtype), made)
  tensors = names.to_theirs(huggingface.TABLES[part], made)
  with open(os.path.join(folder, "config.json"), "w") as f:
    json.dump(config, f)
  checkpoint.save_weights(os.path.join(folder, "model.safetensors"), tensors)
  return folder


def published_llm() -> str:
  folder = huggingface_test.tiny_llm(parity.folder(), vocab_size=400)
  cfg = huggingface.llm_config(folder)
  return datasets.fast_tokenizer(published("llm", cfg, huggingface.llm_json(cfg), "bfloat16"))


def published_vae() -> str:
  config = {
    "_class_name": "AutoencoderKL", "block_out_channels": [8, 16], "layers_per_block": 1,
    "norm_num_groups": 4, "latent_channels": 5, "scaling_factor": 0.5, "shift_factor": 0.25,
    "use_quant_conv": False, "use_post_quant_conv": False,
  }  # fmt: skip
  return published("vae", VAE, config)


def published_tower() -> str:
  """A Chinese-CLIP, with BERT's vocabulary as a text file."""
  text = towers_test.TEXT | dict(vocab_size=len(WORDS), max_position_embeddings=9)
  folder = towers_test.publish(towers_test.CONFIGS["chinese_clip"] | dict(text_config=text))
  pathlib.Path(folder, "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
  return folder


class ConvertTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.dir = parity.folder()
    cls.llm, cls.tower = published_llm(), published_tower()
    cls.items = [
      f"llm={cls.llm}",
      f"byt5={published('byt5', BYT5, huggingface.t5_json(BYT5))}",
      f"vae={published_vae()}",
    ]
    cls.out = os.path.join(cls.dir, "out")
    convert.convert(convert.plan_all(cls.items, cls.out), cls.out)

  def new(self) -> str:
    return os.path.join(tempfile.mkdtemp(dir=self.dir), "out")

  def test_leaves_are_those_that_load_part_reads(self):
    for item in self.items:
      part, folder = item.split("=")
      _, want = parity.load(part, folder)
      got = checkpoint.load_weights(os.path.join(self.out, f"{part}.safetensors"), want)
      for path, x in trees.flatten(want).items():
        np.testing.assert_array_equal(trees.flatten(got)[path], x, err_msg=path)
    leaves, _ = checkpoint.read_header(os.path.join(self.out, "llm.safetensors"))
    self.assertEqual({str(x.dtype) for x in leaves.values()}, {"bfloat16"})  # as stored

  def test_experiments_name_it(self):
    """What training opens: sizes, ids and tokenizer of the folder, weights that fit, the DiT as wide."""
    config = pretrain.get_config(f"nano,llm={self.out},byt5={self.out},vae={self.out}")
    self.assertEqual(config.data.tokenizer, f"{self.out}/tokenizer.json")
    self.assertIsNotNone(open_lib.open_tokenizer(config))
    self.assertEqual((config.model.dit.text_dim, config.model.dit.glyph_dim), (8, 10))
    self.assertEqual(config.model.dit.latent_channels, 5)
    stage = open_lib.make_stage(config)
    self.assertEqual(stage.model.configs["llm"], huggingface.llm_config(self.llm))
    for part in ("llm", "byt5", "vae"):
      path = os.path.join(config.frozen[part], f"{part}.safetensors")
      checkpoint.load_weights(path, stage.parts()[part].abstract)
    stats = checkpoint.load_weights(f"{self.out}/vae.safetensors")["stats"]
    np.testing.assert_allclose((stats["mean"][0], stats["std"][4]), (0.25, 2.0))

  def test_an_option_without_such_a_part_is_refused(self):
    with self.assertRaisesRegex(ValueError, "holds no tower; it holds byt5, llm, vae"):
      rlhf.get_config(f"nano,mode=reward,tower={self.out}")
    with self.assertRaisesRegex(ValueError, "no readable config.json there"):
      common.sizes(f"{self.out}/nowhere", "llm")

  def test_a_reward_starts_from_a_tower(self):
    out = self.new()
    convert.convert(convert.plan_all([f"tower={self.tower}"], out), out)
    config = rlhf.get_config(f"nano,mode=reward,tower={out}")
    stage, cfg = open_lib.make_stage(config), huggingface.CONFIGS["chinese_clip"](self.tower)
    self.assertEqual(two_tower.make_config(**config.model.tower), cfg)
    made = tokenizers.open_tokenizer(config.data.streams.train.tower_tokenizer)
    open_lib.check_tower_tokenizer(made, cfg, config.data.streams.train.tower_tokens)
    self.assertEqual(made.encode("red 熊猫 pandas"), [2, 4, 7, 8, 5, 6, 3])
    found = scorer.reading(config)("red 熊猫 pandas, red 熊猫 pandas")["tower_ids_BL"]
    self.assertEqual(found.tolist(), [2, 4, 7, 8, 5, 6, 1, 4, 3])  # cut, the end kept
    abstract = stage.parts()["tower"].abstract
    drawn = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract)
    got = open_lib.init_from({**drawn}, config.init, "tower")
    _, want = parity.load("chinese_clip", self.tower)
    jax.tree.map(np.testing.assert_array_equal, got, want)

  def test_feedback_reads_what_such_a_reward_was_trained_on(self):
    out = self.new()
    convert.convert(convert.plan_all([f"tower={self.tower}"], out), out)
    runs = {}
    for kind, source in (("alignment", out), ("text", out), ("aesthetic", self.out)):
      runs[kind] = tempfile.mkdtemp(dir=self.dir)
      config = rlhf.get_config(f"nano,mode=reward,kind={kind}" + f",tower={out}" * (source == out))
      pathlib.Path(runs[kind], "config.json").write_text(config.to_json_best_effort())
    arg = "nano,rm_alignment={alignment},rm_text={text},rm_aesthetic={aesthetic}"
    config = rlhf.get_config(arg.format(**runs))
    stage, streams = open_lib.make_stage(config), config.data.streams
    self.assertIn("vision_model", stage.parts()["reward_text"].abstract)
    self.assertIn("text_head", stage.parts()["reward_aesthetic"].abstract)
    for name in ("prompts", "drawn"):
      self.assertIn("tower_ids_BL", streams[name].features)
      self.assertEqual(streams[name].tower_tokenizer, f"{out}/tower_tokenizer")
    self.assertNotIn("tower_ids_BL", streams.train.features)
    other = pathlib.Path(runs["text"], "config.json")
    other.write_text(other.read_text().replace('"tower_tokens": 9', '"tower_tokens": 8'))
    with self.assertRaisesRegex(ValueError, "expected one tokenizer"):
      rlhf.get_config(arg.format(**runs))

  def test_killed_and_run_again_gives_the_same_bytes(self):
    class Killed(BaseException):
      """Nothing handles it, as nothing handles SIGKILL."""

    out, written = self.new(), []

    def progress(count: int) -> None:
      written.append(count)
      if len(written) == 30:
        raise Killed

    plans = convert.plan_all(self.items, out)
    with self.assertRaises(Killed):
      convert.convert(plans, out, progress)
    self.assertEqual(os.listdir(os.path.dirname(out)), ["out.partial"])
    convert.convert(convert.plan_all(self.items, out), out)
    self.assertEqual(os.listdir(os.path.dirname(out)), ["out"])
    files = sorted(os.listdir(self.out))
    self.assertEqual(sorted(os.listdir(out)), files)
    for name in files:
      left, right = (pathlib.Path(folder, name).read_bytes() for folder in (out, self.out))
      self.assertEqual(left, right, name)

  @parameterized.parameters(
    ("lmm={llm}", r"--part lmm=.*: expected NAME=FOLDER with a known part \(nearest valid: llm\)"),
    ("llm={dir}/nowhere", "nowhere: no such folder"),
    ("tower={llm}", "config.json: model_type='qwen3', expected one of clip, chinese_clip"),
    ("byt5={llm}", "config.json: model_type='qwen3', this model can only 't5'"),
  )
  def test_bad_input_is_named(self, item, message):
    item = item.format(llm=self.llm, dir=self.dir)
    with self.assertRaisesRegex(types.UserError, message):
      convert.plan_all([item], self.new())

  def test_bad_requests_are_named(self):
    with self.assertRaisesRegex(types.UserError, "--part llm=: given twice"):
      convert.plan_all(self.items[:1] * 2, self.new())
    with self.assertRaisesRegex(types.UserError, "exists; give a new folder"):
      convert.plan_all(self.items, self.out)

  def test_a_tokenizer_of_another_model_leaves_nothing(self):
    folder, out = published_llm(), self.new()
    small = fast.Tokenizer(fast.models.BPE())
    small.add_special_tokens([f"<{i}>" for i in range(401)] + ["<|im_end|>", "<|endoftext|>"])
    plans = convert.plan_all([f"llm={folder}"], out)
    small.save(os.path.join(folder, "tokenizer.json"))
    with self.assertRaisesRegex(types.UserError, "model.llm.*but the tokenizer"):
      convert.convert(plans, out)
    self.assertEqual(os.listdir(os.path.dirname(out)), [])


# What one process of the test below runs; prints bytes beyond what it took after its imports.
_CHILD = """
import resource, sys
import jax
from data_pipelines import convert
from tests.data_pipelines import convert_test

def peak():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

jax.devices()
base = peak()
what, folder, out = sys.argv[1:]
if what == "convert":
  convert.convert(convert.plan_all([f"llm={folder}"], out), out)
  print(peak() - base)
else:
  print(convert_test.load_beside_its_arrays(folder, peak) - base)
"""


def load_beside_its_arrays(folder: str, peak) -> int:
  """Peak of loading a published LLM over 8 devices, less the arrays made, which on a CPU are host memory too."""
  part = parity.part("llm", folder)
  rules = ((".*/kernel", (None, "fsdp", None)), (".*embedding", (None, "fsdp")), (".*", ()))
  bf16 = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "bfloat16"), part.abstract)
  placed = sharding.infer(bf16, rules, mesh.make({"fsdp": len(jax.devices())}))
  params = huggingface.load_part("llm", huggingface.Source(folder), sharding.abstract(bf16, placed))
  return peak() - trees.nbytes(jax.block_until_ready(params))


def big_llm(folder: str, shards: int, width: int = 2048) -> int:
  """A published LLM, one layer of 300 MB in each shard, sparse files; returns the bytes of the largest."""
  cfg = llm.LLMConfig(
    vocab_size=400, width=width, depth=shards, num_heads=16, num_kv_heads=16, head_dim=128,
    mlp_dim=11 * 2048, qk_norm=False,
  )  # fmt: skip
  datasets.fast_tokenizer(folder)
  part = types.Part.from_module(lambda rngs: llm.LLM(cfg, rngs=rngs))
  weight_map, largest = {}, 0
  entries = {e.name: e for e in names.entries(names.LLM, part.abstract)}
  for i in range(shards):
    mine = {n: e for n, e in entries.items() if (e.layer or 0) == i}
    header, end = {}, 0
    for name, entry in mine.items():
      size = 2 * int(np.prod(entry.shape))
      header[name] = dict(dtype="BF16", shape=entry.shape, data_offsets=[end, end + size])
      end += size
    text = json.dumps(header).encode()
    file = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
    with open(os.path.join(folder, file), "wb") as f:
      f.write(len(text).to_bytes(8, "little") + text)
      f.truncate(8 + len(text) + end)
    weight_map |= dict.fromkeys(mine, file)
    largest = max(largest, end)
  for name, value in (
    ("config.json", huggingface.llm_json(cfg)),
    ("model.safetensors.index.json", {"weight_map": weight_map}),
  ):
    with open(os.path.join(folder, name), "w") as f:
      json.dump(value, f)
  return largest


@pytest.mark.heavy
class MemoryTest(parameterized.TestCase):
  """Five shards of 310 MB: 1.55 GB, which held at once are over the bar, and mapped and copied twice that."""

  @parameterized.parameters("convert", "load")
  def test_peak_is_one_file_and_a_gibibyte(self, what):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    largest = big_llm(os.path.join(folder, "published"), 5)
    self.assertGreater(5 * largest, largest + _BAR + 100e6)
    done = subprocess.run(
      [sys.executable, "-c", _CHILD, what, f"{folder}/published", f"{folder}/out"],
      env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"},
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    self.assertEqual(done.returncode, 0, done.stderr[-2000:])
    taken = int(done.stdout)
    print(f"{what}: {taken / 1e6:.0f} MB beside a largest file of {largest / 1e6:.0f} MB")
    self.assertLessEqual(taken, largest + _BAR)


if __name__ == "__main__":
  absltest.main()
