"""DPO: its loss by hand, where it starts, what its gradient does, and a run that is cut."""

import functools
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import absltest
from ml_collections import ConfigDict

from experiments import rlhf
from seedream_jax import types
from seedream_jax.engine import checkpoint, sharding, trees
from seedream_jax.run import open as open_lib
from seedream_jax.stages import dpo
from tests.data import datasets
from tests.models import tiny
from tests.stages import denoise_test

B, R, H, W, C = denoise_test.B, 2, denoise_test.H, denoise_test.W, denoise_test.C
BETA, SEED = 3.0, 5
GOLDEN = {"loss": 1.074708, "grad_rms": 0.9777676}


def stage_of(**stage):
  stage = dict(name="dpo", beta=BETA, denoise=dict(drop_both=0.5)) | stage
  return dpo.make(ConfigDict(dict(stage=stage, model=denoise_test.MODEL)))


def batch():
  data = denoise_test._batch()
  del data["noise_BHWC"]
  first_BHWC = data.pop("latent_BHWC")
  return data | {"latent_BRHWC": np.stack([first_BHWC, first_BHWC[::-1] / 2], axis=1)}


def swapped():
  data = batch()
  return data | {"latent_BRHWC": data["latent_BRHWC"][:, ::-1]}


def flat(tree) -> np.ndarray:
  return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


class DpoTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.stage = stage_of()
    parts = cls.stage.parts()
    frozen = {name: tiny.draw(part.abstract) for name, part in parts.items()}
    frozen["vae"]["stats"] = {"mean": jnp.full((C,), 0.2), "std": jnp.full((C,), 0.7)}
    policy = frozen.pop("dit")
    frozen[dpo.REFERENCE] = jax.tree.map(lambda x: 0.9 * x, policy)
    cls.params, cls.frozen = {"dit": policy}, frozen

    def loss(params, reference, data):
      trees_ = {**cls.frozen, dpo.REFERENCE: reference}
      rng, step = jax.random.key(SEED), jnp.int32(0)
      got = cls.stage.loss(params, trees_, {}, {"train": data}, rng, player="dit", step=step)
      return got.total, got

    def encode(dit, llm_ids_BL, byt5_ids_BG, drop_B):
      both = dict(drop_llm_B=drop_B, drop_byt5_B=drop_B)
      trees_ = {**cls.frozen, "dit": dit}
      return cls.stage.model.encode_text(trees_, llm_ids_BL, byt5_ids_BG, **both)

    def velocity(dit, *args):
      return parts["dit"].bind(dit)(*args, size_B2=batch()["size_B2"][:1])

    cls.encode, cls.velocity = staticmethod(jax.jit(encode)), staticmethod(jax.jit(velocity))
    cls.grad = staticmethod(jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)))

  def step(self, params=None, data=None):
    """(Loss, the policy's gradient, the reference's)."""
    (_, loss), grads = self.grad(params or self.params, self.frozen[dpo.REFERENCE], data or batch())
    return loss, *grads

  def at_reference(self):
    return {"dit": self.frozen[dpo.REFERENCE]}

  def errors(self, dit) -> tuple[np.ndarray, int]:
    """(error_BR of a DiT, one picture at a time and the path in NumPy; how many texts were hidden)."""
    data, hidden, error_BR = batch(), 0, np.zeros((B, R))
    for b in range(B):
      key = jax.random.fold_in(jax.random.key(SEED), data["id_B"][b])
      time, noise, texts = jax.random.split(key, 3)
      t = 1 / (1 + np.exp(-np.asarray(jax.random.normal(time))))
      eps_1HWC = np.asarray(jax.random.normal(noise, (1, H, W, C)))
      drop = jax.random.uniform(texts) < 0.5
      hidden += int(drop)
      ids = data["llm_ids_BL"][b : b + 1], data["byt5_ids_BG"][b : b + 1]
      cond = self.encode(dit, *ids, drop[None])
      for r in range(R):
        x0_1HWC = (data["latent_BRHWC"][b, r][None].astype(np.float32) - 0.2) / 0.7
        xt_1HWC = (1 - t) * x0_1HWC + t * eps_1HWC
        v_1HWC = self.velocity(dit, xt_1HWC, jnp.float32(t)[None], cond)
        error_BR[b, r] = np.mean((np.asarray(v_1HWC) - (eps_1HWC - x0_1HWC)) ** 2)
    return error_BR, hidden

  def test_loss_by_hand(self):
    error_BR, hidden = self.errors(self.params["dit"])
    reference_BR, _ = self.errors(self.frozen[dpo.REFERENCE])
    gain_BR = error_BR - reference_BR
    inside_B = -BETA / 2 * (gain_BR[:, 0] - gain_BR[:, 1])
    self.assertBetween(hidden, 1, B - 1)  # pairs with their text, and pairs without
    got, _, _ = self.step()
    np.testing.assert_allclose(got.total, np.sum(np.log1p(np.exp(-inside_B))), rtol=1e-4)
    self.assertEqual(float(got.weight), B)
    self.assertEqual([float(x) for x in got.metrics["accuracy"]], [np.sum(inside_B > 0), B])

  def test_starts_as_the_reference_on_log_2(self):
    start = jax.jit(self.stage.init)(jax.random.key(0), self.frozen)
    jax.tree.map(np.testing.assert_array_equal, start, self.at_reference())
    got = self.validate(start, batch())
    # XLA may round the policy's error otherwise than the reference's.
    np.testing.assert_allclose(got["loss"], np.log(2), rtol=1e-5)
    for name in ("reward_preferred", "reward_rejected"):
      np.testing.assert_allclose(got[name], 0, atol=1e-3, err_msg=name)
    loss, _, _ = self.step(start)
    np.testing.assert_allclose(loss.total / B, np.log(2), rtol=1e-5)

  def test_two_pictures_that_are_one_are_at_chance(self):
    data = batch()
    data["latent_BRHWC"] = np.repeat(data["latent_BRHWC"][:, :1], R, axis=1)
    got = self.validate(self.params, data)
    self.assertEqual(got["accuracy"], 0.5)
    self.assertEqual(got["reward_preferred"], got["reward_rejected"])
    np.testing.assert_allclose(got["loss"], np.log(2), rtol=1e-6)

  def validate(self, params, data):
    """Means by name of predict_fn `val_loss`."""
    found = jax.jit(self.stage.predict_fns()["val_loss"])(params, self.frozen, {"train": data})
    return {name: float(total / weight) for name, (total, weight) in found.items()}

  def test_a_swapped_pair_turns_the_gradient_round(self):
    _, one, _ = self.step(self.at_reference())
    _, other, _ = self.step(self.at_reference(), swapped())
    self.assertGreater(np.abs(flat(one)).max(), 1e-2)
    np.testing.assert_allclose(flat(one), -flat(other), atol=1e-4 * np.abs(flat(one)).max())
    a, b = (self.step(data=data)[0].metrics for data in (batch(), swapped()))
    np.testing.assert_allclose(a["reward_preferred"], b["reward_rejected"], rtol=1e-4)
    self.assertEqual(float(a["accuracy"][0] + b["accuracy"][0]), B)

  def test_the_reference_gets_no_gradient(self):
    _, policy, reference = self.step()
    self.assertGreater(np.abs(flat(policy)).max(), 0.0)
    self.assertEqual(np.abs(flat(reference)).max(), 0.0)

  def test_gradient_descent_prefers_the_preferred(self):
    params = self.at_reference()
    before_BR, _ = self.errors(params["dit"])
    for _ in range(8):
      _, grad, _ = self.step(params)
      params = jax.tree.map(lambda p, g: p - 1e-3 * g, params, grad)
    after_BR, _ = self.errors(params["dit"])
    gap_B = (after_BR - before_BR) @ (
      1,
      -1,
    )  # falls where the preferred becomes the likelier of two
    self.assertLess(gap_B.max(), 0.0)
    self.assertLess(gap_B.mean(), -0.01)
    self.assertEqual(float(self.step(params)[0].metrics["accuracy"][0]), B)

  def test_golden_step(self):
    loss, grads, _ = self.step()
    got = {"loss": float(loss.total / B), "grad_rms": float(np.sqrt(np.mean(flat(grads) ** 2)))}
    for name, want in GOLDEN.items():
      np.testing.assert_allclose(got[name], want, rtol=1e-4, err_msg=f"update and say why: {got}")

  @pytest.mark.heavy
  def test_a_cut_run_ends_bit_identical_with_adapters_alone_moved(self):
    """And a mesh sees the loss that one device sees."""
    config, workdir = _config(), tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir())
    exp = open_lib.open_config(config, workdir)
    with jax.set_mesh(exp.mesh):
      loader = open_lib.open_loaders(config, ["train"])["train"]
      batches = [{"train": loader.batch(k)} for k in range(3)]
      batches = jax.device_put(batches, sharding.batch(exp.mesh))
      state, update = open_lib.load_state(exp), exp.trainer.compiled(("dit",), 1)
      for data in batches[:2]:
        state, _ = update(state, exp.frozen, data)
      exp.checkpointer.save(2, state, open_lib.meta_of(exp), wait=True)
      before, frozen = jax.device_get((state.params, exp.frozen))
      whole, stats = update(state, exp.frozen, batches[2])
      cut, _ = update(open_lib.load_state(exp), exp.frozen, batches[2])
    jax.tree.map(np.testing.assert_array_equal, whole.params, cut.params)
    reference = trees.flatten(frozen[dpo.REFERENCE])
    for path, x in trees.flatten(whole.params["dit"]).items():
      if path in reference:
        np.testing.assert_array_equal(x, reference[path], err_msg=path)
      elif path.endswith("lora_b"):
        self.assertGreater(float(jnp.abs(x).max()), 0, path)
    rng = jax.random.fold_in(jax.random.key(config.seed), 2)
    loss = functools.partial(exp.stage.loss, player="dit", step=jnp.int32(2))
    alone = jax.jit(loss)(before, frozen, {}, jax.device_get(batches[2]), rng)
    self.assertGreater(abs(float(alone.total / 8 - np.log(2))), 1e-3)
    np.testing.assert_allclose(stats["dit/loss"], alone.total / alone.weight, rtol=5e-4)

  def test_bad_config_is_named(self):
    for stage, message in ((dict(beta=0.0), "stage.beta=0"), (dict(bta=1.0), "stage.bta")):
      with self.assertRaisesRegex(types.UserError, message):
        stage_of(**stage)


def _config():
  """The shipped mode on pairs of 32x32 pixels, with adapters, over a tiny model on eight devices."""
  root = tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir())
  data = datasets.write(f"{root}/pairs", 24, content="images", sizes=((32, 32),))
  config = rlhf.get_config(f"nano,mode=dpo,data={data},weights={root},lora=2")
  for name, fields in denoise_test.MODEL.items():
    config.model[name].update(fields)
  config.model.llm.vocab_size = 512
  config.model.dit.update(dict(max_text_len=64, glyph_len=8))
  config.data.tokenizer = datasets.tokenizer(root).path
  config.data.streams.train.update(dict(batch_size=8, text_buckets=(64,)))
  config.stage.beta, config.optim.lr, config.optim.warmup_steps = 20.0, 1e-2, 1
  config.sharding.mesh = dict(data=2, fsdp=2, tensor=2, context=1)
  for name, part in open_lib.make_stage(config).parts().items():
    checkpoint.save_weights(f"{root}/{name}.safetensors", tiny.draw(part.abstract))
  config.frozen.reference = root
  return config


if __name__ == "__main__":
  absltest.main()
