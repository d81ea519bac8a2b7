"""The only place a device mesh is made.

Axes are (data, fsdp, tensor, context), all present, size 1 where unused. `data` is outermost and
the only axis that may cross slices, where the links are slow. Axis types are Auto: under Explicit
axes a matmul over an fsdp-sharded kernel needs its output sharding spelled out at every call.
"""

import difflib
import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType

from seedream_jax import types


def make(
  shape: Mapping[str, int], devices: Sequence[jax.Device] | None = None
) -> jax.sharding.Mesh:
  """A mesh over all of `devices`.

  Args:
    shape: {axis: size}; a missing axis has size 1, one axis may be -1 and takes what is left.
    devices: defaults to `jax.devices()`; pass a subset to use fewer.

  Raises:
    types.UserError: unknown axis, or sizes whose product is not the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = _sizes(shape, len(devices))
  num_slices = len({getattr(d, "slice_index", 0) for d in devices})
  if num_slices > 1:
    if sizes[0] % num_slices:
      raise types.UserError(
        f"mesh: data={sizes[0]} must be a multiple of the {num_slices} slices; "
        "no other axis spans them"
      )
    grid = mesh_utils.create_hybrid_device_mesh(
      (sizes[0] // num_slices, *sizes[1:]), (num_slices, 1, 1, 1), devices
    )
  else:
    grid = mesh_utils.create_device_mesh(sizes, devices)
  return jax.sharding.Mesh(
    np.asarray(grid), types.AXES, axis_types=(AxisType.Auto,) * len(types.AXES)
  )


def _sizes(shape: Mapping[str, int], num_devices: int) -> tuple[int, ...]:
  """The four axis sizes, -1 filled in."""
  for axis, size in shape.items():
    if axis not in types.AXES:
      near = difflib.get_close_matches(axis, types.AXES, n=1, cutoff=0.0)[0]
      raise types.UserError(
        f"mesh: unknown axis {axis!r}, did you mean {near!r}? axes are {types.AXES}"
      )
    if not isinstance(size, int) or (size < 1 and size != -1):
      raise types.UserError(f"mesh: {axis}={size!r}, expected a positive integer or -1")
  sizes = [int(shape.get(axis, 1)) for axis in types.AXES]
  free = [i for i, size in enumerate(sizes) if size == -1]
  if len(free) > 1:
    raise types.UserError(f"mesh: only one axis may be -1, got {[types.AXES[i] for i in free]}")
  fixed = math.prod(size for size in sizes if size != -1)
  written = ", ".join(f"{axis}={size}" for axis, size in zip(types.AXES, sizes) if size != 1)
  if free:
    if num_devices % fixed:
      raise types.UserError(
        f"mesh: {written}: {fixed} does not divide {num_devices} devices; "
        f"the fixed axes may multiply to one of {_divisors(num_devices)}"
      )
    sizes[free[0]] = num_devices // fixed
  elif fixed != num_devices:
    others = math.prod(sizes[1:])
    fits = num_devices // others if num_devices % others == 0 else None
    hint = f"valid products with data=-1: {_divisors(num_devices)}"
    hint = f"data={fits} or data=-1 fits" if fits else hint
    raise types.UserError(
      f"mesh: {written or 'all axes 1'} is {fixed} devices, there are {num_devices}; {hint}"
    )
  return tuple(sizes)


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]
