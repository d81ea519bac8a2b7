"""Training the glyph reader, the rater of text: which character stands in each place of a string.

Dims: B batch, A label columns, L character slots, V characters and "none", H W C image.
It must be trained on typefaces that no judge has seen: the config's data say which.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.models import glyph_reader, vae, variants
from seedream_jax.stages import classify

# The half of the picture that holds the text, by the scene's word; rows are y0, x0, y1, x1.
PLACES = ("top", "bottom", "left", "right")
_ZONES = np.array([[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 1, 0.5], [0, 0.5, 1, 1]], np.float32)


@dataclasses.dataclass(frozen=True)
class ReadConfig:
  """The config's stage group, without its name.

  Attributes:
    noise_std: of the Gaussian noise added to images, so that no answer hangs on a pixel.
  """

  noise_std: float = 0.1


class Read:
  """One player, the reader. Labels are one column a slot, then the place; -1 stands for absent."""

  players = ("glyph_reader",)

  def __init__(self, cfg: ReadConfig, model: ConfigDict):
    self.cfg = cfg
    self.model_cfg = glyph_reader.make_config(**model.glyph_reader)
    self._part = types.Part.from_module(
      lambda rngs: glyph_reader.GlyphReader(self.model_cfg, rngs=rngs)
    )

  def parts(self) -> dict[str, types.Part]:
    """The reader."""
    return {"glyph_reader": self._part}

  def init(self, rng: jax.Array, frozen: dict[str, types.Params]) -> dict[str, types.Params]:
    """The reader from scratch."""
    del frozen
    return {"glyph_reader": self._part.init(rng)}

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
    """Sum over pictures with text of the slots' mean cross-entropy; noise follows the id."""
    del frozen, ema, player, step
    data = batch["train"]
    image_BHWC = classify.noisy_pixels(data, rng, self.cfg.noise_std)
    return self._loss(params, image_BHWC, data["label_BA"])

  def predict_fns(self) -> dict[str, Callable]:
    """log_probs and val_loss: fn(params, frozen, batch, rng)."""
    return {"log_probs": self._log_probs, "val_loss": self._val_loss}

  def _logits(self, params, image_BHWC, place_B) -> jax.Array:
    zone_B4 = jnp.asarray(_ZONES)[jnp.maximum(place_B, 0)]
    return self._part.bind(params["glyph_reader"])(image_BHWC, zone_B4)

  def _loss(self, params, image_BHWC, label_BA) -> types.Loss:
    if label_BA.shape[1] != self.model_cfg.slots + 1:
      raise ValueError(
        f"label_BA of shape {label_BA.shape}: expected {self.model_cfg.slots} slots and a place"
      )
    target_BL, place_B = label_BA[:, :-1], label_BA[:, -1]
    target_BL = jnp.where(target_BL < 0, self.model_cfg.characters, target_BL)
    logits_BLV = self._logits(params, image_BHWC, place_B)
    loss_BL = optax.softmax_cross_entropy_with_integer_labels(logits_BLV, target_BL)
    right_BL = jnp.argmax(logits_BLV, axis=-1) == target_BL
    asked_B = (place_B >= 0).astype(jnp.float32)
    asked_B1 = asked_B[:, None]
    written_BL = (target_BL < self.model_cfg.characters) * asked_B1
    num = jnp.sum(asked_B)
    metrics = {
      "slot_loss": (jnp.sum(jnp.mean(loss_BL, axis=1) * asked_B), num),
      "character_accuracy": (jnp.sum(right_BL * written_BL), jnp.sum(written_BL)),
      "string_accuracy": (jnp.sum(jnp.all(right_BL, axis=1) * asked_B), num),
    }
    return types.Loss(metrics["slot_loss"][0], num, metrics, {})

  def _log_probs(self, params, frozen, batch, rng) -> jax.Array:
    """log_probs_BLV of each picture; of its labels only the place is read."""
    del frozen, rng
    data = batch["train"]
    logits_BLV = self._logits(params, vae.pixels(data["image_BHWC"]), data["label_BA"][:, -1])
    return jax.nn.log_softmax(logits_BLV)

  def _val_loss(self, params, frozen, batch, rng) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of the loss without noise."""
    del frozen, rng
    data = batch["train"]
    loss = self._loss(params, vae.pixels(data["image_BHWC"]), data["label_BA"])
    return loss.total, loss.weight


def make(config: ConfigDict) -> Read:
  """The stage of a whole experiment config."""
  fields = {k: v for k, v in config.stage.items() if k != "name"}
  return Read(variants.fill(ReadConfig, fields, "stage"), config.model)
