"""Text to image with exported weights, in PyTorch: two text encoders, a flow transformer, an autoencoder.

This file stands alone: it travels with exported weights, and needs torch, transformers and diffusers only.
Strings that a prompt puts in quotes (“”, "", ‘’, 「」, 『』) are drawn into the picture.
"""

import numpy as np
import torch
from diffusers import (
  AutoencoderKL,
  DiffusionPipeline,
  FlowMatchEulerDiscreteScheduler,
  ImagePipelineOutput,
)
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# As in seedream_jax/data/tokenizers.py; written again since this file is all that an export has.
_CLOSERS = {'"': '"', "“": "”", "‘": "’", "「": "」", "『": "』"}


def find_quoted(prompt):
  """The outermost quoted spans of a prompt, in order, without their quotes.

  An ASCII ' is always an apostrophe, and so is a ’ between two Latin letters. A " right after a digit, outside any
  quote, is an inch mark. A quote that never closes quotes nothing.
  """
  spans, i = [], 0
  while i < len(prompt):
    closer = _CLOSERS.get(prompt[i])
    inch = prompt[i] == '"' and i > 0 and prompt[i - 1] in "0123456789"
    end = -1 if closer is None or inch else _closing(prompt, i, closer)
    if end < 0:
      i += 1
      continue
    if span := prompt[i + 1 : end].strip():
      spans.append(span)
    i = end + 1
  return spans


def _closing(prompt, start, closer):
  depth = 0
  for i in range(start + 1, len(prompt)):
    around = prompt[i - 1] + prompt[i + 1 : i + 2]
    latin = len(around) == 2 and all(c.isalpha() and ord(c) < 0x250 for c in around)
    if prompt[i] == closer and not (closer == "’" and latin):
      if depth == 0:
        return i
      depth -= 1
    elif prompt[i] == prompt[start]:
      depth += 1
  return -1


class SeedreamPipeline(DiffusionPipeline):
  """Draws pictures of Chinese and English prompts.

  Args:
    transformer: the velocity model.
    vae: its config's latents_mean and latents_std are per channel.
    text_encoder, tokenizer: a decoder-only language model, which reads the whole prompt.
    text_encoder_2: a T5 encoder over bytes, which reads the quoted strings.
    scheduler: the time grid and the Euler step.
    text_buckets: lengths to which prompts are padded; glyph positions do not depend on them.
    glyph_len: slots for bytes, the end included.
  """

  model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"

  def __init__(
    self,
    transformer: torch.nn.Module,
    vae: AutoencoderKL,
    text_encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    text_encoder_2: PreTrainedModel,
    scheduler: FlowMatchEulerDiscreteScheduler,
    text_buckets: list = (256,),
    glyph_len: int = 8,
    shift_base: float = 0.0,
    default_size: int = 512,
  ):
    super().__init__()
    self.register_modules(
      transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer,
      text_encoder_2=text_encoder_2, scheduler=scheduler,
    )  # fmt: skip
    self.register_to_config(
      text_buckets=list(text_buckets),
      glyph_len=glyph_len,
      shift_base=shift_base,
      default_size=default_size,
    )
    self.factor = 2 ** (len(vae.config.block_out_channels) - 1)
    self.image_processor = VaeImageProcessor(vae_scale_factor=self.factor)

  def glyph_ids(self, prompts):
    """Byte ids [B, G] of what the prompts quote: byte + 3, then 1; 0 is padding. Nothing quoted: all padding."""
    ids = torch.zeros(len(prompts), self.config.glyph_len, dtype=torch.long)
    for row, prompt in zip(ids, prompts):
      data = " ".join(find_quoted(prompt)).encode()
      if len(data) > len(row) - 1:
        raise ValueError(
          f"quoted text of {prompt!r} has {len(data)} bytes, the model reads {len(row) - 1}"
        )
      if data:
        row[: len(data) + 1] = torch.tensor([*(byte + 3 for byte in data), 1])
    return ids

  @torch.no_grad()
  def encode_prompt(self, prompts, device=None):
    """Features and masks of both encoders, as the transformer's keyword arguments."""
    device = device or self._execution_device
    rows = self.tokenizer(prompts, add_special_tokens=True)["input_ids"]
    longest = max(map(len, rows))
    bucket = next((b for b in sorted(self.config.text_buckets) if b >= longest), None)
    if bucket is None:
      raise ValueError(
        f"a prompt has {longest} tokens, the model reads {max(self.config.text_buckets)}"
      )
    pad = self.tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (bucket - len(row)) for row in rows], device=device)
    mask = ids != pad
    llm = self.text_encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    glyph_ids = self.glyph_ids(prompts).to(device)
    glyph_mask = glyph_ids != 0
    attended = glyph_mask.clone()
    attended[:, 0] |= ~glyph_mask.any(
      1
    )  # a row without bytes must stay finite; the transformer does not see it
    glyph = self.text_encoder_2(
      input_ids=glyph_ids, attention_mask=attended.long()
    ).last_hidden_state
    return {
      "encoder_hidden_states": llm, "encoder_attention_mask": mask,
      "glyph_hidden_states": glyph, "glyph_attention_mask": glyph_mask,
    }  # fmt: skip

  @torch.no_grad()
  def __call__(
    self,
    prompt: str | list[str],
    height: int | None = None,
    width: int | None = None,
    num_inference_steps: int = 25,
    guidance_scale: float = 4.0,
    generator: torch.Generator | list[torch.Generator] | None = None,
    latents: torch.Tensor | None = None,
    aesthetics: float = 1.0,
    negative: str = "empty",
    output_type: str = "pil",
    return_dict: bool = True,
  ):
    """Draws one picture a prompt.

    Args:
      prompt: one or several.
      height, width: pixels, multiples of the autoencoder's factor times the transformer's patch.
      num_inference_steps: Euler steps.
      guidance_scale: of classifier-free guidance; 1 is none.
      generator: of the starting noise.
      latents: the starting noise itself, [B, C, H, W].
      aesthetics: strength of the aesthetic labels, all positive, of a model that has them; an empty negative has none.
      negative: what guidance leads away from: "empty" text, or, of a model that can tell, the same text as a model
        drew it ("generated"), or both ("empty_generated").
      output_type: pil, np, pt, or latent: the transformer's normalised latents [B, C, H, W].
      return_dict: an ImagePipelineOutput rather than a tuple.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    height, width = height or self.config.default_size, width or self.config.default_size
    step = self.factor * self.transformer.config.patch
    if height % step or width % step:
      raise ValueError(f"{height}x{width} pixels: both must be multiples of {step}")
    device, dtype = self._execution_device, self.transformer.dtype
    shape = (
      len(prompts),
      self.vae.config.latent_channels,
      height // self.factor,
      width // self.factor,
    )
    if latents is None:
      latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
    elif tuple(latents.shape) != shape:
      raise ValueError(f"latents have shape {tuple(latents.shape)}, expected {shape}")
    x = latents.to(device, torch.float32)
    guided = guidance_scale != 1
    away = prompts if negative == "generated" else [""] * len(prompts)
    texts = self.encode_prompt([*prompts, *away] if guided else prompts, device)
    texts |= self._labels(len(prompts), guided, aesthetics, negative)
    # The scheduler's own shift comes on top of the grid it is given.
    self.scheduler.set_shift(self.scheduler.config.shift * self._resolution_shift(*shape[2:]))
    sigmas = np.linspace(1.0, 0.0, num_inference_steps + 1)[:-1]
    self.scheduler.set_timesteps(sigmas=sigmas, device=device)
    for t, sigma in zip(self.progress_bar(self.scheduler.timesteps), self.scheduler.sigmas):
      both = torch.cat([x, x]) if guided else x
      v = self.transformer(both.to(dtype), sigma.to(device).expand(len(both)), **texts).float()
      if guided:
        v_cond, v_empty = v.chunk(2)
        v = v_empty + guidance_scale * (v_cond - v_empty)
      x = self.scheduler.step(v, t, x, return_dict=False)[0]
    if output_type == "latent":
      images = x
    else:
      cfg = self.vae.config
      mean, std = (
        torch.tensor(s, device=device).view(1, -1, 1, 1)
        for s in (cfg.latents_mean, cfg.latents_std)
      )
      decoded = self.vae.decode((x * std + mean).to(self.vae.dtype), return_dict=False)[0]
      images = self.image_processor.postprocess(decoded.float(), output_type=output_type)
    self.maybe_free_model_hooks()
    return ImagePipelineOutput(images=images) if return_dict else (images,)

  def _labels(self, count, guided, aesthetics, negative):
    """Keyword arguments of a transformer that knows aesthetic labels or a picture's origin."""
    cfg, device, out = self.transformer.config, self._execution_device, {}
    rows = 2 * count if guided else count
    if getattr(cfg, "labels", 0):
      out["tags"] = torch.ones(rows, cfg.labels, dtype=torch.long, device=device)
      if negative.startswith("empty"):
        out["tags"][count:] = -1  # unknown
      out["tag_strength"] = torch.full((rows,), float(aesthetics), device=device)
    elif aesthetics != 1:
      raise ValueError(f"aesthetics={aesthetics}: this model has no aesthetic labels")
    if "origin" in cfg.conds:
      out["origin"] = torch.zeros(rows, dtype=torch.long, device=device)
      out["origin"][count:] = int(negative.endswith("generated"))
    elif negative != "empty":
      raise ValueError(f"negative={negative!r}: this model knows only 'empty'")
    return out

  def _resolution_shift(self, h, w):
    """sqrt(h w) / base: noises an h x w latent as far as base x base (SD3, Sec. 5.3.2)."""
    return (h * w) ** 0.5 / self.config.shift_base if self.config.shift_base else 1.0
