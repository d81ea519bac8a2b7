"""Aligning the text encoders before the DiT sees them (Seedream 2.0, Sec. 3.2-3.3).

`config.stage.mode` is one of
  lm     the LLM learns the captions' two languages by next-token prediction; player llm
  pair   the LLM is tuned on image-text pairs against an image tower; players llm, tower
  glyph  ByT5 is tuned on rendered strings (Glyph-ByT5); players byt5, glyph_tower

Dims: B batch, L LLM tokens, V vocabulary, E LLM width, H W C pixels, J strings a sheet, N = 1 +
hard negatives of a string (0 is the true one), G glyph bytes, M = B J true boxes, P joint
embedding.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.models import byt5, clip, glyph_tower, llm


def next_token_loss(
  logits_BLV: jax.Array, ids_BL: jax.Array, mask_BL: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """-log p of each token given those before it, and where it counts; both [B, L - 1].

  Args:
    logits_BLV: next-token scores.
    ids_BL: the texts.
    mask_BL: True on their tokens, the end included.
  """
  target_BL = ids_BL[:, 1:]
  loss_BL = optax.softmax_cross_entropy_with_integer_labels(logits_BLV[:, :-1], target_BL)
  return loss_BL, mask_BL[:, 1:].astype(jnp.float32)


def recall_loss(model: llm.LLM, features_BLE: jax.Array, ids_BL: jax.Array) -> jax.Array:
  """-log p of each token given its own feature, [B, L]: a feature must still say what it stands on.

  A causal model has no use for a word once it is passed, and its last layer forgets it, but a DiT
  reads that layer. The embedding table scores this token from the feature read backwards, since in a
  tied model it already scores the next one from the feature itself.  # ours
  """
  scores_BLV = model.embed_tokens.attend(features_BLE[..., ::-1]).astype(jnp.float32)
  return optax.softmax_cross_entropy_with_integer_labels(scores_BLV, ids_BL)


def contrastive_loss(
  x_MP: jax.Array, y_MP: jax.Array, scale: jax.Array, same_MM: jax.Array | None = None
) -> jax.Array:
  """Each picture against all texts and each text against all pictures, per pair.

  On the true boxes of a batch this is Glyph-ByT5's L_box: -1/2 (log e^{t x_m.y_m} / Z_x + log
  e^{t x_m.y_m} / Z_y), with Z_x = sum_l e^{t x_m.y_l} and Z_y = sum_l e^{t x_l.y_m}.

  Args:
    x_MP: unit vectors of pictures, or boxes.
    y_MP: unit vectors of their texts.
    scale: t.
    same_MM: True where two texts are alike; off the diagonal such pairs are no negatives.  # ours
  """
  logits_MM = scale * x_MP @ y_MP.T
  if same_MM is not None:
    twin_MM = same_MM & ~jnp.eye(same_MM.shape[0], dtype=bool)
    logits_MM = jnp.where(twin_MM, -jnp.inf, logits_MM)
  right_M = jnp.diagonal(logits_MM)
  log_zx_M, log_zy_M = (jax.nn.logsumexp(logits_MM, axis=axis) for axis in (1, 0))
  return (log_zx_M + log_zy_M) / 2 - right_M


def hard_loss(x_MNP: jax.Array, y_MNP: jax.Array, scale: jax.Array) -> jax.Array:
  """Each box against its siblings' strings and each string against its siblings' boxes, [M, N].

  Siblings are a true string (n = 0) and its hard negatives. Column 0 is Glyph-ByT5's L_hard, as
  `contrastive_loss` with Z_x = sum_n e^{t x_m0.y_mn} and Z_y = sum_n e^{t x_mn.y_m0}; the others
  take each negative, which is rendered too, as the true one.
  """
  logits_MNN = scale * jnp.einsum("mip,mjp->mij", x_MNP, y_MNP)
  right_MN = jnp.diagonal(logits_MNN, axis1=1, axis2=2)
  log_zx_MN, log_zy_MN = (jax.nn.logsumexp(logits_MNN, axis=axis) for axis in (2, 1))
  return (log_zx_MN + log_zy_MN) / 2 - right_MN


class _Align:
  """What the modes share: parts named as players, all trained, none frozen."""

  players: tuple[str, ...]

  def __init__(self, parts: dict[str, types.Part]):
    self._parts = parts

  def parts(self) -> dict[str, types.Part]:
    """One part a player."""
    return self._parts

  def init(self, rng: jax.Array, frozen: dict[str, types.Params]) -> dict[str, types.Params]:
    """Every player from scratch."""
    del frozen
    return {
      name: part.init(jax.random.fold_in(rng, i))
      for i, (name, part) in enumerate(self._parts.items())
    }

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
    """The same loss for every player; each has its own gradient of it."""
    del frozen, ema, rng, player, step
    return self.objective(params, batch["train"])

  def objective(
    self, params: dict[str, types.Params], stream: Mapping[str, jax.Array]
  ) -> types.Loss:
    """The loss on one stream's features."""
    raise NotImplementedError

  def predict_fns(self) -> dict[str, Callable]:
    """`val_loss`: (sum, weight)."""

    def val_loss(params, frozen, batch, rng):
      del frozen, rng
      loss = self.objective(params, batch["train"])
      return loss.total, loss.weight

    return {"val_loss": val_loss}


class LanguageModel(_Align):
  """Mode `lm`: -log p(token | tokens before) + recall_weight `recall_loss`. Reads `llm_ids_BL`."""

  players = ("llm",)

  def __init__(self, config: ConfigDict):
    cfg = llm.make_config(**config.model.llm)
    super().__init__({"llm": types.Part.from_module(lambda rngs: llm.LLM(cfg, rngs=rngs))})
    self._recall_weight = config.stage.recall_weight

  def objective(
    self, params: dict[str, types.Params], stream: Mapping[str, jax.Array]
  ) -> types.Loss:
    """Mean over texts, each the mean over its tokens."""
    model, ids_BL = self._parts["llm"].bind(params["llm"]), stream["llm_ids_BL"]
    total_B, metrics = _language(model, model(ids_BL), ids_BL, self._recall_weight)
    weight = jnp.asarray(len(ids_BL), jnp.float32)
    return types.Loss(jnp.sum(total_B), weight, metrics, {})

  def predict_fns(self) -> dict[str, Callable]:
    """Adds `features`: pooled features of each caption, for the linear probes."""
    return {**super().predict_fns(), "features": _features(self._parts["llm"])}


class Pair(_Align):
  """Mode `pair`: contrastive loss between images and captions, and language so that it stays.

  The paper says only that the LLM is fine-tuned on text-image pairs, so that its features suit a
  DiT. # ours; undisclosed: CLIP's loss on a linear projection of pooled features, zh and en in one
  batch. Reads `image_BHWC` and `llm_ids_BL`.
  """

  players = ("llm", "tower")

  def __init__(self, config: ConfigDict):
    text = llm.make_config(**config.model.llm)
    tower = clip.make_config(**{"text_dim": 2 * text.width, **config.model.tower})
    super().__init__(
      {
        "llm": types.Part.from_module(lambda rngs: llm.LLM(text, rngs=rngs)),
        "tower": types.Part.from_module(lambda rngs: clip.Clip(tower, rngs=rngs)),
      }
    )
    self._lm_weight = config.stage.lm_weight
    self._recall_weight = config.stage.recall_weight

  def objective(
    self, params: dict[str, types.Params], stream: Mapping[str, jax.Array]
  ) -> types.Loss:
    """Mean over pairs of contrastive + lm_weight (the loss of mode `lm`)."""
    model, tower = (self._parts[name].bind(params[name]) for name in self.players)
    ids_BL = stream["llm_ids_BL"]
    features_BLE = model(ids_BL)
    x_BP = tower.image(stream["image_BHWC"])
    y_BP = tower.text(llm.pooled(features_BLE, llm.text_mask(model.cfg, ids_BL)))
    same_BB = jnp.all(ids_BL[:, None] == ids_BL[None], axis=-1)
    pair_B = contrastive_loss(x_BP, y_BP, tower.scale(), same_BB)
    language_B, metrics = _language(model, features_BLE, ids_BL, self._recall_weight)
    weight = jnp.asarray(len(x_BP), jnp.float32)
    picks_B = jnp.argmax(x_BP @ y_BP.T, axis=1)
    right_B = jnp.take_along_axis(same_BB, picks_B[:, None], axis=1)[:, 0]
    metrics |= {
      "pair/loss": (jnp.sum(pair_B), weight),
      "pair/accuracy": (jnp.sum(right_B).astype(jnp.float32), weight),
      "pair/scale": (tower.scale(), jnp.ones(())),
    }
    total = jnp.sum(pair_B) + self._lm_weight * jnp.sum(language_B)
    return types.Loss(total, weight, metrics, {})

  def predict_fns(self) -> dict[str, Callable]:
    """Adds `features`, as in mode `lm`."""
    return {**super().predict_fns(), "features": _features(self._parts["llm"])}


class Glyph(_Align):
  """Mode `glyph`: L_box + L_hard between ByT5 and a tower over rendered sheets.

  `config.stage.anchors`: "true" is the paper; "all" also takes each hard negative, which has a box
  of its own, as an anchor: N times the pairs for the same encoders' work.  # ours

  Reads `sheet_BHWC` (uint8), `boxes_BJN4` (y0, x0, y1, x1 as fractions) and `byt5_ids_BJNG`.
  """

  players = ("byt5", "glyph_tower")

  def __init__(self, config: ConfigDict):
    text = byt5.make_config(**config.model.byt5)
    tower = glyph_tower.make_config(**{"text_dim": text.width, **config.model.glyph_tower})
    super().__init__(
      {
        "byt5": types.Part.from_module(lambda rngs: byt5.ByT5(text, rngs=rngs)),
        "glyph_tower": types.Part.from_module(
          lambda rngs: glyph_tower.GlyphTower(tower, rngs=rngs)
        ),
      }
    )
    self._hard_weight = config.stage.hard_weight
    self._all_cells = config.stage.anchors == "all"
    if config.stage.anchors not in ("true", "all"):
      raise types.UserError(f"stage.anchors: {config.stage.anchors!r}, expected true or all")

  def embed(
    self, params: dict[str, types.Params], stream: Mapping[str, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    """x_MNP of the boxes and y_MNP of the strings."""
    tower = self._parts["glyph_tower"].bind(params["glyph_tower"])
    boxes_BJN4, ids_BJNG = stream["boxes_BJN4"], stream["byt5_ids_BJNG"]
    b, j, n, g = ids_BJNG.shape
    x_BQP = tower(stream["sheet_BHWC"], boxes_BJN4.reshape(b, j * n, 4))
    ids_QG = ids_BJNG.reshape(-1, g)
    features_QGE = self._parts["byt5"].bind(params["byt5"])(ids_QG, ids_QG != byt5.PAD)
    y_QP = tower.text(features_QGE, ids_QG != byt5.PAD)
    return x_BQP.reshape(b * j, n, -1), y_QP.reshape(b * j, n, -1)

  def objective(
    self, params: dict[str, types.Params], stream: Mapping[str, jax.Array]
  ) -> types.Loss:
    """Mean over anchors of L_box + hard_weight L_hard."""
    x_MNP, y_MNP = self.embed(params, stream)
    m, n, _ = x_MNP.shape
    scale = self._parts["glyph_tower"].bind(params["glyph_tower"]).scale()
    cells = n if self._all_cells else 1
    ids_MNG = stream["byt5_ids_BJNG"].reshape(m, n, -1)
    ids_AG, x_AP, y_AP = (v[:, :cells].reshape(m * cells, -1) for v in (ids_MNG, x_MNP, y_MNP))
    same_AA = jnp.all(ids_AG[:, None] == ids_AG[None], axis=-1)
    box_A = contrastive_loss(x_AP, y_AP, scale, same_AA)
    hard_MN = hard_loss(x_MNP, y_MNP, scale)[:, :cells]
    total = jnp.sum(box_A) + self._hard_weight * jnp.sum(hard_MN)
    weight = jnp.asarray(len(ids_AG), jnp.float32)
    score_MN = jnp.einsum("mp,mnp->mn", x_MNP[:, 0], y_MNP)
    right_M = score_MN[:, 0] > jnp.max(score_MN[:, 1:], axis=1, initial=-2.0)  # a tie is wrong
    metrics = {
      "glyph/box_loss": (jnp.sum(box_A), weight),
      "glyph/hard_loss": (jnp.sum(hard_MN), weight),
      "glyph/hard_accuracy": (jnp.sum(right_M).astype(jnp.float32), jnp.asarray(m, jnp.float32)),
      "glyph/scale": (scale, jnp.ones(())),
    }
    return types.Loss(total, weight, metrics, {})

  def predict_fns(self) -> dict[str, Callable]:
    """Adds `embed`: (x_MNP, y_MNP), for retrieval among hard negatives."""

    def embed(params, frozen, batch, rng):
      del frozen, rng
      return self.embed(params, batch["train"])

    return {**super().predict_fns(), "embed": embed}


def _language(
  model: llm.LLM, features_BLE: jax.Array, ids_BL: jax.Array, recall_weight: float
) -> tuple[jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
  """Next-token and recall loss of each text, a mean over its tokens; metrics a mean over all tokens."""
  logits_BLV = model.logits(features_BLE)
  mask_BL = llm.text_mask(model.cfg, ids_BL)
  next_BL, next_weight_BL = next_token_loss(logits_BLV, ids_BL, mask_BL)
  right_BL = jnp.argmax(logits_BLV[:, :-1], axis=-1) == ids_BL[:, 1:]
  recall_BL = recall_loss(model, features_BLE, ids_BL)
  weight_BL = mask_BL.astype(jnp.float32)
  next_B, recall_B = (
    jnp.sum(loss * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)
    for loss, weight in ((next_BL, next_weight_BL), (recall_BL, weight_BL))
  )
  tokens = jnp.sum(next_weight_BL)
  metrics = {
    "lm/loss": (jnp.sum(next_BL * next_weight_BL), tokens),
    "lm/accuracy": (jnp.sum(right_BL * next_weight_BL), tokens),
    "lm/recall": (jnp.sum(recall_BL * weight_BL), jnp.sum(weight_BL)),
  }
  return next_B + recall_weight * recall_B, metrics


def _features(part: types.Part) -> Callable:
  def features(params, frozen, batch, rng):
    del frozen, rng
    ids_BL = batch["train"]["llm_ids_BL"]
    model = part.bind(params["llm"])
    return llm.pooled(model(ids_BL), llm.text_mask(model.cfg, ids_BL))

  return features


def make(config: ConfigDict) -> types.Stage:
  """The stage that `config.stage.mode` names."""
  mode = config.stage.mode
  if mode not in _MODES:
    raise types.UserError(f"stage.mode is {mode!r}, expected one of {sorted(_MODES)}")
  return _MODES[mode](config)


_MODES = {"lm": LanguageModel, "pair": Pair, "glyph": Glyph}
