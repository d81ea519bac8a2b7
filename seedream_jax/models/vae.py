"""The autoencoder: images to latents and back, shaped and named as diffusers' AutoencoderKL.

Dims: B batch, H W grid height, width (pixel or latent), C channels, N heads, K head dim.
Parameter paths are diffusers' with `_0` for `.0` and kernel/scale for weight, so that SD3 and FLUX weights load
through a table of regexes. Neither has quant convs; their one scale and shift become `stats/std` and `stats/mean`.
https://github.com/huggingface/diffusers/blob/main/src/diffusers/models/autoencoders/autoencoder_kl.py
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from seedream_jax import types
from seedream_jax.models import variants
from seedream_jax.ops import attention, conv

_EPS = 1e-6  # of the group norms, as in diffusers


@dataclasses.dataclass(frozen=True)
class VAEConfig:
  """Sizes.

  Attributes:
    widths: channels of each level, finest first; each level but the last halves the grid.
    encoder_layers, decoder_layers: residual blocks a level (diffusers: layers_per_block, and one more).
    mid_attention: one attention head over the coarsest grid.
    norm_groups: of every group norm.
    latent_shift, latent_scale: initial `stats`: mean = shift, std = 1 / scale.
    dtype: compute dtype.
  """

  widths: tuple[int, ...]
  encoder_layers: int
  decoder_layers: int
  mid_attention: bool
  norm_groups: int
  latent_channels: int = 16
  image_channels: int = 3
  latent_shift: float = 0.0
  latent_scale: float = 1.0
  dtype: str = "float32"

  @property
  def factor(self) -> int:
    """Pixels per latent along each side."""
    return 2 ** (len(self.widths) - 1)


# Unit fan-in variance: torch's default, 1/3, shrinks a flat colour threefold at each convolution that no residual
# bypasses, and training started slowly with it (docs/evidence.md). Zero biases, norms at identity.
_KERNEL_INIT = nnx.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
_BIAS_INIT = nnx.initializers.zeros_init()
# A posterior std of 0.05 at the start: at 0 its noise drowns the untrained mean.
_LOGVAR_INIT = -6.0  # ours; undisclosed


class Conv(nnx.Module):
  """A square convolution with bias; `stride` 2 halves the grid, `double` repeats its pixels first."""

  def __init__(
    self,
    cin: int,
    cout: int,
    size: int,
    *,
    stride: int = 1,
    double: bool = False,
    dtype: str,
    rngs: nnx.Rngs,
  ):
    self.kernel = nnx.Param(_KERNEL_INIT(rngs.params(), (size, size, cin, cout), jnp.float32))
    self.bias = nnx.Param(_BIAS_INIT(rngs.params(), (cout,), jnp.float32))
    self.stride, self.double, self.dtype = stride, double, dtype

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """Convolves with the compute dtype's copy of the kernel."""
    kernel, bias = (p[...].astype(self.dtype) for p in (self.kernel, self.bias))
    x_BHWC = x_BHWC.astype(self.dtype)
    if self.double:
      y_BHWC = conv.double_conv(x_BHWC, kernel)
    else:
      y_BHWC = conv.conv(x_BHWC, kernel, stride=self.stride)
    return y_BHWC + bias[None, None, None, :]


class GroupNorm(nnx.Module):
  """Group norm in float32; returns x's dtype."""

  def __init__(self, dim: int, groups: int, *, rngs: nnx.Rngs):
    del rngs
    self.scale = nnx.Param(jnp.ones((dim,), jnp.float32))
    self.bias = nnx.Param(jnp.zeros((dim,), jnp.float32))
    self.groups = groups

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """(x - group mean) / group std * scale + bias."""
    x_f32 = x_BHWC.astype(jnp.float32)
    x_f32 = x_f32 - self._group_mean(x_f32)
    scale_B11C = (
      jax.lax.rsqrt(self._group_mean(jnp.square(x_f32)) + _EPS)
      * self.scale[...][None, None, None, :]
    )
    return (x_f32 * scale_B11C + self.bias[...][None, None, None, :]).astype(x_BHWC.dtype)

  def _group_mean(self, x_BHWC: jax.Array) -> jax.Array:
    # The grid first, then the group: over both at once XLA's CPU code is 5x slower.
    batch, _, _, channels = x_BHWC.shape
    mean_BC = jnp.mean(jnp.mean(x_BHWC, axis=1), axis=1)
    mean_BG = jnp.mean(mean_BC.reshape(batch, self.groups, -1), axis=2)
    return jnp.repeat(mean_BG, channels // self.groups, axis=1)[:, None, None, :]


class ResnetBlock(nnx.Module):
  """norm, silu, conv, twice; a 1x1 shortcut where the width changes."""

  def __init__(self, cfg: VAEConfig, cin: int, cout: int, *, rngs: nnx.Rngs):
    self.norm1 = GroupNorm(cin, cfg.norm_groups, rngs=rngs)
    self.conv1 = Conv(cin, cout, 3, dtype=cfg.dtype, rngs=rngs)
    self.norm2 = GroupNorm(cout, cfg.norm_groups, rngs=rngs)
    self.conv2 = Conv(cout, cout, 3, dtype=cfg.dtype, rngs=rngs)
    self.conv_shortcut = Conv(cin, cout, 1, dtype=cfg.dtype, rngs=rngs) if cin != cout else None

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """x, or its shortcut, plus the branch."""
    h_BHWC = self.conv1(jax.nn.silu(self.norm1(x_BHWC)))
    h_BHWC = self.conv2(jax.nn.silu(self.norm2(h_BHWC)))
    return h_BHWC + (x_BHWC if self.conv_shortcut is None else self.conv_shortcut(x_BHWC))


class Attention(nnx.Module):
  """One head over the whole grid, added to its input."""

  def __init__(self, cfg: VAEConfig, dim: int, *, rngs: nnx.Rngs):
    def linear() -> nnx.Linear:
      return nnx.Linear(dim, dim, dtype=cfg.dtype, kernel_init=_KERNEL_INIT, rngs=rngs)

    self.group_norm = GroupNorm(dim, cfg.norm_groups, rngs=rngs)
    self.to_q, self.to_k, self.to_v, self.to_out_0 = (linear() for _ in range(4))

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """x plus what each cell gathers from all others."""
    batch, _, _, channels = x_BHWC.shape
    h_BHWC = self.group_norm(x_BHWC)
    q, k, v = (f(h_BHWC).reshape(batch, -1, 1, channels) for f in (self.to_q, self.to_k, self.to_v))
    return x_BHWC + self.to_out_0(attention.joint(q, k, v).reshape(x_BHWC.shape))


class MidBlock(nnx.Module):
  """Two residual blocks with attention between them."""

  def __init__(self, cfg: VAEConfig, dim: int, *, rngs: nnx.Rngs):
    self.resnets_0 = ResnetBlock(cfg, dim, dim, rngs=rngs)
    self.attentions_0 = Attention(cfg, dim, rngs=rngs) if cfg.mid_attention else None
    self.resnets_1 = ResnetBlock(cfg, dim, dim, rngs=rngs)

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """The coarsest grid, mixed."""
    x_BHWC = self.resnets_0(x_BHWC)
    if self.attentions_0 is not None:
      x_BHWC = self.attentions_0(x_BHWC)
    return self.resnets_1(x_BHWC)


class Resample(nnx.Module):
  """Halves (strided conv) or doubles (nearest, then conv) the grid."""

  def __init__(self, cfg: VAEConfig, dim: int, *, up: bool, rngs: nnx.Rngs):
    self.conv = Conv(dim, dim, 3, stride=1 if up else 2, double=up, dtype=cfg.dtype, rngs=rngs)

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """The grid halved or doubled."""
    return self.conv(x_BHWC)


class Level(nnx.Module):
  """Residual blocks at one grid size, then a resampling unless it is the last level.

  Blocks differ in width, so they are attributes `resnets_0`, ... rather than a Stack.
  """

  def __init__(
    self, cfg: VAEConfig, cin: int, cout: int, depth: int, resample: str | None, *, rngs: nnx.Rngs
  ):
    for i in range(depth):
      setattr(self, f"resnets_{i}", ResnetBlock(cfg, cin if i == 0 else cout, cout, rngs=rngs))
    if resample is not None:
      setattr(self, resample, Resample(cfg, cout, up=resample == "upsamplers_0", rngs=rngs))
    self.depth, self.resample = depth, resample

  def __call__(self, x_BHWC: jax.Array) -> jax.Array:
    """Blocks in order, then the resampling."""
    for i in range(self.depth):
      x_BHWC = getattr(self, f"resnets_{i}")(x_BHWC)
    return x_BHWC if self.resample is None else getattr(self, self.resample)(x_BHWC)


class Encoder(nnx.Module):
  """Image to the posterior's mean and log-variance, stacked on the channels."""

  def __init__(self, cfg: VAEConfig, *, rngs: nnx.Rngs):
    widths = cfg.widths
    self.levels = len(widths)
    self.conv_in = Conv(cfg.image_channels, widths[0], 3, dtype=cfg.dtype, rngs=rngs)
    for i, width in enumerate(widths):
      resample = "downsamplers_0" if i < self.levels - 1 else None
      level = Level(cfg, widths[max(i - 1, 0)], width, cfg.encoder_layers, resample, rngs=rngs)
      setattr(self, f"down_blocks_{i}", level)
    self.mid_block = MidBlock(cfg, widths[-1], rngs=rngs)
    self.conv_norm_out = GroupNorm(widths[-1], cfg.norm_groups, rngs=rngs)
    self.conv_out = Conv(widths[-1], 2 * cfg.latent_channels, 3, dtype=cfg.dtype, rngs=rngs)
    bias = self.conv_out.bias
    bias[...] = bias[...].at[cfg.latent_channels :].set(_LOGVAR_INIT)

  def __call__(self, image_BHWC: jax.Array) -> jax.Array:
    """moments_BHWC: mean, then log-variance."""
    x_BHWC = self.conv_in(image_BHWC)
    for i in range(self.levels):
      x_BHWC = getattr(self, f"down_blocks_{i}")(x_BHWC)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x_BHWC))))


class Decoder(nnx.Module):
  """Latent to image."""

  def __init__(self, cfg: VAEConfig, *, rngs: nnx.Rngs):
    widths = cfg.widths[::-1]
    self.levels = len(widths)
    self.conv_in = Conv(cfg.latent_channels, widths[0], 3, dtype=cfg.dtype, rngs=rngs)
    self.mid_block = MidBlock(cfg, widths[0], rngs=rngs)
    for i, width in enumerate(widths):
      resample = "upsamplers_0" if i < self.levels - 1 else None
      level = Level(cfg, widths[max(i - 1, 0)], width, cfg.decoder_layers, resample, rngs=rngs)
      setattr(self, f"up_blocks_{i}", level)
    self.conv_norm_out = GroupNorm(widths[-1], cfg.norm_groups, rngs=rngs)
    self.conv_out = Conv(widths[-1], cfg.image_channels, 3, dtype=cfg.dtype, rngs=rngs)

  def __call__(self, z_BHWC: jax.Array) -> jax.Array:
    """image_BHWC of a latent that is not normalised."""
    x_BHWC = self.mid_block(self.conv_in(z_BHWC))
    for i in range(self.levels):
      x_BHWC = getattr(self, f"up_blocks_{i}")(x_BHWC)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(x_BHWC)))


class Stats(nnx.Module):
  """Mean and standard deviation of each latent channel over the data; no gradient, set by the stage."""

  def __init__(self, cfg: VAEConfig, *, rngs: nnx.Rngs):
    del rngs
    self.mean = nnx.Param(jnp.full((cfg.latent_channels,), cfg.latent_shift, jnp.float32))
    self.std = nnx.Param(jnp.full((cfg.latent_channels,), 1.0 / cfg.latent_scale, jnp.float32))


class VAE(nnx.Module):
  """Encoder, decoder and latent statistics. Images in [-1, 1], channels-last."""

  def __init__(self, cfg: VAEConfig, *, rngs: nnx.Rngs):
    self.cfg = cfg
    self.encoder = Encoder(cfg, rngs=rngs)
    self.decoder = Decoder(cfg, rngs=rngs)
    self.stats = Stats(cfg, rngs=rngs)

  def encode(self, image_BHWC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The posterior's mean_BHWC and logvar_BHWC, not normalised.

    Raises:
      UserError: for a side that is not a multiple of `cfg.factor`.
    """
    height, width = image_BHWC.shape[1:3]
    if height % self.cfg.factor or width % self.cfg.factor:
      raise types.UserError(
        f"image of {height}x{width} pixels: sides must be multiples of {self.cfg.factor}"
      )
    mean_BHWC, logvar_BHWC = jnp.split(self.encoder(image_BHWC), 2, axis=-1)
    return mean_BHWC, jnp.clip(logvar_BHWC, -30.0, 20.0)  # diffusers' bounds

  def decode(self, z_BHWC: jax.Array) -> jax.Array:
    """The image of a latent that is not normalised; may leave [-1, 1]."""
    return self.decoder(z_BHWC)

  def normalize(self, z_BHWC: jax.Array) -> jax.Array:
    """Zero mean, unit standard deviation a channel: the DiT's x0."""
    mean, std = self.stats.mean[...], self.stats.std[...]
    return (z_BHWC - mean[None, None, None, :]) / std[None, None, None, :]

  def denormalize(self, x0_BHWC: jax.Array) -> jax.Array:
    """The inverse of `normalize`."""
    mean, std = self.stats.mean[...], self.stats.std[...]
    return x0_BHWC * std[None, None, None, :] + mean[None, None, None, :]


def pixels(image_BHWC: jax.Array) -> jax.Array:
  """uint8 to float32 in [-1, 1]."""
  return image_BHWC.astype(jnp.float32) / 127.5 - 1.0


def sample_posterior(
  mean_BHWC: jax.Array, logvar_BHWC: jax.Array, eps_BHWC: jax.Array
) -> jax.Array:
  """mean + std * eps, with eps ~ N(0, 1) given by the caller."""
  types.check_dims(mean_BHWC=mean_BHWC, logvar_BHWC=logvar_BHWC, eps_BHWC=eps_BHWC)
  return mean_BHWC + jnp.exp(0.5 * logvar_BHWC) * eps_BHWC


def make_config(variant: str = "nano", **overrides) -> VAEConfig:
  """A row of VARIANTS with fields replaced; an unknown name raises UserError naming the nearest."""
  return variants.make_config(VAEConfig, VARIANTS, variant, overrides)


_FULL = dict(
  widths=(128, 256, 512, 512),
  encoder_layers=2,
  decoder_layers=3,
  mid_attention=True,
  norm_groups=32,
)

VARIANTS: dict[str, dict] = {
  "nano": dict(
    widths=(16, 32, 64, 128), encoder_layers=1, decoder_layers=1, mid_attention=False, norm_groups=4
  ),
  "nano_f4": dict(
    widths=(24, 48, 96), encoder_layers=1, decoder_layers=1, mid_attention=False, norm_groups=8
  ),
  "small": dict(
    widths=(64, 128, 256, 256),
    encoder_layers=2,
    decoder_layers=3,
    mid_attention=True,
    norm_groups=32,
  ),
  "full": _FULL,
  "sd3": dict(**_FULL, latent_shift=0.0609, latent_scale=1.5305),
  "flux": dict(**_FULL, latent_shift=0.1159, latent_scale=0.3611),
}
