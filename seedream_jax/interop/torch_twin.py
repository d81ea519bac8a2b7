"""The velocity model in PyTorch: a two-stream MMDiT with one joint attention (Seedream 2.0, Sec. 3.1).

This file stands alone: it travels with exported weights, and needs torch and diffusers only.

Dims: B batch, C H W latent, P patch side, I = HW / P^2 image tokens, L LLM tokens, G glyph slots, T = L + G text
tokens, S = T + I, E text feature width, D width, N heads, K head dim.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

_FREQUENCIES = 256


class Linear32(nn.Linear):
  """A linear layer that computes in float32 whatever the weights' dtype: modulation is sensitive."""

  def forward(self, x):
    bias = None if self.bias is None else self.bias.float()
    return F.linear(x.float(), self.weight.float(), bias)


class RMSNorm(nn.Module):
  """x / rms(x) * weight over the last dim, in float32; returns x's dtype."""

  def __init__(self, dim):
    super().__init__()
    self.weight = nn.Parameter(torch.ones(dim))

  def forward(self, x):
    x_f32 = x.float()
    rms = torch.sqrt(x_f32.square().mean(-1, keepdim=True) + 1e-6)
    return (x_f32 / rms * self.weight.float()).to(x.dtype)


def modulate(x, shift, scale):
  """layer_norm(x) (1 + scale) + shift in float32; returns x's dtype."""
  norm = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)
  return (norm * (1 + scale) + shift).to(x.dtype)


def gated(gate, x):
  """gate * x in float32; returns x's dtype."""
  return (gate * x.float()).to(x.dtype)


def sinusoid(x, dim=_FREQUENCIES, max_period=10_000.0):
  """cos and sin of x at dim / 2 geometric frequencies: [...] -> [..., dim], float32."""
  steps = torch.arange(dim // 2, dtype=torch.float32, device=x.device)
  angles = x.float()[..., None] * max_period ** (-steps / (dim // 2))
  return torch.cat([angles.cos(), angles.sin()], dim=-1)


def count(n, device):
  """n as a float32 tensor: a traced graph keeps it open, where a Python number would be fixed."""
  return torch.ones(n, device=device).sum()


def scaled_positions(h, w, base, mode, device):
  """Centre-aligned positions [h * w, 2] of a token grid (Scaling RoPE, Fig. 10); "corner" is the ablation."""
  y = torch.arange(h, dtype=torch.float32, device=device)
  x = torch.arange(w, dtype=torch.float32, device=device)
  if mode != "corner":
    rows, columns = count(h, device), count(w, device)
    scale = base / ((rows * columns).sqrt() if mode == "area" else torch.maximum(rows, columns))
    y = (base - 1) / 2 + scale * (y - (rows - 1) / 2)
    x = (base - 1) / 2 + scale * (x - (columns - 1) / 2)
  return torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).reshape(-1, 2)


def rope_angles(positions, dim, theta):
  """cos and sin [I, dim / 2]: the first half of the pairs turns with y, the second with x."""
  steps = torch.arange(0, dim // 2, 2, dtype=torch.float32, device=positions.device)
  angles = (positions[..., None] * theta ** (-steps / (dim // 2))).reshape(-1, dim // 2)
  return angles.cos(), angles.sin()


def rotate(x, cos, sin):
  """Turns channel pairs (k, k + K/2) of x [B, N, I, K]."""
  a, b = x.float().chunk(2, dim=-1)
  return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class MLP(nn.Module):
  """Linear, SiLU, Linear."""

  def __init__(self, din, dim, linear=Linear32):
    super().__init__()
    self.fc1, self.fc2 = linear(din, dim), linear(dim, dim)

  def forward(self, x):
    return self.fc2(F.silu(self.fc1(x)))


class Condition(nn.Module):
  """One term of the adaLN vector."""

  def __init__(self, din, width):
    super().__init__()
    self.mlp = MLP(din, width)

  def forward(self, x):
    return self.mlp(x)


class Origin(nn.Module):
  """A real picture (0) or one that a model drew (1)."""

  def __init__(self, width):
    super().__init__()
    self.table = nn.Parameter(torch.zeros(2, width))

  def forward(self, x):
    return F.one_hot(x, 2).float() @ self.table.float()


class VMix(nn.Module):
  """Aesthetic labels as one more value of every text token (arXiv:2412.20800)."""

  def __init__(self, num_labels, glyph_len, rows, text_dim, width):
    super().__init__()
    self.glyph_len = glyph_len
    self.labels = nn.Parameter(torch.zeros(num_labels, 2, text_dim))
    self.mix = nn.Parameter(torch.zeros(rows, num_labels))
    self.proj = Linear32(text_dim, width)

  def forward(self, tags, strength, num_text):
    """[B, T, D] float32 of labels [B, A], 1 positive, 0 negative or -1 unknown, times a strength [B]."""
    known = tags >= 0
    said = F.one_hot(tags.clamp(min=0), 2).float() * known[..., None]
    picked = torch.einsum("bas,ase->bae", said, self.labels.float())
    mix = torch.cat([self.mix[: num_text - self.glyph_len], self.mix[-self.glyph_len :]]).float()
    x = torch.einsum("ta,bae->bte", mix, picked)
    x = F.layer_norm(x, x.shape[-1:], eps=1e-6)
    return (strength.float() * known.any(dim=1))[:, None, None] * self.proj(x)


class Splice(nn.Module):
  """Takes glyph features to the LLM's width."""

  def __init__(self, glyph_dim, text_dim):
    super().__init__()
    self.mlp = MLP(glyph_dim, text_dim, nn.Linear)

  def forward(self, llm, llm_mask, glyph, glyph_mask):
    """Text tokens [B, T, E], their mask, and the prompt's mean feature [B, E]."""
    seen = llm_mask[..., None].float()
    pooled = (llm.float() * seen).sum(1) / seen.sum(1).clamp(min=1.0)
    text = torch.cat([llm, self.mlp(glyph).to(llm.dtype)], dim=1)
    return text, torch.cat([llm_mask, glyph_mask], dim=1), pooled


class Modulation(nn.Module):
  """`chunks` vectors of width D from the condition vector."""

  def __init__(self, width, chunks, adaln):
    super().__init__()
    self.chunks = chunks
    if adaln == "full":
      self.proj = Linear32(width, chunks * width)
    else:
      self.table = nn.Parameter(torch.zeros(chunks, width))

  def forward(self, mod):
    if hasattr(self, "table"):
      mod = mod[:, : self.chunks] + self.table.float()
    else:
      mod = self.proj(mod).unflatten(-1, (self.chunks, -1))
    return mod[:, :, None].unbind(1)


class Stream(nn.Module):
  """One modality's weights in a block; a `reads_only` stream gives keys and values and is not updated."""

  def __init__(self, width, heads, mlp_ratio, adaln, reads_only=False):
    super().__init__()
    self.heads, self.reads_only = heads, reads_only
    self.modulation = Modulation(width, 2 if reads_only else 6, adaln)
    self.k, self.v = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
    self.norm_k = RMSNorm(width // heads)
    if not reads_only:
      hidden = int(mlp_ratio * width)
      self.q, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
      self.norm_q = RMSNorm(width // heads)
      self.mlp_in = nn.Linear(width, hidden, bias=False)
      self.mlp_out = nn.Linear(hidden, width, bias=False)

  def split(self, x):
    """[B, L, D] -> [B, N, L, K]."""
    return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

  def before(self, x, mod):
    """Normed queries and keys, and values; no queries for a stream that is only read."""
    x = modulate(x, mod[0], mod[1])
    k, v = self.norm_k(self.split(self.k(x))), self.split(self.v(x))
    return None if self.reads_only else self.norm_q(self.split(self.q(x))), k, v

  def after(self, x, attended, mod):
    """Residual updates by the attention's output and by the MLP."""
    _, _, gate_a, shift_m, scale_m, gate_m = mod
    x = x + gated(gate_a, self.out(attended))
    hidden = F.gelu(self.mlp_in(modulate(x, shift_m, scale_m)), approximate="tanh")
    return x + gated(gate_m, self.mlp_out(hidden))


class Block(nn.Module):
  """Both streams, one joint self-attention over S = T + I tokens."""

  def __init__(self, width, heads, mlp_ratio, txt_mlp_ratio, adaln, labels, reads_only=False):
    super().__init__()
    self.txt = Stream(width, heads, txt_mlp_ratio, adaln, reads_only)
    self.img = Stream(width, heads, mlp_ratio, adaln)
    if labels:
      self.vmix_v = nn.Linear(width, width, bias=False)

  def forward(self, txt, img, mods, mask, cos, sin, aesthetics=None):
    mod_t, mod_i = self.txt.modulation(mods[0]), self.img.modulation(mods[1])
    q_t, k_t, v_t = self.txt.before(txt, mod_t)
    q_i, k_i, v_i = self.img.before(img, mod_i)
    q_i, k_i = rotate(q_i, cos, sin), rotate(k_i, cos, sin)
    q = q_i if q_t is None else torch.cat([q_t, q_i], dim=2)
    k, v = torch.cat([k_t, k_i], dim=2), torch.cat([v_t, v_i], dim=2)
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
    if q_t is not None:
      txt = self.txt.after(txt, attended[:, : txt.shape[1]], mod_t)
      attended = attended[:, txt.shape[1] :]
    if aesthetics is not None:
      v_a = self.img.split(self.vmix_v(aesthetics.to(k.dtype)))
      v_a = torch.cat([v_a, torch.zeros_like(v_i)], dim=2)
      added = F.scaled_dot_product_attention(q_i, k, v_a, attn_mask=mask)
      attended = attended + added.transpose(1, 2).flatten(2)
    return txt, self.img.after(img, attended, mod_i)


class SeedreamTransformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
  """v(x_t, t, texts)."""

  _supports_gradient_checkpointing = False
  _no_split_modules = ["Block"]

  @register_to_config
  def __init__(
    self,
    width: int,
    depth: int,
    num_heads: int,
    text_dim: int,
    glyph_dim: int,
    max_text_len: int,
    glyph_len: int,
    rope_base: float,
    latent_channels: int = 16,
    patch: int = 2,
    mlp_ratio: float = 4.0,
    txt_mlp_ratio: float = 4.0,
    rope_mode: str = "area",
    rope_theta: float = 10_000.0,
    adaln: str = "full",
    last_txt_after: bool = False,
    conds: tuple = ("time", "size", "pooled"),
    labels: int = 0,
    downsample: int = 8,
  ):
    super().__init__()
    patch_dim = patch**2 * latent_channels
    block = (width, num_heads, mlp_ratio, txt_mlp_ratio, adaln, labels)
    self.splice = Splice(glyph_dim, text_dim)
    self.txt_in = nn.Linear(text_dim, width)
    self.position = nn.Parameter(torch.zeros(max_text_len + glyph_len, width))
    self.img_in = nn.Linear(patch_dim, width)
    if adaln == "single":
      self.shared = Linear32(width, 12 * width)
    self.blocks = nn.ModuleList([Block(*block) for _ in range(depth - 1)])
    self.last = Block(*block, reads_only=not last_txt_after)
    self.out_mod = Modulation(width, 2, adaln)
    self.out = Linear32(width, patch_dim)
    inputs = {
      "time": _FREQUENCIES,
      "size": _FREQUENCIES,
      "pooled": text_dim,
      "guidance": _FREQUENCIES,
    }
    self.cond = nn.ModuleDict(
      {n: Origin(width) if n == "origin" else Condition(inputs[n], width) for n in conds}
    )
    if labels:
      rows = max_text_len + glyph_len
      self.vmix = VMix(labels, glyph_len, rows, text_dim, width)

  def forward(
    self,
    hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    encoder_attention_mask: torch.Tensor,
    glyph_hidden_states: torch.Tensor,
    glyph_attention_mask: torch.Tensor,
    guidance: torch.Tensor | None = None,
    tags: torch.Tensor | None = None,
    tag_strength: torch.Tensor | None = None,
    origin: torch.Tensor | None = None,
  ) -> torch.Tensor:
    """Velocity at x_t.

    Args:
      hidden_states: noisy latent [B, C, H, W].
      timestep: time [B] in [0, 1], 1 is noise.
      encoder_hidden_states: LLM features [B, L, E]; L is a bucket of the prompt's length, the rest padding.
      encoder_attention_mask: [B, L] bool, True on the prompt's tokens.
      glyph_hidden_states: ByT5 features [B, G, glyph_dim] in fixed slots.
      glyph_attention_mask: [B, G] bool, True on bytes to be rendered.
      guidance: scale [B], for a guidance-distilled model.
      tags, tag_strength: aesthetic labels [B, A] (-1 unknown) and how much they count [B], for a model that has them.
      origin: [B], 0 real, 1 drawn by a model, for a model that has the condition.

    Returns:
      velocity [B, C, H, W], float32.
    """
    cfg = self.config
    h, w = hidden_states.shape[2] // cfg.patch, hidden_states.shape[3] // cfg.patch
    text, mask, pooled = self.splice(
      encoder_hidden_states, encoder_attention_mask, glyph_hidden_states, glyph_attention_mask
    )
    vec = self._condition(timestep, hidden_states.shape[2:], pooled, guidance, origin)
    aesthetics = None if tags is None else self.vmix(tags, tag_strength, text.shape[1])
    llm_len = encoder_hidden_states.shape[1]
    position = torch.cat([self.position[:llm_len], self.position[cfg.max_text_len :]])
    txt = self.txt_in(text.to(self.txt_in.weight.dtype)) + position
    img = self.img_in(self._patchify(hidden_states.to(self.img_in.weight.dtype)))
    seen = torch.cat([mask, mask.new_ones(img.shape[:2])], dim=1)[:, None, None]
    positions = scaled_positions(h, w, cfg.rope_base, cfg.rope_mode, img.device)
    cos, sin = rope_angles(positions, cfg.width // cfg.num_heads, cfg.rope_theta)
    mods = self._mods(F.silu(vec))
    for block in self.blocks:
      txt, img = block(txt, img, mods, seen, cos, sin, aesthetics)
    _, img = self.last(txt, img, mods, seen, cos, sin, aesthetics)
    return self._unpatchify(self.out(modulate(img.float(), *self.out_mod(mods[1]))), h, w)

  def _condition(self, timestep, grid, pooled, guidance, origin):
    """The adaLN vector [B, D], float32."""
    size = torch.stack([count(side, pooled.device) for side in grid]) * self.config.downsample
    size = sinusoid(size, _FREQUENCIES // 2).flatten().expand(pooled.shape[0], -1)
    inputs = {"time": sinusoid(1000.0 * timestep.float()), "size": size, "pooled": pooled}
    if guidance is not None:
      inputs["guidance"] = sinusoid(1000.0 * guidance.float())
    if origin is not None:
      inputs["origin"] = origin
    return sum(layer(inputs[name]) for name, layer in self.cond.items())

  def _mods(self, vec):
    """What the text and the image streams' Modulation takes."""
    if self.config.adaln == "full":
      return vec, vec
    shared = self.shared(vec).unflatten(-1, (12, -1))
    return shared[:, :6], shared[:, 6:]

  def _patchify(self, x):
    """[B, C, H, W] -> [B, I, P P C]."""
    p, (b, c, h, w) = self.config.patch, x.shape
    x = x.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 3, 5, 1)
    return x.reshape(b, (h // p) * (w // p), p * p * c)

  def _unpatchify(self, x, h, w):
    """[B, I, P P C] -> [B, C, H, W]."""
    p, c = self.config.patch, self.config.latent_channels
    x = x.reshape(x.shape[0], h, w, p, p, c).permute(0, 5, 1, 3, 2, 4)
    return x.reshape(x.shape[0], c, h * p, w * p)
