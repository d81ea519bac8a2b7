"""Vision transformer of the published image towers: CLIP's, Chinese-CLIP's, DINOv2's.

Dims: B batch, H W pixels, C channels, P patch side, h w patch grid, I = h w image tokens, R registers, S = 1 + R + I
tokens, class first, L any sequence, E width, F MLP hidden, N heads, K head dim.
Radford et al. 2021, arXiv 2103.00020; Oquab et al. 2023, arXiv 2304.07193; registers: Darcet et al. 2023, arXiv
2309.16588. They differ in whether the tokens are normed before the blocks, in the patch bias, in layer scale, in the
MLP and in registers. The block also serves the text towers of `two_tower.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedream_jax import types
from seedream_jax.models import layers
from seedream_jax.ops import attention

ACTIVATIONS = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
# Keys' constant in torch.nn.functional.interpolate, without and with antialias.
_CUBIC, _CUBIC_ANTIALIAS = -0.75, -0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
  """Sizes and switches of a stack of blocks.

  Attributes:
    width: E.
    depth: number of blocks.
    num_heads: N.
    mlp_dim: F.
    activation: a key of ACTIVATIONS; a gated MLP has SiLU.
    gated: SwiGLU, whose two inputs are one matrix.
    norm_first: norm before attention and MLP; False is BERT, which norms their sum with the stream.
    layer_scale: each branch times a learned vector.
    qkv_bias: whether queries, keys and values have a bias; the output always has.
    norm_eps: of every layer norm.
  """

  width: int
  depth: int
  num_heads: int
  mlp_dim: int
  activation: str = "gelu"
  gated: bool = False
  norm_first: bool = True
  layer_scale: bool = False
  qkv_bias: bool = True
  norm_eps: float = 1e-5
  remat: str = "none"
  dtype: str = "float32"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(BlockConfig):
  """The stack, and what is before it.

  Attributes:
    patch: P.
    grid: h, w of the table of positions; another grid's are interpolated.
    pre_norm: norm of the tokens before the first block.
    patch_bias: whether the patch embedding has a bias.
    registers: R, learned tokens without a place, between the class and the patches.
    antialias: of the interpolation of positions, which then sees all that a coarser grid's step spans.
    mean, std: per channel, of pixels in [0, 1]; the tower normalises by itself.
  """

  patch: int
  grid: tuple[int, int]
  channels: int = 3
  pre_norm: bool = False
  patch_bias: bool = True
  registers: int = 0
  antialias: bool = False
  mean: tuple[float, ...] = (0.5, 0.5, 0.5)
  std: tuple[float, ...] = (0.5, 0.5, 0.5)


class Attention(nnx.Module):
  """Multi-head attention with biases."""

  def __init__(self, cfg: BlockConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    for name in ("q_proj", "k_proj", "v_proj"):
      layer = layers.linear(cfg, cfg.width, cfg.width, "in", bias=cfg.qkv_bias, rngs=rngs)
      setattr(self, name, layer)
    self.out_proj = layers.linear(cfg, cfg.width, cfg.width, "out", rngs=rngs)

  def __call__(
    self,
    x_BSE: jax.Array,
    mask_BL: jax.Array | None,
    causal: bool = False,
    context_BLE: jax.Array | None = None,
  ) -> jax.Array:
    """Mixes tokens, or gives x what it finds in a context, whose mask it then is."""
    context_BLE = x_BSE if context_BLE is None else context_BLE
    heads = (self.cfg.num_heads, -1)
    q_BSNK, k_BLNK, v_BLNK = (
      layer(of).reshape(*of.shape[:2], *heads)
      for layer, of in (
        (self.q_proj, x_BSE),
        (self.k_proj, context_BLE),
        (self.v_proj, context_BLE),
      )
    )
    att_BSNK = attention.joint(q_BSNK, k_BLNK, v_BLNK, mask_BL, causal=causal)
    return self.out_proj(att_BSNK.reshape(x_BSE.shape))


class MLP(nnx.Module):
  """Two layers and an activation."""

  def __init__(self, cfg: BlockConfig, *, rngs: nnx.Rngs):
    self.activation = cfg.activation
    self.fc1 = layers.linear(cfg, cfg.width, cfg.mlp_dim, "in", rngs=rngs)
    self.fc2 = layers.linear(cfg, cfg.mlp_dim, cfg.width, "out", rngs=rngs)

  def __call__(self, x_BLE: jax.Array) -> jax.Array:
    """Token by token."""
    return self.fc2(ACTIVATIONS[self.activation](self.fc1(x_BLE)))


class GatedMLP(nnx.Module):
  """SwiGLU; the first half of `weights_in` is the gate."""

  def __init__(self, cfg: BlockConfig, *, rngs: nnx.Rngs):
    self.weights_in = layers.linear(cfg, cfg.width, 2 * cfg.mlp_dim, "in", rngs=rngs)
    self.weights_out = layers.linear(cfg, cfg.mlp_dim, cfg.width, "out", rngs=rngs)

  def __call__(self, x_BLE: jax.Array) -> jax.Array:
    """Token by token."""
    gate_BLF, up_BLF = jnp.split(self.weights_in(x_BLE), 2, axis=-1)
    return self.weights_out(jax.nn.silu(gate_BLF) * up_BLF)


class Block(nnx.Module):
  """Attention and MLP, each added to the residual stream."""

  def __init__(self, cfg: BlockConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.layer_norm1 = layers.LayerNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
    self.self_attn = Attention(cfg, rngs=rngs)
    self.layer_norm2 = layers.LayerNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
    self.mlp = (GatedMLP if cfg.gated else MLP)(cfg, rngs=rngs)
    if cfg.layer_scale:
      self.layer_scale1 = nnx.Param(jnp.ones((cfg.width,), jnp.float32))
      self.layer_scale2 = nnx.Param(jnp.ones((cfg.width,), jnp.float32))

  def __call__(
    self, x_BLE: jax.Array, mask_BL: jax.Array | None = None, causal: bool = False
  ) -> jax.Array:
    """One layer; `mask_BL` is True where a token may be attended to."""
    if not self.cfg.norm_first:
      x_BLE = self.layer_norm1(x_BLE + self.self_attn(x_BLE, mask_BL, causal))
      return self.layer_norm2(x_BLE + self.mlp(x_BLE))
    att_BLE = self.self_attn(self.layer_norm1(x_BLE), mask_BL, causal)
    x_BLE = x_BLE + self._scaled(att_BLE, "layer_scale1")
    return x_BLE + self._scaled(self.mlp(self.layer_norm2(x_BLE)), "layer_scale2")

  def _scaled(self, x_BLE: jax.Array, name: str) -> jax.Array:
    if not self.cfg.layer_scale:
      return x_BLE
    return x_BLE * getattr(self, name)[...].astype(x_BLE.dtype)[None, None]


class PatchEmbedding(nnx.Module):
  """One token a patch: the convolution whose stride is its window."""

  def __init__(self, cfg: ViTConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    init = nnx.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=(0, 1, 2))
    shape = (cfg.patch, cfg.patch, cfg.channels, cfg.width)
    self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
    if cfg.patch_bias:
      self.bias = nnx.Param(jnp.zeros((cfg.width,), jnp.float32))

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """tokens_BIE, row by row."""
    (b, height, width, _), p = x_BHWC.shape, self.cfg.patch
    patches = x_BHWC.reshape(b, height // p, p, width // p, p, -1)
    kernel = self.kernel[...].astype(x_BHWC.dtype)
    x_BIE = jnp.einsum("bhpwqc,pqce->bhwe", patches, kernel).reshape(b, -1, self.cfg.width)
    if self.cfg.patch_bias:
      x_BIE = x_BIE + self.bias[...].astype(x_BIE.dtype)[None, None]
    return x_BIE


class ViT(nnx.Module):
  """Images to tokens; a tower's one vector is the class token, the first."""

  def __init__(self, cfg: ViTConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    init = layers.residual_inits(cfg.depth)["embed"]
    self.class_embedding = nnx.Param(init(rngs.params(), (cfg.width,), jnp.float32))
    self.patch_embedding = PatchEmbedding(cfg, rngs=rngs)
    positions = 1 + cfg.grid[0] * cfg.grid[1]
    self.position_embedding = nnx.Param(init(rngs.params(), (positions, cfg.width), jnp.float32))
    if cfg.registers:
      shape = (cfg.registers, cfg.width)
      self.register_tokens = nnx.Param(init(rngs.params(), shape, jnp.float32))
    if cfg.pre_norm:
      self.pre_norm = layers.LayerNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)
    self.blocks = layers.Stack(lambda r: Block(cfg, rngs=r), cfg.depth, remat=cfg.remat, rngs=rngs)
    self.post_norm = layers.LayerNorm(cfg.width, eps=cfg.norm_eps, rngs=rngs)

  def __call__(self, image_BHWC: jax.Array) -> jax.Array:
    """Tokens after the final norm.

    Args:
      image_BHWC: uint8, or floats in [-1, 1]; sides are multiples of the patch.

    Returns:
      tokens_BSE in the compute dtype: the class token, the registers, then the patches row by row.

    Raises:
      types.UserError: sides that the patch does not divide.
    """
    cfg, (height, width) = self.cfg, image_BHWC.shape[1:3]
    if height % cfg.patch or width % cfg.patch:
      near = "x".join(str(max(round(n / cfg.patch), 1) * cfg.patch) for n in (height, width))
      raise types.UserError(
        f"image of {height}x{width}: sides must be multiples of {cfg.patch}; nearest: {near}"
      )
    x_BIE = self.patch_embedding(self._normalized(image_BHWC).astype(cfg.dtype))
    class_E = self.class_embedding[...].astype(x_BIE.dtype)
    class_B1E = jnp.broadcast_to(class_E[None, None], (len(x_BIE), 1, cfg.width))
    x_BSE = jnp.concatenate([class_B1E, x_BIE], axis=1)
    positions_SE = self.positions((height // cfg.patch, width // cfg.patch))
    x_BSE = x_BSE + positions_SE.astype(x_BSE.dtype)[None]
    if cfg.registers:
      registers_RE = self.register_tokens[...].astype(x_BSE.dtype)
      registers_BRE = jnp.broadcast_to(registers_RE[None], (len(x_BSE), *registers_RE.shape))
      x_BSE = jnp.concatenate([x_BSE[:, :1], registers_BRE, x_BSE[:, 1:]], axis=1)
    if cfg.pre_norm:
      x_BSE = self.pre_norm(x_BSE)
    x_BSE, _ = self.blocks(x_BSE, lambda block, x_BSE, _: (block(x_BSE), None))
    return self.post_norm(x_BSE)

  def positions(self, grid: tuple[int, int]) -> jax.Array:
    """The positions [1 + I, E] of an (h, w) grid: the table, or its bicubic interpolation in float32."""
    table_SE, (rows, columns) = self.position_embedding[...], self.cfg.grid
    if grid == self.cfg.grid:
      return table_SE
    table_HWE = table_SE[1:].astype(jnp.float32).reshape(rows, columns, -1)
    antialias = self.cfg.antialias
    weights = (jnp.asarray(bicubic(n, m, antialias)) for n, m in zip((rows, columns), grid))
    resized_HWE = jnp.einsum("hwe,gh,vw->gve", table_HWE, *weights, precision="highest")
    resized_IE = resized_HWE.reshape(-1, self.cfg.width)
    return jnp.concatenate([table_SE[:1], resized_IE.astype(table_SE.dtype)])

  def _normalized(self, image_BHWC: jax.Array) -> jax.Array:
    scale, shift = (127.5, -1.0) if image_BHWC.dtype == jnp.uint8 else (1.0, 0.0)
    unit_BHWC = (image_BHWC.astype(jnp.float32) / scale + shift + 1.0) / 2.0
    mean_C, std_C = (np.asarray(x, np.float32) for x in (self.cfg.mean, self.cfg.std))
    return (unit_BHWC - mean_C[None, None, None]) / std_C[None, None, None]


def bicubic(size: int, new: int, antialias: bool = False) -> np.ndarray:
  """float32 [new, size] weights that resize one dim as PyTorch's bicubic does (align_corners=False).

  Sample i of the new is at (i + 1/2) size / new - 1/2 of the old. Beyond the edges the old repeats; with antialias,
  whose kernel widens with the step, it is not there, and what is left is weighed up to 1.
  """
  at_N = (np.arange(new) + 0.5) * size / new - 0.5
  out_NS = np.zeros((new, size))
  if antialias:
    step = max(size / new, 1.0)
    out_NS = _cubic((np.arange(size)[None] - at_N[:, None]) / step, _CUBIC_ANTIALIAS)
    return (out_NS / out_NS.sum(axis=1, keepdims=True)).astype(np.float32)
  first_N = np.floor(at_N).astype(int) - 1
  for tap in range(4):
    weight_N = _cubic(at_N - (first_N + tap), _CUBIC)
    np.add.at(out_NS, (np.arange(new), np.clip(first_N + tap, 0, size - 1)), weight_N)
  return out_NS.astype(np.float32)


def _cubic(offset: np.ndarray, a: float) -> np.ndarray:
  """Keys' kernel with constant `a`, zero from 2 on."""
  x = np.abs(offset)
  near = ((a + 2) * x - (a + 3)) * x**2 + 1
  far = a * (((x - 5) * x + 8) * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
