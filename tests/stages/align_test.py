"""Alignment losses against numpy, what they reward, and one golden step a mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.stages import align
from tests.models import tiny

TOWER = dict(variant="nano", widths=(8, 16), embed_dim=11)
MODES = {
  "lm": dict(stage=dict(mode="lm", recall_weight=0.7), model=dict(llm=tiny.LLM)),
  "pair": dict(
    stage=dict(mode="pair", lm_weight=0.5, recall_weight=0.7), model=dict(llm=tiny.LLM, tower=TOWER)
  ),
  "glyph": dict(
    stage=dict(mode="glyph", hard_weight=1.0, anchors="true"),
    model=dict(byt5=tiny.BYT5, glyph_tower=dict(TOWER, bins=(2, 3), text_hidden=13)),
  ),
}


def _stage(mode: str, **stage):
  config = ConfigDict(MODES[mode])
  config.stage.update(stage)
  return align.make(config)


def _batch(mode: str, batch: int = 3, seed: int = 0) -> types.Batch:
  rng = np.random.default_rng(seed)
  if mode == "glyph":  # 2 strings a sheet, 4 cells each, on an 16 x 24 sheet
    y0_BJN = np.broadcast_to(np.array([0.0, 0.5])[None, :, None], (batch, 2, 4))
    x0_BJN = np.broadcast_to(np.arange(4)[None, None] / 4, (batch, 2, 4))
    stream = dict(
      sheet_BHWC=rng.integers(0, 256, (batch, 16, 24, 3), dtype=np.uint8),
      boxes_BJN4=np.stack([y0_BJN, x0_BJN, y0_BJN + 0.5, x0_BJN + 0.25], -1).astype(np.float32),
      byt5_ids_BJNG=np.pad(rng.integers(3, 259, (batch, 2, 4, 3)), [(0, 0)] * 3 + [(0, 2)]),
    )
    return {"train": {k: jnp.asarray(v) for k, v in stream.items()}}
  ids_BL = rng.integers(4, 23, (batch, 7))
  ids_BL[0, 4:] = 0
  images_BHWC = rng.integers(0, 256, (batch, 8, 12, 3), dtype=np.uint8)
  return {"train": dict(llm_ids_BL=jnp.asarray(ids_BL), image_BHWC=jnp.asarray(images_BHWC))}


def _params(stage, seed: int = 0) -> dict[str, types.Params]:
  rng = np.random.default_rng(seed)
  abstract = {name: part.abstract for name, part in stage.parts().items()}
  return jax.tree.map(
    lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape), jnp.float32), abstract
  )


def _loss(stage, params, batch, player=None) -> types.Loss:
  player = player or stage.players[0]
  return stage.loss(
    params, {}, {}, batch, jax.random.key(0), player=player, step=jnp.zeros((), int)
  )


def _unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


class LossTest(parameterized.TestCase):
  def test_next_token_loss_equals_numpy(self):
    rng = np.random.default_rng(0)
    logits_BLV = rng.standard_normal((2, 5, 7)).astype(np.float32)
    ids_BL = np.array([[4, 5, 6, 3, 0], [2, 6, 3, 0, 0]])
    loss_BL, weight_BL = align.next_token_loss(
      jnp.asarray(logits_BLV), jnp.asarray(ids_BL), jnp.asarray(ids_BL != 0)
    )
    np.testing.assert_array_equal(weight_BL, [[1, 1, 1, 0], [1, 1, 0, 0]])
    for b in range(2):
      for i in range(4):
        p = np.exp(logits_BLV[b, i]) / np.exp(logits_BLV[b, i]).sum()
        self.assertAlmostEqual(float(loss_BL[b, i]), -np.log(p[ids_BL[b, i + 1]]), places=5)

  @parameterized.parameters((0, 3), (3, 0), (21, 22))
  def test_the_loss_does_not_depend_on_which_ids_pad_and_end(self, pad_id, eos_id):
    """Ids and the rows of the embedding, renamed alike."""
    stage = _stage("pair")
    params, batch = _params(stage), _batch("pair")
    rename = np.arange(23)
    rename[[pad_id, eos_id, 0, 3]] = rename[[0, 3, pad_id, eos_id]]
    if {pad_id, eos_id} == {0, 3}:
      rename[[0, 3]] = pad_id, eos_id
    ids_BL = np.array([[5, 6, 3, 0, 0, 0, 0], [7, 8, 9, 10, 3, 0, 0], [11, 12, 13, 14, 15, 16, 3]])
    config = ConfigDict(MODES["pair"])
    config.model.llm.update(dict(pad_id=pad_id, eos_id=eos_id))
    table_VE = params["llm"]["embed_tokens"]["embedding"]
    moved = {**params["llm"], "embed_tokens": {"embedding": table_VE[np.argsort(rename)]}}
    want = _loss(stage, params, {"train": dict(batch["train"], llm_ids_BL=jnp.asarray(ids_BL))})
    got = _loss(
      align.make(config),
      {**params, "llm": moved},
      {"train": dict(batch["train"], llm_ids_BL=jnp.asarray(rename[ids_BL]))},
    )
    np.testing.assert_allclose(got.total, want.total, rtol=1e-5)
    np.testing.assert_allclose(got.metrics["lm/loss"][1], 2 + 4 + 6)  # tokens that are predicted

  def test_contrastive_loss_equals_the_papers_double_sum(self):
    rng = np.random.default_rng(0)
    x_MP, y_MP, t = _unit(rng.standard_normal((5, 3))), _unit(rng.standard_normal((5, 3))), 3.7
    want = 0.0
    for m in range(5):
      right = np.exp(t * x_MP[m] @ y_MP[m])
      z_x = sum(np.exp(t * x_MP[m] @ y_MP[n]) for n in range(5))
      z_y = sum(np.exp(t * x_MP[n] @ y_MP[m]) for n in range(5))
      want -= (np.log(right / z_x) + np.log(right / z_y)) / (2 * 5)
    got = jnp.mean(align.contrastive_loss(jnp.asarray(x_MP), jnp.asarray(y_MP), jnp.asarray(t)))
    self.assertAlmostEqual(float(got), want, places=5)

  def test_hard_loss_equals_the_papers_double_sum(self):
    rng = np.random.default_rng(0)
    x_MNP, y_MNP = (_unit(rng.standard_normal((5, 4, 3))) for _ in range(2))
    t, want = 3.7, 0.0
    for m in range(5):
      right = np.exp(t * x_MNP[m, 0] @ y_MNP[m, 0])
      z_x = sum(np.exp(t * x_MNP[m, 0] @ y_MNP[m, n]) for n in range(4))
      z_y = sum(np.exp(t * x_MNP[m, n] @ y_MNP[m, 0]) for n in range(4))
      want -= (np.log(right / z_x) + np.log(right / z_y)) / (2 * 5)
    got_MN = align.hard_loss(jnp.asarray(x_MNP), jnp.asarray(y_MNP), jnp.asarray(t))
    self.assertAlmostEqual(float(jnp.mean(got_MN[:, 0])), want, places=5)
    # Another column is what the paper would say if that cell were the true one.
    swapped = (jnp.asarray(v[:, [2, 1, 0, 3]]) for v in (x_MNP, y_MNP))
    np.testing.assert_allclose(
      got_MN[:, 2], align.hard_loss(*swapped, jnp.asarray(t))[:, 0], rtol=1e-5
    )

  def test_twins_are_no_negatives(self):
    rng = np.random.default_rng(0)
    x_MP = jnp.asarray(_unit(rng.standard_normal((4, 3))))
    y_MP = jnp.asarray(_unit(rng.standard_normal((4, 3)))).at[3].set(0).at[3].set(x_MP[0])
    same_MM = jnp.eye(4, dtype=bool).at[0, 3].set(True).at[3, 0].set(True)
    # Without its twin, box 0 sees what it would see in a batch of the other three.
    full_M = align.contrastive_loss(x_MP, y_MP, jnp.asarray(9.0), same_MM)
    part_M = align.contrastive_loss(x_MP[:3], y_MP[:3], jnp.asarray(9.0))
    self.assertAlmostEqual(float(full_M[0]), float(part_M[0]), places=5)
    self.assertLess(
      float(full_M[0]), float(align.contrastive_loss(x_MP, y_MP, jnp.asarray(9.0))[0])
    )
    grad = jax.grad(lambda x: jnp.sum(align.contrastive_loss(x, y_MP, jnp.asarray(9.0), same_MM)))
    self.assertTrue(np.isfinite(grad(x_MP)).all())

  def test_perfect_alignment_is_free_and_chance_is_log_n(self):
    eye_MP = jnp.eye(6)
    self.assertLess(float(jnp.max(align.contrastive_loss(eye_MP, eye_MP, jnp.asarray(50.0)))), 1e-6)
    same_MP = jnp.ones((6, 2)) / 2**0.5
    np.testing.assert_allclose(
      align.contrastive_loss(same_MP, same_MP, jnp.asarray(5.0)), np.log(6), rtol=1e-5
    )
    same_MNP = jnp.ones((2, 7, 3)) / 3**0.5
    np.testing.assert_allclose(
      align.hard_loss(same_MNP, same_MNP, jnp.asarray(5.0)), np.log(7), rtol=1e-5
    )

  def test_hard_negatives_must_be_in_the_loss_to_be_told_apart(self):
    """A text is a word plus an edit, and so is a picture: L_box alone leaves edits unaligned."""
    rng = np.random.default_rng(0)
    edit_MN = jnp.asarray(rng.permuted(np.tile(np.arange(4), (23, 1)), axis=1))  # column 0 is true
    shapes = dict(x=(23, 17), y=(23, 17), x_edit=(4, 17), y_edit=(4, 17))
    start = {k: jnp.asarray(rng.standard_normal(v), jnp.float32) for k, v in shapes.items()}

    def embed(p):
      pair = (p[k][:, None] + 0.2 * p[f"{k}_edit"][edit_MN] for k in "xy")
      return (v / jnp.linalg.norm(v, axis=-1, keepdims=True) for v in pair)

    def loss(p, hard_weight):
      x_MNP, y_MNP = embed(p)
      t = jnp.asarray(10.0)
      box_M = align.contrastive_loss(x_MNP[:, 0], y_MNP[:, 0], t)
      return jnp.sum(box_M) + hard_weight * jnp.sum(align.hard_loss(x_MNP, y_MNP, t)[:, 0])

    @jax.jit
    def accuracy(hard_weight):
      def step(p, _):
        return jax.tree.map(lambda v, g: v - 0.05 * g, p, jax.grad(loss)(p, hard_weight)), None

      x_MNP, y_MNP = embed(jax.lax.scan(step, start, None, 200)[0])
      score_MN = jnp.einsum("mp,mnp->mn", x_MNP[:, 0], y_MNP)
      return jnp.mean(score_MN[:, 0] > jnp.max(score_MN[:, 1:], axis=1))

    self.assertEqual(float(accuracy(1.0)), 1.0)
    self.assertLess(float(accuracy(0.0)), 0.7)


class StageTest(parameterized.TestCase):
  @parameterized.parameters(*MODES)
  def test_parts_are_the_players(self, mode):
    stage = _stage(mode)
    self.assertEqual(tuple(stage.parts()), stage.players)

  @parameterized.parameters(*MODES)
  def test_gradient_reaches_every_leaf_of_every_player(self, mode):
    stage, batch = _stage(mode), _batch(mode)
    params = _params(stage)
    for player in stage.players:
      fn = lambda tree, p=player: _loss(stage, {**params, p: tree}, batch, p).total  # noqa: E731
      grads = jax.jit(jax.grad(fn))(params[player])
      for path, g in jax.tree_util.tree_leaves_with_path(grads):
        self.assertGreater(float(jnp.max(jnp.abs(g))), 0, (player, jax.tree_util.keystr(path)))

  def test_lm_padding_counts_for_nothing(self):
    stage, batch = _stage("lm"), _batch("lm")
    params = _params(stage)
    padded = {"train": {"llm_ids_BL": jnp.pad(batch["train"]["llm_ids_BL"], ((0, 0), (0, 5)))}}
    short, long = (jax.jit(lambda b: _loss(stage, params, b))(b) for b in (batch, padded))
    self.assertEqual(float(short.metrics["lm/loss"][1]), 3 + 6 + 6)
    self.assertEqual(float(short.metrics["lm/recall"][1]), 4 + 7 + 7)
    np.testing.assert_allclose(long.total, short.total, rtol=1e-5)
    self.assertEqual((float(short.weight), float(long.weight)), (3, 3))

  @parameterized.parameters("lm", "pair")
  def test_features_ignore_the_bucket(self, mode):
    stage, batch = _stage(mode), _batch(mode)
    params = _params(stage)
    fn = jax.jit(lambda b: stage.predict_fns()["features"](params, {}, b, jax.random.key(0)))
    padded = {"train": {"llm_ids_BL": jnp.pad(batch["train"]["llm_ids_BL"], ((0, 0), (0, 5)))}}
    self.assertEqual(fn(batch).shape, (3, 24))
    np.testing.assert_allclose(fn(padded), fn(batch), atol=1e-5)

  def test_pair_keeps_the_loss_of_mode_lm(self):
    batch, params = _batch("pair"), _params(_stage("pair"))
    with_lm, without = (
      jax.jit(functools.partial(_loss, _stage("pair", lm_weight=w), batch=batch))(params)
      for w in (0.5, 0.0)
    )
    alone = jax.jit(lambda p: _loss(_stage("lm"), p, batch))(params)
    self.assertGreater(float(alone.total), 0)
    np.testing.assert_allclose(with_lm.total - without.total, 0.5 * alone.total, rtol=1e-4)

  def test_lm_is_the_mean_over_tokens_of_each_text(self):
    """Against numpy, from the model's own features."""
    stage, batch = _stage("lm"), _batch("lm")
    params, ids_BL = _params(stage), np.asarray(batch["train"]["llm_ids_BL"])
    features_BLE = jax.jit(stage.parts()["llm"].bind(params["llm"]))(ids_BL)
    table_VE = np.asarray(params["llm"]["embed_tokens"]["embedding"])
    want = 0.0
    for ids, rows in zip(ids_BL, np.asarray(features_BLE)):
      length = int((ids != 0).sum())
      next_LV, own_LV = rows @ table_VE.T, rows[:, ::-1] @ table_VE.T
      nll = lambda scores, i: np.log(np.exp(scores).sum()) - scores[i]  # noqa: E731
      want += np.mean([nll(next_LV[i], ids[i + 1]) for i in range(length - 1)])
      want += 0.7 * np.mean([nll(own_LV[i], ids[i]) for i in range(length)])
    loss = jax.jit(lambda p: _loss(stage, p, batch))(params)
    np.testing.assert_allclose(loss.total, want, rtol=1e-4)

  @parameterized.parameters(("true", 6), ("all", 24))
  def test_glyph_total_is_box_plus_hard(self, anchors, weight):
    stage, batch = _stage("glyph", anchors=anchors), _batch("glyph")
    params = _params(stage)

    @jax.jit
    def both(params):
      x_MNP, y_MNP = stage.embed(params, batch["train"])
      scale = stage.parts()["glyph_tower"].bind(params["glyph_tower"]).scale()
      used = slice(None) if anchors == "all" else slice(1)
      x_AP, y_AP = (v[:, used].reshape(-1, 11) for v in (x_MNP, y_MNP))
      box = jnp.sum(align.contrastive_loss(x_AP, y_AP, scale))
      return (
        box,
        jnp.sum(align.hard_loss(x_MNP, y_MNP, scale)[:, used]),
        _loss(stage, params, batch),
      )

    box, hard, loss = both(params)
    np.testing.assert_allclose(loss.total, box + hard, rtol=1e-4)
    self.assertEqual(float(loss.weight), weight)

  @parameterized.parameters(
    ("lm", 5.676599, dict(llm=0.03115993)),
    ("pair", 3.956548, dict(llm=0.01564101, tower=0.000556013)),
    ("glyph", 3.177263, dict(byt5=0.003087989, glyph_tower=0.002408715)),
  )
  def test_golden_step(self, mode, loss, grad_rms):
    stage, batch = _stage(mode), _batch(mode)

    def mean(params):
      out = _loss(stage, params, batch)
      return out.total / out.weight

    value, grads = jax.jit(jax.value_and_grad(mean))(_params(stage))
    got = {"loss": float(value)}
    for player, tree in grads.items():
      got[player] = float(optax.tree.norm(tree)) / sum(g.size for g in jax.tree.leaves(tree)) ** 0.5
    for name, want in {"loss": loss, **grad_rms}.items():
      message = f"{got}. If the change is meant, say why in the commit and update the numbers."
      np.testing.assert_allclose(got[name], want, rtol=1e-3, err_msg=message)

  def test_unknown_mode(self):
    with self.assertRaisesRegex(types.UserError, "'glif', expected one of"):
      align.make(ConfigDict(dict(stage=dict(mode="glif"))))
    with self.assertRaisesRegex(types.UserError, "anchors: 'every', expected true or all"):
      _stage("glyph", anchors="every")


if __name__ == "__main__":
  absltest.main()
