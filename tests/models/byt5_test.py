"""ByT5 against a numpy reading of T5 v1.1's modeling file, and the properties an encoder needs."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from experiments import common
from seedream_jax import types
from seedream_jax.engine import hlo, mesh, sharding
from seedream_jax.models import byt5

TINY = dict(
  vocab_size=29,
  width=12,
  depth=2,
  num_heads=3,
  head_dim=5,
  mlp_dim=14,
  num_buckets=8,
  max_distance=11,
)


def _part(**overrides) -> types.Part:
  cfg = byt5.make_config("nano", **{**TINY, **overrides})
  return types.Part.from_module(lambda rngs: byt5.ByT5(cfg, rngs=rngs))


def _init(part: types.Part, seed: int = 0) -> types.Params:
  """Random everywhere, norm scales and biases too, so that no leaf can be ignored unseen."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape), jnp.float32), part.abstract
  )


def _run(part: types.Part, params: types.Params, ids_BG: jax.Array) -> jax.Array:
  return jax.jit(lambda p, ids: part.bind(p)(ids, ids != byt5.PAD))(params, ids_BG)


def _ids(batch: int, length: int, seed: int = 0) -> jax.Array:
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.integers(3, TINY["vocab_size"], (batch, length)), jnp.int32)


def _bucket(offset: int, num_buckets: int, max_distance: int) -> int:
  """transformers' T5Attention._relative_position_bucket for one offset, bidirectional."""
  half = num_buckets // 2
  bucket, distance, exact = (half if offset > 0 else 0), abs(offset), half // 2
  if distance < exact:
    return bucket + distance
  far = exact + int(math.log(distance / exact) / math.log(max_distance / exact) * (half - exact))
  return bucket + min(far, half - 1)


def _rms_norm(x, scale):
  return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * scale


def _gelu_new(x):
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _numpy_byt5(params, ids, cfg: byt5.ByT5Config):
  """One sequence; written from transformers/models/t5/modeling_t5.py."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  x, length = p["embed"]["embedding"][ids], len(ids)
  table, bias = p["relative_attention_bias"]["embedding"], np.zeros((cfg.num_heads, length, length))
  for i in range(length):
    for j in range(length):
      bias[:, i, j] = table[_bucket(j - i, cfg.num_buckets, cfg.max_distance)]
  for layer in range(cfg.depth):
    b = jax.tree.map(lambda a, i=layer: a[i], p["blocks"]["layers"])
    h = _rms_norm(x, b["self_attention_norm"]["scale"])
    out = []
    for n in range(cfg.num_heads):
      cut = slice(n * cfg.head_dim, (n + 1) * cfg.head_dim)
      q, k, v = (h @ b["self_attention"][name]["kernel"][:, cut] for name in "qkv")
      s = q @ k.T + bias[n]
      w = np.exp(s - s.max(axis=1, keepdims=True))
      out.append(w / w.sum(axis=1, keepdims=True) @ v)
    x = x + np.concatenate(out, axis=1) @ b["self_attention"]["o"]["kernel"]
    h = _rms_norm(x, b["mlp_norm"]["scale"])
    gate, up = _gelu_new(h @ b["mlp"]["wi_0"]["kernel"]), h @ b["mlp"]["wi_1"]["kernel"]
    x = x + (gate * up) @ b["mlp"]["wo"]["kernel"]
  return _rms_norm(x, p["final_norm"]["scale"])


class ByT5Test(parameterized.TestCase):
  @parameterized.parameters((32, 128, 150), (8, 11, 31))
  def test_buckets_equal_transformers(self, num_buckets, max_distance, length):
    got = byt5.relative_buckets(length, num_buckets, max_distance)
    want = [
      [_bucket(j - i, num_buckets, max_distance) for j in range(length)] for i in range(length)
    ]
    np.testing.assert_array_equal(got, want)
    self.assertEqual((got.min(), got.max()), (0, num_buckets - 1))

  def test_equals_numpy(self):
    part = _part()
    params, ids_BG = _init(part), _ids(1, 13)
    want = _numpy_byt5(params, np.asarray(ids_BG[0]), byt5.make_config("nano", **TINY))
    np.testing.assert_allclose(_run(part, params, ids_BG)[0], want, atol=2e-5)

  def test_padding_changes_nothing(self):
    part = _part()
    params, ids_BG = _init(part), _ids(2, 5)
    got_BGE = _run(part, params, jnp.pad(ids_BG, ((0, 0), (0, 6))))
    np.testing.assert_allclose(got_BGE[:, :5], _run(part, params, ids_BG), atol=1e-5)

  def test_sees_both_ways(self):
    part = _part()
    params = _init(part)
    ids_BG = jnp.arange(3, 10, dtype=jnp.int32)[None]  # one row of the table per position

    def feature_at_3(table_VE):
      model = part.bind({**params, "embed": {"embedding": table_VE}})
      return jnp.sum(model(ids_BG, ids_BG > 0)[0, 3] ** 2)

    grad_VE = jax.jit(jax.grad(feature_at_3))(params["embed"]["embedding"])
    np.testing.assert_array_equal(np.abs(np.asarray(grad_VE)[3:10]).max(axis=1) > 0, [True] * 7)

  def test_no_string_attends_to_its_first_slot(self):
    """A row of nothing but masked keys is undefined in a fused attention kernel."""
    part = _part()
    params, ids_BG = _init(part), _ids(2, 5)
    run = jax.jit(lambda mask: part.bind(params)(ids_BG, mask))
    first_BG = jnp.zeros((2, 5), bool).at[:, 0].set(True)
    np.testing.assert_allclose(run(jnp.zeros((2, 5), bool)), run(first_BG), atol=1e-6)

  @parameterized.parameters(
    ("nano", 1.067), ("small", 217.657), ("base", 414.703), ("large", 864.205)
  )
  def test_published_sizes(self, variant, millions):
    """Glyph-ByT5 gives 217 / 415 / 864 M."""
    cfg = byt5.make_config(variant)
    abstract = types.Part.from_module(lambda rngs: byt5.ByT5(cfg, rngs=rngs)).abstract
    self.assertAlmostEqual(sum(x.size for x in jax.tree.leaves(abstract)) / 1e6, millions, places=3)

  def test_errors_name_the_nearest(self):
    with self.assertRaisesRegex(types.UserError, "'smal'; nearest is 'small'"):
      byt5.make_config("smal")

  def test_fsdp_gathers_parameters_and_adds_up_no_tokens(self):
    """Kernels cut over fsdp by either side, XLA would otherwise cut the tokens' width and add its parts up."""
    device_mesh = mesh.make({"fsdp": 8})
    part = _part(width=16, num_heads=4, head_dim=8, mlp_dim=64)
    params = _init(part)
    shard = sharding.infer(params, common.SHARDING_RULES, device_mesh)
    batch = jax.ShapeDtypeStruct((16, 9), jnp.int32, sharding=sharding.batch(device_mesh))
    with jax.set_mesh(device_mesh):
      run = jax.jit(lambda p, ids: part.bind(p)(ids, ids != byt5.PAD))
      text = run.lower(sharding.abstract(params, shard), batch).compile().as_text()
    kinds = [c.kind for c in hlo.collectives(text)]
    self.assertIn("all-gather", kinds)
    self.assertNotIn("all-reduce", kinds)


if __name__ == "__main__":
  absltest.main()
