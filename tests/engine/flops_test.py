"""FLOP counts against arithmetic, and the rules of what counts."""

import math

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized
from jax.experimental import pallas as pl
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from seedream_jax.engine import flops, mesh


def array(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def dense_loss(kernels, x, remat):
  """Scanned blocks of two matmuls; every matmul has two gradients."""

  def body(x, kernel):
    return jnp.tanh(jnp.tanh(x @ kernel) @ kernel.T), None

  if remat:
    body = jax.checkpoint(body, prevent_cse=False)
  return jax.lax.scan(body, x, kernels)[0].sum()


def matmul(x, y):
  return x @ y


class FlopsTest(parameterized.TestCase):
  @parameterized.parameters(
    ("bsnk,blnk->bnsl", (2, 3, 5, 7), (2, 11, 5, 7), 2 * 2 * 3 * 5 * 7 * 11),
    ("ij,jk->ik", (3, 5), (5, 7), 2 * 3 * 5 * 7),
    ("i,i->", (5,), (5,), 2 * 5),
  )
  def test_dots(self, equation, left, right, expected):
    fn = lambda x, y: jnp.einsum(equation, x, y)  # noqa: E731
    self.assertEqual(flops.count(fn, array(*left), array(*right)), expected)

  def test_elementwise_is_free(self):
    self.assertEqual(flops.count(lambda x: jnp.exp(x).sum() * 3, array(5, 7)), 0)

  @parameterized.parameters((1, 1), (2, 1), (1, 3))
  def test_conv_and_its_gradients(self, stride, groups):
    x, kernel = array(2, 8, 8, 3), array(3, 3, 3 // groups, 6)

    def conv(x, kernel):
      return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
      )  # fmt: skip

    forward = flops.count(conv, x, kernel)
    self.assertEqual(forward, 2 * 2 * (8 // stride) ** 2 * 6 * 9 * 3 // groups)
    grad = jax.grad(lambda x, k: jnp.square(conv(x, k)).sum(), argnums=(0, 1))
    self.assertEqual(flops.count(grad, x, kernel), 3 * forward)

  @parameterized.parameters(False, True)
  def test_gradient_costs_three_forwards(self, remat):
    args = array(3, 5, 7), array(2, 5)
    forward = flops.count(lambda *a: dense_loss(*a, remat), *args)
    self.assertEqual(forward, 3 * 2 * 2 * 2 * 5 * 7)
    grad = jax.value_and_grad(lambda *a: dense_loss(*a, remat), argnums=(0, 1))
    self.assertEqual(flops.count(grad, *args), 3 * forward)
    self.assertEqual(flops.count(grad, *args, executed=True), (4 if remat else 3) * forward)

  def test_freezing_before_the_gradient_saves(self):
    args = array(3, 5, 7), array(2, 5)
    forward = flops.count(lambda *a: dense_loss(*a, False), *args)
    towards_x = jax.value_and_grad(lambda *a: dense_loss(*a, False), argnums=1)
    self.assertEqual(flops.count(towards_x, *args), 2 * forward)

  def test_recompute_in_a_custom_gradient(self):
    @jax.custom_vjp
    def square(x):
      return x @ x

    def backward(x, g):
      with jax.named_scope(flops.RECOMPUTED):
        y = square(x)
      return (g @ x.T + x.T @ g + 0 * y,)

    square.defvjp(lambda x: (square(x), x), backward)
    fn = jax.grad(lambda x: square(x).sum())
    self.assertEqual(flops.count(fn, array(5, 5)), 3 * 2 * 5**3)
    self.assertEqual(flops.count(fn, array(5, 5), executed=True), 4 * 2 * 5**3)

  def test_nested_calls(self):
    @jax.jit
    def inner(x, y):
      return jax.vmap(lambda a: a @ y)(x)

    fn = lambda x, y: jax.lax.map(lambda a: inner(a, y), x)  # noqa: E731
    self.assertEqual(flops.count(fn, array(3, 2, 5, 7), array(7, 11)), 3 * 2 * 2 * 5 * 7 * 11)

  def test_cond_counts_the_dearer_branch(self):
    def fn(x):
      return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x)

    self.assertEqual(flops.count(fn, array(5, 5)), 2 * 2 * 5**3)

  def test_while(self):
    def fn(x, body):
      return jax.lax.while_loop(lambda x: x[0, 0] < 3, body, x)

    self.assertEqual(flops.count(lambda x: fn(x, jnp.sin), array(5, 5)), 0)
    with self.assertRaisesRegex(ValueError, "number of turns is not known"):
      flops.count(lambda x: fn(x, lambda x: x @ x), array(5, 5))

  def test_shard_map_counts_all_shards(self):
    spec = jax.sharding.PartitionSpec("data")
    device_mesh = mesh.make({"data": 4, "fsdp": 2})
    fn = jax.shard_map(
      matmul, mesh=device_mesh, in_specs=(spec, jax.P()), out_specs=spec, axis_names={"data"}
    )
    args = array(12, 5), array(5, 7)
    with jax.set_mesh(device_mesh):
      self.assertEqual(flops.count(jax.jit(fn), *args), flops.count(matmul, *args))


class KernelTest(parameterized.TestCase):
  @parameterized.parameters(None, 12345)
  def test_pallas(self, estimate):
    def kernel(x_ref, y_ref, out_ref):
      out_ref[...] = x_ref[...] @ y_ref[...]

    fn = pl.pallas_call(
      kernel,
      out_shape=array(16, 24),
      grid=(2, 3),
      in_specs=[
        pl.BlockSpec((8, 16), lambda i, j: (i, 0)),
        pl.BlockSpec((16, 8), lambda i, j: (0, j)),
      ],
      out_specs=pl.BlockSpec((8, 8), lambda i, j: (i, j)),
      cost_estimate=estimate
      and pl.CostEstimate(flops=estimate, transcendentals=0, bytes_accessed=0),
    )
    self.assertEqual(flops.count(fn, array(16, 16), array(16, 24)), estimate or 2 * 16 * 16 * 24)

  @parameterized.parameters((False, 4.5), (True, 3.5))
  def test_splash_attention_counts_as_its_mathematics(self, fused, executed):
    heads, length, width = 3, 256, 128
    dq = {"use_fused_bwd_kernel": True} if fused else {"block_q_dq": 128, "block_kv_dq": 128}
    blocks = splash.BlockSizes(
      block_q=128, block_kv=128, block_kv_compute=128, block_q_dkv=128, block_kv_dkv=128,
      block_kv_dkv_compute=128, **dq,
    )  # fmt: skip
    mask = masks.MultiHeadMask([masks.FullMask((length, length))] * heads)
    attend = jax.vmap(
      splash.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=blocks)
    )
    qkv = (array(2, heads, length, width),) * 3
    forward = flops.count(attend, *qkv)
    self.assertEqual(forward, 2 * 2 * 2 * heads * length**2 * width)
    grad = jax.grad(lambda *qkv: attend(*qkv).sum(), argnums=(0, 1, 2))
    # Beside the kernels, sum(out * d_out) is a dot of a thousandth of their size.
    self.assertAlmostEqual(flops.count(grad, *qkv) / forward, 3, delta=0.01)
    self.assertAlmostEqual(flops.count(grad, *qkv, executed=True) / forward, executed, delta=0.01)

  @parameterized.parameters((0, (2, 5, 3, 7), (2, 11, 3, 7)), (1, (2, 3, 5, 7), (2, 3, 11, 7)))
  def test_cudnn_attention(self, layout, query, key):
    def fake(name):
      primitive = jax.extend.core.Primitive(f"dot_product_attention_{name}_wrapper")
      primitive.def_abstract_eval(lambda q, k, layout: q)
      return lambda q, k: primitive.bind(q, k, layout=layout)

    args = array(*query), array(*key)
    forward = flops.count(fake("fwd"), *args)
    self.assertEqual(forward, 2 * 2 * math.prod((2, 3, 5, 11, 7)))
    self.assertEqual(flops.count(fake("bwd"), *args), 2 * forward)
    self.assertEqual(flops.count(fake("bwd"), *args, executed=True), 2.5 * forward)


class PeakTest(parameterized.TestCase):
  @parameterized.parameters(
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA H200", 989e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA L40S", 362e12),
    ("NVIDIA L4", 121e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v6 lite", 918e12),
    ("abacus", None),
  )
  def test_table(self, kind, expected):
    self.assertEqual(flops.peak(kind), expected)

  def test_cpu_is_measured_once_for_the_host(self):
    self.assertGreater(flops.peak("cpu"), 1e8)
    self.assertEqual(flops.total_peak(), flops.peak("cpu"))


if __name__ == "__main__":
  absltest.main()
