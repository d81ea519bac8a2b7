"""Reward feedback learning: the sampler's own pictures are pushed up the reward models (Seedream 2.0, Sec. 4.3).

ReFL (arXiv 2304.05977, Alg. 1): denoise without gradient to a random one of the last steps, the same for the batch,
take one step with gradient straight to x0' = x_t - t v, decode, score. The loss of a reward r is a hinge, as UniFL's
(arXiv 2404.05595) max(0, alpha - r), and pre-training's own loss is kept beside it:

  L = lambda sum_r w_r 1[r asked for] max(0, alpha_r - r(c, x0')) + L_pre

The DiT and the LLM that reads the prompts are tuned together, by one gradient; the rewards keep an LLM of their own.
Ranges, margins and weights are not disclosed. # ours

Dims: B batch, H W C latent, M solver steps, E pooled text features.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.flow import path, solvers, timesteps
from seedream_jax.models import byt5, text_to_image, variants
from seedream_jax.ops import partition
from seedream_jax.stages import denoise, reward

POLICY = "dit+llm"
_NOISE_KEY = 2  # of fold_in: split(rng) is 0 and 1, the step's and the rollout's
_REWARD = "reward_{}"  # frozen part of a reward model
_FIELDS = ("weight", "margin", "text_only", "noise_std")


@dataclasses.dataclass(frozen=True)
class ReflConfig:
  """The config's stage group, without its name and `denoise`.

  Attributes:
    rewards: {name: dict(weight, margin alpha, text_only, noise_std)}; a reward with text_only counts where the prompt
      quotes text, one of weight 0 is measured and never optimised: what a guard watches. noise_std is of the Gaussian
      noise on the picture that the loss scores, 0 for none; it should be what the reward was trained under.  # ours
    num_steps: M of the rollout.
    solver: of the rollout, a key of solvers.SOLVERS; the model is rewarded for what this sampler draws.
    first_step, last_step: the step with gradient is drawn from first .. last, counted from 0, M - 1 the last. FLOPs,
      and MFU by them, are counted as if it were always `last_step`.
    guidance: of the rollout and of the step with gradient, whose negative branch has none.
    reward_weight: lambda; 0 leaves the rewards out: pre-training alone, for as many steps.
    pretrain_weight: of L_pre; 0 leaves it out.
    decode_at_once: pictures of a chip's that are decoded together; 0 is all. A decoder's activations of one picture
      of 512x512 are some GB, the largest of the step.
  """

  rewards: dict[str, dict[str, Any]]
  num_steps: int = 10
  solver: str = "dpmpp2m"
  first_step: int = 3
  last_step: int = 9
  guidance: float = 4.0
  reward_weight: float = 1e-3
  pretrain_weight: float = 1.0
  decode_at_once: int = 0

  def __post_init__(self):
    if not any(fields.get("weight") for fields in self.rewards.values()):
      raise types.UserError("stage.rewards: none of a weight above 0; expected at least one")
    for name, fields in self.rewards.items():
      if set(fields) != set(_FIELDS):
        raise types.UserError(
          f"stage.rewards.{name}: fields {sorted(fields)}, expected {', '.join(_FIELDS)}"
        )
    if not (self.reward_weight or self.pretrain_weight):
      raise types.UserError(
        "stage.reward_weight=0, pretrain_weight=0: expected one of them above 0"
      )
    if self.decode_at_once < 0:
      raise types.UserError(f"stage.decode_at_once={self.decode_at_once}: expected at least 0")
    if not 0 <= self.first_step <= self.last_step < self.num_steps:
      raise types.UserError(
        f"stage.first_step={self.first_step}, last_step={self.last_step}: expected 0 <= first <= last "
        f"< num_steps={self.num_steps}"
      )
    if self.solver not in solvers.SOLVERS:
      raise types.UserError(
        f"stage.solver={self.solver!r}: expected one of {', '.join(solvers.SOLVERS)}"
      )


class Refl:
  """One player, DiT and LLM together; VAE, ByT5 and the reward models are frozen.

  Streams: `prompts` (id_B, llm_ids_BL, byt5_ids_BG, size_B2, tower_ids_BL for rewards that started from a published
  model, and a latent or picture, of which only the shape is used) and `train`, as stage denoise reads it.
  """

  players = (POLICY,)

  def __init__(
    self, cfg: ReflConfig, model: text_to_image.TextToImage, base: denoise.Denoise, towers
  ):
    self.cfg, self.model, self.base = cfg, model, base
    self._towers = {
      name: reward.part(model, towers.get(name, towers.get("all"))) for name in cfg.rewards
    }

  def parts(self) -> dict[str, types.Part]:
    """The policy, the frozen parts and one tree a reward."""
    mine = self.model.parts
    return {
      POLICY: types.joint({name: mine[name] for name in POLICY.split("+")}),
      "vae": mine["vae"],
      "byt5": mine["byt5"],
      "reward_llm": mine["llm"],
      **{_REWARD.format(name): part for name, part in self._towers.items()},
    }

  def init(self, rng: jax.Array, frozen: dict[str, types.Params]) -> dict[str, types.Params]:
    """A DiT and an LLM from scratch; a real run names `init.path`."""
    dit = self.base.init(rng, {**frozen, "llm": frozen["reward_llm"]})["dit"]
    return {POLICY: {"dit": dit, "llm": self.model.parts["llm"].init(jax.random.fold_in(rng, 1))}}

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
    """Sum over prompts of the hinges, and the pre-training loss at the same weight a prompt."""
    cfg, policy = self.cfg, types.by_part(params)
    weight = jnp.float32(len(batch["prompts"]["id_B"]))
    total, metrics = jnp.float32(0.0), {}
    if cfg.reward_weight:
      hinges, metrics = self._feedback(policy, frozen, batch["prompts"], rng)
      total = cfg.reward_weight * hinges
    if cfg.pretrain_weight:
      pre = self.base.loss(
        policy, frozen, ema, {"train": batch["train"]}, rng, player="dit", step=step
      )
      total += cfg.pretrain_weight * weight * pre.total / pre.weight
      metrics |= {f"pretrain/{name}": value for name, value in pre.metrics.items()}
    return types.Loss(total, weight, metrics, {})

  def predict_fns(self) -> dict[str, Callable]:
    """Stage denoise's, for the policy; and `rewards`: {name: (sum, weight)} of pictures it draws to the end."""

    def of_policy(fn):
      return lambda params, *args, **kwargs: fn(types.by_part(params), *args, **kwargs)

    fns = {name: of_policy(fn) for name, fn in self.base.predict_fns().items()}
    return {**fns, "rewards": of_policy(self._rewards)}

  def _feedback(
    self, policy, frozen, data, rng
  ) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """sum_r w_r of the hinges, over prompts, and what to log."""
    image_BHWC, at = self._draw(policy, frozen, data, rng)
    optimised = {name: fields for name, fields in self.cfg.rewards.items() if fields["weight"]}
    scores = self._scores(frozen, data, image_BHWC, optimised, rng)
    asked_B, weight = asks_text(data["byt5_ids_BG"]), jnp.float32(len(image_BHWC))
    total, metrics = jnp.float32(0.0), {"step": (weight * at, weight)}
    for name, fields in optimised.items():
      active_B = asked_B if fields["text_only"] else jnp.ones_like(asked_B)
      hinge_B = active_B * jax.nn.relu(fields["margin"] - scores[name])
      total += fields["weight"] * jnp.sum(hinge_B)
      active = jnp.sum(active_B)
      metrics[f"reward_{name}"] = (jnp.sum(active_B * scores[name]), active)
      metrics[f"hinge_{name}"] = (jnp.sum(hinge_B), active)
    return total, metrics

  def _draw(self, policy, frozen, data, rng) -> tuple[jax.Array, jax.Array]:
    """(the picture of x0' that carries the gradient, in [-1, 1]; the step it was taken at)."""
    cfg, shape = self.cfg, self._latent_shape(data)
    step_key, noise_key = jax.random.split(rng)
    at = jax.random.randint(step_key, (), cfg.first_step, cfg.last_step + 1)
    noise_BHWC = timesteps.noise(noise_key, data["id_B"], shape)
    grid = timesteps.grid(cfg.num_steps, self.base.shift(*shape[:2]))
    still = jax.lax.stop_gradient(policy)
    still_velocity = self.base.velocity(still, data)
    still_cond, still_uncond = self.base.conditions(still, frozen, data)
    bound = functools.partial(still_velocity, cond=still_cond)
    if cfg.guidance != 1:
      bound = solvers.guided(still_velocity, still_cond, still_uncond, cfg.guidance)
    # No turn after the last step that may be drawn; those before it are taken as far as this batch's.
    x_BHWC = jax.lax.stop_gradient(
      solvers.sample(bound, noise_BHWC, grid[: cfg.last_step + 1], solver=cfg.solver, steps=at)
    )
    t_B = jnp.broadcast_to(grid[at], (len(x_BHWC),))
    cond, _ = self.base.conditions(policy, frozen, data)
    v_BHWC = self.base.velocity(policy, data)(x_BHWC, t_B, cond)
    if cfg.guidance != 1:
      v_u = jax.lax.stop_gradient(still_velocity(x_BHWC, t_B, still_uncond))
      v_BHWC = v_u + cfg.guidance * (v_BHWC - v_u)
    return self._decode(frozen, path.v_to_x0(x_BHWC, v_BHWC, t_B)), at

  def _decode(self, frozen, x0_BHWC) -> jax.Array:
    """Pictures in [-1, 1], so many at once as the config says."""
    decode = functools.partial(self.model.decode, frozen)
    if not self.cfg.decode_at_once:
      return jax.checkpoint(decode)(x0_BHWC)
    return partition.in_turns(decode, x0_BHWC, self.cfg.decode_at_once)

  def _scores(self, frozen, data, image_BHWC, names, rng=None) -> dict[str, jax.Array]:
    """{reward: r_B} of `names`, each under its noise where `rng` is given."""
    encoders = {"llm": frozen["reward_llm"], "byt5": frozen["byt5"]}
    features = functools.cache(lambda: reward.text_features(self.model, encoders, data))
    out = {}
    for name in names:
      tower = self._towers[name].bind(frozen[_REWARD.format(name)])
      std, seen_BHWC = self.cfg.rewards[name]["noise_std"], image_BHWC
      if std and rng is not None:  # one noise for all: a reward is compared with itself alone
        key = jax.random.fold_in(rng, _NOISE_KEY)
        seen_BHWC += std * timesteps.noise(key, data["id_B"], image_BHWC.shape[1:])
      out[name] = reward.score(tower, seen_BHWC, reward.texts(tower, data, features))
    return out

  def _rewards(self, policy, frozen, batch, rng) -> dict[str, tuple[jax.Array, jax.Array]]:
    data = batch["train"]
    noise_BHWC = timesteps.noise(rng, data["id_B"], self._latent_shape(data))
    x0_BHWC = self.base.predict_fns()["latents"](
      policy,
      frozen,
      {"train": {**data, "noise_BHWC": noise_BHWC}},
      num_steps=self.cfg.num_steps,
      solver=self.cfg.solver,
      guidance=self.cfg.guidance,
    )
    image_BHWC = self._decode(frozen, x0_BHWC)
    asked_B = asks_text(data["byt5_ids_BG"])
    out = {}
    for name, score_B in self._scores(frozen, data, image_BHWC, self.cfg.rewards).items():
      active_B = asked_B if self.cfg.rewards[name]["text_only"] else jnp.ones_like(asked_B)
      out[name] = (jnp.sum(active_B * score_B), jnp.sum(active_B))
    return out

  def _latent_shape(self, data) -> tuple[int, int, int]:
    if "latent_BHWC" in data:
      return data["latent_BHWC"].shape[1:]
    vae = self.model.configs["vae"]
    height, width = data["image_BHWC"].shape[1:3]
    return height // vae.factor, width // vae.factor, vae.latent_channels


def asks_text(byt5_ids_BG: jax.Array) -> jax.Array:
  """1.0 where a prompt quotes text to be rendered, else 0.0."""
  first_B = byt5_ids_BG[:, 0]
  return ((first_B != byt5.PAD) & (first_B != byt5.EOS)).astype(jnp.float32)


def make(config: ConfigDict) -> Refl:
  """The stage of an experiment config."""
  stage = {k: v for k, v in config.stage.to_dict().items() if k not in ("name", "denoise")}
  cfg = variants.fill(
    ReflConfig, stage, "stage"
  )  # before the model, which takes seconds to lay out
  base = denoise.make(denoise.config_within(config), trained=("dit", "llm"))
  return Refl(cfg, base.model, base, config.model.rewards)
