"""Conditions are no-ops when new; the splice joins, masks and pools."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from seedream_jax import types
from seedream_jax.models import conditioning

B, L, G, E, D = 2, 5, 3, 7, 11


def _cond(guidance_B=None):
  rng = np.random.default_rng(0)
  return types.Cond(
    txt_BTE=jnp.zeros((B, L + G, E)),
    mask_BT=jnp.ones((B, L + G), bool),
    vec_BE=jnp.asarray(rng.standard_normal((B, E)), jnp.float32),
    guidance_B=guidance_B,
  )


T_B = jnp.array([0.25, 0.75])
SIZE_B2 = jnp.array([[64, 96], [128, 64]])


def _randomised(module):
  """The module with every parameter drawn, so that nothing hides behind a zero."""
  graphdef, state = nnx.split(module)
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(0.5 * rng.standard_normal(x.shape), x.dtype)  # noqa: E731
  return nnx.merge(graphdef, jax.tree.map(draw, state))


class ConditionsTest(parameterized.TestCase):
  @parameterized.parameters("size", "pooled", "guidance")
  def test_new_condition_adds_exactly_zero(self, name):
    module = conditioning.CONDITIONS[name](D, E, rngs=nnx.Rngs(0))
    out = module(T_B, _cond(guidance_B=jnp.array([1.0, 4.0])), SIZE_B2)
    np.testing.assert_array_equal(out, np.zeros((B, D)))

  @parameterized.parameters("time", "size", "pooled", "guidance")
  def test_once_trained_it_tells_its_inputs_apart(self, name):
    module = _randomised(conditioning.CONDITIONS[name](D, E, rngs=nnx.Rngs(0)))
    out = module(T_B, _cond(guidance_B=jnp.array([1.0, 4.0])), SIZE_B2)
    self.assertEqual((out.shape, out.dtype), ((B, D), jnp.float32))
    self.assertGreater(float(jnp.abs(out[0] - out[1]).max()), 1e-2)

  def test_size_tells_height_from_width(self):
    module = _randomised(conditioning.Size(D, E, rngs=nnx.Rngs(0)))
    out = module(T_B, _cond(), jnp.array([[64, 96], [96, 64]]))
    self.assertGreater(float(jnp.abs(out[0] - out[1]).max()), 1e-2)

  def test_sum_of_named_parts(self):
    names = ("time", "size", "pooled")
    module = _randomised(conditioning.Conditions(names, D, E, rngs=nnx.Rngs(0)))
    self.assertEqual(set(nnx.to_pure_dict(nnx.state(module, nnx.Param))), set(names))
    want = sum(getattr(module, name)(T_B, _cond(), SIZE_B2) for name in names)
    np.testing.assert_allclose(module(T_B, _cond(), SIZE_B2), want, rtol=1e-6)

  def test_what_is_missing_is_named(self):
    with self.assertRaisesRegex(types.UserError, "mood.*time, size, pooled, guidance"):
      conditioning.Conditions(("mood",), D, E, rngs=nnx.Rngs(0))
    module = conditioning.Guidance(D, E, rngs=nnx.Rngs(0))
    with self.assertRaisesRegex(ValueError, "guidance_B"):
      module(T_B, _cond(), SIZE_B2)

  def test_sinusoid_by_hand(self):
    # facebookresearch/DiT timestep_embedding: cos first, frequencies max_period^(-i / half).
    got = conditioning.sinusoid(jnp.array([3.0]), dim=4, max_period=100.0)
    phases = 3.0 * np.array([1.0, 0.1])
    np.testing.assert_allclose(got[0], [*np.cos(phases), *np.sin(phases)], rtol=1e-5)


class TextSpliceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(1)
    self.splice = conditioning.TextSplice(G, 13, E, dtype="float32", rngs=nnx.Rngs(0))
    self.llm_BLE = jnp.asarray(rng.standard_normal((B, L, E)), jnp.float32)
    self.byt5_BGE = jnp.asarray(rng.standard_normal((B, G, 13)), jnp.float32)
    self.mask_BL = jnp.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    self.mask_BG = jnp.array([[1, 0, 0], [0, 0, 0]], bool)
    self.cond = self.splice(self.llm_BLE, self.mask_BL, self.byt5_BGE, self.mask_BG)

  def test_llm_first_then_bytes(self):
    types.check_dims(**{k: getattr(self.cond, k) for k in ("txt_BTE", "mask_BT", "vec_BE")})
    np.testing.assert_array_equal(self.cond.txt_BTE[:, :L], self.llm_BLE)
    np.testing.assert_allclose(self.cond.txt_BTE[:, L:], self.splice.mlp(self.byt5_BGE), rtol=1e-5)
    np.testing.assert_array_equal(self.cond.mask_BT[:, :L], self.mask_BL)
    np.testing.assert_array_equal(self.cond.mask_BT[:, L:], self.mask_BG)

  def test_pooled_is_the_mean_of_visible_llm_tokens(self):
    want = [self.llm_BLE[0, :3].mean(axis=0), self.llm_BLE[1].mean(axis=0)]
    np.testing.assert_allclose(self.cond.vec_BE, want, rtol=1e-5)

  def test_pooled_of_nothing_is_zero(self):
    cond = self.splice(self.llm_BLE, self.mask_BL & False, self.byt5_BGE, self.mask_BG)
    np.testing.assert_array_equal(cond.vec_BE, np.zeros((B, E)))

  def test_bytes_without_a_slot_are_named(self):
    with self.assertRaisesRegex(types.UserError, "2 glyph bytes.*glyph_len=3"):
      self.splice(self.llm_BLE, self.mask_BL, self.byt5_BGE[:, :2], self.mask_BG[:, :2])


if __name__ == "__main__":
  absltest.main()
