"""The autoencode stage: one golden step a player, oracles of its terms, and who moves whom when."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from seedream_jax.models import classifier
from seedream_jax.stages import autoencode

B, H, W, C = 3, 8, 12, 5
STEPS, START = 50, 40
MODEL = dict(
  vae=dict(variant="nano", widths=(4, 6), norm_groups=2, latent_channels=C),
  critic=dict(variant="nano", widths=(4, 6), norm_groups=2),
  features=dict(variant="nano", widths=(4,), norm_groups=2, feature_dim=5, heads=(("text", 1),)),
)
GOLDEN_MESSAGE = (
  "Loss or gradient of one step changed. If the change was meant to alter numerics, update GOLDEN "
  "and say why in the commit; if not, it is a bug."
)
GOLDEN = {
  "vae": {"loss": 1.356748, "grad_rms": 0.004004986},
  "critic": {"loss": 1.981187, "grad_rms": 0.03166019},
}


def _stage(**stage):
  stage = dict(name="autoencode", adversary_start_percent=100 * START / STEPS, **stage)
  return autoencode.make(ConfigDict(dict(stage=stage, model=MODEL, train=dict(total_steps=STEPS))))


def _draw(abstract):
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), abstract
  )


def _batch():
  rng = np.random.default_rng(0)
  image_BHWC = rng.integers(0, 256, (B, H, W, 3)).astype(np.uint8)
  return {"id_B": np.array([3, 2**32 - 5, 8], np.uint32), "image_BHWC": image_BHWC}


def _loss(stage, params, batch, *, player, step, frozen=None):
  rng, batch = jax.random.key(7), {"train": batch}
  return stage.loss(params, frozen or {}, {}, batch, rng, player=player, step=step)


def _compiled(fn, *args):
  """fn under jit for arguments like these, without the minute LLVM would take to make it fast."""
  options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  return jax.jit(fn).lower(*args).compile(compiler_options=options)


class AutoencodeTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.stage = _stage(latent_noise=0.5)
    parts = cls.stage.parts()
    cls.params = {name: _draw(parts[name].abstract) for name in cls.stage.players}
    cls.params["vae"]["stats"] = {
      "mean": jnp.linspace(-0.2, 0.3, C),
      "std": jnp.linspace(0.5, 2.0, C),
    }
    cls.grads, cls.losses = {}, {}
    step = jnp.int32(START)
    for player in cls.stage.players:

      def total(params, batch, step, player=player):
        loss = _loss(cls.stage, params, batch, player=player, step=step)
        return loss.total, loss

      fn = _compiled(jax.grad(total, has_aux=True), cls.params, _batch(), step)
      setattr(cls, f"{player}_fn", staticmethod(fn))
      cls.grads[player], cls.losses[player] = fn(cls.params, _batch(), step)

  @parameterized.parameters("vae", "critic")
  def test_golden_step(self, player):
    loss, grads = self.losses[player], jax.tree.leaves(self.grads[player][player])
    rms = np.sqrt(sum(float(jnp.sum(g**2)) for g in grads) / sum(g.size for g in grads)) / B
    got = {"loss": float(loss.total / loss.weight), "grad_rms": float(rms)}
    for name, want in GOLDEN[player].items():
      np.testing.assert_allclose(got[name], want, rtol=1e-4, err_msg=f"{GOLDEN_MESSAGE} Now: {got}")

  @parameterized.parameters(("vae", "critic"), ("critic", "vae"))
  def test_a_player_moves_only_itself(self, player, other):
    largest = [max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(self.grads[player][p]))
               for p in (player, other)]  # fmt: skip
    self.assertGreater(largest[0], 1e-3)
    self.assertEqual(largest[1], 0.0)

  def test_statistics_get_no_gradient(self):
    stats = self.grads["vae"]["vae"]["stats"]
    self.assertTrue(all(np.all(np.asarray(g) == 0) for g in stats.values()))

  def test_adversary_is_off_before_its_start(self):
    grads, loss = self.vae_fn(self.params, _batch(), jnp.int32(START - 1))
    on = self.losses["vae"]
    self.assertEqual(float(loss.metrics["adversary"][0]), 0.0)
    self.assertNotEqual(float(on.metrics["adversary"][0]), 0.0)
    weight = self.stage.cfg.adversary_weight
    want = float(on.total) - weight * float(on.metrics["adversary"][0])
    np.testing.assert_allclose(float(loss.total), want, rtol=1e-5)
    name = lambda g: np.asarray(g["vae"]["decoder"]["conv_out"]["kernel"])  # noqa: E731
    self.assertGreater(np.max(np.abs(name(grads) - name(self.grads["vae"]))), 1e-6)

  @parameterized.parameters("vae", "critic")
  def test_example_does_not_depend_on_its_neighbours_or_place(self, player):
    batch, fn = _batch(), getattr(self, f"{player}_fn")
    alone = []
    for i in range(B):
      row = {k: np.repeat(v[i : i + 1], B, axis=0) for k, v in batch.items()}
      alone.append(float(fn(self.params, row, jnp.int32(START))[1].total) / B)
    np.testing.assert_allclose(sum(alone), float(self.losses[player].total), rtol=1e-5)
    self.assertGreater(max(alone) - min(alone), 1e-4)

  def test_noise_follows_the_id(self):
    other = dict(_batch(), id_B=np.array([3, 4, 8], np.uint32))
    _, loss = self.vae_fn(self.params, other, jnp.int32(START))
    self.assertGreater(abs(float(loss.total) - float(self.losses["vae"].total)), 1e-4)

  def test_total_is_the_weighted_sum_of_its_terms(self):
    loss, cfg = self.losses["vae"], self.stage.cfg
    terms = ("l1", "l2", "edge", "kl", "adversary")
    want = sum(getattr(cfg, f"{n}_weight") * float(loss.metrics[n][0]) for n in terms)
    np.testing.assert_allclose(float(loss.total), want, rtol=1e-5)
    self.assertEqual(float(loss.weight), B)

  def test_assign_moves_both_moments(self):
    latents = self.stage.predict_fns()["latents"]
    fn = _compiled(lambda p, b: latents(p, {}, {"train": b}, None), self.params, _batch())
    z = np.asarray(fn(self.params, _batch()), np.float64).reshape(-1, C)
    mean, std = (np.asarray(self.params["vae"]["stats"][k], np.float64) for k in ("mean", "std"))
    want_mean = 0.99 * mean + 0.01 * z.mean(0)
    want_square = 0.99 * (std**2 + mean**2) + 0.01 * (z**2).mean(0)
    assign = self.losses["vae"].assign
    self.assertEqual(set(assign), {"stats/mean", "stats/std"})
    np.testing.assert_allclose(assign["stats/mean"], want_mean, rtol=1e-4)
    np.testing.assert_allclose(assign["stats/std"], np.sqrt(want_square - want_mean**2), rtol=1e-4)

  def test_reconstruction_is_an_image(self):
    big = jax.tree.map(lambda x: 30 * x, self.params)
    fn = _compiled(
      lambda p, b: [self.stage.predict_fns()[n](p, {}, {"train": b}, None)
                    for n in ("reconstruct", "val_loss")],
      big, _batch(),
    )  # fmt: skip
    image_BHWC, (total, weight) = fn(big, _batch())
    self.assertEqual(image_BHWC.shape, (B, H, W, 3))
    self.assertEqual(float(jnp.max(jnp.abs(image_BHWC))), 1.0)
    error = np.abs(np.asarray(image_BHWC) - (_batch()["image_BHWC"] / 127.5 - 1))
    np.testing.assert_allclose(float(total), error.mean((1, 2, 3)).sum(), rtol=1e-4)
    self.assertEqual(float(weight), B)


class TermsTest(parameterized.TestCase):
  @parameterized.parameters((0.0, 0.0), (1.5, -2.0), (-0.3, 1.1))
  def test_kl_is_the_integral(self, mean, logvar):
    """p log p/q summed over a fine grid."""
    x, std = np.linspace(-40, 40, 400_001), np.exp(logvar / 2)
    log_p = -0.5 * ((x - mean) / std) ** 2 - np.log(std)
    log_q = -0.5 * x**2
    want = np.sum(np.exp(log_p) / np.sqrt(2 * np.pi) * (log_p - log_q)) * (x[1] - x[0])
    got = autoencode.kl_divergence(jnp.float32(mean), jnp.float32(logvar))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)

  def test_edge_error_by_definition(self):
    a, b = np.random.default_rng(0).standard_normal((2, 2, 7, 6, 3)).astype(np.float32)
    fine = a - b
    coarse = np.stack([fine[:, i:6:2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0)
    want = 0.0
    for d in (fine, coarse):
      want += np.abs(d[:, 1:] - d[:, :-1]).mean((1, 2, 3))
      want += np.abs(d[:, :, 1:] - d[:, :, :-1]).mean((1, 2, 3))
    np.testing.assert_allclose(autoencode.edge_error(a, b, 2), want / 2, rtol=1e-5)

  def test_edge_error_does_not_see_a_shift_of_brightness(self):
    a = np.random.default_rng(0).standard_normal((2, 7, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(autoencode.edge_error(a, a + 0.5, 2), np.zeros(2), atol=1e-6)

  def test_features_are_frozen_and_only_present_with_weight(self):
    self.assertNotIn("features", _stage().parts())
    stage = _stage(feature_weight=1.0)
    part = stage.parts()["features"]
    net = part.bind(_draw(part.abstract))
    self.assertIsInstance(net, classifier.Classifier)
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, 2, 6, 10, 3)).astype(np.float32)
    error = _compiled(functools.partial(autoencode.feature_error, net), a, b)
    self.assertEqual(float(jnp.max(error(a, a))), 0.0)
    self.assertGreater(float(jnp.min(error(a, b))), 0.1)

  def test_hinge_by_hand(self):
    stage = _stage()
    params = {name: _draw(stage.parts()[name].abstract) for name in stage.players}
    critic = stage.parts()["critic"]

    def run(params, batch):
      loss = _loss(stage, params, batch, player="critic", step=jnp.int32(0))
      real = critic.bind(params["critic"])(batch["image_BHWC"].astype(jnp.float32) / 127.5 - 1)
      return loss, real

    loss, real = _compiled(run, params, _batch())(params, _batch())
    np.testing.assert_allclose(
      float(loss.metrics["real"][0]), np.mean(real, (1, 2)).sum(), rtol=1e-4
    )
    self.assertGreaterEqual(
      float(loss.total), np.maximum(1 - np.asarray(real), 0).mean((1, 2)).sum()
    )


if __name__ == "__main__":
  absltest.main()
