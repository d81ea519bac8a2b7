"""Convolutions, channels-last, and what XLA's CPU backend is slow at.

Dims: B batch, H W grid height, width, C input channels, F output channels; kernels are
(rows, columns, C, F), square.

Measured on 2 cores with jax 0.10.2, 32 images, 24-96 channels:
- forward and the gradient towards x run at 160-260 GFLOP/s, but the gradient towards the kernel, as
  XLA derives it, at 18-90. As matmuls over shifted windows, a few images at a time so that a window
  stays in cache, it runs at 64-180;
- 3 input channels cost 23x more than 4 (50 ms, 2.1 ms);
- a doubling before a 3x3 convolution can be folded into four 2x2 kernels: 16 multiplications where
  there were 36 (25 ms to 9 ms forward, 91 ms to 65 ms with gradient).
On other platforms XLA has its way.
"""

import functools

import jax
import jax.numpy as jnp

from seedream_jax.ops import partition

_LANES = 4  # Eigen's convolution packs channels by fours, or else reads them one by one
_CACHE_FLOATS = 400_000  # of input a chunk of images may hold: about one core's L2

_Pads = tuple[tuple[int, int], tuple[int, int]]


def conv(x_BHWC: jax.Array, kernel: jax.Array, *, stride: int = 1) -> jax.Array:
  """A convolution without bias.

  Args:
    x_BHWC: input.
    kernel: of odd size.
    stride: 1 pads evenly, so the grid is kept; 2 pads the bottom and right only, as the
      autoencoders of Stable Diffusion do, so an even grid is halved.

  Returns:
    y_BHWF.
  """
  half = kernel.shape[0] // 2
  pad = (half, half) if stride == 1 else (0, half)
  return _conv(x_BHWC, kernel, stride, (pad, pad))


def double_conv(x_BHWC: jax.Array, kernel: jax.Array) -> jax.Array:
  """Doubles the grid by repeating pixels, then convolves with a 3x3 kernel."""
  if partition.platform() != "cpu":
    return conv(jnp.repeat(jnp.repeat(x_BHWC, 2, axis=1), 2, axis=2), kernel)
  # Even output rows see input rows (i - 1, i, i), odd ones (i, i, i + 1): equal rows share a tap.
  rows = [_fold(kernel, odd, axis=0) for odd in (False, True)]
  columns = [
    jnp.stack([_double_phase(x_BHWC, rows[p], p, q) for q in (0, 1)], axis=3) for p in (0, 1)
  ]
  y_BHPWQF = jnp.stack(columns, axis=2)
  batch, height, _, width, _, filters = y_BHPWQF.shape
  return y_BHPWQF.reshape(batch, 2 * height, 2 * width, filters)


def _double_phase(x_BHWC, rows, p, q):
  return _conv(x_BHWC, _fold(rows, bool(q), axis=1), 1, ((1 - p, p), (1 - q, q)))


def _fold(kernel, odd, axis):
  """Three taps to two: (k0, k1 + k2), or (k0 + k1, k2) if odd."""
  first, second, third = jnp.moveaxis(kernel, axis, 0)
  pair = [first + second, third] if odd else [first, second + third]
  return jnp.stack(pair, axis=axis)


def _conv(x_BHWC, kernel, stride, pads: _Pads):
  channels, filters = kernel.shape[2:]
  if partition.platform() != "cpu":
    return _xla_conv(x_BHWC, kernel, stride, pads)
  if kernel.shape[0] == 1 and stride == 1:
    return jnp.einsum("bhwc,cf->bhwf", x_BHWC, kernel[0, 0])
  c, f = -channels % _LANES, -filters % _LANES
  x_BHWC = jnp.pad(x_BHWC, ((0, 0), (0, 0), (0, 0), (0, c)))
  kernel = jnp.pad(kernel, ((0, 0), (0, 0), (0, c), (0, f)))
  return _cpu_conv(x_BHWC, kernel, stride, pads)[..., :filters]


def _xla_conv(x_BHWC, kernel, stride, pads):
  return jax.lax.conv_general_dilated(
    x_BHWC, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cpu_conv(x_BHWC, kernel, stride, pads):
  return _xla_conv(x_BHWC, kernel, stride, pads)


def _cpu_conv_fwd(x_BHWC, kernel, stride, pads):
  return _xla_conv(x_BHWC, kernel, stride, pads), (x_BHWC, kernel)


def _cpu_conv_bwd(stride, pads, saved, dy_BHWF):
  x_BHWC, kernel = saved
  _, to_x = jax.vjp(lambda x: _xla_conv(x, kernel, stride, pads), x_BHWC)
  return to_x(dy_BHWF)[0], _kernel_gradient(x_BHWC, dy_BHWF, kernel.shape[0], stride, pads)


_cpu_conv.defvjp(_cpu_conv_fwd, _cpu_conv_bwd)


def _kernel_gradient(x_BHWC, dy_BHWF, size, stride, pads):
  batch, rows, columns, channels = x_BHWC.shape
  _, out_rows, out_columns, filters = dy_BHWF.shape
  chunk = _largest_divisor(batch, _CACHE_FLOATS // (rows * columns * channels))
  padded = jnp.pad(x_BHWC, ((0, 0), *pads, (0, 0)))
  padded = padded.reshape(batch // chunk, chunk, *padded.shape[1:])
  dy = dy_BHWF.reshape(batch // chunk, -1, filters)

  def body(total, slices):
    x, dy = slices
    taps = []
    for i in range(size):
      for j in range(size):
        down = slice(i, i + stride * (out_rows - 1) + 1, stride)
        right = slice(j, j + stride * (out_columns - 1) + 1, stride)
        # Without the barrier the window is fused into the matmul and read element by element.
        window = jax.lax.optimization_barrier(x[:, down, right]).reshape(-1, channels)
        taps.append(jnp.dot(window.T, dy, preferred_element_type=jnp.float32))
    return total + jnp.stack(taps), None

  zeros = jnp.zeros((size * size, channels, filters), jnp.float32)
  total, _ = jax.lax.scan(body, zeros, (padded, dy))
  return total.reshape(size, size, channels, filters).astype(x_BHWC.dtype)


def _largest_divisor(number, at_most):
  return next(d for d in range(max(min(number, at_most), 1), 0, -1) if number % d == 0)
