"""Convolutions: numpy by the definition forward, XLA's own gradients backward."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax.ops import conv, partition


def _draw(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _by_definition(x_BHWC, kernel, stride, before, after):
  """Windows times kernel, one output pixel at a time."""
  size = kernel.shape[0]
  padded = np.pad(x_BHWC, ((0, 0), (before, after), (before, after), (0, 0)))
  rows = (padded.shape[1] - size) // stride + 1
  columns = (padded.shape[2] - size) // stride + 1
  y = np.zeros((len(x_BHWC), rows, columns, kernel.shape[3]), np.float32)
  for i in range(rows):
    for j in range(columns):
      window = padded[:, i * stride : i * stride + size, j * stride : j * stride + size]
      y[:, i, j] = np.einsum("bijc,ijcf->bf", window, kernel)
  return y


def _plain(x_BHWC, kernel, stride, pads):
  return jax.lax.conv_general_dilated(
    x_BHWC, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _repeated(x_BHWC, kernel):
  doubled = jnp.repeat(jnp.repeat(x_BHWC, 2, axis=1), 2, axis=2)
  return _plain(doubled, kernel, 1, ((1, 1), (1, 1)))


def _with_gradient(fn, x_BHWC, kernel):
  """y, and the gradients of <y, dy> towards x and the kernel."""

  def run(x_BHWC, kernel):
    y, vjp = jax.vjp(fn, x_BHWC, kernel)
    return y, *vjp(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape))

  return jax.jit(run)(x_BHWC, kernel)


class ConvTest(parameterized.TestCase):
  @parameterized.parameters(
    (3, 1, 1, 1, (5, 7), (5, 7)),
    (3, 2, 0, 1, (6, 10), (3, 5)),  # the pad of Stable Diffusion's downsamplers
    (3, 2, 0, 1, (7, 5), (3, 2)),
    (1, 1, 0, 0, (5, 7), (5, 7)),
  )
  def test_forward_by_definition(self, size, stride, before, after, grid, want_grid):
    x_BHWC, kernel = _draw(0, 2, *grid, 3), _draw(1, size, size, 3, 5)
    y_BHWF = conv.conv(x_BHWC, kernel, stride=stride)
    self.assertEqual(y_BHWF.shape, (2, *want_grid, 5))
    want = _by_definition(x_BHWC, kernel, stride, before, after)
    np.testing.assert_allclose(y_BHWF, want, rtol=1e-4, atol=1e-4)

  @parameterized.parameters((1, 3, 5, 1), (1, 4, 8, 300), (2, 3, 4, 300), (2, 4, 5, 10**6))
  def test_gradients_are_xlas(self, stride, channels, filters, floats):
    x_BHWC, kernel = _draw(0, 6, 7, 5, channels), _draw(1, 3, 3, channels, filters)
    pads = ((1, 1), (1, 1)) if stride == 1 else ((0, 1), (0, 1))
    want = _with_gradient(lambda x, k: _plain(x, k, stride, pads), x_BHWC, kernel)
    with mock.patch.object(conv, "_CACHE_FLOATS", floats):  # chunks of 1, some, all images
      got = _with_gradient(lambda x, k: conv.conv(x, k, stride=stride), x_BHWC, kernel)
    for a, b in zip(got, want):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)

  def test_double_conv_repeats_pixels_first(self):
    x_BHWC, kernel = _draw(0, 2, 3, 5, 3), _draw(1, 3, 3, 3, 5)
    want = _with_gradient(_repeated, x_BHWC, kernel)
    for a, b in zip(_with_gradient(conv.double_conv, x_BHWC, kernel), want):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)

  def test_what_a_cpu_is_slow_at_is_left_alone_elsewhere(self):
    """The mesh's platform counts: a CPU may compile for a TPU."""
    loss = lambda x, kernel: jnp.sum(jnp.sin(conv.conv(x, kernel)))  # noqa: E731
    arguments = _draw(0, 2, 4, 4, 8), _draw(1, 3, 3, 8, 8)
    scans = lambda: "scan[" in str(jax.make_jaxpr(jax.grad(loss, 1))(*arguments))  # noqa: E731
    self.assertTrue(scans())
    with mock.patch.object(partition, "platform", return_value="tpu"):
      self.assertFalse(scans())


if __name__ == "__main__":
  absltest.main()
