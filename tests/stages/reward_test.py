"""The reward stage: the ranking loss against numpy, what moves it, one golden step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.stages import reward
from tests.models import tiny

B, R, L, G = 4, 2, 7, 4
TOWER = dict(
  variant="nano", widths=(8, 16), embed_dim=11, reader=dict(width=16, num_heads=2, mlp_dim=12)
)
GOLDEN = {"loss": 0.8945511, "grad_rms": 0.00186286}


def stage_of(**stage):
  model = dict(llm=tiny.LLM, byt5=tiny.BYT5, tower=TOWER)
  return reward.make(ConfigDict(dict(stage=dict(name="reward", **stage), model=model)))


def batch():
  rng = np.random.default_rng(0)
  llm_ids_BL = rng.integers(4, 23, (B, L)).astype(np.int32)
  llm_ids_BL[:, 5:] = [3, 0]
  byt5_ids_BG = np.tile(np.array([70, 80, 1, 0], np.int32), (B, 1))
  byt5_ids_BG[0], byt5_ids_BG[1, 0] = 0, 90
  return {
    "id_B": np.arange(B, dtype=np.uint32),
    "image_BRHWC": rng.integers(0, 256, (B, R, 8, 12, 3), dtype=np.uint8),
    "llm_ids_BL": llm_ids_BL,
    "byt5_ids_BG": byt5_ids_BG,
  }


@functools.cache
def _jit(stage):
  def loss(params, frozen, data):
    rng, step = jax.random.key(0), jnp.int32(0)
    return stage.loss(params, frozen, {}, {"train": data}, rng, player="tower", step=step)

  return jax.jit(loss)


class RewardTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.stage = stage_of()
    trees = {name: tiny.draw(part.abstract) for name, part in cls.stage.parts().items()}
    cls.params, cls.frozen = {"tower": trees.pop("tower")}, trees
    cls.scores = staticmethod(jax.jit(cls.stage.predict_fns()["scores"]))

  def loss(self, data, params=None, stage=None):
    return _jit(stage or self.stage)(params or self.params, self.frozen, data)

  def test_ranking_loss_equals_the_papers_formula(self):
    score_BR = np.array([[2.0, -1.0], [0.3, 0.3], [-4.0, 5.0]])
    want = -np.log(1 / (1 + np.exp(-(score_BR[:, 0] - score_BR[:, 1]))))
    np.testing.assert_allclose(reward.ranking_loss(jnp.asarray(score_BR)), want, rtol=1e-6)

  def test_loss_is_ranking_and_pairs(self):
    data = batch()
    got, ranked = self.loss(data), self.loss(data, stage=stage_of(pair_weight=0.0))
    score_BR = self.scores(self.params, self.frozen, {"train": data})
    np.testing.assert_allclose(ranked.total, jnp.sum(reward.ranking_loss(score_BR)), rtol=1e-5)
    np.testing.assert_allclose(
      got.total, ranked.total + 0.1 * got.metrics["pair_loss"][0], rtol=1e-5
    )
    self.assertEqual(float(got.weight), B)

  def test_beta_scales_what_is_ranked_and_not_the_reward(self):
    data, soft = batch(), stage_of(pair_weight=0.0, beta=0.2)
    score_BR = self.scores(self.params, self.frozen, {"train": data})
    want = jnp.sum(reward.ranking_loss(0.2 * score_BR))
    np.testing.assert_allclose(self.loss(data, stage=soft).total, want, rtol=1e-5)
    fns, given = soft.predict_fns(), (self.params, self.frozen, {"train": data})
    np.testing.assert_allclose(jax.jit(fns["val_loss"])(*given)[0], want, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(fns["scores"])(*given), score_BR, rtol=1e-5)

  def test_noise_is_of_training_and_one_for_both_of_a_pair(self):
    data, noisy = batch(), stage_of(pair_weight=0.0, noise_std=0.3)
    quiet = self.loss(data, stage=stage_of(pair_weight=0.0)).total
    self.assertGreater(abs(float(self.loss(data, stage=noisy).total - quiet)), 1e-2)
    given = (self.params, self.frozen, {"train": data})
    val_loss = jax.jit(noisy.predict_fns()["val_loss"])
    np.testing.assert_allclose(val_loss(*given)[0], quiet, rtol=1e-5)
    data["image_BRHWC"] = np.repeat(data["image_BRHWC"][:, :1], R, axis=1)
    np.testing.assert_allclose(self.loss(data, stage=noisy).total, B * np.log(2), rtol=1e-6)

  def test_reward_is_scale_times_a_cosine(self):
    score_BR = self.scores(self.params, self.frozen, {"train": batch()})
    self.assertEqual(score_BR.shape, (B, R))
    scale = self.stage.parts()["tower"].bind(self.params["tower"]).scale()
    self.assertLessEqual(float(jnp.abs(score_BR).max()), float(scale) * (1 + 1e-5))

  def test_it_reads_the_prompt_the_bytes_and_the_picture(self):
    data = batch()
    base = self.scores(self.params, self.frozen, {"train": data})
    for name, other in (
      ("llm_ids_BL", np.where(data["llm_ids_BL"] > 3, 5, data["llm_ids_BL"])),
      ("byt5_ids_BG", np.where(data["byt5_ids_BG"] > 3, 99, data["byt5_ids_BG"])),
      ("image_BRHWC", 255 - data["image_BRHWC"]),
    ):
      moved = self.scores(self.params, self.frozen, {"train": {**data, name: other}})
      self.assertGreater(float(jnp.abs(moved - base).max()), 1e-3, name)
    quiet = {**data, "byt5_ids_BG": np.where(np.arange(G) == 0, 1, 0) * np.ones((B, 1), np.int32)}
    moved = self.scores(self.params, self.frozen, {"train": quiet})
    np.testing.assert_allclose(moved[0], base[0], atol=1e-5)  # it quoted nothing before either

  def test_swapping_a_pair_swaps_its_scores(self):
    data = batch()
    base = self.scores(self.params, self.frozen, {"train": data})
    data["image_BRHWC"] = data["image_BRHWC"][:, ::-1]
    swapped = self.scores(self.params, self.frozen, {"train": data})
    np.testing.assert_allclose(swapped, base[:, ::-1], atol=1e-5)

  def test_golden_step(self):
    def total(params):
      return self.loss(batch(), params).total / B

    value, grads = jax.value_and_grad(total)(self.params)
    squares = [float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(grads)]
    rms = np.sqrt(sum(squares) / sum(g.size for g in jax.tree.leaves(grads)))
    got = {"loss": float(value), "grad_rms": float(rms)}
    for name, want in GOLDEN.items():
      np.testing.assert_allclose(got[name], want, rtol=1e-4, err_msg=f"update and say why: {got}")

  def test_a_few_steps_learn_the_preferred(self):
    """Bright over dark, whatever the prompt."""
    data = batch()
    data["image_BRHWC"] = np.broadcast_to(
      np.array([200, 60], np.uint8)[None, :, None, None, None], data["image_BRHWC"].shape
    ) + (data["image_BRHWC"] // 8)
    params = self.params
    grad = jax.jit(jax.grad(lambda p: self.loss(data, p).total))
    before = float(self.loss(data).metrics["rank_loss"][0])
    for _ in range(20):
      params = jax.tree.map(lambda p, g: p - 0.02 * g, params, grad(params))
    after = self.loss(data, params).metrics
    self.assertLess(float(after["rank_loss"][0]), 0.5 * before)

  def test_bad_config_is_named(self):
    with self.assertRaisesRegex(types.UserError, "stage.margin"):
      stage_of(margin=1.0)


PUBLISHED = dict(
  vision=dict(width=12, depth=1, num_heads=3, mlp_dim=14, patch=4, grid=(2, 3), pre_norm=True),
  text=dict(width=10, depth=1, num_heads=2, mlp_dim=14, vocab_size=23, length=7),
  embed_dim=11,
)


class PublishedTowerTest(absltest.TestCase):
  """A Chinese-CLIP in place of the tower: no encoders beside it, both its sides are tuned."""

  def test_scores_are_its_own_and_both_sides_learn(self):
    model = dict(tower=PUBLISHED)
    stage = reward.make(ConfigDict(dict(stage=dict(name="reward", pair_weight=0.1), model=model)))
    self.assertEqual(list(stage.parts()), ["tower"])
    params = {"tower": tiny.draw(stage.parts()["tower"].abstract)}
    params["tower"]["logit_scale"] = jnp.float32(7.0)  # beyond 100
    given = batch()
    data = {key: given[key] for key in ("id_B", "image_BRHWC")}
    data["tower_ids_BL"] = np.where(
      given["llm_ids_BL"] == 3, 5, given["llm_ids_BL"]
    )  # 0 is padding

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
      rng, step = jax.random.key(0), jnp.int32(0)
      out = stage.loss(params, {}, {}, {"train": data}, rng, player="tower", step=step)
      scores_BR = stage.predict_fns()["scores"](params, {}, {"train": data})
      tower = stage.parts()["tower"].bind(params["tower"])
      text_BP = tower.text(data["tower_ids_BL"], data["tower_ids_BL"] != 0)
      image_BP = tower.image(data["image_BRHWC"][:, 1])  # of the table's own size
      want_B = 100.0 * jnp.sum(image_BP * text_BP, axis=1)
      return out.total, (out.metrics, scores_BR, want_B)

    (_, (metrics, scores_BR, want_B)), grads = jax.jit(loss)(params)
    np.testing.assert_allclose(scores_BR[:, 1], want_B, rtol=1e-4)
    np.testing.assert_allclose(
      metrics["rank_loss"][0], jnp.sum(reward.ranking_loss(scores_BR)), rtol=1e-5
    )
    for side in ("vision_model", "text_model"):
      size = sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(grads["tower"][side]))
      self.assertGreater(size, 1e-4, side)


if __name__ == "__main__":
  absltest.main()
