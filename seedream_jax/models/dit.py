"""The velocity model: a two-stream MMDiT with one joint attention (Seedream 2.0, Sec. 3.1).

Dims: B batch, H W C latent, P patch side, I = HW / P^2 image tokens, T text tokens (LLM bucket,
then glyph slots), S = T + I, L either stream, E text feature width, D width, F MLP hidden, N heads,
K head dim, 2 = (y, x), X several of a thing.
Text and image have their own weights and meet in the attention only, as in SD3 (Fig. 2).
adaLN-zero modulates every attention and MLP; queries and keys are RMS-normed per head, then RoPE
turns those of image tokens. Text tokens carry a learned position, added once.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from seedream_jax import types
from seedream_jax.models import conditioning, layers, lora, variants
from seedream_jax.ops import attention, matmul, partition, patch, rope

TAPS = ("txt", "img", "txt_k", "img_q", "img_k")  # per-block outputs that `taps` may name


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """Sizes and choices; VARIANTS at the end of the file holds the rows.

  Attributes:
    text_dim: E, width of the LLM features and of the spliced text.
    glyph_dim: width of the ByT5 features.
    max_text_len: positions for LLM tokens, the largest bucket.
    glyph_len: G, slots for bytes; they own the last G rows of the position table in every bucket.
    rope_base: side, in tokens, of the grid at which positions are 0 .. base - 1.
    rope_mode: "area", "longest_side" (both centre-aligned, scaled) or "corner" (the ablation).
    adaln: "full" = a projection per block (SD3); "single" = one shared projection and a learned
      table per block (PixArt-alpha): 12 D parameters a block instead of 12 D^2.
    last_txt_after: whether the last block still updates the text, which nothing reads.
    conds: names of conditioning.CONDITIONS.
    cond_channels: channels of Cond.channels_BHWC, 0 = none.
    labels: aesthetic labels of Cond.tags_BA (VMix), 0 = none.
    downsample: pixels per latent cell, for the default of `size_B2`.
    remat: a key of layers.REMAT_POLICIES.
    dtype: of matmuls and activations.
    lora: fields of lora.LoRAConfig, None = no adapters.
  """

  width: int
  depth: int
  num_heads: int
  text_dim: int
  glyph_dim: int
  max_text_len: int
  glyph_len: int
  rope_base: float
  latent_channels: int = 16
  patch: int = 2
  mlp_ratio: float = 4.0
  txt_mlp_ratio: float = 4.0
  rope_mode: str = "area"
  rope_theta: float = 10_000.0
  adaln: str = "full"
  last_txt_after: bool = False
  conds: tuple[str, ...] = ("time", "size", "pooled")
  cond_channels: int = 0
  labels: int = 0
  downsample: int = 8
  attention: str = "auto"
  remat: str = "none"
  dtype: str = "float32"
  lora: "lora.LoRAConfig | None" = None

  def __post_init__(self):
    object.__setattr__(self, "lora", lora.make_config(self.lora))
    object.__setattr__(self, "conds", tuple(self.conds))  # a config read from JSON has lists
    if self.width % self.num_heads:
      raise types.UserError(f"width={self.width} does not divide into num_heads={self.num_heads}")
    if self.adaln not in ("single", "full"):
      raise types.UserError(f"adaln={self.adaln!r}: expected single or full")
    if self.depth < 2:
      raise types.UserError(f"depth={self.depth}: expected at least 2")

  @property
  def head_dim(self) -> int:
    """K."""
    return self.width // self.num_heads


# Every initialiser but the conditions'. Zero where adding must be a no-op: with zero modulation a
# block is the identity.
_INIT = {
  "linear": nnx.initializers.lecun_normal(),
  "modulation": nnx.initializers.zeros,
  "position": nnx.initializers.normal(0.02),
  "added": nnx.initializers.zeros,
  "out": nnx.initializers.zeros,
}


def _linear(
  cfg: DiTConfig, din: int, dout: int, rngs: nnx.Rngs, init: str = "linear", **kwargs
) -> nnx.Linear:
  kwargs = {"dtype": cfg.dtype, "dot_general": matmul.dot_general, **kwargs}
  return nnx.Linear(din, dout, kernel_init=_INIT[init], rngs=rngs, **kwargs)


class Modulation(nnx.Module):
  """`chunks` vectors of width D from the condition vector, zero at init."""

  def __init__(self, cfg: DiTConfig, chunks: int, *, rngs: nnx.Rngs):
    self.chunks = chunks
    if cfg.adaln == "full":
      self.proj = _linear(cfg, cfg.width, chunks * cfg.width, rngs, "modulation", dtype="float32")
    else:
      self.table = nnx.Param(_INIT["modulation"](rngs.params(), (chunks, cfg.width), jnp.float32))

  def __call__(self, mod: jax.Array) -> jax.Array:
    """[B, chunks * D], float32. `mod`: silu(vec)_BD for "full", shared projection_BXD for "single"."""
    if hasattr(self, "table"):
      mod_BXD = mod[:, : self.chunks] + self.table[...][None]
      return mod_BXD.reshape(mod.shape[0], -1)
    return self.proj(mod)


def modulate(x_BLD: jax.Array, shift_B1D: jax.Array, scale_B1D: jax.Array) -> jax.Array:
  """layer_norm(x) (1 + scale) + shift in float32; returns x's dtype."""
  norm_BLD = layers.layer_norm(x_BLD.astype(jnp.float32))
  return (norm_BLD * (1 + scale_B1D) + shift_B1D).astype(x_BLD.dtype)


class Stream(nnx.Module):
  """One modality's weights in a block: what happens before and after the joint attention.

  `reads_only` streams give keys and values and are not updated: the text of the last block.
  """

  def __init__(self, cfg: DiTConfig, mlp_ratio: float, *, reads_only: bool = False, rngs: nnx.Rngs):
    self.head_dim, self.reads_only = cfg.head_dim, reads_only
    self.modulation = Modulation(cfg, 2 if reads_only else 6, rngs=rngs)
    # No biases: adaLN's shift stands before every projection. q, k, v apart: on a CPU a quarter
    # faster with gradient than one fused matmul and its split.
    linear = functools.partial(_linear, cfg, rngs=rngs, use_bias=False)
    self.k, self.v = linear(cfg.width, cfg.width), linear(cfg.width, cfg.width)
    self.norm_k = layers.RMSNorm(cfg.head_dim, rngs=rngs)
    if not reads_only:
      hidden = int(mlp_ratio * cfg.width)
      self.q, self.out = linear(cfg.width, cfg.width), linear(cfg.width, cfg.width)
      self.norm_q = layers.RMSNorm(cfg.head_dim, rngs=rngs)
      self.mlp_in, self.mlp_out = linear(cfg.width, hidden), linear(hidden, cfg.width)

  def before(self, x_BLD, mod):
    """(q, k, v)_BLNK with q and k normed; q is None for a stream that is only read. `mod`: of B1D."""
    x_BLD = modulate(x_BLD, mod[0], mod[1])
    heads = (*x_BLD.shape[:2], -1, self.head_dim)
    k_BLNK, v_BLNK = self.norm_k(self.k(x_BLD).reshape(heads)), self.v(x_BLD).reshape(heads)
    q_BLNK = None if self.reads_only else self.norm_q(self.q(x_BLD).reshape(heads))
    return q_BLNK, k_BLNK, v_BLNK

  def after(self, x_BLD, att_BLNK, mod):
    """Residual updates by the attention's output and by the MLP."""
    _, _, gate_a, shift_m, scale_m, gate_m = mod
    x_BLD = x_BLD + _gated(gate_a, self.out(att_BLNK.reshape(x_BLD.shape)))
    hidden_BLF = partition.by_batch(self.mlp_in(modulate(x_BLD, shift_m, scale_m)))
    return x_BLD + _gated(gate_m, self.mlp_out(nnx.gelu(hidden_BLF, approximate=True)))


def _gated(gate_B1D: jax.Array, x_BLD: jax.Array) -> jax.Array:
  return (gate_B1D * x_BLD.astype(jnp.float32)).astype(x_BLD.dtype)


def _chunks(mod_BF: jax.Array, width: int) -> list[jax.Array]:
  """B1D arrays of a Modulation's output."""
  return jnp.split(mod_BF[:, None], mod_BF.shape[1] // width, axis=2)


class Block(nnx.Module):
  """Both streams, one joint self-attention over S = T + I tokens."""

  def __init__(self, cfg: DiTConfig, *, last: bool = False, rngs: nnx.Rngs):
    self.attention = cfg.attention
    reads_only = last and not cfg.last_txt_after
    self.txt = Stream(cfg, cfg.txt_mlp_ratio, reads_only=reads_only, rngs=rngs)
    self.img = Stream(cfg, cfg.mlp_ratio, rngs=rngs)
    if cfg.labels:
      self.vmix_v = _linear(cfg, cfg.width, cfg.width, rngs, "added", use_bias=False)

  def __call__(self, txt_BTD, img_BID, mods, mask_BS, cos, sin, aes_BTD=None):
    """Both streams after the block, and what TAPS names. `mods`: the streams' modulations, [B, chunks * D]."""
    mod_t, mod_i = (_chunks(mod, img_BID.shape[-1]) for mod in mods)
    q_t, k_t, v_t = self.txt.before(txt_BTD, mod_t)
    q_i, k_i, v_i = self.img.before(img_BID, mod_i)
    q_i, k_i = rope.apply(q_i, cos, sin), rope.apply(k_i, cos, sin)
    k_BSNK, v_BSNK = jnp.concatenate([k_t, k_i], axis=1), jnp.concatenate([v_t, v_i], axis=1)
    q_BLNK = q_i if q_t is None else jnp.concatenate([q_t, q_i], axis=1)
    att_BLNK = attention.joint(q_BLNK, k_BSNK, v_BSNK, mask_BS, backend=self.attention)
    if q_t is not None:
      txt_BTD = self.txt.after(txt_BTD, att_BLNK[:, : txt_BTD.shape[1]], mod_t)
    att_BINK = att_BLNK[:, -img_BID.shape[1] :]
    if aes_BTD is not None:
      att_BINK += self._aesthetics(q_i, k_BSNK, v_i.shape, mask_BS, aes_BTD)
    img_BID = self.img.after(img_BID, att_BINK, mod_i)
    taps = {"txt": txt_BTD, "img": img_BID, "txt_k": k_t, "img_q": q_i, "img_k": k_i}
    return txt_BTD, img_BID, taps

  def _aesthetics(self, q_BINK, k_BSNK, image_shape, mask_BS, aes_BTD):
    """VMix's value mixing: the image's attention to the text, over values of the labels' own.

    A call of its own: with zero values it adds exactly nothing, where mixing them in before would round anew.
    """
    v_BTNK = self.vmix_v(aes_BTD.astype(q_BINK.dtype)).reshape(*aes_BTD.shape[:2], *image_shape[2:])
    v_BSNK = jnp.concatenate([v_BTNK, jnp.zeros(image_shape, v_BTNK.dtype)], axis=1)
    return attention.joint(q_BINK, k_BSNK, v_BSNK, mask_BS, backend=self.attention)


class DiT(nnx.Module):
  """v(x_t, t, cond)."""

  def __init__(self, cfg: DiTConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    patch_dim = cfg.patch**2 * cfg.latent_channels
    rows = cfg.max_text_len + cfg.glyph_len
    self.splice = conditioning.TextSplice(
      cfg.glyph_len, cfg.glyph_dim, cfg.text_dim, dtype=cfg.dtype, rngs=rngs
    )
    self.txt_in = _linear(cfg, cfg.text_dim, cfg.width, rngs)
    self.position = nnx.Param(_INIT["position"](rngs.params(), (rows, cfg.width), jnp.float32))
    self.img_in = _linear(cfg, patch_dim, cfg.width, rngs)
    if cfg.adaln == "single":
      self.shared = _linear(cfg, cfg.width, 12 * cfg.width, rngs, "modulation", dtype="float32")
    self.blocks = layers.Stack(
      lambda rngs: Block(cfg, rngs=rngs), cfg.depth - 1, remat=cfg.remat, rngs=rngs
    )
    self.last = Block(cfg, last=True, rngs=rngs)
    self.out_mod = Modulation(cfg, 2, rngs=rngs)
    self.out = _linear(cfg, cfg.width, patch_dim, rngs, "out", dtype="float32")
    self.cond = conditioning.Conditions(cfg.conds, cfg.width, cfg.text_dim, rngs=rngs)
    if cfg.cond_channels:
      dim = cfg.patch**2 * cfg.cond_channels
      self.channels_in = _linear(cfg, dim, cfg.width, rngs, "added", use_bias=False)
    if cfg.labels:
      self.vmix = conditioning.VMix(
        cfg.labels, cfg.glyph_len, rows, cfg.text_dim, cfg.width, rngs=rngs
      )
    lora.attach(self, cfg.lora, "model.dit.lora", rngs=rngs)

  def __call__(
    self,
    xt_BHWC: jax.Array,
    t_B: jax.Array,
    cond: types.Cond,
    *,
    size_B2: jax.Array | None = None,
    taps: tuple[str, ...] = (),
  ) -> Any:
    """Velocity at x_t.

    Args:
      xt_BHWC: noisy latent.
      t_B: time in [0, 1].
      cond: from `splice`.
      size_B2: picture size in pixels; the latent's own by default.
      taps: names of TAPS to return as well.

    Returns:
      v_BHWC in float32; with taps, (v_BHWC, {name: [depth, ...] of every block}).
    """
    cfg = self.cfg
    batch, h, w, _ = xt_BHWC.shape
    types.check_dims(xt_BHWC=xt_BHWC, t_B=t_B, txt_BTE=cond.txt_BTE, mask_BT=cond.mask_BT)
    if size_B2 is None:
      size_B2 = jnp.broadcast_to(jnp.array([[h, w]]) * cfg.downsample, (batch, 2))
    vec_BD = partition.by_batch(self.cond(t_B, cond, size_B2))
    txt_BTD, img_BID = self._embed(xt_BHWC, cond)
    mask_BS = jnp.concatenate([cond.mask_BT, jnp.ones(img_BID.shape[:2], bool)], axis=1)
    cos, sin = self._rope(h // cfg.patch, w // cfg.patch)
    mods, last_mods, out_mod = self._mods(vec_BD)
    aes_BTD = self._aesthetics(cond)

    def call(block, carry, mods):
      *carry, seen = block(*carry, mods, mask_BS, cos, sin, aes_BTD)
      return tuple(carry), {name: seen[name] for name in taps}

    carry, seen = self.blocks((txt_BTD, img_BID), call, mods)
    (_, img_BID), last_seen = call(self.last, map(partition.by_batch, carry), last_mods)
    out_BIX = self.out(modulate(img_BID.astype(jnp.float32), *_chunks(out_mod, cfg.width)))
    v_BHWC = patch.unpatchify(out_BIX, h, w, cfg.patch)
    if not taps:
      return v_BHWC
    return v_BHWC, {name: jnp.concatenate([seen[name], last_seen[name][None]]) for name in taps}

  def _embed(self, xt_BHWC: jax.Array, cond: types.Cond) -> tuple[jax.Array, jax.Array]:
    cfg, dtype = self.cfg, jnp.dtype(self.cfg.dtype)
    llm_len = cond.txt_BTE.shape[1] - cfg.glyph_len
    if not 0 < llm_len <= cfg.max_text_len:
      raise ValueError(f"{llm_len} LLM tokens, expected 1 .. max_text_len={cfg.max_text_len}")
    # A byte's position is its slot, whatever the bucket of the prompt before it.
    pos_TD = jnp.concatenate([self.position[:llm_len], self.position[cfg.max_text_len :]])
    txt_BTD = self.txt_in(cond.txt_BTE) + pos_TD[None].astype(dtype)
    img_BID = self.img_in(patch.patchify(xt_BHWC.astype(dtype), cfg.patch))
    if cfg.cond_channels:
      img_BID += self.channels_in(patch.patchify(cond.channels_BHWC.astype(dtype), cfg.patch))
    return txt_BTD, img_BID

  def _aesthetics(self, cond: types.Cond) -> jax.Array | None:
    if not self.cfg.labels or cond.tags_BA is None:
      return None
    if cond.tags_BA.shape[1] != self.cfg.labels:
      raise ValueError(
        f"tags_BA of shape {cond.tags_BA.shape}: the DiT has {self.cfg.labels} labels"
      )
    aes_BTD = self.vmix(cond.tags_BA, cond.tag_strength_B, cond.txt_BTE.shape[1])
    return partition.by_batch(aes_BTD)

  def _mods(self, vec_BD: jax.Array) -> tuple[Any, Any, jax.Array]:
    """What modulates the scanned blocks (stacked), the last block and the output.

    Of the scanned blocks all at once: their kernels are a third of the parameters, and few vectors go through them.
    """
    mod_t = mod_i = nnx.silu(vec_BD)
    if self.cfg.adaln == "single":
      shared_BXD = partition.by_batch(self.shared(mod_t)).reshape(vec_BD.shape[0], 12, -1)
      mod_t, mod_i = shared_BXD[:, :6], shared_BXD[:, 6:]
    last = self.last.txt.modulation(mod_t), self.last.img.modulation(mod_i)
    streams = self.blocks.layers.txt.modulation, self.blocks.layers.img.modulation
    here = [partition.to_columns(x) if self.cfg.adaln == "full" else x for x in (mod_t, mod_i)]

    def both(streams):
      return jnp.stack([modulation(mod) for modulation, mod in zip(streams, here)])

    stacked_X2BF = layers.each(streams, both)
    if self.cfg.adaln == "full":
      flat_YBF = partition.from_columns(stacked_X2BF.reshape(-1, *stacked_X2BF.shape[2:]))
      stacked_X2BF = flat_YBF.reshape(stacked_X2BF.shape)
    return (stacked_X2BF[:, 0], stacked_X2BF[:, 1]), last, self.out_mod(mod_i)

  def _rope(self, h: int, w: int) -> tuple[jax.Array, jax.Array]:
    cfg = self.cfg
    if cfg.rope_mode == "corner":
      pos_I2 = rope.corner_positions(h, w)
    else:
      pos_I2 = rope.scaled_positions(h, w, cfg.rope_base, cfg.rope_mode)
    return rope.rope_2d(pos_I2, cfg.head_dim, cfg.rope_theta)


# width, depth, heads; parameters are counted in tests. Presets for accelerators have head dim 128.
VARIANTS: dict[str, dict] = {
  # 64 px on 2 CPU cores. Patch 1: at equal time it learns more than patch 2 (docs/evidence.md).
  "nano": dict(
    width=224, depth=6, num_heads=4, patch=1, txt_mlp_ratio=2.0, rope_base=8,
    text_dim=192, glyph_dim=160, max_text_len=256, glyph_len=8, remat="dots",  # faster: fewer bytes
  ),
  # 0.5 B: one 80 GB GPU.
  "small": dict(
    width=1024, depth=14, num_heads=8, rope_base=16,
    text_dim=1024, glyph_dim=1472, max_text_len=256, glyph_len=64, remat="dots", dtype="bfloat16",
  ),
  # 1.5 B: v5e-16, 8 GPUs.
  "base": dict(
    width=1536, depth=18, num_heads=12, rope_base=32,
    text_dim=2048, glyph_dim=1472, max_text_len=256, glyph_len=128, remat="dots", dtype="bfloat16",
  ),
  # 8.2 B: v5e-256, v5p-64, v6e-256.
  "full": dict(
    width=3072, depth=24, num_heads=24, rope_base=32,
    text_dim=4096, glyph_dim=1472, max_text_len=512, glyph_len=256, remat="dots", dtype="bfloat16",
  ),
}  # fmt: skip


def make_config(variant: str = "nano", **overrides: Any) -> DiTConfig:
  """A row of VARIANTS with fields replaced."""
  return variants.make_config(DiTConfig, VARIANTS, variant, overrides)
