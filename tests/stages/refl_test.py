"""ReFL: its loss by hand, where its gradient goes, what counts and what does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.flow import timesteps
from seedream_jax.stages import refl, reward
from tests.stages import denoise_test, reward_test

B, H, W, C = denoise_test.B, denoise_test.H, denoise_test.W, denoise_test.C
REWARDS = {
  # Some pictures are beyond its margin.
  "look": dict(weight=1.0, margin=0.0, text_only=False, noise_std=0.0),
  "text": dict(weight=0.5, margin=30.0, text_only=True, noise_std=0.3),
}


def stage_of(rewards=None, **stage):
  rollout = dict(num_steps=4, solver="euler", first_step=2, last_step=3)
  stage = {**rollout, "reward_weight": 0.1, **stage}
  model = {**denoise_test.MODEL, "rewards": {"all": reward_test.TOWER}}
  stage |= dict(name="refl", rewards=rewards or REWARDS, denoise=dict(drop_both=0.1))
  return refl.make(ConfigDict(dict(stage=stage, model=model)))


def batch():
  data = denoise_test._batch()
  prompts = {k: data[k] for k in ("id_B", "latent_BHWC", "llm_ids_BL", "byt5_ids_BG", "size_B2")}
  return {"prompts": prompts, "train": {k: v for k, v in data.items() if k != "noise_BHWC"}}


@functools.cache
def _jit(stage):
  def loss(params, frozen, data, seed=5):
    rng, step = jax.random.key(seed), jnp.int32(0)
    return stage.loss(params, frozen, {}, data, rng, player=refl.POLICY, step=step)

  return jax.jit(loss)


@functools.cache
def _grad(stage):
  return jax.jit(jax.grad(lambda *args: _jit(stage)(*args).total))


class ReflTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.stage, cls.alone = stage_of(), stage_of(pretrain_weight=0.0)
    trees = {name: denoise_test._draw(part.abstract) for name, part in cls.stage.parts().items()}
    trees["vae"]["stats"] = {"mean": jnp.full((C,), 0.2), "std": jnp.full((C,), 0.7)}
    cls.params, cls.frozen = {refl.POLICY: trees.pop(refl.POLICY)}, trees

  def loss(self, stage=None, params=None, data=None, frozen=None):
    fn = _jit(stage or self.stage)
    return fn(params or self.params, frozen or self.frozen, data or batch())

  def test_loss_by_hand(self):
    """One example at a time, a plain Euler loop, no stop_gradient and no choice of turns."""
    data, frozen = batch()["prompts"], self.frozen
    step_key, noise_key = jax.random.split(jax.random.key(5))
    stop = int(jax.random.randint(step_key, (), 2, 4))
    policy, model = self.params[refl.POLICY], self.stage.model
    encoders = {"llm": frozen["reward_llm"], "byt5": frozen["byt5"]}
    dit = model.parts["dit"].bind(policy["dit"])
    grid, total = timesteps.grid(4), 0.0

    @jax.jit  # one example's compiled pieces; the loop and the choice of steps are Python's
    def guided(x, t, row):
      text, yes = (row["llm_ids_BL"], row["byt5_ids_BG"]), jnp.ones((1,), bool)
      trees = {**frozen, **policy}
      cond = model.encode_text(trees, *text)
      uncond = model.encode_text(trees, *text, drop_llm_B=yes, drop_byt5_B=yes)
      v_c, v_u = (dit(x, t[None], c, size_B2=row["size_B2"]) for c in (cond, uncond))
      return v_u + 4.0 * (v_c - v_u)

    @jax.jit
    def scores(x0, row):
      image, features = model.decode(frozen, x0), reward.text_features(model, encoders, row)
      key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 2), row["id_B"][0])
      noise, out = jax.random.normal(key, image.shape[1:])[None], {}
      for name, fields in REWARDS.items():
        tower = self.stage.parts()[f"reward_{name}"].bind(frozen[f"reward_{name}"])
        seen = image + fields["noise_std"] * noise
        out[name] = reward.score(tower, seen, tower.text(*features))[0]
      return out

    for b in range(B):
      row = {k: jnp.asarray(v[b : b + 1]) for k, v in data.items()}
      x = jax.random.normal(jax.random.fold_in(noise_key, row["id_B"][0]), (1, H, W, C))
      for i in range(stop):
        x = x + (grid[i + 1] - grid[i]) * guided(x, grid[i], row)
      r = scores(x - grid[stop] * guided(x, grid[stop], row), row)
      for name, fields in REWARDS.items():
        if not fields["text_only"] or b != 0:  # example 0 quotes nothing
          total += 0.1 * fields["weight"] * max(0.0, fields["margin"] - float(r[name]))
    got = self.loss(self.alone)
    np.testing.assert_allclose(got.total, total, rtol=1e-4)
    self.assertEqual(float(got.weight), B)

  def test_pretraining_is_kept_beside_it(self):
    both, alone = self.loss(), self.loss(self.alone)
    pre, count = both.metrics["pretrain/loss"]
    self.assertEqual(float(count), B)
    self.assertGreater(float(pre), 1.0)
    np.testing.assert_allclose(both.total - alone.total, pre, rtol=1e-3)

  def test_without_rewards_it_is_pretraining(self):
    plain = self.loss(stage_of(reward_weight=0.0))
    self.assertEqual({name.split("/")[0] for name in plain.metrics}, {"pretrain"})
    np.testing.assert_allclose(plain.total, self.loss().metrics["pretrain/loss"][0], rtol=1e-5)

  def test_both_parts_of_the_policy_move(self):
    grads = _grad(self.alone)(self.params, self.frozen, batch())[refl.POLICY]
    for name in ("dit", "llm"):
      size = sum(float(jnp.abs(g).sum()) for g in jax.tree.leaves(grads[name]))
      self.assertGreater(size, 1e-6, name)

  @pytest.mark.heavy
  def test_the_rollout_gives_no_gradient(self):
    still = stage_of(pretrain_weight=0.0)
    still.base = _still(
      still.base
    )  # the step that should carry a gradient gives none: is there another?
    grads = _grad(still)(self.params, self.frozen, batch())
    self.assertEqual(max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)), 0.0)

  def test_a_reward_of_weight_0_is_watched_alone(self):
    watched = stage_of(
      pretrain_weight=0.0,
      rewards=REWARDS | {"held": dict(weight=0.0, margin=6.0, text_only=False, noise_std=0.0)},
    )
    loss = jax.eval_shape(
      _jit(watched), self.params, self.frozen, batch()
    )  # which has no such tower
    self.assertNotIn("reward_held", loss.metrics)
    frozen = self.frozen | {"reward_held": self.frozen["reward_text"]}
    drawn = {"train": batch()["prompts"]}
    seen = jax.eval_shape(
      watched.predict_fns()["rewards"], self.params, frozen, drawn, jax.random.key(0)
    )
    self.assertEqual(set(seen), {*REWARDS, "held"})

  def test_text_reward_counts_for_quoted_text_only(self):
    data = batch()
    seen = self.loss(self.alone)
    self.assertEqual(float(seen.metrics["reward_text"][1]), B - 1)
    data["prompts"]["byt5_ids_BG"] = np.tile(np.array([1, 0, 0, 0], np.int32), (B, 1))
    seen = self.loss(self.alone, data=data)
    self.assertEqual([float(x) for x in seen.metrics["hinge_text"]], [0.0, 0.0])
    self.assertAlmostEqual(float(seen.total), 0.1 * float(seen.metrics["hinge_look"][0]), places=3)

  def test_steps_are_drawn_from_the_range(self):
    """One a batch, both of the range's two over a few."""
    seen = [_jit(self.alone)(self.params, self.frozen, batch(), seed) for seed in range(8)]
    self.assertEqual({float(x.metrics["step"][0]) / B for x in seen}, {2.0, 3.0})

  def test_gradient_descent_raises_the_reward(self):
    params, before = self.params, self.loss(self.alone)
    for _ in range(5):
      grads = _grad(self.alone)(params, self.frozen, batch())
      params = jax.tree.map(lambda p, g: p - 0.003 * g, params, grads)
    after = self.loss(self.alone, params)
    self.assertLess(float(after.total), float(before.total))

  def test_predict_functions_take_the_policy(self):
    data = batch()["prompts"]
    fns = self.stage.predict_fns()
    out = jax.jit(fns["rewards"])(self.params, self.frozen, {"train": data}, jax.random.key(0))
    self.assertEqual({k: float(v[1]) for k, v in out.items()}, {"look": B, "text": B - 1})
    total, weight = jax.jit(fns["val_loss"])(self.params, self.frozen, {"train": data}, None)
    self.assertEqual(float(jnp.sum(weight)), B)
    self.assertGreater(float(jnp.sum(total)), 0)

  def test_decoding_in_turns_changes_nothing(self):
    turns = stage_of(decode_at_once=1, pretrain_weight=0.0)
    got, want = (_grad(stage)(self.params, self.frozen, batch()) for stage in (turns, self.alone))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, want)

  def test_features_of_a_frozen_llm_are_refused(self):
    data = batch()
    data["train"] |= {"llm_features_BLE": jnp.zeros((1, 1, 1)), "llm_empty_BE": jnp.zeros((1, 1))}
    with self.assertRaisesRegex(types.UserError, "llm_features_BLE, a frozen LLM"):
      self.loss(data=data)

  def test_bad_config_is_named(self):
    for stage, message in (
      (dict(first_step=3, last_step=2), "first <= last"),
      (dict(last_step=4), "num_steps=4"),
      (dict(reward_weight=0.0, pretrain_weight=0.0), "one of them above 0"),
      (dict(solver="eulr"), "stage.solver='eulr'"),
      (dict(decode_at_once=-1), "decode_at_once=-1"),
      (dict(lamda=1.0), "stage.lamda"),
      (dict(rewards={"look": dict(weight=1.0)}), "stage.rewards.look"),
    ):
      with self.assertRaisesRegex(types.UserError, message):
        stage_of(**stage)


def _still(base):
  """The base, whose velocity keeps its value and gives no gradient in the step that should carry one."""
  velocity = base.velocity
  calls = []

  def stopped(params, data):
    calls.append(1)
    fn = velocity(params, data)
    return (lambda *a: jax.lax.stop_gradient(fn(*a))) if len(calls) % 3 == 2 else fn

  base.velocity = stopped
  return base


if __name__ == "__main__":
  absltest.main()
