"""Training classifier B, a judge: which subjects, which background, how many, any text.

Dims: B batch, A label columns, V classes, H W C image.
Its answers stand beside the matched filter's, and its features carry the Frechet distance (FD-judge).
It must be trained on renders that no generator, reward or rater sees: the config's data say which.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.data import labels as labels_lib
from seedream_jax.flow import timesteps
from seedream_jax.models import classifier, vae, variants

_HEADS = ("subject", "color", "count", "text")


@dataclasses.dataclass(frozen=True)
class ClassifyConfig:
  """The config's stage group, without its name.

  Attributes:
    subject_weight, color_weight, count_weight, text_weight: of each question's cross-entropy in nats.
    noise_std: of the Gaussian noise added to images, so that no answer hangs on a pixel.
  """

  subject_weight: float = 1.0
  color_weight: float = 1.0
  count_weight: float = 1.0
  text_weight: float = 1.0
  noise_std: float = 0.05


class Classify:
  """One player, the classifier."""

  players = ("classifier",)

  def __init__(self, cfg: ClassifyConfig, model: ConfigDict):
    self.cfg = cfg
    self.model_cfg = classifier.make_config(**model.classifier)
    self._sizes = dict(self.model_cfg.heads)
    if set(self._sizes) != set(_HEADS):
      raise types.UserError(f"model.classifier.heads: {sorted(self._sizes)}, expected {_HEADS}")
    self._part = types.Part.from_module(
      lambda rngs: classifier.Classifier(self.model_cfg, rngs=rngs)
    )

  def parts(self) -> dict[str, types.Part]:
    """The classifier."""
    return {"classifier": self._part}

  def init(self, rng: jax.Array, frozen: dict[str, types.Params]) -> dict[str, types.Params]:
    """The classifier from scratch."""
    del frozen
    return {"classifier": self._part.init(rng)}

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
    """Sum over examples of the weighted cross-entropies; noise follows the example's id."""
    del frozen, ema, player, step
    data = batch["train"]
    return self._loss(params, noisy_pixels(data, rng, self.cfg.noise_std), data["label_BA"])

  def predict_fns(self) -> dict[str, Callable]:
    """features, logits and val_loss: fn(params, frozen, batch, rng)."""
    return {"features": self._features, "logits": self._logits, "val_loss": self._val_loss}

  def _loss(self, params, image_BHWC, label_BA) -> types.Loss:
    cfg, sizes = self.cfg, self._sizes
    labels = labels_lib.decode(label_BA, sizes["subject"])
    logits = self._part.bind(params["classifier"])(image_BHWC)
    subject_BV, color_BV, count_BV = (logits[name] for name in ("subject", "color", "count"))
    text_B = logits["text"][:, 0]
    all_B = jnp.ones(len(label_BA))
    # question: (its weight, losses, right answers, 1 where the scene has an answer)
    answers = {
      "subject": (
        cfg.subject_weight,
        subject_loss(subject_BV, labels.subject_BV),
        jnp.all((subject_BV > 0) == (labels.subject_BV > 0), axis=1),
        all_B,
      ),
      "color": (cfg.color_weight, *_one_of(color_BV, labels.color_B)),
      "count": (cfg.count_weight, *_one_of(count_BV, labels.count_B)),
      "text": (
        cfg.text_weight,
        optax.sigmoid_binary_cross_entropy(text_B, labels.text_B),
        (text_B > 0) == (labels.text_B > 0),
        all_B,
      ),
    }
    total = sum(weight * jnp.sum(loss_B) for weight, loss_B, _, _ in answers.values())
    metrics = {}
    for name, (_, loss_B, right_B, asked_B) in answers.items():
      asked = jnp.sum(asked_B)
      metrics[f"{name}_loss"] = (jnp.sum(loss_B), asked)
      metrics[f"{name}_accuracy"] = (jnp.sum(jnp.where(right_B, asked_B, 0.0)), asked)
    return types.Loss(total, jnp.float32(len(label_BA)), metrics, {})

  def _features(self, params, frozen, batch, rng) -> jax.Array:
    """features_BE for the Frechet distance."""
    del frozen, rng
    image_BHWC = vae.pixels(batch["train"]["image_BHWC"])
    return self._part.bind(params["classifier"]).embedding(image_BHWC)

  def _logits(self, params, frozen, batch, rng) -> dict[str, jax.Array]:
    """{head: logits_BV}."""
    del frozen, rng
    image_BHWC = vae.pixels(batch["train"]["image_BHWC"])
    return self._part.bind(params["classifier"])(image_BHWC)

  def _val_loss(self, params, frozen, batch, rng) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of the loss without noise."""
    del frozen, rng
    image_BHWC = vae.pixels(batch["train"]["image_BHWC"])
    loss = self._loss(params, image_BHWC, batch["train"]["label_BA"])
    return loss.total, loss.weight


def noisy_pixels(data, rng: jax.Array, std: float) -> jax.Array:
  """The batch's pictures in [-1, 1], float32 [B, H, W, C], plus Gaussian noise that follows the example's id."""
  image_BHWC = vae.pixels(data["image_BHWC"])
  return image_BHWC + std * timesteps.noise(rng, data["id_B"], image_BHWC.shape[1:])


def subject_loss(logits_BV: jax.Array, target_BV: jax.Array) -> jax.Array:
  """Binary cross-entropies of independent subjects, summed; (B,)."""
  return jnp.sum(optax.sigmoid_binary_cross_entropy(logits_BV, target_BV), axis=1)


def class_loss(logits_BV: jax.Array, target_B: jax.Array) -> jax.Array:
  """Cross-entropy of one class among V, 0 where the target is -1; (B,)."""
  loss_B = optax.softmax_cross_entropy_with_integer_labels(logits_BV, jnp.maximum(target_B, 0))
  return jnp.where(target_B >= 0, loss_B, 0.0)


def _one_of(logits_BV: jax.Array, target_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(losses, right answers, 1 where there is a target), each (B,)."""
  right_B = jnp.argmax(logits_BV, axis=1) == target_B
  return class_loss(logits_BV, target_B), right_B, (target_B >= 0).astype(jnp.float32)


def make(config: ConfigDict) -> Classify:
  """The stage of a whole experiment config."""
  fields = {k: v for k, v in config.stage.items() if k != "name"}
  return Classify(variants.fill(ClassifyConfig, fields, "stage"), config.model)
