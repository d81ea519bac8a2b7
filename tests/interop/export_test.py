"""The exported folder: whole, two-way, and the same picture in an environment without JAX."""

import json
import os
import random
import subprocess
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from PIL import Image
from sentencepiece import sentencepiece_model_pb2

from seedream_jax import types
from seedream_jax.data import tokenizers
from seedream_jax.engine import trees
from seedream_jax.interop import card, diffusers, huggingface, names
from seedream_jax.models import dit, llm
from seedream_jax.run import open as open_lib
from seedream_jax.run import pipeline
from tests.interop.parity import relative
from tests.run import bad_input_test

NANO = "weights/nano"
PROMPTS = ("写着“福”的海报，有一个红灯笼", 'a poster that says "LOVE" with a panda', "")
SMALL = dict(
  width=24, depth=3, num_heads=3, text_dim=20, glyph_dim=12, max_text_len=16, glyph_len=4, rope_base=4.0,
  latent_channels=4, patch=2, remat="none",
)  # fmt: skip

# Runs where neither jax nor this package can be imported.
_DRAW = """
import json, sys
class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("jax", "jaxlib", "flax", "seedream_jax"):
      raise ImportError(name + " must not be needed")
sys.meta_path.insert(0, Refuse())
import numpy as np, torch
from diffusers import DiffusionPipeline
folder, noise, out, dtype, prompts = sys.argv[1:6]
pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype), trust_remote_code=True)
pipe.set_progress_bar_config(disable=True)
x = torch.tensor(np.load(noise)).permute(0, 3, 1, 2).contiguous()
f = pipe.vae_scale_factor if hasattr(pipe, "vae_scale_factor") else pipe.factor
kw = dict(height=x.shape[2] * f, width=x.shape[3] * f, num_inference_steps=5, latents=x)
prompts = json.loads(prompts)
latents = pipe(prompts, output_type="latent", **kw).images
images = pipe(prompts, output_type="np", **kw).images
np.savez(out, latents=latents.permute(0, 2, 3, 1).float().numpy(), images=images)
assert "jax" not in sys.modules
"""


def _export(folder: str, *flags: str) -> subprocess.CompletedProcess:
  command = [
    sys.executable,
    "-m",
    "seedream_jax.export",
    "--workdir",
    NANO,
    "--out",
    folder,
    *flags,
  ]
  return subprocess.run(command, capture_output=True, text=True)


def _fresh() -> str:
  return os.path.join(tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir()), "export")


class NamesTest(parameterized.TestCase):
  @parameterized.parameters("full", "single")
  def test_every_leaf_there_and_back(self, adaln):
    cfg = dit.DiTConfig(**SMALL, adaln=adaln, labels=2, conds=("time", "size", "pooled", "origin"))
    part = types.Part.from_module(lambda rngs: dit.DiT(cfg, rngs=rngs))
    params = trees.unflatten({
      path: np.random.RandomState(len(path)).randn(*x.shape).astype(np.float32)
      for path, x in trees.flatten(part.abstract).items()
    })  # fmt: skip
    tensors = names.to_theirs(names.DIT, params)
    found = names.entries(names.DIT, part.abstract)
    self.assertLen({entry.name for entry in found}, len(found))
    for path, group in names.by_leaf(found).items():
      want = trees.flatten(params)[path]
      whole = tuple(slice(0, n) for n in want.shape)
      got = names.read_leaf(group, lambda name, index: tensors[name][index], whole, np.float32)
      np.testing.assert_array_equal(got, want, err_msg=path)

  def test_what_stands_there_is_not_overwritten(self):
    folder = _fresh()
    os.makedirs(folder)
    done = _export(folder)
    self.assertEqual(done.returncode, 2, done.stderr)
    self.assertIn("exists and is no former export", done.stderr)
    self.assertEqual(os.listdir(os.path.dirname(folder)), ["export"])

  def test_a_folder_comes_whole_or_not_at_all(self):
    folder = _fresh()
    parent, mark = os.path.dirname(folder), os.path.join(folder, diffusers.OURS)
    os.mkdir(f"{folder}.partial")  # a neighbour of the user's own
    for text in ("first", "second"):
      with diffusers.replacing(folder) as new:
        self.assertEqual(os.path.exists(folder), text == "second")
        with open(os.path.join(new, diffusers.OURS), "w") as f:
          f.write(text)
      with open(mark) as f:
        self.assertEqual(f.read(), text)
    with self.assertRaises(KeyboardInterrupt), diffusers.replacing(folder) as new:
      open(os.path.join(new, "half"), "w").close()
      raise KeyboardInterrupt
    self.assertEqual(sorted(os.listdir(parent)), ["export", "export.partial"])
    self.assertEqual(os.listdir(folder), [diffusers.OURS])
    os.symlink(folder, f"{folder}.link")
    with diffusers.replacing(f"{folder}.link"):
      pass
    self.assertEqual(os.listdir(folder), [diffusers.OURS])  # the link goes, not what it points to
    self.assertEqual(os.listdir(f"{folder}.link"), [])

  @parameterized.parameters(
    ({}, "Qwen3Model"),
    (dict(qk_norm=False, qkv_bias=True), "Qwen2Model"),
    (dict(qk_norm=False), "LlamaModel"),
  )
  def test_the_class_is_that_of_the_family(self, changes, want):
    self.assertEqual(diffusers.class_name("llm", llm.make_config("nano", **changes)), want)

  def test_card_says_what_is_known(self):
    root = tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir())
    cfg = open_lib.read_config(NANO)
    configs = {"llm": llm.make_config("nano")}
    params = {part: {"x": np.zeros(7)} for part in diffusers.COMPONENTS}
    ours = json.loads(cfg.to_json_best_effort())
    model = diffusers.Model(
      {**dict.fromkeys(diffusers.COMPONENTS), **configs}, params, "", 1.0, 0.0, (16,), 64, ours
    )
    text = card.write(model, root, "x/name", "float32", "ema")
    self.assertIn("| transformer | 7 | SeedreamTransformer | unknown |", text)
    self.assertIn("None found", text)
    made = {"dit": {"stage": "denoise", "step": "5", "continued_from": {"step": "3"}}}
    score = {"metrics": {"subject": {"value": 0.5, "lo": 0.25, "hi": 0.75}}}
    for name, value in (("provenance", made), ("heldout", score)):
      with open(os.path.join(root, f"{name}.json"), "w") as f:
        json.dump(value, f)
    text = card.write(model, root, "x/name", "float32", "ema")
    self.assertIn("| 5 steps (denoise), after 3 |", text)
    self.assertIn("| subject | 0.500 | 0.250 - 0.750 |", text)
    for name in ("metrics.jsonl", "heldout.json"):
      with open(os.path.join(root, name), "w") as f:
        f.write("{")
      with self.assertRaisesRegex(types.UserError, name):
        card.write(model, root, "x/name", "float32", "ema")
      os.remove(os.path.join(root, name))

  def test_a_published_tokenizer_is_refused(self):
    model = diffusers.Model({}, {}, "w/tokenizer.json", 1.0, 0.0, (8,), 64, {})
    with self.assertRaisesRegex(
      types.UserError, "w/tokenizer.json: only a SentencePiece tokenizer"
    ):
      diffusers.write(tempfile.mkdtemp(), model, "float32", "")

  @pytest.mark.heavy  # compiles an initialiser for every part
  def test_ema_or_raw_parameters_of_a_workdir(self):
    workdir = _fresh()
    os.makedirs(workdir)
    config = bad_input_test.get_config("nano")
    config.data.tokenizer = os.path.join(NANO, "tokenizer.model")
    config.frozen = dict.fromkeys(("vae", "llm", "byt5"), open_lib.RANDOM)
    with open(os.path.join(workdir, "config.json"), "w", encoding="utf-8") as f:
      f.write(config.to_json_best_effort())
    exp = open_lib.open_config(config, workdir)
    state = open_lib.load_state(exp)
    state = state.replace(ema=jax.tree.map(lambda x: x + 1, state.ema))
    exp.checkpointer.save(1, state, open_lib.meta_of(exp), wait=True)
    raw = trees.flatten(state.params["dit"])
    for weights, added in (("raw", 0), ("ema", 1)):
      found = trees.flatten(pipeline.open_pipeline(workdir, weights=weights).params["dit"])
      self.assertEqual(found.keys(), raw.keys())
      for path, x in found.items():
        np.testing.assert_array_equal(x, raw[path] + added, err_msg=f"{weights} {path}")

  def test_fast_tokenizer(self):
    import tokenizers as fast

    path = os.path.join(NANO, "tokenizer.model")
    ours, theirs = tokenizers.LLMTokenizer(path), fast.Tokenizer.from_str(tokenizers.to_fast(path))
    with open("benchmarks/prompts/nano_heldout.jsonl", encoding="utf-8") as f:
      prompts = [json.loads(line)["prompt"] for line in f]
    pieces = [ours._processor.id_to_piece(i) for i in range(ours.vocab_size)]  # special ones too
    draw = random.Random(0)
    for _ in range(2000):
      prompts.append("".join(draw.choices([*pieces, " ", "🐼", "龘", "\n", "<"], k=6)))
    for prompt in [*prompts, "", " two  spaces ", "Ünïcode 🐼 龘", "a\nb", "<pad></s><0x41>"]:
      self.assertEqual(theirs.encode(prompt).ids, ours.encode(prompt), prompt)

  @parameterized.parameters(
    ("model_type unigram", lambda m: setattr(m.trainer_spec, "model_type", 2)),
    ("identity", lambda m: setattr(m.normalizer_spec, "precompiled_charsmap", b"x")),
    ("add_dummy_prefix", lambda m: setattr(m.normalizer_spec, "add_dummy_prefix", False)),
    ("spaces kept", lambda m: setattr(m.normalizer_spec, "remove_extra_whitespaces", True)),
    ("before words", lambda m: setattr(m.trainer_spec, "treat_whitespace_as_suffix", True)),
    ("byte_fallback", lambda m: setattr(m.trainer_spec, "byte_fallback", False)),
    ("user-defined", lambda m: setattr(m.pieces[-1], "type", 4)),
    ("begin with <", lambda m: setattr(m.pieces[-1], "piece", "a<b")),
  )
  def test_a_model_that_would_cut_otherwise_is_refused(self, regex, change):
    with open(os.path.join(NANO, "tokenizer.model"), "rb") as f:
      model = sentencepiece_model_pb2.ModelProto.FromString(f.read())
    change(model)
    path = _fresh()
    with open(path, "wb") as f:
      f.write(model.SerializeToString())
    with self.assertRaisesRegex(types.UserError, regex):
      tokenizers.to_fast(path)


@pytest.mark.heavy
class TwinTest(parameterized.TestCase):
  @parameterized.parameters(
    dict(),
    dict(adaln="single", patch=1),
    dict(rope_mode="corner", last_txt_after=True, conds=("time", "guidance")),
    dict(rope_mode="longest_side", txt_mlp_ratio=2.0),
    dict(labels=3, conds=("time", "size", "pooled", "origin")),
  )
  def test_parity(self, **changes):
    import torch

    from seedream_jax.interop import onnx, torch_twin

    cfg = dit.DiTConfig(**SMALL | changes)
    part = types.Part.from_module(lambda rngs: dit.DiT(cfg, rngs=rngs))
    random = np.random.RandomState(0)
    params = jax.tree.map(
      lambda x: jnp.asarray(0.3 * random.randn(*x.shape), jnp.float32), part.abstract
    )
    fields = {k: v for k, v in diffusers.transformer_json(cfg).items() if k != "_class_name"}
    twin = torch_twin.SeedreamTransformer(**fields).eval()
    tensors = names.to_theirs(names.DIT, params)
    twin.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()}, strict=True)
    inputs = onnx.example_inputs(twin, 2, (8, 12), 9)
    if "guidance" in cfg.conds:
      inputs["guidance"] = torch.tensor([1.0, 4.5])
    if cfg.labels:
      inputs["tags"] = torch.tensor([[1, 0, -1], [-1, -1, -1]])  # the second knows none
      inputs["origin"] = torch.tensor([0, 1])
    with torch.no_grad():
      want = twin(**inputs).permute(0, 2, 3, 1).numpy()
    x = {name: jnp.asarray(value.numpy()) for name, value in inputs.items()}
    bound = part.bind(params)
    cond = bound.splice(
      x["encoder_hidden_states"],
      x["encoder_attention_mask"],
      x["glyph_hidden_states"],
      x["glyph_attention_mask"],
    )
    ours = dict(
      guidance="guidance_B", tags="tags_BA", tag_strength="tag_strength_B", origin="origin_B"
    )
    cond = cond.replace(**{ours[name]: value for name, value in x.items() if name in ours})
    got = bound(jnp.moveaxis(x["hidden_states"], 1, -1), x["timestep"], cond)
    self.assertLess(relative(got, want), 2e-5)

  def test_compiles_as_one_graph_and_trains(self):
    import torch

    from seedream_jax.interop import onnx, torch_twin

    fields = diffusers.transformer_json(dit.DiTConfig(**SMALL))
    twin = torch_twin.SeedreamTransformer(**{k: v for k, v in fields.items() if k[0] != "_"})
    torch.manual_seed(0)
    for parameter in twin.parameters():
      torch.nn.init.normal_(parameter, std=0.3)
    inputs = onnx.example_inputs(twin, 2, (8, 12), 9)
    want = twin(**inputs)
    want.square().mean().backward()
    self.assertEmpty([name for name, p in twin.named_parameters() if p.grad is None])
    # aot_eager: the graph is what is tested, not the C++ compiler; a break is an error.
    got = torch.compile(twin, fullgraph=True, backend="aot_eager")(**inputs)
    self.assertLess(relative(got.detach().numpy(), want.detach().numpy()), 1e-5)


@pytest.mark.heavy
class FolderTest(parameterized.TestCase):
  """weights/nano, exported once in each dtype."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folders = {}
    for dtype in ("float32", "bfloat16"):
      cls.folders[dtype] = _fresh()
      done = _export(
        cls.folders[dtype], "--dtype", dtype, *(["--onnx"] if dtype == "float32" else [])
      )
      assert done.returncode == 0, done.stderr
    cls.pipeline = pipeline.open_pipeline(NANO)
    config = open_lib.read_config(NANO)
    with config.unlocked():
      for part in ("dit", "llm", "byt5"):
        config.model[part].dtype = "bfloat16"
    stage = open_lib.make_stage(config)
    cls.in_bfloat16 = pipeline.Pipeline(
      config, stage, cls.pipeline.params, os.path.join(NANO, "tokenizer.model")
    )

  def test_import_gives_the_same_bits(self):
    parts = self.pipeline.stage.parts()
    abstract = {name: pipeline._float32(parts[name].abstract) for name in diffusers.COMPONENTS}
    for (
      dtype
    ) in self.folders:  # the weights are stored as bfloat16, so that both folders hold them whole
      back = diffusers.read(self.folders[dtype], abstract)
      for part, tree in self.pipeline.params.items():
        if dtype == "bfloat16" and part == "vae":  # its stats are float32 in a config
          continue
        for path, x in trees.flatten(tree).items():
          np.testing.assert_array_equal(
            trees.flatten(back[part])[path], x, err_msg=f"{part} {path}"
          )

  def test_a_block_that_does_something_is_refused(self):
    import safetensors.numpy

    folder = os.path.join(self.folders["float32"], "vae")
    parts = self.pipeline.stage.parts()
    source = huggingface.Source(folder)
    name = "decoder.up_blocks.0.resnets.1.conv2.bias"
    self.assertIn(name, source.shapes)
    tensors = {n: source.read(n) for n in source.shapes}
    other = tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir())
    safetensors.numpy.save_file(
      tensors | {name: tensors[name] + 1},
      os.path.join(other, "diffusion_pytorch_model.safetensors"),
    )
    kept = diffusers._without_filling(huggingface.Source(other), parts["vae"].abstract)
    self.assertIn(name, kept.shapes)
    self.assertNotIn(name, diffusers._without_filling(source, parts["vae"].abstract).shapes)

  @parameterized.product(size=((64, 64), (48, 80)), dtype=("float32", "bfloat16"))
  def test_draws_the_same_picture_without_jax(self, size, dtype):
    noise = self.pipeline.noise(range(len(PROMPTS)), size, seed=3)
    images, latents = self.pipeline.sample(
      PROMPTS, noise, pipeline.Options(num_steps=5, guidance=4.0)
    )
    root = tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir())
    np.save(os.path.join(root, "noise.npy"), noise)
    out = os.path.join(root, "out.npz")
    command = [
      sys.executable,
      "-c",
      _DRAW,
      self.folders[dtype],
      os.path.join(root, "noise.npy"),
      out,
      dtype,
    ]
    done = subprocess.run([*command, json.dumps(PROMPTS)], capture_output=True, text=True, cwd=root)
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    with np.load(out) as found:
      error = relative(found["latents"], latents)
      difference = np.abs(found["images"] * 255 - images.astype(np.float32))
    print(
      f"{dtype} {size}: latents {error:.2e}, pixels mean {difference.mean():.3f} max {difference.max():.1f}"
    )
    if dtype == "float32":
      self.assertLess(error, 1e-3)
      self.assertLess(difference.max(), 3)
    else:
      # Guidance amplifies rounding, so the bar is how far bfloat16 takes our own model from its float32.
      _, rounded = self.in_bfloat16.sample(
        PROMPTS, noise, pipeline.Options(num_steps=5, guidance=4.0)
      )
      own = relative(rounded, latents)
      print(f"bfloat16 {size}: our own {own:.2e}")
      self.assertLess(error, 1.5 * own)

  def test_the_cards_code_runs_as_pasted(self):
    folder = self.folders["bfloat16"]
    with open(os.path.join(folder, "README.md"), encoding="utf-8") as f:
      code = f.read().split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder)
    self.assertEqual(done.returncode, 0, done.stderr[-3000:])
    with Image.open(os.path.join(folder, "out.png")) as image:
      self.assertEqual(image.size, (64, 64))

  def test_onnx(self):
    import onnxruntime
    import torch

    from seedream_jax.interop import onnx

    folder = self.folders["float32"]
    session = onnxruntime.InferenceSession(os.path.join(folder, "transformer", "transformer.onnx"))
    twin = onnx.load_twin(folder, torch_dtype=torch.float32)
    for batch, size, length in ((1, (8, 8), 16), (2, (6, 10), 64), (5, (12, 12), 24)):
      inputs = onnx.example_inputs(twin, batch, size, length, seed=batch)
      with torch.no_grad():
        want = twin(**inputs).numpy()
      (got,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
      print(f"onnx {batch} x {size}, {length} tokens: {relative(got, want):.2e}")
      self.assertLess(relative(got, want), 1e-4)


if __name__ == "__main__":
  absltest.main()
