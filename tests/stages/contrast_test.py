"""The contrast stage: CLIP's loss against numpy, which negatives count, one golden step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.stages import contrast, reward
from tests.models import tiny

B, L, G = 4, 7, 4
TOWER = dict(
  variant="nano", widths=(8, 16), bins=(2, 2), hidden=12, embed_dim=11,
  reader=dict(width=16, num_heads=2, mlp_dim=12),
)  # fmt: skip
GOLDEN = {"loss": 1.563998, "grad_rms": 0.02706404}


def stage_of(**stage):
  model = dict(llm=tiny.LLM, byt5=tiny.BYT5, tower=TOWER)
  return contrast.make(ConfigDict(dict(stage=dict(name="contrast", **stage), model=model)))


def batch():
  rng = np.random.default_rng(0)
  llm_ids_BL = rng.integers(4, 23, (B, L)).astype(np.int32)
  llm_ids_BL[:, 5:] = [3, 0]
  return {
    "id_B": np.arange(B, dtype=np.uint32),
    "image_BHWC": rng.integers(0, 256, (B, 8, 12, 3), dtype=np.uint8),
    "llm_ids_BL": llm_ids_BL,
    "byt5_ids_BG": np.tile(np.array([70, 80, 1, 0], np.int32), (B, 1)),
  }


class ContrastTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.stage = stage_of(noise_std=0.0)
    trees = {name: tiny.draw(part.abstract) for name, part in cls.stage.parts().items()}
    trees["tower"]["log_scale"] = jnp.float32(2.5)  # or all captions are nearly as likely
    cls.params, cls.frozen = {"tower": trees.pop("tower")}, trees
    cls.loss = staticmethod(functools.partial(cls._loss, cls.stage))
    cls.jitted = staticmethod(jax.jit(cls.loss))

  @classmethod
  def _loss(cls, stage, params, data, frozen=None):
    rng, step = jax.random.key(0), jnp.int32(0)
    frozen = cls.frozen if frozen is None else frozen
    return stage.loss(params, frozen, {}, {"train": data}, rng, player="tower", step=step)

  def unit_vectors(self, data):
    tower = self.stage.parts()["tower"].bind(self.params["tower"])
    features = reward.text_features(self.stage.model, self.frozen, data)
    found = tower.image(data["image_BHWC"]), tower.text(*features), tower.scale()
    return (np.asarray(x, np.float64) for x in found)

  def test_loss_equals_the_formula(self):
    x_BP, y_BP, scale = self.unit_vectors(batch())
    logits_BB = scale * x_BP @ y_BP.T
    own_B = np.diagonal(logits_BB)
    want = sum(np.log(np.exp(logits_BB).sum(axis)).sum() / 2 - own_B.sum() / 2 for axis in (0, 1))
    got = self.jitted(self.params, batch())
    np.testing.assert_allclose(got.total, want, rtol=1e-4)
    self.assertEqual(float(got.weight), B)
    found = float(got.metrics["caption_found"][0])
    self.assertEqual(found, np.sum(np.argmax(logits_BB, axis=1) == np.arange(B)))

  def test_a_caption_that_two_pictures_share_is_no_negative(self):
    data = batch()
    data["llm_ids_BL"][1] = data["llm_ids_BL"][0]
    x_BP, y_BP, scale = self.unit_vectors(data)
    logits_BB = scale * x_BP @ y_BP.T
    logits_BB[0, 1] = logits_BB[1, 0] = -np.inf
    want = sum(
      np.log(np.exp(logits_BB).sum(axis)).sum() / 2 - np.diagonal(logits_BB).sum() / 2
      for axis in (0, 1)
    )
    np.testing.assert_allclose(self.jitted(self.params, data).total, want, rtol=1e-4)

  def test_noise_is_of_training_alone(self):
    noisy = stage_of(noise_std=0.5)
    got = jax.jit(functools.partial(self._loss, noisy))(self.params, batch())
    clean = self.jitted(self.params, batch())
    self.assertGreater(abs(float(got.total - clean.total)), 1e-3)
    total, weight = jax.jit(noisy.predict_fns()["val_loss"])(
      self.params, self.frozen, {"train": batch()}
    )
    np.testing.assert_allclose(total, clean.total, rtol=1e-5)
    self.assertEqual(float(weight), B)

  def test_golden_step(self):
    def total(params):
      return self.loss(params, batch()).total / B

    value, grads = jax.jit(jax.value_and_grad(total))(self.params)
    squares = [float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(grads)]
    rms = np.sqrt(sum(squares) / sum(g.size for g in jax.tree.leaves(grads)))
    got = {"loss": float(value), "grad_rms": float(rms)}
    for name, want in GOLDEN.items():
      np.testing.assert_allclose(got[name], want, rtol=1e-4, err_msg=f"update and say why: {got}")

  def test_the_encoders_are_locked(self):
    def total(frozen):
      return self.loss(self.params, batch(), frozen).total

    grads = jax.jit(jax.grad(total))(self.frozen)
    self.assertEqual(max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)), 0.0)

  def test_a_few_steps_find_the_captions(self):
    adam = optax.adam(0.01)

    @jax.jit
    def step(params, state):
      updates, state = adam.update(jax.grad(lambda p: self.loss(p, batch()).total)(params), state)
      return optax.apply_updates(params, updates), state

    params, state = self.params, adam.init(self.params)
    for _ in range(40):
      params, state = step(params, state)
    before, after = (self.jitted(p, batch()).total for p in (self.params, params))
    self.assertLess(float(after), 0.5 * float(before))

  def test_bad_config_is_named(self):
    with self.assertRaisesRegex(types.UserError, "stage.noise"):
      stage_of(noise=1.0)


if __name__ == "__main__":
  absltest.main()
