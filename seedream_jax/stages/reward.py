"""Training a reward model on preferences (Seedream 2.0, Sec. 4.3): a CLIP without an extra head.

  r(c, x) = tau cos(f_img(x), f_txt(c)),   L = -log sigmoid(beta (r(c, x_w) - r(c, x_l)))

The paper gives the ranking loss, with beta = 1, and that the CLIP's own output is the reward; the form of r is the
usual one. The text side is the model's own two encoders, frozen, and queries on their features, so that a
reward reads both languages and the strings to be rendered.  # ours; undisclosed
A tower may instead be a published CLIP or Chinese-CLIP, which is tuned with both its sides and reads the prompt in its
own ids.

Dims: B pairs, R = 2 (preferred, rejected), H W C pixels, L LLM tokens, G glyph bytes, P joint embedding.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.flow import timesteps
from seedream_jax.models import clip, text_to_image, two_tower, vae, variants
from seedream_jax.stages import align

ENCODERS = ("llm", "byt5")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
  """The config's stage group, without its name.

  Attributes:
    pair_weight: of CLIP's loss between the preferred pictures of a batch and their prompts; 0 leaves ranking alone.
      Ranking compares two pictures of one prompt and never two prompts of one picture.  # ours; undisclosed
    beta: of the ranking loss. A CLIP's temperature, learned to tell captions apart, is far too sure of which picture a
      noisy rater prefers, and moves too slowly to learn it.  # ours; undisclosed
    noise_std: of the Gaussian noise added to pictures in training, the same for both of a pair. A gradient of
      what people see is the aim; how far that is reached stands in docs/evidence.md.  # ours; undisclosed
  """

  pair_weight: float = 0.1
  beta: float = 1.0
  noise_std: float = 0.0


def text_features(
  model: text_to_image.TextToImage, params: dict[str, types.Params], data
) -> tuple[jax.Array, ...]:
  """What `clip.Reader` reads of prompts: the frozen encoders' features and masks.

  Args:
    model: gives the encoders' shapes.
    params: trees of `llm` and `byt5`.
    data: llm_ids_BL and byt5_ids_BG.
  """
  features = model.text_features(params, data["llm_ids_BL"], data["byt5_ids_BG"])
  return jax.lax.stop_gradient(features)


Tower = clip.LockedClip | two_tower.TwoTower


def part(model: text_to_image.TextToImage, tower: ConfigDict) -> types.Part:
  """The reward model's own tree: image tower, what reads the encoders (or published text tower) and temperature."""
  if two_tower.is_published(tower):
    published = two_tower.make_config(**tower)
    return types.Part.from_module(lambda rngs: two_tower.TwoTower(published, rngs=rngs))
  widths = {f"{name}_dim": model.configs[name].width for name in ENCODERS}
  fields = {**tower, "reader": {**widths, **tower.get("reader", {})}}
  cfg, reader = clip.make_locked_config(**fields)
  return types.Part.from_module(lambda rngs: clip.LockedClip(cfg, reader, rngs=rngs))


def texts(tower: Tower, data, features: Callable[[], tuple[jax.Array, ...]]) -> jax.Array:
  """text_BP of prompts.

  Args:
    tower: either kind.
    data: tower_ids_BL for a published one.
    features: fn() -> `text_features`, for the other.
  """
  if isinstance(tower, two_tower.TwoTower):
    ids_BL = data["tower_ids_BL"]
    return tower.text(ids_BL, tower.text_model.mask(ids_BL))
  return tower.text(*features())


def pictures(tower: Tower, image_BHWC: jax.Array) -> jax.Array:
  """image_BP of uint8 or [-1, 1] pixels, differentiable in the latter."""
  if isinstance(tower, two_tower.TwoTower):
    image_BHWC = two_tower.fit(image_BHWC, tower.cfg.vision)
  return tower.image(image_BHWC)


def scale(tower: Tower) -> jax.Array:
  """The temperature, at most 100: CLIP's own bound, which published weights have reached."""
  return jnp.minimum(tower.scale(), 100.0)


def score(tower: Tower, image_BHWC: jax.Array, text_BP: jax.Array) -> jax.Array:
  """r_B, differentiable in the picture."""
  return scale(tower) * jnp.sum(pictures(tower, image_BHWC) * text_BP, axis=1)


def ranking_loss(score_BR: jax.Array) -> jax.Array:
  """-log sigmoid(r_w - r_l) of each pair."""
  return jax.nn.softplus(score_BR[:, 1] - score_BR[:, 0])


def same_prompt(data) -> jax.Array:
  """True where two prompts of a batch are one, [B, B], by the ids that its tower reads."""
  if "tower_ids_BL" in data:
    return _same(data["tower_ids_BL"])
  return _same(data["llm_ids_BL"]) & _same(data["byt5_ids_BG"])


class TowerStage:
  """One player, the tower; both text encoders are frozen, and there are none beside a published tower."""

  players = ("tower",)

  def __init__(self, model: ConfigDict):
    published = two_tower.is_published(model.tower)
    encoders = ConfigDict({name: model[name] for name in ENCODERS if not published})
    self.model = text_to_image.TextToImage(encoders, trained=())
    self._parts = {"tower": part(self.model, model.tower), **self.model.parts}

  def parts(self) -> dict[str, types.Part]:
    """The tower and the encoders."""
    return self._parts

  def init(self, rng: jax.Array, frozen: dict[str, types.Params]) -> dict[str, types.Params]:
    """A tower from scratch."""
    del frozen
    return {"tower": self._parts["tower"].init(rng)}


class Reward(TowerStage):
  """The tower on pairs."""

  def __init__(self, cfg: RewardConfig, model: ConfigDict):
    super().__init__(model)
    self.cfg = cfg

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
    """Sum over pairs of ranking_loss + pair_weight contrastive_loss."""
    del ema, player, step
    data = batch["train"]
    tower = self._parts["tower"].bind(params["tower"])
    image_BRHWC = data["image_BRHWC"]
    if self.cfg.noise_std:
      image_BRHWC = self._noisy(image_BRHWC, data["id_B"], rng)
    score_BR, image_BP, text_BP = self._scores(tower, frozen, data, image_BRHWC)
    rank_B = ranking_loss(self.cfg.beta * score_BR)
    total_B, weight = rank_B, jnp.float32(len(rank_B))
    right_B = (score_BR[:, 0] > score_BR[:, 1]).astype(jnp.float32)
    metrics = {
      "rank_loss": (jnp.sum(rank_B), weight),
      "accuracy": (jnp.sum(right_B), weight),
      "scale": (scale(tower), jnp.ones(())),
    }
    if self.cfg.pair_weight:
      pair_B = align.contrastive_loss(image_BP, text_BP, scale(tower), same_prompt(data))
      total_B = total_B + self.cfg.pair_weight * pair_B
      metrics["pair_loss"] = (jnp.sum(pair_B), weight)
    return types.Loss(jnp.sum(total_B), weight, metrics, {})

  def predict_fns(self) -> dict[str, Callable]:
    """`scores`: r_BR of pairs; `val_loss`: (sum, weight) of the ranking loss."""

    def scores(params, frozen, batch, rng=None):
      del rng
      data, tower = batch["train"], self._parts["tower"].bind(params["tower"])
      return self._scores(tower, frozen, data, data["image_BRHWC"])[0]

    def val_loss(params, frozen, batch, rng=None):
      rank_B = ranking_loss(self.cfg.beta * scores(params, frozen, batch, rng))
      return jnp.sum(rank_B), jnp.float32(len(rank_B))

    return {"scores": scores, "val_loss": val_loss}

  def _noisy(self, image_BRHWC, id_B, rng) -> jax.Array:
    """Pictures in [-1, 1] and the noise, which follows the pair's id."""
    noise_BHWC = timesteps.noise(rng, id_B, image_BRHWC.shape[2:])
    return vae.pixels(image_BRHWC) + self.cfg.noise_std * noise_BHWC[:, None]

  def _scores(self, tower: Tower, frozen, data, image_BRHWC):
    """r_BR, and the unit vectors of the preferred pictures and of the prompts."""
    b, r = image_BRHWC.shape[:2]
    image_BRP = pictures(tower, image_BRHWC.reshape(b * r, *image_BRHWC.shape[2:]))
    image_BRP = image_BRP.reshape(b, r, -1)
    text_BP = texts(tower, data, lambda: text_features(self.model, frozen, data))
    score_BR = scale(tower) * jnp.einsum("brp,bp->br", image_BRP, text_BP)
    return score_BR, image_BRP[:, 0], text_BP


def _same(ids_BL: jax.Array) -> jax.Array:
  return jnp.all(ids_BL[:, None] == ids_BL[None], axis=-1)


def make(config: ConfigDict) -> Reward:
  """The stage of an experiment config."""
  stage = {name: value for name, value in config.stage.items() if name != "name"}
  return Reward(variants.fill(RewardConfig, stage, "stage"), config.model)
