"""The LLM against a numpy reading of Qwen3's modeling file, and the properties an encoder needs."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.models import llm

TINY = dict(
  vocab_size=23,
  width=12,
  depth=2,
  num_heads=6,
  num_kv_heads=2,
  head_dim=10,
  mlp_dim=14,
  rope_theta=100.0,
)


def _part(**overrides) -> types.Part:
  cfg = llm.make_config("nano", **{**TINY, **overrides})
  return types.Part.from_module(lambda rngs: llm.LLM(cfg, rngs=rngs))


def _init(part: types.Part, seed: int = 0) -> types.Params:
  """Random everywhere, norm scales and biases too, so that no leaf can be ignored unseen."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape), jnp.float32), part.abstract
  )


def _run(part: types.Part, params: types.Params, ids_BL: jax.Array, mask_BL=None) -> jax.Array:
  return jax.jit(lambda p, ids, mask: part.bind(p)(ids, mask))(params, ids_BL, mask_BL)


def _ids(batch: int, length: int, seed: int = 0) -> jax.Array:
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(4, TINY["vocab_size"], (batch, length)), jnp.int32)


def _rms_norm(x, scale):
  return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def _linear(x, p):
  return x @ p["kernel"] + p.get("bias", 0.0)


def _rotate(x, theta):
  """transformers' apply_rotary_pos_emb: x cos + rotate_half(x) sin, (length, dim)."""
  length, dim = x.shape
  angle = np.arange(length)[:, None] / theta ** (np.arange(0, dim, 2) / dim)[None, :]
  cos, sin = (np.concatenate([f(angle)] * 2, axis=1) for f in (np.cos, np.sin))
  half = np.concatenate([-x[:, dim // 2 :], x[:, : dim // 2]], axis=1)
  return x * cos + half * sin


def _numpy_llm(params, ids, cfg: llm.LLMConfig):
  """One sequence; loops over heads, written from transformers/models/qwen3/modeling_qwen3.py."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  x = p["embed_tokens"]["embedding"][ids]
  for layer in range(cfg.depth):
    b = jax.tree.map(lambda a, i=layer: a[i], p["blocks"]["layers"])
    h = _rms_norm(x, b["input_layernorm"]["scale"])
    q_all, k_all, v_all = (
      _linear(h, b["self_attn"][name]) for name in ("q_proj", "k_proj", "v_proj")
    )
    out = []
    for n in range(cfg.num_heads):
      kv = n // (cfg.num_heads // cfg.num_kv_heads)
      q = q_all[:, n * cfg.head_dim : (n + 1) * cfg.head_dim]
      k = k_all[:, kv * cfg.head_dim : (kv + 1) * cfg.head_dim]
      v = v_all[:, kv * cfg.head_dim : (kv + 1) * cfg.head_dim]
      if cfg.qk_norm:
        q = _rms_norm(q, b["self_attn"]["q_norm"]["scale"])
        k = _rms_norm(k, b["self_attn"]["k_norm"]["scale"])
      s = _rotate(q, cfg.rope_theta) @ _rotate(k, cfg.rope_theta).T / np.sqrt(cfg.head_dim)
      s = np.where(np.tril(np.ones_like(s)) > 0, s, -np.inf)
      w = np.exp(s - s.max(axis=1, keepdims=True))
      out.append(w / w.sum(axis=1, keepdims=True) @ v)
    x = x + np.concatenate(out, axis=1) @ b["self_attn"]["o_proj"]["kernel"]
    h = _rms_norm(x, b["post_attention_layernorm"]["scale"])
    gate, up = h @ b["mlp"]["gate_proj"]["kernel"], h @ b["mlp"]["up_proj"]["kernel"]
    x = x + (gate / (1 + np.exp(-gate)) * up) @ b["mlp"]["down_proj"]["kernel"]
  x = _rms_norm(x, p["norm"]["scale"])
  return x, x @ (p["embed_tokens"]["embedding"].T if cfg.tied else p["lm_head"]["kernel"])


class LLMTest(parameterized.TestCase):
  @parameterized.parameters(
    dict(),
    dict(qk_norm=False, qkv_bias=True),  # Qwen2.5
    dict(qk_norm=False),  # Llama
    dict(tied=False, num_kv_heads=6),
  )
  def test_equals_numpy(self, **overrides):
    part = _part(**overrides)
    params, ids_BL = _init(part), _ids(1, 7)
    cfg = llm.make_config("nano", **{**TINY, **overrides})
    features, logits = _numpy_llm(params, np.asarray(ids_BL[0]), cfg)
    got_BLE = _run(part, params, ids_BL)
    np.testing.assert_allclose(got_BLE[0], features, atol=2e-5)
    got_BLV = jax.jit(lambda p, x: part.bind(p).logits(x))(params, got_BLE)
    np.testing.assert_allclose(got_BLV[0], logits, atol=1e-4)

  def test_causal_by_gradient(self):
    part = _part()
    params = _init(part)
    ids_BL = jnp.arange(4, 11, dtype=jnp.int32)[None]  # one row of the table per position

    def feature_at_3(table_VE):
      model = part.bind({**params, "embed_tokens": {"embedding": table_VE}})
      return jnp.sum(model(ids_BL)[0, 3] ** 2)

    grad_VE = jax.jit(jax.grad(feature_at_3))(params["embed_tokens"]["embedding"])
    touched_L = np.abs(np.asarray(grad_VE)[4:11]).max(axis=1) > 0
    np.testing.assert_array_equal(touched_L, [True] * 4 + [False] * 3)

  @parameterized.parameters(True, False)
  def test_padding_changes_nothing(self, with_mask):
    part = _part()
    params, ids_BL = _init(part), _ids(2, 5)
    padded_BL = jnp.pad(ids_BL, ((0, 0), (0, 6)))
    got_BLE = _run(part, params, padded_BL, padded_BL != 0 if with_mask else None)
    np.testing.assert_allclose(got_BLE[:, :5], _run(part, params, ids_BL), atol=1e-5)
    self.assertTrue(np.isfinite(got_BLE).all())

  def test_order_of_words_matters(self):
    part = _part()
    params, ids_BL = _init(part), _ids(1, 7)
    swapped_BL = ids_BL.at[0, 0].set(ids_BL[0, 1]).at[0, 1].set(ids_BL[0, 0])
    moved_BLE = _run(part, params, ids_BL) - _run(part, params, swapped_BL)
    self.assertGreater(float(jnp.max(jnp.abs(moved_BLE[0, -1]))), 1e-3)

  def test_kv_heads_are_shared_by_groups(self):
    """Copying each kv head to its group of query heads gives the same model without grouping."""
    grouped, full = _part(), _part(num_kv_heads=6)
    params, ids_BL = _init(grouped), _ids(2, 7)
    copied = jax.tree.map(lambda x: x, params)
    attn = copied["blocks"]["layers"]["self_attn"]
    for name in ("k_proj", "v_proj"):
      kernel = attn[name]["kernel"].reshape(2, TINY["width"], 2, TINY["head_dim"])
      attn[name] = {"kernel": jnp.repeat(kernel, 3, axis=2).reshape(2, TINY["width"], -1)}
    np.testing.assert_allclose(_run(full, copied, ids_BL), _run(grouped, params, ids_BL), atol=1e-5)

  def test_remat_and_bfloat16(self):
    params, ids_BL = _init(_part()), _ids(2, 7)
    want_BLE = _run(_part(), params, ids_BL)
    np.testing.assert_allclose(_run(_part(remat="full"), params, ids_BL), want_BLE, atol=1e-6)
    low_BLE = _run(_part(dtype="bfloat16"), params, ids_BL)
    self.assertEqual(low_BLE.dtype, jnp.bfloat16)
    self.assertLess(float(jnp.mean(jnp.abs(low_BLE.astype(jnp.float32) - want_BLE))), 0.1)

  @parameterized.parameters(
    ("nano", 0.002), ("0.6B", 0.596), ("1.7B", 1.721), ("4B", 4.022), ("8B", 8.191)
  )
  def test_published_sizes(self, variant, billions):
    cfg = llm.make_config(variant)
    abstract = types.Part.from_module(lambda rngs: llm.LLM(cfg, rngs=rngs)).abstract
    self.assertAlmostEqual(sum(x.size for x in jax.tree.leaves(abstract)) / 1e9, billions, places=3)

  def test_errors_name_the_nearest(self):
    with self.assertRaisesRegex(types.UserError, "'nanno'; nearest is 'nano'"):
      llm.make_config("nanno")
    with self.assertRaisesRegex(types.UserError, "'widht'; nearest is 'width'"):
      llm.make_config("nano", widht=3)


if __name__ == "__main__":
  absltest.main()
