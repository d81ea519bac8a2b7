"""Prompts in, pictures out: the sampler that sample and evaluate share.

A pipeline opens from a weights folder (`dit, vae, llm, byt5.safetensors, config.json, tokenizer.model or .json`) or
from a training workdir, whose newest whole checkpoint gives the DiT and whose config names the frozen parts.

Dims: B batch, H W latent grid, C channels.
"""

import dataclasses
import math
import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm
from absl import flags

from seedream_jax import types
from seedream_jax.data import tokenizers, transforms
from seedream_jax.engine import checkpoint
from seedream_jax.eval import evaluators
from seedream_jax.flow import solvers
from seedream_jax.run import open as open_lib
from seedream_jax.stages import denoise

PARTS = ("dit", "vae", "llm", "byt5")
MAX_SIDE = 4096
_DRAWING = ("denoise", "refl", "dpo")  # stages whose DiT draws pictures
_STATIC = ("num_steps", "solver", "guidance", "aesthetics", "negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """How to sample; each field is a flag of the verbs."""

  num_steps: int = 25
  guidance: float = 4.0
  solver: str = "euler"
  aesthetics: float = 1.0
  negative: str = "empty"
  batch_size: int = 32

  def __post_init__(self):
    """A comparison lets NaN through, and so do the flags' bounds."""
    for flag in ("guidance", "aesthetics"):
      if not math.isfinite(getattr(self, flag)):
        raise types.UserError(f"--{flag} {getattr(self, flag)}: expected a finite number, e.g. 1")


def define_flags() -> None:
  """The flags behind `Options`, for the verbs that draw."""
  flags.DEFINE_integer("steps", 25, "Solver steps.", lower_bound=1, upper_bound=1000)
  flags.DEFINE_float("guidance", 4.0, "Classifier-free guidance scale; 1 = none.", lower_bound=0.0)
  flags.DEFINE_enum("solver", "euler", sorted(solvers.SOLVERS), "ODE solver.")
  flags.DEFINE_float(
    "aesthetics",
    1.0,
    "Strength of the aesthetic labels, all positive (VMix); 0 = off.",
    lower_bound=0.0,
  )
  flags.DEFINE_enum("negative", "empty", denoise.NEGATIVES, "What guidance leads away from.")


def options_of_flags() -> Options:
  """What `define_flags` defined, as given."""
  given = flags.FLAGS
  return Options(
    num_steps=given.steps,
    guidance=given.guidance,
    solver=given.solver,
    aesthetics=given.aesthetics,
    negative=given.negative,
  )


class Pipeline:
  """A text-to-image model with its tokenizer, ready to sample."""

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    stage: types.Stage,
    params: dict[str, types.Params],
    tokenizer_path: str,
  ):
    self.config, self.stage, self.params = config, stage, params
    self.tokenizer = tokenizers.open_tokenizer(tokenizer_path)
    open_lib.check_tokenizer(self.tokenizer, stage.model.configs["llm"])
    stream = config.data.streams.train
    self.text_buckets = tuple(sorted(stream.text_buckets))
    self.glyph_bytes = stream.glyph_bytes
    vae, dit = stage.model.configs["vae"], stage.model.configs["dit"]
    self.factor, self.channels = vae.factor, vae.latent_channels
    self.multiple = vae.factor * dit.patch
    predict = stage.predict_fns()
    self._latents = jax.jit(predict["latents"], static_argnames=_STATIC)
    self._decode = jax.jit(stage.model.decode)

  def noise(self, ids: Sequence[int], size: tuple[int, int], seed: int) -> np.ndarray:
    """Starting noise [B, H, W, C] float32: picture i's is a function of (seed, ids[i]) alone."""
    shape = (size[0] // self.factor, size[1] // self.factor, self.channels)
    draw = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), shape))
    return np.asarray(draw(jnp.asarray(ids, jnp.uint32)))

  def check_size(self, size: tuple[int, int]) -> None:
    """Raises UserError unless both sides are multiples of what the model can draw."""
    step, most = self.multiple, MAX_SIDE // self.multiple
    near = tuple(step * min(max(round(side / step), 1), most) for side in size)
    if near != tuple(size):
      raise types.UserError(
        f"--size {size[0]}x{size[1]}: sides must be multiples of {step} up to {step * most}; "
        f"nearest: {near[0]}x{near[1]}"
      )

  def tokens(self, prompts: Sequence[str]) -> tuple[list[list[int]], np.ndarray]:
    """LLM ids of each prompt and ByT5 ids [B, G]; UserError for a prompt or quoted text that does not fit."""
    return tokenizers.encode_prompts(
      self.tokenizer, prompts, self.text_buckets[-1], self.glyph_bytes
    )

  def text_bucket(self, prompt: str) -> int:
    """LLM tokens that the prompt is padded to; UserError for one that does not fit."""
    ids, _ = self.tokens([prompt])
    return self._bucket(ids[0])

  def _bucket(self, ids: Sequence[int]) -> int:
    return next(b for b in self.text_buckets if len(ids) <= b)

  def sample(
    self,
    prompts: Sequence[str],
    noise_BHWC: np.ndarray,
    options: Options,
    *,
    progress: bool = False,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Draws every prompt from its noise.

    Batches hold prompts of one text bucket and are padded to `options.batch_size`, so that one executable serves
    each bucket; a picture does not depend on the others of its batch.

    Returns:
      images [B, height, width, 3] uint8, normalised latents [B, H, W, C] float32.
    """
    self.stage.check_asked(options.aesthetics, options.negative)
    ids, glyphs = self.tokens(prompts)
    buckets = [self._bucket(row) for row in ids]
    order = sorted(range(len(prompts)), key=lambda i: buckets[i])
    latents = np.zeros(noise_BHWC.shape, np.float32)
    images: list[np.ndarray | None] = [None] * len(prompts)
    size = min(options.batch_size, len(prompts))
    bar = tqdm.tqdm(total=len(prompts), desc="sample", unit="img", disable=not progress)
    for bucket in sorted(set(buckets)):
      rows = [i for i in order if buckets[i] == bucket]
      for start in range(0, len(rows), size):
        chunk = rows[start : start + size]
        padded = chunk + [chunk[-1]] * (size - len(chunk))
        batch = {
          "llm_ids_BL": np.stack([self.tokenizer.pad(ids[i], bucket) for i in padded]),
          "byt5_ids_BG": glyphs[padded],
          "noise_BHWC": noise_BHWC[padded],
        }
        z_BHWC = self._run(batch, options)
        image_BHWC = transforms.to_uint8(self._decode(self.params, z_BHWC))
        for k, i in enumerate(chunk):
          latents[i], images[i] = np.asarray(z_BHWC[k]), image_BHWC[k]
        bar.update(len(chunk))
    bar.close()
    return np.stack(images), latents

  def _run(self, batch, options: Options) -> jax.Array:
    frozen = {k: v for k, v in self.params.items() if k != "dit"}
    chosen = {name: getattr(options, name) for name in _STATIC}
    return self._latents({"dit": self.params["dit"]}, frozen, {"train": batch}, None, **chosen)


def open_pipeline(path: str, weights: str = "ema") -> Pipeline:
  """Opens a weights folder or a training workdir (its EMA, or "raw" parameters); UserError says what is missing."""
  config = open_lib.read_config(path)
  name = config.get("stage", {}).get("name")
  if name not in _DRAWING:
    raise types.UserError(
      f"--workdir {path}: its config is not of a stage that draws pictures: {', '.join(_DRAWING)}"
    )
  if os.path.isdir(os.path.join(path, "checkpoints")):
    return _from_workdir(config, path, weights)
  if weights != "ema":
    raise types.UserError(f"--weights {weights}: {path} is a weights folder, which holds one set")
  stage = _drawing_stage(config)
  params = {
    name: checkpoint.load_weights(
      os.path.join(path, f"{name}.safetensors"), _float32(stage.parts()[name].abstract)
    )
    for name in PARTS
  }
  own = os.path.exists(os.path.join(path, "tokenizer.json"))
  tokenizer = os.path.join(path, "tokenizer.json" if own else "tokenizer.model")
  return Pipeline(config, stage, params, tokenizer)


def _from_workdir(config: ml_collections.ConfigDict, workdir: str, weights: str) -> Pipeline:
  exp = open_lib.open_config(config, workdir)
  restored = exp.checkpointer.restore(exp.abstract_state)
  if restored is None:
    raise types.UserError(f"--workdir {workdir}: no whole checkpoint there yet")
  state = restored[0]
  trained = evaluators.eval_params(state) if weights == "ema" else state.params
  params = {**exp.frozen, **types.by_part(trained)}
  params = {name: params[name] for name in PARTS}
  return Pipeline(config, _drawing_stage(config), params, config.data.tokenizer)


def _drawing_stage(config: ml_collections.ConfigDict) -> types.Stage:
  """Stage denoise of the config; that of a stage built on it sits inside."""
  if "denoise" in config.stage:
    config = denoise.config_within(config)
  return open_lib.make_stage(config)


def _float32(abstract: types.Params) -> types.Params:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), abstract)
