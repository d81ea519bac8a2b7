"""Rectified-flow training of the DiT: pretrain, CT, SFT and refiner are configs of this one stage.

Dims: B batch, H W C latent, L LLM tokens, G glyph bytes, A aesthetic labels, E LLM width.
Loss: E || v_theta(x_t, t, c) - (eps - x0) ||^2 with t from a shifted density (SD3, Sec. 3;
Seedream 2.0 does not state its objective, 3.0 states this one). Noise, t and text drops follow the
example's id: they are the same on any mesh and under any accumulation, and no example depends on
its neighbours.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.data import tokenizers
from seedream_jax.flow import path, solvers, timesteps
from seedream_jax.models import llm, text_to_image, variants

_FROZEN = ("vae", "llm", "byt5")
NEGATIVES = ("empty", "generated", "empty_generated")  # what guidance may lead away from
_VAL_KEY = 0  # validation noise is a function of the example's id alone


@dataclasses.dataclass(frozen=True)
class DenoiseConfig:
  """The config's stage group, without its name.

  Attributes:
    density, mean, std: of t, see timesteps.sample.
    shift: alpha of the time shift, in training and in sampling.
    shift_base: side in latent cells of the grid whose shift is `shift`; larger pictures get
      sqrt(h w) / base times that. 0 = one shift for all sizes.
    drop_both, drop_byt5, drop_llm: how often an example loses both texts, only the
      strings to be rendered, only the prompt.  # ours; undisclosed
    labels: (positive words, negative words) of each aesthetic label of the DiT, in the order of the columns of
      label_BA. VMix's negative words are rare tokens: they say that the label is absent, and nothing else.
    drop_labels: how often an example's labels are hidden, so that strength 0 means something.  # ours; undisclosed
    weighting: of the loss over t; only "none": the density already weighs.
  """

  density: str = "logit_normal"
  mean: float = 0.0
  std: float = 1.0
  shift: float = 1.0
  shift_base: float = 0.0
  drop_both: float = 0.10
  drop_byt5: float = 0.05
  drop_llm: float = 0.05
  labels: tuple[tuple[str, str], ...] = ()
  drop_labels: float = 0.0
  weighting: str = "none"

  def __post_init__(self):
    object.__setattr__(self, "labels", tuple(map(tuple, self.labels)))  # JSON has lists
    if self.drop_labels and not self.labels:
      raise types.UserError(f"stage.drop_labels={self.drop_labels}: there are no stage.labels")
    if self.weighting != "none":
      raise types.UserError(f"stage.weighting={self.weighting!r}: expected none")
    if not 0 <= self.drop_both + self.drop_byt5 + self.drop_llm <= 1:
      raise types.UserError("stage: the three drop rates must sum to at most 1")


class Draw(NamedTuple):
  """What a training step draws for each example; see `Denoise.draw`."""

  t_B: jax.Array
  eps_BHWC: jax.Array
  drop_llm_B: jax.Array
  drop_byt5_B: jax.Array
  hide_labels_B: jax.Array


def velocity_error(
  dit: Any,
  x0_BHWC: jax.Array,
  eps_BHWC: jax.Array,
  t_B: jax.Array,
  cond: types.Cond,
  size_B2: jax.Array | None,
) -> jax.Array:
  """error_B float32: each example's squared velocity error, the mean over its latent."""
  v_BHWC = dit(path.interpolate(x0_BHWC, eps_BHWC, t_B), t_B, cond, size_B2=size_B2)
  target_BHWC = path.velocity(x0_BHWC, eps_BHWC)
  return jnp.mean(jnp.square(v_BHWC.astype(jnp.float32) - target_BHWC), axis=(1, 2, 3))


class Denoise:
  """One player, the DiT; VAE and text encoders are frozen."""

  players = ("dit",)

  def __init__(self, cfg: DenoiseConfig, model: text_to_image.TextToImage, tokenizer: str = ""):
    self.cfg, self.model, self._tokenizer = cfg, model, tokenizer

  def parts(self) -> dict[str, types.Part]:
    """The DiT and the three frozen parts."""
    return {name: self.model.parts[name] for name in (*self.players, *_FROZEN)}

  def init(self, rng: jax.Array, frozen: dict[str, types.Params]) -> dict[str, types.Params]:
    """A DiT from scratch, with the LLM's features of its labels' words."""
    dit = self.model.parts["dit"].init(rng)
    if self.cfg.labels:
      dit["vmix"]["labels"] = self._label_features(frozen["llm"])
    return {"dit": dit}

  def loss(
    self,
    params: dict[str, types.Params],
    frozen: dict[str, types.Params],
    ema: dict[str, dict[str, types.Params]],
    batch: types.Batch,
    rng: jax.Array,
    *,
    player: str,
    step: jax.Array,
  ) -> types.Loss:
    """Sum over examples of the mean squared velocity error."""
    del ema, player, step
    data = batch["train"]
    x0_BHWC = self._latent(params, frozen, data)
    draw = self.draw(rng, data["id_B"], x0_BHWC.shape[1:])
    labels = self._labels(data)
    if labels and self.cfg.drop_labels:
      labels["tags_BA"] = jnp.where(draw.hide_labels_B[:, None], -1, labels["tags_BA"])
    drops = draw.drop_llm_B, draw.drop_byt5_B
    error_B = self._error(params, frozen, data, x0_BHWC, draw.eps_BHWC, draw.t_B, labels, *drops)
    quarter_B4 = jax.nn.one_hot(jnp.minimum(4 * draw.t_B, 3).astype(jnp.int32), 4)
    sum_4, weight_4 = jnp.sum(error_B[:, None] * quarter_B4, axis=0), jnp.sum(quarter_B4, axis=0)
    total, weight = jnp.sum(error_B), jnp.float32(error_B.size)
    metrics = {f"loss_t{i}": (sum_4[i], weight_4[i]) for i in range(4)}
    return types.Loss(total, weight, {"loss": (total, weight), **metrics}, {})

  def predict_fns(self) -> dict[str, Callable]:
    """fn(params, frozen, batch, rng) by name; sampler options are keywords, bound statically."""
    return {"val_loss": self._val_loss, "latents": self._latents, "sample": self._sample}

  def shift(self, h: int, w: int) -> float:
    """The time shift of an h x w latent, for training and sampling alike."""
    scale = timesteps.resolution_shift(h, w, self.cfg.shift_base) if self.cfg.shift_base else 1.0
    return self.cfg.shift * scale

  def draw(self, rng: jax.Array, id_B: jax.Array, shape: tuple[int, int, int]) -> Draw:
    """Times, noise of a latent's shape (H, W, C), and which texts and labels to hide, keyed by each example's id."""
    keys_B3 = timesteps.per_example(rng, id_B, lambda key: jax.random.split(key, 3))
    t_B = jax.vmap(lambda key: self._sample_time(key, shape))(keys_B3[:, 0])
    eps_BHWC = jax.vmap(lambda key: jax.random.normal(key, shape))(keys_B3[:, 1])
    drops = self._drops(jax.vmap(jax.random.uniform)(keys_B3[:, 2]))
    u_B = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1)))(keys_B3[:, 2])
    return Draw(t_B, eps_BHWC, *drops, u_B < self.cfg.drop_labels)

  def _sample_time(self, rng: jax.Array, shape: tuple[int, int, int]) -> jax.Array:
    cfg = self.cfg
    return timesteps.sample(
      rng, density=cfg.density, mean=cfg.mean, std=cfg.std, shift=self.shift(*shape[:2])
    )

  def _drops(self, u_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which examples lose the prompt and which the bytes, from one uniform draw each."""
    cfg = self.cfg
    both, byt5 = cfg.drop_both, cfg.drop_both + cfg.drop_byt5
    llm_only_B = (byt5 <= u_B) & (u_B < byt5 + cfg.drop_llm)
    return (u_B < both) | llm_only_B, u_B < byt5

  def _latent(self, params, frozen, data) -> jax.Array:
    image = data["latent_BHWC"] if "latent_BHWC" in data else data["image_BHWC"]
    return jax.lax.stop_gradient(self.model.encode_image({**frozen, **params}, image))

  def _cond(self, params, frozen, data, drop_llm_B=None, drop_byt5_B=None) -> types.Cond:
    features = cached(data)
    if features is not None and "llm" in params:
      raise types.UserError(
        "data.streams: features has llm_features_BLE, a frozen LLM's, and this stage trains the LLM; expected "
        "llm_ids_BL alone (text=ids)"
      )
    return self.model.encode_text(
      {**frozen, **params},
      data["llm_ids_BL"],
      data["byt5_ids_BG"],
      drop_llm_B=drop_llm_B,
      drop_byt5_B=drop_byt5_B,
      cached=features,
    )

  def _error(
    self, params, frozen, data, x0_BHWC, eps_BHWC, t_B, labels, drop_llm_B=None, drop_byt5_B=None
  ):
    """Mean squared velocity error of each example, float32."""
    cond = self._cond(params, frozen, data, drop_llm_B, drop_byt5_B).replace(**labels)
    dit = self.model.parts["dit"].bind(params["dit"])
    return velocity_error(dit, x0_BHWC, eps_BHWC, t_B, cond, data.get("size_B2"))

  def _val_loss(self, params, frozen, batch, rng=None) -> tuple[jax.Array, jax.Array]:
    """(sum_8, weight_8) of the error at t = 0/8 .. 7/8; an example's t and noise follow its id."""
    del rng
    data = batch["train"]
    x0_BHWC = self._latent(params, frozen, data)
    eps_BHWC = timesteps.noise(jax.random.key(_VAL_KEY), data["id_B"], x0_BHWC.shape[1:])
    t_B = timesteps.eight_timesteps(data["id_B"])
    error_B = self._error(params, frozen, data, x0_BHWC, eps_BHWC, t_B, self._labels(data))
    slot_B8 = jax.nn.one_hot(data["id_B"] % 8, 8)
    return jnp.sum(error_B[:, None] * slot_B8, axis=0), jnp.sum(slot_B8, axis=0)

  def _latents(
    self,
    params,
    frozen,
    batch,
    rng=None,
    *,
    num_steps: int = 25,
    solver: str = "euler",
    guidance: float = 4.0,
    interval: tuple[float, float] = (0.0, 1.0),
    shift: float | None = None,
    aesthetics: float = 1.0,
    negative: str = "empty",
  ) -> jax.Array:
    """Normalised latents from `noise_BHWC`.

    Args:
      params: {"dit": tree}, raw or EMA.
      frozen: the frozen trees.
      batch: {"train": llm_ids_BL, byt5_ids_BG, noise_BHWC and optionally size_B2}.
      rng: unused; the noise is given.
      num_steps: solver steps.
      solver: a key of solvers.SOLVERS.
      guidance: scale; 1 runs no negative branch.
      interval: of t, where guidance acts.
      shift: of the time grid; the training shift of this latent's size by default.
      aesthetics: strength of the DiT's aesthetic labels, all positive; a negative branch without text has none of
        them, so that guidance raises them too.
      negative: what guidance leads away from: "empty" has no text; "generated" the same text and labels drawn by a
        model; "empty_generated" neither text nor reality. The last two need the DiT's condition `origin`.
    """
    del rng
    data = batch["train"]
    noise_BHWC = data["noise_BHWC"]
    cond, uncond = self.conditions(params, frozen, data, aesthetics, negative)
    if isinstance(guidance, (int, float)) and guidance == 1:
      bound = functools.partial(self.velocity(params, data), cond=cond)
    else:
      bound = solvers.guided(self.velocity(params, data), cond, uncond, guidance, interval)
    grid = timesteps.grid(num_steps, self.shift(*noise_BHWC.shape[1:3]) if shift is None else shift)
    return solvers.sample(bound, noise_BHWC, grid, solver=solver)

  def conditions(
    self, params, frozen, data, aesthetics: float = 1.0, negative: str = "empty"
  ) -> tuple[types.Cond, types.Cond]:
    """What sampling is conditioned on, and what guidance leads away from; see `_latents`."""
    if negative not in NEGATIVES:
      raise types.UserError(f"negative={negative!r}: expected one of {', '.join(NEGATIVES)}")
    batch_size = len(data["llm_ids_BL"])
    cond = self._cond(params, frozen, data).replace(**self.asked(batch_size, aesthetics))
    drop_B = jnp.full((batch_size,), negative != "generated")
    uncond = self._cond(params, frozen, data, drop_B, drop_B)
    return cond, uncond.replace(**self.asked(batch_size, aesthetics, negative))

  def check_asked(self, aesthetics: float, negative: str) -> None:
    """UserError where the DiT lacks the labels or the condition that sampling would need."""
    self.asked(1, aesthetics, negative)

  def velocity(self, params, data) -> Callable[..., jax.Array]:
    """fn(x_BHWC, t_B, cond) -> v_BHWC; guidance may stack several branches on the batch."""
    dit, size_B2 = self.model.parts["dit"].bind(params["dit"]), data.get("size_B2")

    def fn(x_BHWC, t_B, cond):
      size = size_B2
      if size is not None:
        size = jnp.tile(size, (len(x_BHWC) // len(size), 1))
      return dit(x_BHWC, t_B, cond, size_B2=size)

    return fn

  def _label_features(self, llm_params: types.Params) -> jax.Array:
    """[A, 2, E] float32: mean feature of each label's negative and positive words, X = 2 A of them, less their mean."""
    tokenizer, cfg = tokenizers.open_tokenizer(self._tokenizer), self.model.configs["llm"]
    ids = [tokenizer.encode(words) for pair in self.cfg.labels for words in reversed(pair)]
    length = max(map(len, ids))
    ids_XL = jnp.asarray(np.stack([tokenizer.pad(row, length) for row in ids]))
    mask_XL = llm.text_mask(cfg, ids_XL)
    features_XLE = self.model.parts["llm"].bind(llm_params)(ids_XL, mask_XL)
    # The last token's feature stands beside the mean. What all words have in common says nothing, and would drown what
    # tells them apart.  # ours; undisclosed
    mean_XE = llm.pooled(features_XLE, mask_XL)[:, : cfg.width]
    return (mean_XE - jnp.mean(mean_XE, axis=0, keepdims=True)).reshape(len(self.cfg.labels), 2, -1)

  def _labels(self, data) -> dict[str, jax.Array]:
    """What label_BA says, as fields of Cond: a column an aesthetic label, then the origin."""
    out, num = {}, len(self.cfg.labels)
    if num:
      out["tags_BA"] = data["label_BA"][:, :num]
    if self._has_origin:
      out["origin_B"] = data["label_BA"][:, num]
    return out

  def asked(
    self, batch_size: int, aesthetics: float = 1.0, negative: str = ""
  ) -> dict[str, jax.Array]:
    """Fields of Cond for sampling: every label positive and a real picture; or what to lead away from."""
    out, generated = {}, negative.endswith("generated")
    if self.cfg.labels:
      said = -1 if negative.startswith("empty") else 1
      out["tags_BA"] = jnp.full((batch_size, len(self.cfg.labels)), said, jnp.int32)
      out["tag_strength_B"] = jnp.full((batch_size,), aesthetics, jnp.float32)
    elif aesthetics != 1:
      raise types.UserError(f"aesthetics={aesthetics}: this DiT has no aesthetic labels")
    if self._has_origin:
      out["origin_B"] = jnp.full((batch_size,), int(generated), jnp.int32)
    elif generated:
      raise types.UserError(
        f"negative={negative!r}: this DiT has no condition origin; expected 'empty'"
      )
    return out

  @property
  def _has_origin(self) -> bool:
    return "origin" in self.model.configs["dit"].conds

  def _sample(self, params, frozen, batch, rng=None, **options: Any) -> jax.Array:
    """Images in [-1, 1]; options as in `latents`."""
    return self.model.decode(
      {**frozen, **params}, self._latents(params, frozen, batch, rng, **options)
    )


def cached(data) -> tuple[jax.Array, jax.Array] | None:
  """The LLM's features of this batch and of the empty prompt, where they were precomputed."""
  if "llm_features_BLE" not in data:
    return None
  if "llm_empty_BE" not in data:
    raise types.UserError("data.streams: features has llm_features_BLE but not llm_empty_BE")
  return data["llm_features_BLE"], data["llm_empty_BE"]


def make(config: ConfigDict, trained: tuple[str, ...] = Denoise.players) -> Denoise:
  """The stage of an experiment config; `trained` parts are float32 masters."""
  stage = {name: value for name, value in config.stage.items() if name != "name"}
  cfg = variants.fill(DenoiseConfig, stage, "stage")
  model = text_to_image.TextToImage(config.model, trained=trained)
  dit = model.configs["dit"]
  if len(cfg.labels) != dit.labels:
    raise types.UserError(f"stage.labels: {len(cfg.labels)} given, model.dit.labels = {dit.labels}")
  if dit.labels or "origin" in dit.conds:
    _check_labels(config)
  return Denoise(cfg, model, config.get("data", {}).get("tokenizer", ""))


def config_within(config: ConfigDict) -> ConfigDict:
  """The same experiment as this stage sees it, of a stage built on it: what sampling from its model needs."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.stage = dict(name="denoise", **config.stage.denoise.to_dict())
  return config


def _check_labels(config: ConfigDict) -> None:
  for name, stream in config.get("data", {}).get("streams", {}).items():
    if "label_BA" not in stream.features:
      raise types.UserError(
        f"data.streams.{name}.features: lacks label_BA, which the DiT's labels need"
      )
