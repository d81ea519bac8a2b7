"""The denoise stage: one golden step, and what its numbers must not depend on."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.data import tokenizers
from seedream_jax.flow import timesteps
from seedream_jax.models import llm
from seedream_jax.stages import denoise
from tests.models import tiny

B, H, W, C, L, G = 5, 4, 6, 3, 7, 4
MODEL = dict(
  llm=tiny.LLM,
  byt5=tiny.BYT5,
  dit=dict(
    variant="nano",
    patch=2,
    rope_base=4,
    adaln="single",
    width=16,
    depth=2,
    num_heads=2,
    latent_channels=C,
    text_dim=12,
    glyph_dim=10,
    max_text_len=11,
    glyph_len=G,
    downsample=2,
  ),
  vae=dict(variant="nano", widths=(4, 6), norm_groups=2, latent_channels=C),
)
TOKENIZER = str(pathlib.Path(__file__).resolve().parents[2] / "weights/nano/tokenizer.model")
GOLDEN_MESSAGE = (
  "Loss or gradient of one step changed. If the change was meant to alter numerics, update GOLDEN "
  "and say why in the commit; if not, it is a bug."
)
GOLDEN = {"loss": 18.56911, "grad_rms": 0.6064794}


def _stage(**stage):
  return denoise.make(ConfigDict(dict(stage=dict(name="denoise", **stage), model=MODEL)))


def _draw(abstract, scale=0.3):
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), jnp.float32), abstract
  )


def _batch():
  rng = np.random.default_rng(0)
  llm_ids_BL = rng.integers(4, 23, (B, L)).astype(np.int32)
  llm_ids_BL[:, 4:] = [3, 0, 0]
  byt5_ids_BG = np.tile(np.array([70, 80, 1, 0], np.int32), (B, 1))
  byt5_ids_BG[0] = [1, 0, 0, 0]
  return {
    "id_B": np.array([3, 2**32 - 5, 8, 13, 21], np.uint32),
    "latent_BHWC": rng.standard_normal((B, H, W, C)).astype(np.float16),
    "llm_ids_BL": llm_ids_BL,
    "byt5_ids_BG": byt5_ids_BG,
    "size_B2": np.tile(np.array([8, 12], np.int32), (B, 1)),
    "noise_BHWC": rng.standard_normal((B, H, W, C)).astype(np.float32),
  }


class DenoiseTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.stage = _stage()
    parts = cls.stage.parts()
    trees = {name: _draw(part.abstract) for name, part in parts.items()}
    trees["vae"]["stats"] = {"mean": jnp.full((C,), 0.2), "std": jnp.full((C,), 0.7)}
    cls.params = {"dit": trees.pop("dit")}
    cls.frozen = trees
    cls.loss = staticmethod(jax.jit(functools.partial(_loss, cls.stage)))
    predict = cls.stage.predict_fns()
    cls.val_loss = staticmethod(jax.jit(predict["val_loss"]))
    cls.latents = staticmethod(jax.jit(functools.partial(predict["latents"], num_steps=3)))

  def test_golden_step(self):
    def total(params):
      loss = _loss(self.stage, params, self.frozen, _batch(), jax.random.key(7))
      return loss.total / loss.weight

    value, grads = jax.jit(jax.value_and_grad(total))(self.params)
    squares = [float(jnp.sum(jnp.square(g))) for g in jax.tree.leaves(grads)]
    count = sum(g.size for g in jax.tree.leaves(grads))
    got = {"loss": float(value), "grad_rms": float(np.sqrt(sum(squares) / count))}
    self.assertEqual(set(got), set(GOLDEN), f"{GOLDEN_MESSAGE} Now: {got}")
    for name, want in GOLDEN.items():
      np.testing.assert_allclose(got[name], want, rtol=1e-4, err_msg=f"{GOLDEN_MESSAGE} Now: {got}")

  def test_sums_and_quarters_add_up(self):
    loss = self.loss(self.params, self.frozen, _batch(), jax.random.key(7))
    self.assertEqual(float(loss.weight), B)
    quarters = [loss.metrics[f"loss_t{i}"] for i in range(4)]
    np.testing.assert_allclose(sum(s for s, _ in quarters), loss.total, rtol=1e-5)
    keys = [
      jax.random.split(jax.random.fold_in(jax.random.key(7), i), 3)[0] for i in _batch()["id_B"]
    ]
    t = np.array([self.stage._sample_time(key, (H, W, C)) for key in keys])
    want = np.bincount((4 * t).astype(int), minlength=4)
    np.testing.assert_array_equal([w for _, w in quarters], want)
    self.assertEqual(float(loss.metrics["loss"][0]), float(loss.total))

  def test_loss_by_hand_without_drops(self):
    stage = _stage(drop_both=0.0, drop_byt5=0.0, drop_llm=0.0, shift=2.0)
    data, rng = _batch(), jax.random.key(7)

    def by_hand(params, frozen):
      trees = {**params, **frozen}
      cond = stage.model.encode_text(trees, data["llm_ids_BL"], data["byt5_ids_BG"])
      x0 = (data["latent_BHWC"].astype(jnp.float32) - 0.2) / 0.7
      keys = [jax.random.split(jax.random.fold_in(rng, i), 3) for i in data["id_B"]]
      u_B = jnp.stack([jax.random.normal(key[0]) for key in keys])
      t_B = jax.nn.sigmoid(u_B + jnp.log(2.0))  # shifting t by alpha adds log alpha to its logit
      eps = jnp.stack([jax.random.normal(key[1], (H, W, C)) for key in keys])
      t = t_B[:, None, None, None]
      dit = stage.model.parts["dit"].bind(params["dit"])
      v = dit((1 - t) * x0 + t * eps, t_B, cond, size_B2=jnp.asarray(data["size_B2"]))
      return jnp.sum(jnp.mean((v - (eps - x0)) ** 2, axis=(1, 2, 3)))

    want = jax.jit(by_hand)(self.params, self.frozen)
    got = jax.jit(functools.partial(_loss, stage))(self.params, self.frozen, data, rng)
    np.testing.assert_allclose(got.total, want, rtol=1e-4)

  def test_precomputed_llm_features_change_nothing(self):
    stage = _stage(drop_both=0.3, drop_byt5=0.1, drop_llm=0.3)
    data, rng = _batch(), jax.random.key(7)
    llm = stage.model.parts["llm"].bind(self.frozen["llm"])
    cached = data | {
      "llm_features_BLE": llm(jnp.asarray(data["llm_ids_BL"])),
      "llm_empty_BE": jnp.repeat(llm(jnp.full((1, 1), 3))[:, 0], B, axis=0),
    }
    without = {name: tree for name, tree in self.frozen.items() if name != "llm"}
    loss = jax.jit(functools.partial(_loss, stage))
    want, got = loss(self.params, self.frozen, data, rng), loss(self.params, without, cached, rng)
    np.testing.assert_allclose(got.total, want.total, rtol=1e-5)
    other = cached | {"llm_empty_BE": cached["llm_empty_BE"] + 1}  # some examples are dropped
    self.assertGreater(abs(loss(self.params, without, other, rng).total - want.total), 1e-3)
    del cached["llm_empty_BE"]
    with self.assertRaisesRegex(types.UserError, "llm_features_BLE but not llm_empty_BE"):
      loss(self.params, without, cached, rng)

  def test_example_does_not_depend_on_its_neighbours_or_place(self):
    """Each alone, five times over, and the batch turned round: the same sum."""
    data, rng = _batch(), jax.random.key(7)
    rows = [jax.tree.map(lambda x, i=i: np.repeat(x[i : i + 1], B, 0), data) for i in range(B)]
    alone = [float(self.loss(self.params, self.frozen, row, rng).total) / B for row in rows]
    whole = float(self.loss(self.params, self.frozen, data, rng).total)
    np.testing.assert_allclose(sum(alone), whole, rtol=1e-5)
    flipped = jax.tree.map(lambda x: x[::-1].copy(), data)
    again = float(self.loss(self.params, self.frozen, flipped, rng).total)
    np.testing.assert_allclose(again, whole, rtol=1e-5)

  def test_steps_differ(self):
    a, b = (self.loss(self.params, self.frozen, _batch(), jax.random.key(i)).total for i in (7, 8))
    self.assertGreater(abs(float(a - b)), 1e-3)

  def test_drop_rates_are_disjoint(self):
    stage = _stage(drop_both=0.2, drop_byt5=0.1, drop_llm=0.3)
    u_B = (np.arange(1000) + 0.5) / 1000
    llm_B, byt5_B = (np.asarray(x) for x in stage._drops(jnp.asarray(u_B)))
    self.assertAlmostEqual((llm_B & byt5_B).mean(), 0.2, places=6)
    self.assertAlmostEqual((byt5_B & ~llm_B).mean(), 0.1, places=6)
    self.assertAlmostEqual((llm_B & ~byt5_B).mean(), 0.3, places=6)

  def test_dropping_everything_hides_the_texts(self):
    stage, data, rng = (
      _stage(drop_both=1.0, drop_byt5=0.0, drop_llm=0.0),
      _batch(),
      jax.random.key(7),
    )
    loss = jax.jit(functools.partial(_loss, stage))
    other = {
      **data,
      "llm_ids_BL": (data["llm_ids_BL"] > 3) * 5 + 3,
      "byt5_ids_BG": 99 + 0 * data["byt5_ids_BG"],
    }
    a, b = (loss(self.params, self.frozen, x, rng).total for x in (data, other))
    self.assertEqual(float(a), float(b))
    a, b = (self.loss(self.params, self.frozen, x, rng).total for x in (data, other))
    self.assertNotEqual(float(a), float(b))

  def test_training_and_sampling_use_one_shift(self):
    stage = _stage(shift=1.5, shift_base=4.0)
    self.assertAlmostEqual(stage.shift(4, 4), 1.5)
    self.assertAlmostEqual(stage.shift(8, 8), 3.0)
    plain = _stage(shift=1.0)
    key, shape = jax.random.key(0), (8, 8, C)
    np.testing.assert_allclose(
      stage._sample_time(key, shape), timesteps.shift_time(plain._sample_time(key, shape), 3.0)
    )

  def test_val_loss_needs_no_rng_and_has_a_slot_per_timestep(self):
    sum_8, weight_8 = self.val_loss(self.params, self.frozen, {"train": _batch()}, None)
    want = np.bincount(_batch()["id_B"] % 8, minlength=8)
    np.testing.assert_array_equal(weight_8, want)
    np.testing.assert_array_equal(np.asarray(sum_8) > 0, want > 0)
    again, _ = self.val_loss(self.params, self.frozen, {"train": _batch()}, jax.random.key(9))
    np.testing.assert_array_equal(again, sum_8)

  def test_sampling_is_an_example_at_a_time(self):
    data = _batch()
    whole = self.latents(self.params, self.frozen, {"train": data})
    other = jax.tree.map(lambda x: np.concatenate([x[:1], x[:-1]]), data)
    np.testing.assert_allclose(
      self.latents(self.params, self.frozen, {"train": other})[1:], whole[:-1], atol=1e-4
    )

  def test_negative_branch_is_the_empty_prompt(self):
    """At guidance 0 the result is that of the prompt [eos] with nothing to render."""
    fn = self.stage.predict_fns()["latents"]
    data = _batch()
    empty = {
      **data,
      "llm_ids_BL": np.asarray(llm.empty_prompt(llm.make_config(), (B, L))),
      "byt5_ids_BG": np.tile(np.array([1, 0, 0, 0], np.int32), (B, 1)),
    }
    zero = jax.jit(functools.partial(fn, num_steps=2, guidance=0.0))
    one = jax.jit(functools.partial(fn, num_steps=2, guidance=1.0))
    np.testing.assert_allclose(
      zero(self.params, self.frozen, {"train": data}),
      one(self.params, self.frozen, {"train": empty}),
      atol=1e-4,
    )

  def test_sample_decodes_latents(self):
    fn = self.stage.predict_fns()["sample"]
    image = jax.jit(functools.partial(fn, num_steps=3))(
      self.params, self.frozen, {"train": _batch()}, None
    )
    z_BHWC = self.latents(self.params, self.frozen, {"train": _batch()})
    self.assertEqual(image.shape, (B, 2 * H, 2 * W, 3))
    want = jax.jit(self.stage.model.decode)(self.frozen, z_BHWC)
    np.testing.assert_allclose(image, want, atol=1e-3)

  def test_parts_and_players(self):
    self.assertEqual(self.stage.players, ("dit",))
    self.assertEqual(set(self.stage.parts()), {"dit", "vae", "llm", "byt5"})
    made = jax.eval_shape(self.stage.init, jax.random.key(0), self.frozen)
    self.assertEqual(set(made), {"dit"})

  def test_bad_config_is_named(self):
    with self.assertRaisesRegex(types.UserError, "stage.shfit"):
      _stage(shfit=2.0)
    with self.assertRaisesRegex(types.UserError, "drop rates"):
      _stage(drop_both=0.9, drop_llm=0.2)
    with self.assertRaisesRegex(types.UserError, "min_snr"):
      _stage(weighting="min_snr")


class LabelsTest(absltest.TestCase):
  """Aesthetic labels and the origin: columns of label_BA, conditions of the DiT."""

  LABELS = (("bright", "[V]"), ("soft light", "[S]"))

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.stage = cls.make(drop_labels=0.0)
    trees = {name: _draw(part.abstract) for name, part in cls.stage.parts().items()}
    trees["vae"]["stats"] = {"mean": jnp.full((C,), 0.2), "std": jnp.full((C,), 0.7)}
    cls.params, cls.frozen = {"dit": trees.pop("dit")}, trees
    cls.loss = staticmethod(jax.jit(functools.partial(_loss, cls.stage)))

  @classmethod
  def make(cls, features=("label_BA",), **stage):
    dit = {**MODEL["dit"], "labels": 2, "conds": ("time", "size", "pooled", "origin")}
    config = ConfigDict(
      dict(
        stage=dict(name="denoise", labels=cls.LABELS, **stage),
        model={**MODEL, "dit": dit, "llm": {**tiny.LLM, "vocab_size": 2048}},
        data=dict(tokenizer=TOKENIZER, streams=dict(train=dict(features=features))),
      )
    )
    return denoise.make(config)

  def data(self, labels):
    return _batch() | {"label_BA": np.tile(np.array(labels, np.int32), (B, 1))}

  def total(self, labels, loss=None):
    loss = loss or self.loss
    return float(loss(self.params, self.frozen, self.data(labels), jax.random.key(7)).total)

  def test_each_column_is_heard(self):
    base = self.total([1, 0, 0])
    for other in ([0, 0, 0], [1, 1, 0], [1, 0, 1], [-1, -1, 0]):
      self.assertGreater(abs(self.total(other) - base), 1e-4, other)

  def test_hidden_labels_are_unknown_ones_and_leave_the_origin(self):
    always = jax.jit(functools.partial(_loss, self.make(drop_labels=1.0)))
    self.assertAlmostEqual(self.total([1, 0, 1], always), self.total([-1, -1, 1]), places=4)
    self.assertGreater(abs(self.total([1, 0, 0], always) - self.total([-1, -1, 1])), 1e-4)

  def test_label_embeddings_are_the_llms_and_are_not_of_the_padding(self):
    made = self.stage.init(jax.random.key(0), self.frozen)["dit"]["vmix"]["labels"]
    self.assertEqual(made.shape, (2, 2, 12))
    tokenizer = tokenizers.LLMTokenizer(TOKENIZER)
    llm = self.stage.model.parts["llm"].bind(self.frozen["llm"])
    words = [words for pair in self.LABELS for words in reversed(pair)]  # the negative ones first
    alone = [np.mean(llm(jnp.asarray([tokenizer.encode(w)]))[0], axis=0) for w in words]
    want = np.asarray(alone) - np.mean(alone, axis=0)
    np.testing.assert_allclose(made.reshape(4, -1), want, atol=1e-5)

  def test_sampling_asks_for_all_labels_and_reality(self):
    fn = self.stage.predict_fns()["latents"]
    draw = lambda **k: jax.jit(functools.partial(fn, num_steps=2, **k))(  # noqa: E731
      self.params, self.frozen, {"train": _batch()}
    )
    plain = draw()
    self.assertGreater(float(jnp.abs(draw(aesthetics=0.0) - plain).max()), 1e-4)
    for negative in ("generated", "empty_generated"):
      self.assertGreater(float(jnp.abs(draw(negative=negative) - plain).max()), 1e-4)
    yes, no = self.stage.conditions(self.params, self.frozen, _batch(), 0.5, "empty")
    np.testing.assert_array_equal(yes.tags_BA, np.ones_like(yes.tags_BA))
    np.testing.assert_array_equal(no.tags_BA, -np.ones_like(yes.tags_BA))  # raised by guidance too
    _, no = self.stage.conditions(self.params, self.frozen, _batch(), 0.5, "generated")
    np.testing.assert_array_equal(no.tags_BA, yes.tags_BA)
    same = draw(negative="generated", guidance=1.0)  # without guidance there is no negative branch
    np.testing.assert_array_equal(same, draw(guidance=1.0))

  def test_what_does_not_fit_is_refused(self):
    with self.assertRaisesRegex(types.UserError, "lacks label_BA"):
      self.make(features=("id_B",))
    with self.assertRaisesRegex(types.UserError, "stage.labels: 2 given, model.dit.labels = 0"):
      _stage(labels=self.LABELS)
    with self.assertRaisesRegex(types.UserError, "drop_labels"):
      _stage(drop_labels=0.1)
    stage = _stage()
    fn, params = stage.predict_fns()["latents"], {"dit": stage.parts()["dit"].abstract}
    for option, message in (
      (dict(aesthetics=0.5), "no aesthetic labels"),
      (dict(negative="generated"), "no condition origin"),
    ):
      with self.assertRaisesRegex(types.UserError, message):
        jax.eval_shape(
          functools.partial(fn, num_steps=2, **option), params, self.frozen, {"train": _batch()}
        )


def _loss(stage, params, frozen, data, rng):
  return stage.loss(params, frozen, {}, {"train": data}, rng, player="dit", step=jnp.int32(0))


if __name__ == "__main__":
  absltest.main()
