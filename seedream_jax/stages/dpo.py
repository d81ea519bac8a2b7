"""Direct preference optimisation: the DiT alone, on the pairs that a reward would learn from.

Diffusion-DPO (arXiv 2311.12908, Sec. 4) puts the denoising error in the place of a log-likelihood; on a straight path
the error is the velocity's (Flow-DPO, arXiv 2501.13918). With e(x) the mean squared velocity error of a picture's
latent and x_w, x_l the preferred and the rejected one,

  r(x) = -beta/2 (e(x) - e_ref(x)),   L = -log sigmoid(r(x_w) - r(x_l))

both pictures and both models seeing one time, one noise and one text. The implicit reward r takes the place of a reward
model's. Seedream 2.0 (Sec. 4.3) looked at DPO and took ReFL: this stage is there for the comparison.  # ours

Dims: B pairs, R = 2 (preferred, rejected), X = B R pictures, those of a pair side by side; H W C latent.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.engine import trees
from seedream_jax.models import text_to_image, variants
from seedream_jax.stages import denoise, reward

REFERENCE = "reference"  # frozen part: the DiT that the policy starts from and is held to
_VAL_KEY = 0  # a held-out pair's time and noise are a function of its id alone


@dataclasses.dataclass(frozen=True)
class DpoConfig:
  """The config's stage group, without its name and `denoise`.

  Attributes:
    beta: how strongly the policy is held to the reference, on the scale of a latent's mean squared error, halved, as in
      the authors' code; to a sum over n numbers belongs beta / n. The same at every time, as in Flow-DPO.
  """

  beta: float = 2_000.0

  def __post_init__(self):
    if not self.beta > 0:
      raise types.UserError(f"stage.beta={self.beta}: expected more than 0")


class Dpo:
  """One player, the DiT; its reference, VAE and text encoders are frozen.

  A batch holds what stage denoise reads, with the pictures of a pair in place of one: image_BRHWC or latent_BRHWC.
  Times and text drops are drawn as in pre-training.  # ours
  """

  players = ("dit",)

  def __init__(self, cfg: DpoConfig, base: denoise.Denoise, reference: types.Part):
    self.cfg, self.base, self.model = cfg, base, base.model
    self._parts = {**base.parts(), REFERENCE: reference}

  def parts(self) -> dict[str, types.Part]:
    """Those of stage denoise, and the reference."""
    return self._parts

  def init(self, rng: jax.Array, frozen: dict[str, types.Params]) -> dict[str, types.Params]:
    """The reference, with adapters where the DiT has them."""
    drawn = trees.flatten(self._parts["dit"].init(rng))
    start = {k: x.astype(drawn[k].dtype) for k, x in trees.flatten(frozen[REFERENCE]).items()}
    return {"dit": trees.unflatten({**drawn, **start})}

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
    """Sum over pairs of -log sigmoid of the implicit rewards' difference."""
    del ema, player, step
    reward_BR = self._implicit_rewards(params, frozen, batch["train"], rng)
    metrics = _metrics(reward_BR)
    return types.Loss(*metrics["loss"], metrics, {})

  def predict_fns(self) -> dict[str, Callable]:
    """Stage denoise's that draw; and `val_loss`: {name: (sum, weight)} of pairs whose text nothing hides."""

    def val_loss(params, frozen, batch, rng=None):
      del rng
      key = jax.random.key(_VAL_KEY)
      return _metrics(self._implicit_rewards(params, frozen, batch["train"], key, drop=False))

    return {**self.base.predict_fns(), "val_loss": val_loss}

  def _implicit_rewards(self, params, frozen, data, rng, drop: bool = True) -> jax.Array:
    """r_BR, differentiable in the policy alone."""
    picture_BRHWC = data["latent_BRHWC"] if "latent_BRHWC" in data else data["image_BRHWC"]
    b, r = picture_BRHWC.shape[:2]
    each = functools.partial(jnp.repeat, repeats=r, axis=0)
    x0_XHWC = self.model.encode_image(
      frozen, picture_BRHWC.reshape(b * r, *picture_BRHWC.shape[2:])
    )
    draw = self.base.draw(rng, data["id_B"], x0_XHWC.shape[1:])
    features = self.model.text_features(
      frozen,
      data["llm_ids_BL"],
      data["byt5_ids_BG"],
      drop_llm_B=draw.drop_llm_B if drop else None,
      drop_byt5_B=draw.drop_byt5_B if drop else None,
      cached=denoise.cached(data),
    )
    seen = (x0_XHWC, each(draw.eps_BHWC), each(draw.t_B), jax.tree.map(each, data.get("size_B2")))
    labels = self.base.asked(b)

    def error(part, tree) -> jax.Array:
      """error_BR of one of the two models, which splices the text by its own projection."""
      x0_XHWC, eps_XHWC, t_X, size_X2 = seen
      dit = self._parts[part].bind(tree)
      cond = jax.tree.map(each, dit.splice(*features).replace(**labels))
      error_X = denoise.velocity_error(dit, x0_XHWC, eps_XHWC, t_X, cond, size_X2)
      return error_X.reshape(b, r)

    reference_BR = jax.lax.stop_gradient(error(REFERENCE, frozen[REFERENCE]))
    return -0.5 * self.cfg.beta * (error("dit", params["dit"]) - reference_BR)


def _metrics(reward_BR: jax.Array) -> dict[str, tuple[jax.Array, jax.Array]]:
  """{name: (sum, weight)}: loss; accuracy, the share of pairs ranked right, where a tie is half; both rewards.

  The policy lies at chance, on log 2, where it equals the reference. A reward below 0 says that a picture has become
  less likely than it was: the preferred one too may, as long as the rejected one does more so.
  """
  weight = jnp.float32(len(reward_BR))
  values = {
    "loss": reward.ranking_loss(reward_BR),
    "accuracy": 0.5 + 0.5 * jnp.sign(reward_BR[:, 0] - reward_BR[:, 1]),
    "reward_preferred": reward_BR[:, 0],
    "reward_rejected": reward_BR[:, 1],
  }
  return {name: (jnp.sum(value_B), weight) for name, value_B in values.items()}


def make(config: ConfigDict) -> Dpo:
  """The stage of an experiment config; the reference is the DiT without adapters."""
  stage = {k: v for k, v in config.stage.to_dict().items() if k not in ("name", "denoise")}
  cfg, base = variants.fill(DpoConfig, stage, "stage"), denoise.make(denoise.config_within(config))
  plain = {k: v for k, v in config.model.dit.to_dict().items() if k != "lora"}
  alone = text_to_image.TextToImage(ConfigDict({"dit": plain}), trained=())
  return Dpo(cfg, base, alone.parts["dit"])
