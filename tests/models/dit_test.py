"""The DiT's properties: what it must not depend on, what is a no-op at init, how large it is."""

import dataclasses
import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from experiments import common
from seedream_jax import types
from seedream_jax.engine import flops, hlo, mesh, sharding
from seedream_jax.models import dit, layers
from seedream_jax.ops import attention

B, H, W, C, L, G, E, EG = 2, 6, 10, 3, 7, 5, 13, 11  # EG: glyph width
TINY = dict(
  patch=2,
  adaln="single",
  rope_base=4,
  width=24,
  depth=3,
  num_heads=2,
  latent_channels=C,
  text_dim=E,
  glyph_dim=EG,
  max_text_len=17,
  glyph_len=G,
)


def _part(**overrides):
  cfg = dit.make_config("nano", **{**TINY, **overrides})
  return types.Part.from_module(lambda rngs: dit.DiT(cfg, rngs=rngs))


def _random(part, seed=0):
  """Every leaf drawn: at init zero gates would hide what a test looks for."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), part.abstract
  )


def _inputs(height=H, width=W, length=L, seed=0):
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
  mask_BL = np.arange(length)[None] < np.array([[5], [7]])
  mask_BG = np.arange(G)[None] < np.array([[0], [3]])
  xt_BHWC = draw(B, height, width, C)
  text = (draw(B, length, E), jnp.asarray(mask_BL), draw(B, G, EG), jnp.asarray(mask_BG))
  return xt_BHWC, jnp.array([0.3, 0.8]), text


def _jit(part, **kwargs):
  def apply(params, xt_BHWC, t_B, text):
    model = part.bind(params)
    return model(xt_BHWC, t_B, model.splice(*text), **kwargs)

  return jax.jit(apply)


class DiTTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.part = _part()
    cls.params = _random(cls.part)
    cls.apply = staticmethod(_jit(cls.part))

  @parameterized.parameters("single", "full")
  def test_block_is_the_identity_at_init(self, adaln):
    part = _part(adaln=adaln)
    params = part.init(jax.random.key(0))
    apply = _jit(part, taps=("txt", "img"))
    _, seen = apply(params, *_inputs())
    for x in seen.values():
      self.assertGreater(float(jnp.abs(x[0]).max()), 0.1)
      np.testing.assert_array_equal(x[1:], x[:-1])
    frozen = params["blocks"]["layers"]["img"]["modulation"]  # and a gate that opens is seen
    open_gates = jax.tree.map(lambda x: x + 0.1, frozen)
    blocks = {"layers": {**params["blocks"]["layers"]}}
    blocks["layers"]["img"] = {**blocks["layers"]["img"], "modulation": open_gates}
    _, seen = apply({**params, "blocks": blocks}, *_inputs())
    self.assertGreater(float(jnp.abs(seen["img"][1] - seen["img"][0]).max()), 1e-3)

  def test_velocity_is_zero_at_init(self):
    out = self.apply(self.part.init(jax.random.key(0)), *_inputs())
    np.testing.assert_array_equal(out, np.zeros((B, H, W, C)))

  @parameterized.parameters((2, 2), (14, 4))
  def test_any_aspect_ratio(self, height, width):
    out = self.apply(self.params, *_inputs(height, width))
    self.assertEqual((out.shape, out.dtype), ((B, height, width, C), jnp.float32))
    self.assertTrue(np.isfinite(out).all())

  def test_masked_text_has_no_influence_and_no_gradient(self):
    xt_BHWC, t_B, (llm_BLE, mask_BL, byt5_BGE, mask_BG) = _inputs()

    def f(llm_BLE, byt5_BGE):
      return self.apply(self.params, xt_BHWC, t_B, (llm_BLE, mask_BL, byt5_BGE, mask_BG))

    hidden_BL, hidden_BG = ~mask_BL[:, :, None], ~mask_BG[:, :, None]
    changed = f(jnp.where(hidden_BL, 9.0, llm_BLE), jnp.where(hidden_BG, -9.0, byt5_BGE))
    np.testing.assert_array_equal(changed, f(llm_BLE, byt5_BGE))
    grads = jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1))(llm_BLE, byt5_BGE)
    for grad, hidden in zip(grads, (hidden_BL, hidden_BG)):
      np.testing.assert_array_equal(jnp.where(hidden, grad, 0), jnp.zeros_like(grad))
      self.assertGreater(float(jnp.abs(grad).max()), 1e-4)

  def test_order_of_text_enters_by_the_learned_position_only(self):
    xt_BHWC, t_B, (llm_BLE, mask_BL, *glyphs) = _inputs()
    order = np.array([3, 6, 0, 5, 2, 4, 1])
    turned = (llm_BLE[:, order], mask_BL[:, order], *glyphs)
    text = (llm_BLE, mask_BL, *glyphs)
    gap = np.abs(
      self.apply(self.params, xt_BHWC, t_B, text) - self.apply(self.params, xt_BHWC, t_B, turned)
    )
    self.assertGreater(gap.max(), 1e-2)
    flat = {**self.params, "position": jnp.zeros_like(self.params["position"])}
    np.testing.assert_allclose(
      self.apply(flat, xt_BHWC, t_B, text), self.apply(flat, xt_BHWC, t_B, turned), atol=2e-4
    )

  def test_order_of_image_tokens_matters_by_rope_alone(self):
    """With the text as a fixed origin, moving two patches is not moving the two outputs."""
    xt_BHWC, t_B, text = _inputs()
    rolled = self.apply(self.params, jnp.roll(xt_BHWC, 2, axis=2), t_B, text)
    moved = jnp.roll(self.apply(self.params, xt_BHWC, t_B, text), 2, axis=2)
    self.assertGreater(float(jnp.abs(rolled - moved).max()), 1e-2)

  def test_prompt_in_a_larger_bucket_gives_the_same_picture(self):
    xt_BHWC, t_B, (llm_BLE, mask_BL, *glyphs) = _inputs()
    grown = (jnp.pad(llm_BLE, ((0, 0), (0, 4), (0, 0)), constant_values=3.0),)
    grown += (jnp.pad(mask_BL, ((0, 0), (0, 4))), *glyphs)
    np.testing.assert_allclose(
      self.apply(self.params, xt_BHWC, t_B, grown),
      self.apply(self.params, xt_BHWC, t_B, (llm_BLE, mask_BL, *glyphs)),
      atol=2e-4,
    )

  def test_example_does_not_depend_on_its_neighbours(self):
    xt_BHWC, t_B, text = _inputs()
    other = jax.tree.map(lambda x: x.at[1].set(x[0]), (xt_BHWC, t_B, text))
    got, want = self.apply(self.params, *other), self.apply(self.params, xt_BHWC, t_B, text)
    np.testing.assert_array_equal(got[0], want[0])

  def test_new_conditions_change_nothing_bit_for_bit(self):
    part = _part(conds=("time", "size", "pooled", "guidance"), cond_channels=2)
    fresh = part.init(jax.random.key(1))
    params = {**fresh, **self.params, "cond": {**fresh["cond"], **self.params["cond"]}}
    self.assertIn("channels_in", params)
    self.assertIn("guidance", params["cond"])

    def apply(params, xt_BHWC, t_B, text, new):
      model = part.bind(params)
      return model(xt_BHWC, t_B, model.splice(*text).replace(**new))

    new = dict(guidance_B=jnp.array([2.0, 5.0]), channels_BHWC=jnp.ones((B, H, W, 2)))
    apply, old = jax.jit(apply), self.apply(self.params, *_inputs())
    np.testing.assert_array_equal(apply(params, *_inputs(), new), old)
    params["channels_in"] = _random(part)["channels_in"]
    self.assertGreater(float(jnp.abs(apply(params, *_inputs(), new) - old).max()), 0.01)

  def test_labels_change_nothing_until_trained_bit_for_bit(self):
    part = _part(labels=3)
    fresh, drawn = part.init(jax.random.key(1)), _random(part)

    def with_values(of):
      layers = {**self.params["blocks"]["layers"], "vmix_v": of["blocks"]["layers"]["vmix_v"]}
      last = {**self.params["last"], "vmix_v": of["last"]["vmix_v"]}
      return {**self.params, "blocks": {"layers": layers}, "last": last, "vmix": drawn["vmix"]}

    params = with_values(fresh)
    tags_BA = jnp.array([[1, 0, 1], [0, 1, -1]])

    @functools.partial(jax.jit, static_argnames="taps")
    def labelled(params, inputs, tags_BA, strength_B=None, taps=()):
      model, (xt_BHWC, t_B, text) = part.bind(params), inputs
      cond = model.splice(*text).replace(tags_BA=tags_BA, tag_strength_B=strength_B)
      return model(xt_BHWC, t_B, cond, taps=taps)

    def apply(params, *cond, **kwargs):
      return labelled(params, _inputs(), *cond, **kwargs)

    old = self.apply(self.params, *_inputs())
    np.testing.assert_array_equal(apply(params, tags_BA), old)
    params = with_values(drawn)
    v = apply(params, tags_BA)
    for other in (old, apply(params, 1 - tags_BA)):
      self.assertGreater(float(jnp.abs(v - other).max()), 1e-2)
    part_off = apply(params, tags_BA, jnp.array([0.0, 1.0]))
    unknown = apply(params, tags_BA.at[0].set(-1))
    for other in (part_off, unknown):
      np.testing.assert_allclose(other[0], old[0], atol=1e-4)
      np.testing.assert_allclose(other[1], v[1], atol=1e-4)
    seen = [apply(params, tags, taps=("txt", "img"))[1] for tags in (tags_BA, 1 - tags_BA)]
    first = [{name: x[0] for name, x in taps.items()} for taps in seen]
    np.testing.assert_array_equal(
      first[0]["txt"], first[1]["txt"]
    )  # the text's queries are its own
    self.assertGreater(float(jnp.abs(first[0]["img"] - first[1]["img"]).max()), 1e-2)

  def test_value_mixing_is_one_more_value_on_the_same_attention(self):
    """VMix eq.: softmax(q k) V + lambda softmax(q k) V_a = softmax(q k) (V + lambda [V_a; 0])."""
    cfg = dit.make_config("nano", **TINY, labels=2)
    block = dit.Block(cfg, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)  # noqa: E731
    q, k, v = draw(B, 15, 2, 12), draw(B, L + 15, 2, 12), draw(B, L + 15, 2, 12)
    mask_BS = jnp.asarray(np.arange(L + 15)[None] != np.array([[2], [5]]))
    aes_BTD = 1.7 * draw(B, L, 24)
    added = block._aesthetics(q, k, (B, 15, 2, 12), mask_BS, aes_BTD)
    v_a = jnp.pad(block.vmix_v(aes_BTD).reshape(B, L, 2, 12), ((0, 0), (0, 15), (0, 0), (0, 0)))
    want = attention.joint(q, k, v + v_a, mask_BS) - attention.joint(q, k, v, mask_BS)
    np.testing.assert_allclose(added, want, atol=1e-5)

  def test_scanned_blocks_equal_a_loop(self):
    xt_BHWC, t_B, text = _inputs()

    def looped(params):
      model = self.part.bind(params)
      graphdef, stacked = nnx.split(model.blocks.layers)
      pick = lambda i: nnx.merge(graphdef, jax.tree.map(lambda x: x[i], stacked))  # noqa: E731
      blocks = [pick(0), pick(1)]

      def run(_, carry, call, xs):
        for i, block in enumerate(blocks):
          carry, _ = call(block, carry, jax.tree.map(lambda x: x[i], xs))  # noqa: B023
        return carry, {}

      with mock.patch.object(layers.Stack, "__call__", run):
        return model(xt_BHWC, t_B, model.splice(*text))

    got, want = jax.jit(looped)(self.params), self.apply(self.params, xt_BHWC, t_B, text)
    np.testing.assert_allclose(got, want, atol=2e-4)

  def test_taps_return_every_block_and_leave_the_output_alone(self):
    xt_BHWC, t_B, text = _inputs()
    v_BHWC, seen = _jit(self.part, taps=dit.TAPS)(self.params, xt_BHWC, t_B, text)
    np.testing.assert_allclose(v_BHWC, self.apply(self.params, xt_BHWC, t_B, text), atol=1e-4)
    shapes = {name: x.shape for name, x in seen.items()}
    heads = (2, 12)
    want = {"txt": (L + G, 24), "img": (15, 24)}
    want |= {"txt_k": (L + G, *heads), "img_q": (15, *heads), "img_k": (15, *heads)}
    self.assertEqual(shapes, {name: (3, B, *shape) for name, shape in want.items()})

  def test_remat_dots_makes_at_most_the_scores_again(self):
    def executed(remat, **overrides):
      part = _part(remat=remat, **overrides)
      loss = lambda params, *inputs: jnp.sum(_jit(part)(params, *inputs))  # noqa: E731
      return flops.count(jax.grad(loss), self.params, *_inputs(), executed=True)

    none, dots, full = (executed(remat) for remat in ("none", "dots", "full"))
    scores = 2 * B * 2 * (L + G + 15) ** 2 * 12  # of each scanned block, 2 heads
    self.assertEqual(dots - none, 2 * scores)
    self.assertGreater(full, dots)
    none, dots = (executed(remat, attention="splash") for remat in ("none", "dots"))
    self.assertEqual(dots, none)  # the kernel's results are kept too

  def test_bfloat16_keeps_float32_masters_and_output(self):
    part = _part(dtype="bfloat16")
    self.assertEqual({x.dtype for x in jax.tree.leaves(part.abstract)}, {jnp.dtype("float32")})
    got, want = (_jit(p)(self.params, *_inputs()) for p in (part, self.part))
    self.assertEqual(got.dtype, jnp.float32)
    self.assertLess(float(jnp.abs(got - want).max() / jnp.abs(want).max()), 0.1)

  @parameterized.parameters("single", "full")
  def test_fsdp_moves_parameters_and_never_the_batch(self, adaln):
    device_mesh, part = mesh.make({"fsdp": 8}), _part(adaln=adaln)
    params = _random(part)
    shard = sharding.infer(params, common.SHARDING_RULES, device_mesh)
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * 4), _inputs())
    loss = lambda *a: jnp.sum(jnp.sin(_jit(part)(*a)))  # noqa: E731
    want = jax.grad(loss)(params, *_inputs())
    with jax.set_mesh(device_mesh):
      inputs = jax.device_put((params, *batch), (shard, *[sharding.batch(device_mesh)] * 3))
      gradient = jax.jit(jax.grad(loss), out_shardings=shard).lower(*inputs).compile()
    for a, b in zip(jax.tree.leaves(gradient(*inputs)), jax.tree.leaves(want)):
      np.testing.assert_allclose(a, 4 * b, atol=2e-3, rtol=2e-3)
    text = gradient.as_text()
    moved = re.findall(r"= f32\[([\d,]*)\]\S* (?:all-gather|all-reduce)\(", text)
    self.assertIn("24,24", moved)  # a projection
    self.assertEmpty([shape for shape in moved if re.match(r"8,\d+,", shape)])  # no tokens
    # The scanned blocks' modulation: the vectors go to its kernel, and what it makes comes back in one exchange a way.
    inside = [c.times for c in hlo.collectives(text) if c.kind == "all-to-all"]
    self.assertEqual(inside, [1, 1] if adaln == "full" else [])

  def test_gradients_on_a_mesh_of_three_axes(self):
    device_mesh = mesh.make(dict(data=2, fsdp=2, tensor=2))
    part = _part(adaln="full", remat="full")
    params, batch = _random(part), jax.tree.map(lambda x: jnp.concatenate([x] * 4), _inputs())
    loss = lambda *a: jnp.sum(jnp.sin(_jit(part)(*a)))  # noqa: E731
    want = jax.grad(loss)(params, *_inputs())
    with jax.set_mesh(device_mesh):
      shard = sharding.infer(params, common.SHARDING_RULES, device_mesh)
      inputs = jax.device_put((params, *batch), (shard, *[sharding.batch(device_mesh)] * 3))
      got = jax.jit(jax.grad(loss))(*inputs)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
      np.testing.assert_allclose(a, 4 * b, atol=2e-3, rtol=2e-3)

  def test_last_block_has_no_text_update(self):
    self.assertNotIn("mlp_in", self.part.abstract["last"]["txt"])
    self.assertNotIn("q", self.part.abstract["last"]["txt"])
    self.assertIn("mlp_in", _part(last_txt_after=True).abstract["last"]["txt"])

  @parameterized.parameters(
    dict(width=25), dict(adaln="none"), dict(depth=1), dict(conds=("time", "mood"))
  )
  def test_bad_config_is_named(self, **bad):
    with self.assertRaisesRegex(types.UserError, str(next(iter(bad.values()))).strip("()")[-5:]):
      _part(**bad)

  def test_unknown_names_get_the_nearest(self):
    with self.assertRaisesRegex(types.UserError, "nearest is 'width'"):
      dit.make_config("nano", widht=3)
    with self.assertRaisesRegex(types.UserError, "nearest is 'small'"):
      dit.make_config("smal")

  def test_prompt_that_is_too_long_is_named(self):
    with self.assertRaisesRegex(ValueError, "19 LLM tokens.*17"):
      self.apply(self.params, *_inputs(length=19))


class VariantsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("nano", 9.0e6, 9.9e6), ("small", 4.5e8, 6e8), ("base", 1e9, 2e9), ("full", 8e9, 9e9)
  )
  def test_parameter_count(self, variant, low, high):
    cfg = dit.make_config(variant)
    part = types.Part.from_module(lambda rngs: dit.DiT(cfg, rngs=rngs))
    count = sum(x.size for x in jax.tree.leaves(part.abstract))
    self.assertBetween(count, low, high)

  def test_accelerator_presets_fill_a_lane(self):
    for variant in ("small", "base", "full"):
      self.assertEqual(dit.make_config(variant).head_dim, 128)

  def test_config_is_hashable_and_complete(self):
    cfg = dit.make_config("nano", conds=["time", "size"])
    self.assertEqual(cfg.conds, ("time", "size"))
    hash(dataclasses.astuple(cfg))


if __name__ == "__main__":
  absltest.main()
