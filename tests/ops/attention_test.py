"""Joint attention against numpy, its gradient against jax.nn, and every backend against xla."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax._src.cudnn import fused_attention_stablehlo

from seedream_jax import types
from seedream_jax.engine import mesh
from seedream_jax.ops import attention

B, S, N, K = 2, 7, 4, 8
CASES = (
  dict(testcase_name="plain"),
  dict(testcase_name="masked", mask=True),
  dict(testcase_name="causal", causal=True),
  dict(testcase_name="biased", bias=True),
  dict(testcase_name="grouped", kv_heads=2, mask=True),
  dict(testcase_name="one_kv_head_causal_masked", kv_heads=1, mask=True, causal=True),
  dict(testcase_name="fewer_queries", queries=3, mask=True),
  dict(testcase_name="unscaled", scale=1.0, bias=True, mask=True),
)


def _inputs(kv_heads=N, queries=S, seed=0):
  rng = np.random.default_rng(seed)
  shapes = ((B, queries, N, K), (B, S, kv_heads, K), (B, S, kv_heads, K))
  return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def _options(mask=False, causal=False, bias=False, scale=None, queries=S):
  mask_BL = np.array([[True] * 4 + [False] * 3, [True] * 7]) if mask else None
  bias_NSL = np.random.default_rng(1).standard_normal((N, queries, S)).astype(np.float32)
  return dict(mask_BL=mask_BL, causal=causal, bias_NSL=bias_NSL if bias else None, scale=scale)


def _oracle(q, k, v, mask_BL, causal, bias_NSL, scale):
  """Loops over queries and keys, float64."""
  out = np.zeros(q.shape)
  group = q.shape[2] // k.shape[2]
  for b, s, n in np.ndindex(*q.shape[:3]):
    keys, values = k[b, :, n // group].astype(np.float64), v[b, :, n // group]
    score = keys @ q[b, s, n] * (K**-0.5 if scale is None else scale)
    if bias_NSL is not None:
      score = score + bias_NSL[n, s]
    seen = np.ones(len(keys), bool) if mask_BL is None else mask_BL[b].copy()
    if causal:
      seen[s + 1 :] = False
    weight = np.exp(score[seen] - score[seen].max())
    out[b, s, n] = (weight / weight.sum()) @ values[seen]
  return out


class AttentionTest(parameterized.TestCase):
  @parameterized.named_parameters(*CASES)
  def test_equals_numpy(self, kv_heads=N, queries=S, **kwargs):
    q, k, v = _inputs(kv_heads, queries)
    options = _options(queries=queries, **kwargs)
    want = _oracle(q, k, v, **options)
    got = jax.jit(lambda *a: attention.joint(*a, backend="xla", **options))(q, k, v)
    np.testing.assert_allclose(got, want, atol=1e-5)

  @parameterized.named_parameters(*CASES)
  def test_gradient_equals_jax_nn(self, kv_heads=N, queries=S, **kwargs):
    q, k, v = _inputs(kv_heads, queries)
    options = _options(queries=queries, **kwargs)
    mask_BL, bias_NSL = options["mask_BL"], options["bias_NSL"]

    def reference(q, k, v, bias_NSL):
      return jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=None if bias_NSL is None else bias_NSL[None],
        mask=None if mask_BL is None else mask_BL[:, None, None],
        is_causal=options["causal"],
        scale=options["scale"],
        implementation="xla",
      )

    def ours(q, k, v, bias_NSL):
      return attention.joint(q, k, v, backend="xla", **{**options, "bias_NSL": bias_NSL})

    def gradient(fn):
      return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(fn(*a))), argnums=(0, 1, 2, 3)))(
        q, k, v, bias_NSL
      )

    for a, b in zip(jax.tree.leaves(gradient(ours)), jax.tree.leaves(gradient(reference))):
      np.testing.assert_allclose(a, b, atol=2e-5)

  @parameterized.parameters("xla", "splash")
  def test_hidden_keys_have_no_influence_and_no_gradient(self, backend):
    q, k, v = _inputs()
    mask_BL = _options(mask=True)["mask_BL"]

    def f(k, v):
      return jnp.sum(jnp.sin(attention.joint(q, k, v, mask_BL, backend=backend)))

    hidden = ~mask_BL[:, :, None, None]
    value, (dk, dv) = jax.value_and_grad(f, argnums=(0, 1))(k, v)
    self.assertEqual(float(f(np.where(hidden, 9.0, k), np.where(hidden, -9.0, v))), float(value))
    np.testing.assert_array_equal(np.where(hidden, dk, 0), 0)
    np.testing.assert_array_equal(np.where(hidden, dv, 0), 0)

  def test_a_row_of_hidden_keys_stays_finite(self):
    q, k, v = _inputs()
    mask_BL = np.zeros((B, S), bool)
    grads = jax.grad(lambda *a: jnp.sum(attention.joint(*a, mask_BL) ** 2), argnums=(0, 1, 2))(
      q, k, v
    )
    self.assertTrue(all(np.isfinite(g).all() for g in grads))

  @parameterized.parameters(dict(), dict(causal=True, kv_heads=2), dict(queries=3))
  def test_splash_equals_xla(self, kv_heads=N, queries=S, causal=False):
    q, k, v = _inputs(kv_heads, queries)
    options = _options(mask=True, causal=causal)

    def run(backend):
      return jax.value_and_grad(
        lambda *a: jnp.sum(jnp.sin(attention.joint(*a, backend=backend, **options))),
        argnums=(0, 1, 2),
      )(q, k, v)

    for a, b in zip(jax.tree.leaves(run("splash")), jax.tree.leaves(run("xla"))):
      np.testing.assert_allclose(a, b, atol=3e-5)

  def test_splash_on_a_mesh(self):
    q, k, v = _inputs()
    want = attention.joint(q, k, v, backend="xla")
    with jax.set_mesh(mesh.make({"fsdp": 2, "tensor": 2}, jax.devices()[:4])):
      got = jax.jit(lambda *a: attention.joint(*a, backend="splash"))(q, k, v)
    np.testing.assert_allclose(got, want, atol=1e-5)

  def test_softmax_is_float32_whatever_the_inputs(self):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in _inputs())
    jaxpr = jax.make_jaxpr(lambda *a: attention.joint(*a, backend="xla"))(q, k, v)
    exponents = [e for e in _equations(jaxpr.jaxpr) if e.primitive.name == "exp"]
    self.assertLen(exponents, 1)
    self.assertEqual(exponents[0].invars[0].aval.dtype, jnp.float32)
    self.assertEqual(jaxpr.out_avals[0].dtype, jnp.bfloat16)

  def test_cudnn_is_called_with_a_mask_for_every_query(self):
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in _inputs(queries=4))
    mask_BL = np.ones((B, S), bool)

    def loss(q, k, v):
      return attention.joint(q, k, v, mask_BL, backend="cudnn").astype(jnp.float32).sum()

    with mock.patch.object(fused_attention_stablehlo, "check_cudnn_version"):  # there is none here
      jaxpr = jax.make_jaxpr(loss)(q, k, v)
    calls = [e for e in _equations(jaxpr.jaxpr) if "dot_product_attention" in e.primitive.name]
    self.assertIn((B, 1, 4, S), [x.aval.shape for x in calls[0].invars])

  def test_what_does_not_fit_is_named(self):
    q, k, v = _inputs(kv_heads=3)
    with self.assertRaisesRegex(ValueError, "4 query heads.*3"):
      attention.joint(q, k, v)
    q, k, v = _inputs()
    with self.assertRaisesRegex(types.UserError, "flash.*auto, xla, cudnn, splash"):
      attention.joint(q, k, v, backend="flash")
    with self.assertRaisesRegex(types.UserError, "float32"):
      attention.joint(q, k, v, backend="cudnn")
    with self.assertRaisesRegex(types.UserError, "bias"):
      attention.joint(q, k, v, bias_NSL=np.zeros((N, S, S), np.float32), backend="splash")


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      if hasattr(value, "jaxpr"):
        yield from _equations(value.jaxpr)


if __name__ == "__main__":
  absltest.main()
