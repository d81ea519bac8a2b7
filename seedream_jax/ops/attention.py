"""The one attention of the code base: softmax over a masked sequence, three backends.

Dims: B batch, S queries, L keys, N heads (keys may have fewer: GQA), K head dim.
`xla` runs everywhere, `cudnn` on NVIDIA GPUs, `splash` (Pallas) on TPUs; `auto` picks by platform.
Softmax is float32 in all of them.
"""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash_kernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jax.sharding import PartitionSpec as P

from seedream_jax import types
from seedream_jax.ops import partition

BACKENDS = ("auto", "xla", "cudnn", "splash")
RESULT = "attention"  # the name that remat policies know xla's and splash's output by, and splash's row sums
_AUTO = {"gpu": "cudnn", "tpu": "splash"}
_LANES = 128  # splash works on tiles of whole vector registers
_MASKED = -1e30  # finite, so that a row of masked keys has a finite softmax and gradient


def joint(
  q_BSNK: jax.Array,
  k_BLNK: jax.Array,
  v_BLNK: jax.Array,
  mask_BL: jax.Array | None = None,
  *,
  causal: bool = False,
  bias_NSL: jax.Array | None = None,
  scale: float | None = None,
  backend: str = "auto",
) -> jax.Array:
  """softmax(scale q k^T + bias) v over the keys that the mask shows.

  Args:
    q_BSNK: queries.
    k_BLNK: keys; their number of heads divides the queries'.
    v_BLNK: values, shaped as the keys.
    mask_BL: True where a key may be attended to; every example must show at least one.
    causal: query i sees keys 0 .. i (then S = L).
    bias_NSL: added to the scaled scores (T5's relative bias); xla only.
    scale: of the scores; K^-0.5 by default.
    backend: one of BACKENDS.

  Returns:
    [B, S, N, K] in the queries' dtype.
  """
  if q_BSNK.shape[2] % k_BLNK.shape[2]:
    raise ValueError(
      f"{q_BSNK.shape[2]} query heads are no multiple of {k_BLNK.shape[2]} key heads"
    )
  scale = q_BSNK.shape[-1] ** -0.5 if scale is None else scale
  backend = _choose(backend, bias_NSL is not None, q_BSNK.dtype)
  if backend == "cudnn":
    return _cudnn(q_BSNK, k_BLNK, v_BLNK, mask_BL, causal, scale)
  if backend == "splash":
    return _splash(q_BSNK, k_BLNK, v_BLNK, mask_BL, causal, scale)
  return _xla(q_BSNK, k_BLNK, v_BLNK, mask_BL, causal, bias_NSL, scale)


def _choose(backend: str, has_bias: bool, dtype: jnp.dtype) -> str:
  if backend not in BACKENDS:
    raise types.UserError(f"attention backend {backend!r}: expected one of {', '.join(BACKENDS)}")
  if backend == "auto":
    backend = "xla" if has_bias else _AUTO.get(partition.platform(), "xla")
    return "xla" if backend == "cudnn" and dtype == jnp.float32 else backend
  if has_bias and backend != "xla":
    raise types.UserError(f"attention backend {backend!r} takes no additive bias: expected xla")
  if backend == "cudnn" and dtype == jnp.float32:
    raise types.UserError("attention backend 'cudnn' takes float16 or bfloat16, not float32")
  return backend


def _xla(q_BSNK, k_BLNK, v_BLNK, mask_BL, causal, bias_NSL, scale):
  """Head-major einsums: on a CPU a third faster with gradient than jax.nn.dot_product_attention."""
  q_BNSK, k_BNLK, v_BNLK = (x.transpose(0, 2, 1, 3) for x in (q_BSNK, k_BLNK, v_BLNK))
  groups = q_BNSK.shape[1] // k_BNLK.shape[1]
  if groups > 1:
    k_BNLK, v_BNLK = (jnp.repeat(x, groups, axis=1) for x in (k_BNLK, v_BNLK))
  s_BNSL = jnp.einsum("bnsk,bnlk->bnsl", q_BNSK * scale, k_BNLK, preferred_element_type=jnp.float32)
  if bias_NSL is not None:
    s_BNSL = s_BNSL + bias_NSL[None].astype(jnp.float32)
  if mask_BL is not None:
    s_BNSL = jnp.where(mask_BL[:, None, None, :], s_BNSL, _MASKED)
  if causal:
    s_BNSL = jnp.where(jnp.tril(jnp.ones(s_BNSL.shape[2:], bool))[None, None], s_BNSL, _MASKED)
  p_BNSL = jax.nn.softmax(s_BNSL, axis=-1).astype(v_BNLK.dtype)
  out_BNSK = jnp.einsum("bnsl,bnlk->bnsk", p_BNSL, v_BNLK)
  return checkpoint_name(out_BNSK.transpose(0, 2, 1, 3), RESULT)


def _cudnn(q_BSNK, k_BLNK, v_BLNK, mask_BL, causal, scale):
  """cuDNN's fused kernel; it has no float32, and its mask must name every query."""
  mask = None
  if mask_BL is not None:
    batch, keys = mask_BL.shape
    mask = jnp.broadcast_to(mask_BL[:, None, None, :], (batch, 1, q_BSNK.shape[1], keys))
  return jax.nn.dot_product_attention(
    q_BSNK, k_BLNK, v_BLNK, mask=mask, is_causal=causal, scale=scale, implementation="cudnn"
  )


def _splash(q_BSNK, k_BLNK, v_BLNK, mask_BL, causal, scale):
  """Pallas kernel for TPUs, interpreted elsewhere; XLA cannot cut it, so each shard calls its own.

  Lengths are padded to multiples of 128. Hidden and padded keys are another segment than the
  queries; padded queries stay in theirs, so that no row is empty, and are cut away.
  """
  length = q_BSNK.shape[1]
  if mask_BL is None:
    mask_BL = jnp.ones(k_BLNK.shape[:2], bool)
  q_BNSK, k_BNLK, v_BNLK = (
    _pad_to(x.transpose(0, 2, 1, 3), _LANES, axis=2) for x in (q_BSNK * scale, k_BLNK, v_BLNK)
  )
  mask_BL = _pad_to(mask_BL, _LANES, axis=1)
  shard = functools.partial(_splash_shard, causal=causal)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size > 1:
    heads = types.TENSOR if k_BNLK.shape[1] % mesh.shape[types.TENSOR] == 0 else None
    spec = P(types.BATCH_AXES, heads)
    shard = jax.shard_map(
      shard,
      mesh=mesh,
      in_specs=(spec, spec, spec, P(types.BATCH_AXES)),
      out_specs=spec,
      check_vma=False,
    )
  return shard(q_BNSK, k_BNLK, v_BNLK, mask_BL)[:, :, :length].transpose(0, 2, 1, 3)


def _splash_shard(q_BNSK, k_BNLK, v_BNLK, mask_BL, *, causal):
  (num_heads, rows), columns = q_BNSK.shape[1:3], k_BNLK.shape[2]
  mask = splash_mask.CausalMask if causal else splash_mask.FullMask
  block_q, block_kv = _block(rows), _block(columns)
  kernel = splash_kernel.make_splash_mha(
    splash_mask.MultiHeadMask([mask((rows, columns))] * num_heads),
    block_sizes=splash_kernel.BlockSizes(
      block_q=block_q,
      block_kv=block_kv,
      block_q_dkv=block_q,
      block_kv_dkv=block_kv,
      block_q_dq=block_q,
      block_kv_dq=block_kv,
    ),
    residual_checkpoint_name=RESULT,
    head_shards=1,
    q_seq_shards=1,
    interpret=partition.platform() != "tpu",
  )
  seen_S = jnp.ones((rows,), jnp.int32)

  def one(q_NSK, k_NLK, v_NLK, mask_L):
    segments = splash_kernel.SegmentIds(q=seen_S, kv=mask_L.astype(jnp.int32))
    return kernel(q_NSK, k_NLK, v_NLK, segments)

  return jax.vmap(one)(q_BNSK, k_BNLK, v_BNLK, mask_BL)


def _block(length: int) -> int:
  """The largest tile that divides a padded length."""
  return next(block for block in (512, 256, _LANES) if length % block == 0)


def _pad_to(x: jax.Array, multiple: int, axis: int) -> jax.Array:
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % multiple)
  return jnp.pad(x, widths)
