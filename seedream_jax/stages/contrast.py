"""Training a CLIP where none is at hand: its picture tower and text projection, beside the model's frozen encoders.

CLIP's loss between the pictures of a batch and their captions, zh and en together (arXiv 2103.00020, Sec. 2.3), with
the text encoders locked, as LiT (arXiv 2111.07991). Its negatives are the batch, so what the batch does not tell apart
is not learned: siblings of a scene, which differ in one thing, belong in one batch (`data.streams.train.siblings`).
Reward models start from what it makes, as they would from a published one.  # ours

Dims: B pictures and captions, H W C pixels, L LLM tokens, G glyph bytes, P joint embedding.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.models import variants
from seedream_jax.stages import align, classify, reward


@dataclasses.dataclass(frozen=True)
class ContrastConfig:
  """The config's stage group, without its name.

  Attributes:
    noise_std: of the Gaussian noise added to pictures in training, so that no answer hangs on a pixel.  # ours
  """

  noise_std: float = 0.1


class Contrast(reward.TowerStage):
  """The tower on pictures and captions. Reads `image_BHWC`, `llm_ids_BL` and `byt5_ids_BG`."""

  def __init__(self, cfg: ContrastConfig, model: ConfigDict):
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
    """Sum over pictures of contrastive_loss; how often each finds its caption, and the captions their pictures."""
    del ema, player, step
    data = batch["train"]
    return self._loss(params, frozen, data, classify.noisy_pixels(data, rng, self.cfg.noise_std))

  def predict_fns(self) -> dict[str, Callable]:
    """`val_loss`: (sum, weight), without noise."""

    def val_loss(params, frozen, batch, rng=None):
      del rng
      loss = self._loss(params, frozen, batch["train"], batch["train"]["image_BHWC"])
      return loss.total, loss.weight

    return {"val_loss": val_loss}

  def _loss(self, params, frozen, data, image_BHWC) -> types.Loss:
    tower = self._parts["tower"].bind(params["tower"])
    x_BP = tower.image(image_BHWC)
    y_BP = tower.text(*reward.text_features(self.model, frozen, data))
    same_BB = reward.same_prompt(data)
    loss_B = align.contrastive_loss(x_BP, y_BP, tower.scale(), same_BB)
    weight = jnp.asarray(len(x_BP), jnp.float32)

    def found(cosine_BB):
      picks_B = jnp.argmax(cosine_BB, axis=1)
      right_B = jnp.take_along_axis(same_BB, picks_B[:, None], axis=1)[:, 0]
      return jnp.sum(right_B.astype(jnp.float32)), weight

    cosine_BB = x_BP @ y_BP.T
    metrics = {
      "caption_found": found(cosine_BB),
      "picture_found": found(cosine_BB.T),
      "scale": (tower.scale(), jnp.ones(())),
    }
    return types.Loss(jnp.sum(loss_B), weight, metrics, {})


def make(config: ConfigDict) -> Contrast:
  """The stage of an experiment config."""
  fields = {name: value for name, value in config.stage.items() if name != "name"}
  return Contrast(variants.fill(ContrastConfig, fields, "stage"), config.model)
