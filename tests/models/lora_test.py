"""Adapters: nothing at init, cheaper than what they replace, and the same model once merged."""

import json
import os
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest, parameterized
from flax import nnx
from ml_collections import ConfigDict

from data_pipelines import pack
from experiments import common, pretrain
from seedream_jax import types
from seedream_jax.engine import checkpoint, flops, mesh, optim, sharding, trees
from seedream_jax.interop import diffusers, names
from seedream_jax.models import dit, llm, lora
from seedream_jax.stages import denoise
from tests.models import dit_test, tiny
from tests.stages import denoise_test

DIT = common.LORA_TARGETS["dit"]
LLM = common.LORA_TARGETS["llm"]
EVERY = r"(.*/)?kernel"  # of the DiT, the plain layers and those of float32 too
B, L = 3, 7
GOLDEN = {"loss": 34.618385, "grad_rms": 2.8259538}


def _lora(targets, rank=3, alpha=6.0):
  return dict(targets=targets, rank=rank, alpha=alpha)


def _llm_part(**overrides):
  cfg = llm.make_config(**{**tiny.LLM, **overrides})
  return types.Part.from_module(lambda rngs: llm.LLM(cfg, rngs=rngs))


def _ids():
  return jnp.asarray(np.random.default_rng(0).integers(4, 23, (B, L)), jnp.int32)


def _on_base(part, base):
  """`part` at init, on the leaves `base`."""
  return trees.unflatten({**trees.flatten(part.init(jax.random.key(0))), **trees.flatten(base)})


def _adapters(params):
  return {path: x for path, x in trees.flatten(params).items() if trees.matches(lora.LEAVES, path)}


def _count(apply, params, trained, *inputs, prepare=lambda params: params):
  """FLOPs of the gradient towards the leaves `trained` matches, the others frozen."""
  flat = trees.flatten(params)
  moving = {path: x for path, x in flat.items() if trees.matches(trained, path)}

  def loss(moving, flat, *inputs):
    return jnp.sum(jnp.square(apply(prepare(trees.unflatten({**flat, **moving})), *inputs)))

  return flops.count(jax.grad(loss), moving, flat, *inputs)


class InitTest(parameterized.TestCase):
  @parameterized.parameters(("float32", "dots"), ("bfloat16", "none"))
  def test_the_dit_at_init_is_the_base_bit_for_bit(self, dtype, remat):
    base = dit_test._part(dtype=dtype, remat=remat)
    part = dit_test._part(dtype=dtype, remat=remat, lora=_lora(DIT))
    params = dit_test._random(base)
    want = dit_test._jit(base)(params, *dit_test._inputs())
    adapted = _on_base(part, params)
    apply = dit_test._jit(part)
    np.testing.assert_array_equal(apply(adapted, *dit_test._inputs()), want)
    opened = {p: x + 0.1 if p.endswith("lora_b") else x for p, x in trees.flatten(adapted).items()}
    moved = apply(trees.unflatten(opened), *dit_test._inputs())
    self.assertGreater(float(jnp.abs(moved - want).max()), 0.01)

  def test_every_kernel_may_have_one(self):
    """A compiled sum may be ordered otherwise where one more term is fused into it: here, to rounding."""
    base, part = dit_test._part(), dit_test._part(lora=_lora(EVERY))
    kernels = [path for path in trees.flatten(base.abstract) if path.endswith("kernel")]
    self.assertLen(_adapters(part.abstract), 2 * len(kernels))
    params = dit_test._random(base)
    want = dit_test._jit(base)(params, *dit_test._inputs())
    got = dit_test._jit(part)(_on_base(part, params), *dit_test._inputs())
    np.testing.assert_allclose(got, want, atol=2e-6 * float(jnp.abs(want).max()))

  @parameterized.product(dtype=("float32", "bfloat16"), use_bias=(True, False))
  def test_a_layer_at_init_is_its_base_bit_for_bit(self, dtype, use_bias):
    layer = nnx.Linear(5, 7, dtype=dtype, use_bias=use_bias, rngs=nnx.Rngs(0))
    adapted = lora.Linear(layer, lora.LoRAConfig(".*", rank=3), rngs=nnx.Rngs(1))
    x = jnp.asarray(np.random.default_rng(1).standard_normal((11, 5)), dtype)
    self.assertEqual(adapted(x).dtype, layer(x).dtype)
    np.testing.assert_array_equal(adapted(x), layer(x))

  def test_the_llm_at_init_is_the_base(self):
    """To rounding: XLA fuses the sum behind o_proj and down_proj into the norm that follows."""
    base, part = _llm_part(), _llm_part(lora=_lora(LLM))
    params = tiny.draw(base.abstract)
    run = lambda part, params: jax.jit(lambda p, ids: part.bind(p)(ids))(params, _ids())  # noqa: E731
    got, want = run(part, _on_base(part, params)), run(base, params)
    np.testing.assert_allclose(got, want, atol=1e-6)

  def test_the_base_is_drawn_as_without(self):
    for base, part in (
      (dit_test._part(), dit_test._part(lora=_lora(DIT))),
      (_llm_part(), _llm_part(lora=_lora(LLM))),
    ):
      found = trees.flatten(part.init(jax.random.key(5)))
      for path, x in trees.flatten(base.init(jax.random.key(5))).items():
        np.testing.assert_array_equal(found[path], x, err_msg=path)

  def test_a_is_drawn_to_unit_variance_and_b_is_zero(self):
    """Stacked and plain: x A of a unit x is of unit variance, whatever the stack's depth."""
    part = dit_test._part(width=64, depth=4, lora=_lora(r"(blocks|last)/.*/q/kernel", rank=32))
    found = _adapters(part.init(jax.random.key(0)))
    shapes = {path: x.shape for path, x in found.items()}
    self.assertEqual(shapes["blocks/layers/img/q/lora_a"], (3, 64, 32))
    self.assertEqual(shapes["blocks/layers/img/q/lora_b"], (3, 32, 64))
    self.assertEqual(shapes["last/img/q/lora_a"], (64, 32))
    for path, x in found.items():
      if path.endswith("a"):
        self.assertBetween(float(jnp.var(x)) * 64, 0.9, 1.1, path)
      else:
        self.assertEqual(float(jnp.abs(x).max()), 0.0, path)
    stacked = found["blocks/layers/img/q/lora_a"]
    self.assertGreater(float(jnp.abs(stacked[0] - stacked[1]).max()), 0.01)  # a draw a block

  def test_scale_is_alpha_over_rank(self):
    layer = nnx.Linear(5, 7, rngs=nnx.Rngs(0))
    adapted = lora.Linear(layer, lora.LoRAConfig(".*", rank=4, alpha=2.0), rngs=nnx.Rngs(1))
    adapted.lora_b[...] = jnp.asarray(np.random.default_rng(0).standard_normal((4, 7)), jnp.float32)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 5)), jnp.float32)
    want = layer(x) + 0.5 * (x @ adapted.lora_a[...] @ adapted.lora_b[...])
    np.testing.assert_allclose(adapted(x), want, atol=1e-5)


class ConfigTest(parameterized.TestCase):
  @parameterized.parameters(
    (
      _lora("blocks/.*/qq/kernel"),
      r"model.dit.lora.targets: .*no kernel; nearest is 'blocks/layers",
    ),
    (_lora("blocks/.*/q/(kernel|lora_a)x"), "no kernel; nearest"),
    (_lora(".*/norm_q/scale"), "matches 'blocks/layers/img/norm_q/scale', which is no linear"),
    (_lora(".*"), "which is no linear layer's kernel; nearest is"),
    (_lora("position"), "matches 'position'"),
    (_lora("(q"), "bad regular expression"),
    (dict(target="x"), "unknown field 'target'; nearest is 'targets'"),
    (dict(rank=3), "'targets' is required"),
    (_lora(DIT, rank=0), "rank=0, expected"),
    (_lora(DIT, alpha=-1.0), "alpha=-1.0, expected"),
  )
  def test_what_is_wrong_is_named(self, fields, message):
    with self.assertRaisesRegex(types.UserError, message):
      dit_test._part(lora=ConfigDict(fields))

  def test_the_llm_names_its_own_group(self):
    with self.assertRaisesRegex(
      types.UserError, "model.llm.lora.targets: .*nearest is 'blocks/l.*_proj"
    ):
      _llm_part(lora=_lora("blocks/.*/q/kernel"))

  def test_config_stays_hashable_and_none_is_none(self):
    hash(dit.make_config("nano", lora=_lora(DIT)))
    self.assertIsNone(dit.make_config("nano", lora=None).lora)
    self.assertEqual(_adapters(dit_test._part().abstract), {})

  def test_sharding_follows_the_kernel_and_leaves_the_rank_whole(self):
    config = pretrain.get_config("nano,lora=8")
    part = denoise.make(config).parts()["dit"]
    found = trees.flatten(
      sharding.infer(part.abstract, config.sharding.rules, mesh.make(dict(fsdp=4, tensor=2)))
    )
    specs = {path: tuple(x.spec) for path, x in found.items() if "blocks/layers/img" in path}
    stem = "blocks/layers/img"
    self.assertEqual(specs[f"{stem}/q/lora_a"], (None, "fsdp", None))
    self.assertEqual(specs[f"{stem}/q/lora_b"], (None, None, "tensor"))
    self.assertEqual(specs[f"{stem}/mlp_out/lora_a"], (None, "tensor", None))
    self.assertEqual(specs[f"{stem}/mlp_out/lora_b"], (None, None, "fsdp"))


class GradientTest(parameterized.TestCase):
  """The denoise stage with nothing but adapters in motion."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    model = dict(denoise_test.MODEL) | {"dit": denoise_test.MODEL["dit"] | {"lora": _lora(DIT)}}
    cls.stage = denoise.make(ConfigDict(dict(stage=dict(name="denoise"), model=model)))
    parts = cls.stage.parts()
    cls.optimizer = optim.make(
      dict(lr=1e-3, trainable=((lora.LEAVES, True), (".*", False))), parts["dit"].abstract, 10
    )
    drawn = {name: denoise_test._draw(part.abstract) for name, part in parts.items()}
    drawn["vae"]["stats"] = {"mean": jnp.full((3,), 0.2), "std": jnp.full((3,), 0.7)}
    cls.params, cls.frozen = drawn.pop("dit"), drawn

    def loss(trained, rest, frozen, data):
      params = {"dit": cls.optimizer.merge(trained, rest)}
      found = denoise_test._loss(cls.stage, params, frozen, data, jax.random.key(7))
      return found.total / found.weight

    cls.loss = staticmethod(loss)

  def test_golden_step(self):
    trained, rest = self.optimizer.split(self.params)
    value, grads = jax.jit(jax.value_and_grad(self.loss))(
      trained, rest, self.frozen, denoise_test._batch()
    )
    self.assertEqual(set(grads), set(_adapters(self.params)))
    for path, g in grads.items():
      self.assertGreater(float(jnp.abs(g).max()), 0, path)
    squares, count = sum(float(jnp.sum(jnp.square(g))) for g in grads.values()), trees.count(grads)
    got = {"loss": float(value), "grad_rms": float(np.sqrt(squares / count))}
    for name, want in GOLDEN.items():
      np.testing.assert_allclose(
        got[name], want, rtol=1e-4, err_msg=f"{denoise_test.GOLDEN_MESSAGE} Now: {got}"
      )

  def test_at_init_b_alone_moves(self):
    """A's gradient is through B, which is zero."""
    flat = trees.flatten(self.params)
    flat = {path: jnp.zeros_like(x) if path.endswith("lora_b") else x for path, x in flat.items()}
    trained, rest = self.optimizer.split(trees.unflatten(flat))
    grads = jax.jit(jax.grad(self.loss))(trained, rest, self.frozen, denoise_test._batch())
    for path, g in grads.items():
      self.assertEqual(bool(jnp.any(g != 0)), path.endswith("lora_b"), path)

  def test_moments_exist_for_adapters_alone(self):
    trained, _ = self.optimizer.split(self.params)
    state = self.optimizer.init(trained)
    self.assertEqual(set(state), {"adamw"})
    moments = [x for x in jax.tree.leaves(state) if x.ndim]
    self.assertLen(moments, 2 * len(_adapters(self.params)))
    self.assertEqual(sum(x.size for x in moments), 2 * trees.count(_adapters(self.params)))


class CostTest(parameterized.TestCase):
  """Counted on the nano DiT as it ships, one picture of 64 px and the shortest text bucket."""

  def test_a_step_costs_less_than_full_tuning_and_far_less_than_merged(self):
    cfg = dit.make_config("nano", remat="none", lora=_lora(DIT, rank=8, alpha=8.0))
    part = types.Part.from_module(lambda rngs: dit.DiT(cfg, rngs=rngs))
    plain = types.Part.from_module(
      lambda rngs: dit.DiT(dit.make_config("nano", remat="none"), rngs=rngs)
    )
    draw = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
    mask = lambda *shape: jax.ShapeDtypeStruct(shape, bool)  # noqa: E731
    text = (draw(1, 16, 192), mask(1, 16), draw(1, 8, 160), mask(1, 8))
    inputs = (draw(1, 8, 8, 16), draw(1), text)
    adapted, base = dit_test._jit(part), dit_test._jit(plain)

    def in_kernels(params):
      flat = trees.flatten(params)
      out = {path: x for path, x in flat.items() if not trees.matches(lora.LEAVES, path)}
      for path in [path for path in flat if path.endswith("lora_a")]:
        stem = path.removesuffix("/lora_a")
        out[f"{stem}/kernel"] += flat[path] @ flat[f"{stem}/lora_b"]
      return trees.unflatten(out)

    full = _count(base, plain.abstract, ".*", *inputs)
    on_activations = _count(adapted, part.abstract, lora.LEAVES, *inputs)
    outside = _count(base, part.abstract, lora.LEAVES, *inputs, prepare=in_kernels)
    self.assertBetween(on_activations / full, 0.6, 0.85)
    self.assertGreater(outside / on_activations, 1.4)  # more with a wider rank or fewer tokens


class MergeTest(parameterized.TestCase):
  def test_merged_is_unmerged(self):
    """Stacked kernels and plain ones."""
    part, base = dit_test._part(lora=_lora(EVERY)), dit_test._part()
    params = jax.tree.map(lambda x: 0.3 * x, dit_test._random(part))
    want = dit_test._jit(part)(params, *dit_test._inputs())
    merged = lora.merge(params, lora.make_config(_lora(EVERY)))
    self.assertEqual(
      {p: x.shape for p, x in trees.flatten(merged).items()},
      {p: x.shape for p, x in trees.flatten(base.abstract).items()},
    )
    apply = dit_test._jit(base)
    got = apply(merged, *dit_test._inputs())
    np.testing.assert_allclose(got, want, atol=1e-5 * float(jnp.abs(want).max()))
    kernels = trees.unflatten(
      {p: x for p, x in trees.flatten(params).items() if not trees.matches(lora.LEAVES, p)}
    )
    without = apply(kernels, *dit_test._inputs())
    self.assertGreater(float(jnp.abs(without - want).max()), 0.01)

  def test_merges_in_float32_and_keeps_the_dtype(self):
    """In bfloat16 each small product would be lost beside a kernel of 256."""
    kernel = np.full((2, 5, 7), 256, jnp.bfloat16)
    a, b = np.full((2, 5, 3), 0.5, jnp.bfloat16), np.full((2, 3, 7), 0.5, jnp.bfloat16)
    tree = {"x": {"q": {"kernel": kernel, "lora_a": a, "lora_b": b}}}
    merged = lora.merge(tree, lora.LoRAConfig(".*", rank=3, alpha=9.0))["x"]["q"]
    self.assertEqual(set(merged), {"kernel"})
    self.assertEqual(merged["kernel"].dtype, jnp.bfloat16)
    np.testing.assert_array_equal(merged["kernel"], np.full((2, 5, 7), 258, jnp.bfloat16))

  def test_nothing_to_merge_and_nothing_to_weigh_by(self):
    tree = {"q": {"kernel": np.ones((2, 3))}}
    self.assertIs(lora.merge(tree, None), tree)
    with self.assertRaisesRegex(types.UserError, "'q/lora_a' is an adapter's"):
      lora.merge({"q": {**tree["q"], "lora_a": np.ones((2, 1)), "lora_b": np.ones((1, 3))}}, None)

  def _packed(self, with_config=True):
    root = tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir())
    fields = {"llm": tiny.LLM | {"lora": _lora(LLM)}}
    part = _llm_part(lora=_lora(LLM))
    params = tiny.draw(part.abstract)
    checkpoint.save_weights(os.path.join(root, "w", "llm.safetensors"), params)
    if not with_config:
      fields["llm"] = tiny.LLM
    with open(os.path.join(root, "w", "config.json"), "w") as f:
      json.dump({"model": fields, "seed": 3}, f)
    pack.pack([f"llm={root}/w"], f"{root}/out")
    return params, os.path.join(root, "out")

  def test_pack_merges_and_forgets(self):
    params, out = self._packed()
    with open(os.path.join(out, "config.json")) as f:
      self.assertEqual(json.load(f), {"model": {"llm": tiny.LLM}, "seed": 3})
    base = _llm_part()
    packed = checkpoint.load_weights(os.path.join(out, "llm.safetensors"), base.abstract)
    want = lora.merge(params, lora.make_config(_lora(LLM)))
    jax.tree.map(np.testing.assert_array_equal, packed, want)

  def test_pack_without_the_weight_of_adapters_writes_nothing(self):
    with self.assertRaisesRegex(types.UserError, "--part llm=.*no model.llm.lora"):
      self._packed(with_config=False)


class ExportTest(parameterized.TestCase):
  def _model(self):
    cfg = dit.make_config("nano", **{**dit_test.TINY, "lora": _lora(DIT)})
    part = types.Part.from_module(lambda rngs: dit.DiT(cfg, rngs=rngs))
    params = jax.tree.map(lambda x: 0.3 * x, dit_test._random(part))
    ours = {"model": {"dit": {"variant": "nano", "lora": _lora(DIT)}}, "seed": 1}
    return diffusers.Model({"dit": cfg}, {"dit": params}, "", 1.0, 0.0, (16,), 64, ours)

  def test_merged_leaves_no_trace_and_comes_back(self):
    model = diffusers.merged(self._model())
    self.assertIsNone(model.configs["dit"].lora)
    self.assertEqual(model.ours, {"model": {"dit": {"variant": "nano"}}, "seed": 1})
    tensors = diffusers.tensors("dit", model.configs["dit"], model.params["dit"])
    base = dit_test._part()
    back = {}
    for path, group in names.by_leaf(names.entries(names.DIT, base.abstract)).items():
      whole = tuple(slice(0, n) for n in trees.flatten(base.abstract)[path].shape)
      back[path] = names.read_leaf(
        group, lambda name, index: tensors[name][index], whole, np.float32
      )
    want = trees.flatten(lora.merge(self._model().params["dit"], lora.make_config(_lora(DIT))))
    self.assertEqual(back.keys(), want.keys())
    for path, x in want.items():
      np.testing.assert_array_equal(back[path], x, err_msg=path)

  def test_apart_is_the_base_and_peft_names(self):
    whole = self._model()
    model, adapters = diffusers.apart(whole)
    self.assertEqual(_adapters(model.params["dit"]), {})
    flat = trees.flatten(whole.params["dit"])
    for path, x in trees.flatten(model.params["dit"]).items():
      np.testing.assert_array_equal(x, flat[path], err_msg=path)
    self.assertLen(adapters, 2 * 2 * 12)  # A and B, two scanned blocks, twelve kernels
    stem, path = "transformer.blocks.1.img.mlp_in", "blocks/layers/img/mlp_in"
    np.testing.assert_array_equal(adapters[f"{stem}.lora_A.weight"], flat[f"{path}/lora_a"][1].T)
    np.testing.assert_allclose(  # alpha / rank = 2
      adapters[f"{stem}.lora_B.weight"], 2 * flat[f"{path}/lora_b"][1].T, rtol=1e-6
    )

  def test_apart_of_a_model_without_is_refused(self):
    with self.assertRaisesRegex(types.UserError, "--lora apart: model.dit has no lora"):
      diffusers.apart(diffusers.merged(self._model()))

  @pytest.mark.heavy
  def test_diffusers_loads_the_file_into_the_transformer(self):
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    from seedream_jax.interop import onnx, torch_twin

    whole = self._model()
    model, adapters = diffusers.apart(whole)
    fields = diffusers.transformer_json(model.configs["dit"])
    twin = torch_twin.SeedreamTransformer(**{k: v for k, v in fields.items() if k[0] != "_"}).eval()
    tensors = diffusers.tensors("dit", model.configs["dit"], model.params["dit"])
    twin.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()}, strict=True)
    inputs = onnx.example_inputs(twin, 2, (6, 10), 7)
    folder = tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir())
    diffusers._write_tensors(folder, diffusers.ADAPTERS, adapters, "float32")

    def ours(part, params):
      x = {name: jnp.asarray(value.numpy()) for name, value in inputs.items()}
      bound = part.bind(params)
      text = ("encoder_hidden_states", "encoder_attention_mask", "glyph_hidden_states")
      cond = bound.splice(*(x[name] for name in (*text, "glyph_attention_mask")))
      return np.asarray(bound(jnp.moveaxis(x["hidden_states"], 1, -1), x["timestep"], cond))

    def theirs():
      with torch.no_grad():
        return twin(**inputs).permute(0, 2, 3, 1).numpy()

    before = ours(dit_test._part(), model.params["dit"])
    np.testing.assert_allclose(theirs(), before, atol=2e-5 * np.abs(before).max())
    twin.load_lora_adapter(folder, weight_name=f"{diffusers.ADAPTERS}.safetensors")
    want = ours(dit_test._part(lora=_lora(DIT)), whole.params["dit"])
    self.assertGreater(np.abs(want - before).max(), 0.01)
    np.testing.assert_allclose(theirs(), want, atol=2e-5 * np.abs(want).max())


if __name__ == "__main__":
  sys.exit(absltest.main())
