"""Model FLOPs of any function, counted on its jaxpr, and the peak of the hardware under it.

Counted are matmuls, convolutions and attention kernels, times the lengths of the scans around them;
two FLOPs a multiply-add, elementwise work is left out. *Model* FLOPs are what the mathematics asks
for: a forward pass recomputed under remat (or inside a kernel's backward pass) is not counted again
unless `executed=True`. So a dense network's gradient costs 3 forward passes, 4 when recomputed.
"""

import functools
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from seedream_jax.engine import hardware

# jax.checkpoint puts what it recomputes under this name; our own custom gradients use it too.
RECOMPUTED = "rematted_computation"

# (Pallas kernel, number of outputs) -> share of its matmuls that is not recomputation. Splash
# attention's backward pass makes the scores again: dq does 3 matmuls for 1 and dkv 4 for 3, fused
# they do 5 for 4; either way 4 count, twice the forward's.
_KERNEL_SHARES = (
  (r"splash_.*_dq_.*", 2, 1 / 3),
  (r"splash_.*_dkv_.*", 4, 3 / 4),
  (r"splash_.*_dkv_.*", 5, 4 / 5),
)

# Dense bf16 (fp16 where there is none) FLOP/s of one jax device, from the data sheets; of the chips that a plan
# knows, hardware's.
_PEAKS = (
  (r"TPU (7x|v7.*)", 1153.5e12),  # two jax devices a chip
  (r"TPU (v6 lite|v6e)", hardware.CHIPS["v6e"].flops),
  (r"TPU (v5|v5p)", hardware.CHIPS["v5p"].flops),
  (r"TPU (v5 lite|v5e)", hardware.CHIPS["v5e"].flops),
  (r"TPU v4", 275e12),
  (r".*\bGB200\b.*", 2500e12),
  (r".*\bB200\b.*", 2250e12),
  (r".*\b(H100 NVL)\b.*", 835e12),
  (r".*\b(H100 PCIe)\b.*", 756e12),
  (r".*\b(H100|H200|GH200)\b.*", hardware.CHIPS["h100"].flops),
  (r".*\bA100\b.*", 312e12),
  (r".*\bL40S\b.*", 362e12),
  (r".*\bL4\b.*", 121e12),
  (r".*\bA10G?\b.*", 125e12),
  (r".*\bV100\b.*", 125e12),
  (r".*\bT4\b.*", 65e12),
  (r".*\bRTX 4090\b.*", 165e12),
)


def count(fn: Callable, *abstract_args: Any, executed: bool = False) -> int:
  """FLOPs of `fn(*abstract_args)` over all devices.

  Args:
    fn: traceable; it may take gradients itself.
    *abstract_args: arrays or ShapeDtypeStructs.
    executed: count recomputation too.

  Raises:
    ValueError: matmuls inside a while loop, whose number of turns a jaxpr does not say.
  """
  return round(_jaxpr(jax.make_jaxpr(fn)(*abstract_args).jaxpr, executed))


def peak(device_kind: str) -> float | None:
  """Peak dense 16-bit FLOP/s of one device; for "cpu" the measured float32 rate of the whole host.

  Returns:
    None for hardware that is not in the table.
  """
  if device_kind == "cpu":
    return _measure_cpu()
  for regex, rate in _PEAKS:
    if re.fullmatch(regex, device_kind):
      return rate
  return None


def total_peak(devices: Sequence[jax.Device] | None = None) -> float | None:
  """Peak of all devices together; CPU devices of one process share their host."""
  devices = jax.devices() if devices is None else devices
  rate = peak(devices[0].device_kind)
  shares = {d.process_index for d in devices} if devices[0].platform == "cpu" else devices
  return None if rate is None else rate * len(shares)


def _jaxpr(jaxpr: core.Jaxpr, executed: bool) -> float:
  return sum(_eqn(eqn, executed) for eqn in jaxpr.eqns)


def _eqn(eqn: Any, executed: bool) -> float:
  """FLOPs of one equation."""
  if not executed and RECOMPUTED in str(eqn.source_info.name_stack):
    return 0
  if (
    not eqn.outvars and not eqn.effects
  ):  # a call whose results a remat policy kept: left over, and never run
    return 0
  name, params = eqn.primitive.name, eqn.params
  if name == "dot_general":
    return _dot(eqn)
  if name == "conv_general_dilated":
    return _conv(eqn)
  if name.startswith("dot_product_attention"):  # cuDNN's
    return _attention(eqn, executed)
  if name == "pallas_call":
    return _pallas(params, executed)
  if name == "scan":
    return params["length"] * _jaxpr(params["jaxpr"].jaxpr, executed)
  if name == "while":
    flops = sum(_jaxpr(j, executed) for j in subjaxprs(params))
    if flops:
      raise ValueError(
        "cannot count FLOPs in a while loop: the number of turns is not known; use lax.scan, or a "
        f"fori_loop with static bounds under a gradient ({_where(eqn)})"
      )
    return 0
  if name == "cond":
    return max(_jaxpr(branch.jaxpr, executed) for branch in params["branches"])
  if name == "shard_map":
    shards = math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return shards * _jaxpr(params["jaxpr"], executed)
  return sum(_jaxpr(j, executed) for j in subjaxprs(params))  # jit, remat, custom_vjp, ...


def _dot(eqn: Any) -> int:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  lhs, out = eqn.invars[0].aval, eqn.outvars[0].aval
  return 2 * math.prod(out.shape) * math.prod(lhs.shape[d] for d in contracted)


def _conv(eqn: Any) -> float:
  """Zeros that a transposed (lhs-dilated) convolution puts between its inputs cost nothing."""
  params, out, kernel = eqn.params, eqn.outvars[0].aval, eqn.invars[1].aval
  _, in_dim, *spatial = params["dimension_numbers"].rhs_spec
  taps = math.prod(kernel.shape[d] for d in spatial) * kernel.shape[in_dim]
  return 2 * math.prod(out.shape) * taps / math.prod(params["lhs_dilation"])


def _attention(eqn: Any, executed: bool) -> int:
  """Two matmuls forward, four backward, one more of which recomputes the scores."""
  query, key = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
  keys = key[2] if eqn.params["layout"] == 1 else key[1]  # [B, N, L, K], else [B, L, N, K]
  matmuls = (5 if executed else 4) if "bwd" in eqn.primitive.name else 2
  return matmuls * 2 * math.prod(query) * keys


def _pallas(params: dict[str, Any], executed: bool) -> float:
  """The kernel's own estimate, else its body times its grid."""
  name, outputs = params.get("name") or "", len(params["out_avals"])
  shares = (s for regex, n, s in _KERNEL_SHARES if n == outputs and re.fullmatch(regex, name))
  if params.get("cost_estimate") is not None:
    flops = params["cost_estimate"].flops
  else:
    flops = math.prod(params["grid_mapping"].grid) * _jaxpr(params["jaxpr"], executed)
  return flops if executed else flops * next(shares, 1)


def subjaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
  """Those of an equation."""
  for value in params.values():
    for item in value if isinstance(value, (list, tuple)) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item


def _where(eqn: Any) -> str:
  return f"in {eqn.source_info.name_stack}" if str(eqn.source_info.name_stack) else "at the top"


@functools.cache
def _measure_cpu() -> float:
  """Float32 FLOP/s of a square matmul, the best of a few: a practical peak, not the vendor's."""
  size, device = 1024, jax.local_devices(backend="cpu")[0]
  x = jax.device_put(np.ones((size, size), np.float32), device)
  matmul = jax.jit(jax.numpy.dot)
  matmul(x, x).block_until_ready()
  seconds = []
  for _ in range(5):
    start = time.perf_counter()
    matmul(x, x).block_until_ready()
    seconds.append(time.perf_counter() - start)
  return 2 * size**3 / min(seconds)
