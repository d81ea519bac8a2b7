"""The classify stage: a golden step, its losses in numpy, what absent labels do, who it listens to."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.stages import classify

B, H, W, V, COLORS, COUNTS, E = 5, 16, 24, 7, 3, 4, 11
HEADS = (("subject", V), ("color", COLORS), ("count", COUNTS), ("text", 1))
# Two slots, colour, count, language; the last row has no answer but that nothing is there.
LABELS = np.array(
  [[2, -1, 0, 1, -1], [6, 0, 2, 2, 0], [-1, -1, 1, 0, 1], [3, 3, -1, 2, -1], [-1, -1, -1, -1, -1]],
  np.int32,
)
GOLDEN_MESSAGE = (
  "Loss or gradient of one step changed. If the change was meant to alter numerics, update GOLDEN "
  "and say why in the commit; if not, it is a bug."
)
GOLDEN = {"loss": 7.741947, "grad_rms": 0.04393296}


def _config(heads=HEADS, **stage):
  model = dict(variant="nano", widths=(4, 6), norm_groups=2, feature_dim=E, heads=heads)
  return ConfigDict(dict(stage=dict(name="classify", **stage), model=dict(classifier=model)))


def _batch():
  rng = np.random.default_rng(0)
  ids = np.array([3, 2**32 - 5, 8, 9, 11], np.uint32)
  return {
    "id_B": ids,
    "image_BHWC": rng.integers(0, 256, (B, H, W, 3), np.uint8),
    "label_BA": LABELS,
  }


def _draw(abstract):
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), abstract
  )


def _loss(stage, params, batch):
  return stage.loss(
    params, {}, {}, {"train": batch}, jax.random.key(7), player="classifier", step=jnp.int32(0)
  )


def _compiled(fn, *args):
  """fn under jit for arguments like these, without the minute LLVM would take to make it fast."""
  options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  return jax.jit(fn).lower(*args).compile(compiler_options=options)


def _log_sigmoid(x):
  return -np.log1p(np.exp(-x))


def _log_softmax(x):
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


class ClassifyTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.stage = classify.make(_config())
    cls.params = {"classifier": _draw(cls.stage.parts()["classifier"].abstract)}

    def total(params, batch):
      loss = _loss(cls.stage, params, batch)
      return loss.total, loss

    cls.fn = staticmethod(_compiled(jax.grad(total, has_aux=True), cls.params, _batch()))
    cls.grads, cls.got = cls.fn(cls.params, _batch())
    predict = cls.stage.predict_fns()
    cls.predict = staticmethod(
      _compiled(
        lambda p, b: {n: fn(p, {}, {"train": b}, None) for n, fn in predict.items()},
        cls.params,
        _batch(),
      )
    )

  def test_golden_step(self):
    grads = jax.tree.leaves(self.grads)
    rms = np.sqrt(sum(float(jnp.sum(g**2)) for g in grads) / sum(g.size for g in grads)) / B
    got = {"loss": float(self.got.total / self.got.weight), "grad_rms": float(rms)}
    for name, want in GOLDEN.items():
      np.testing.assert_allclose(got[name], want, rtol=1e-4, err_msg=f"{GOLDEN_MESSAGE} Now: {got}")

  def test_every_leaf_learns(self):
    self.assertTrue(all(float(jnp.max(jnp.abs(g))) > 0 for g in jax.tree.leaves(self.grads)))

  @parameterized.parameters(
    dict(), dict(subject_weight=3.0, color_weight=0.5, count_weight=0.0, text_weight=2.0)
  )
  def test_loss_in_numpy(self, **weights):
    stage = classify.make(_config(noise_std=0.0, **weights))
    loss = _compiled(lambda p, b: _loss(stage, p, b), self.params, _batch())(self.params, _batch())
    logits = {k: np.float64(v) for k, v in self.predict(self.params, _batch())["logits"].items()}
    shown = [{2}, {6, 0}, set(), {3}, set()]
    subject = sum(
      -_log_sigmoid(x if v in kinds else -x)
      for kinds, row in zip(shown, logits["subject"])
      for v, x in enumerate(row)
    )
    picked = {
      name: -sum(
        _log_softmax(logits[name])[b, target]
        for b, target in enumerate(LABELS[:, column])
        if target >= 0
      )
      for name, column in (("color", 2), ("count", 3))
    }
    text = -sum(
      _log_sigmoid(x if there else -x) for there, x in zip((0, 1, 1, 0, 0), logits["text"][:, 0])
    )
    want = {"subject": subject, **picked, "text": text}
    asked = {"subject": B, "color": 3, "count": 4, "text": B}
    for name, value in want.items():
      got, weight = loss.metrics[f"{name}_loss"]
      np.testing.assert_allclose(got, value, rtol=1e-4, err_msg=name)
      self.assertEqual(float(weight), asked[name])
    total = sum(weights.get(f"{name}_weight", 1.0) * value for name, value in want.items())
    np.testing.assert_allclose(loss.total, total, rtol=1e-4)
    self.assertEqual(float(loss.weight), B)
    if not weights:
      val_total, val_weight = self.predict(self.params, _batch())["val_loss"]
      np.testing.assert_allclose((val_total, val_weight), (total, B), rtol=1e-4)

  def test_accuracy_counts_only_what_was_asked(self):
    """Biases alone answer: subject 3, colour 1, count 2, no text; noise cannot matter."""
    params = jax.tree.map(jnp.zeros_like, self.params)
    head = params["classifier"]
    for name, answer in (("color", 1), ("count", 2)):
      head[f"head_{name}"]["bias"] = head[f"head_{name}"]["bias"].at[answer].set(9.0)
    head["head_subject"]["bias"] = jnp.full((V,), -9.0).at[3].set(9.0)
    head["head_text"]["bias"] = jnp.full((1,), -9.0)
    _, loss = self.fn(params, _batch())
    got = {k: tuple(map(float, v)) for k, v in loss.metrics.items() if k.endswith("_accuracy")}
    want = {"subject": (1, 5), "color": (1, 3), "count": (2, 4), "text": (3, 5)}
    self.assertEqual(got, {f"{k}_accuracy": v for k, v in want.items()})

  def test_absent_answers_teach_nothing(self):
    grad_fn = jax.grad(lambda x, target: jnp.sum(classify.class_loss(x, target)))
    logits_BV = jnp.asarray(np.random.default_rng(2).standard_normal((3, COLORS)), jnp.float32)
    grad_BV = grad_fn(logits_BV, jnp.array([-1, 2, -1]))
    np.testing.assert_array_equal(grad_BV[::2], np.zeros((2, COLORS)))
    self.assertGreater(float(jnp.max(jnp.abs(grad_BV[1]))), 0.1)

  @parameterized.parameters("subject", "color", "count", "text")
  def test_a_better_answer_costs_less(self, name):
    head = f"head_{name}"
    nudge = {"subject": 2, "color": 0, "count": 1, "text": 0}[name]  # the answers of row 0
    sign = -1.0 if name == "text" else 1.0  # row 0 holds no text
    row = {k: np.repeat(v[:1], B, axis=0) for k, v in _batch().items()}
    losses = []
    for step in (-1.0, 0.0, 1.0):
      params = jax.tree.map(lambda x: x, self.params)
      bias = params["classifier"][head]["bias"]
      params["classifier"][head]["bias"] = bias.at[nudge].add(sign * step)
      losses.append(float(self.fn(params, row)[1].metrics[f"{name}_loss"][0]))
    self.assertGreater(losses[0] - losses[1], 1e-3)
    self.assertGreater(losses[1] - losses[2], 1e-3)

  def test_example_does_not_depend_on_its_neighbours_or_place(self):
    batch, alone = _batch(), []
    for i in range(B):
      row = {k: np.repeat(v[i : i + 1], B, axis=0) for k, v in batch.items()}
      alone.append(float(self.fn(self.params, row)[1].total) / B)
    np.testing.assert_allclose(sum(alone), float(self.got.total), rtol=1e-4)

  def test_noise_follows_the_id_and_predictions_have_none(self):
    other = dict(_batch(), id_B=np.array([3, 4, 8, 9, 11], np.uint32))
    change = float(self.fn(self.params, other)[1].total) - float(self.got.total)
    self.assertGreater(abs(change), 1e-4)
    a, b = (self.predict(self.params, x) for x in (_batch(), other))
    jax.tree.map(np.testing.assert_array_equal, a, b)

  def test_predictions_are_of_the_picture(self):
    got = self.predict(self.params, _batch())
    self.assertEqual({k: v.shape for k, v in got["logits"].items()}, {k: (B, n) for k, n in HEADS})
    self.assertEqual(got["features"].shape, (B, E))
    model = self.stage.parts()["classifier"].bind(self.params["classifier"])
    want = model.embedding(_batch()["image_BHWC"] / np.float32(127.5) - 1)
    np.testing.assert_allclose(got["features"], want, rtol=1e-3, atol=1e-4)
    kernel, bias = (self.params["classifier"]["head_color"][k] for k in ("kernel", "bias"))
    np.testing.assert_allclose(
      got["logits"]["color"], np.asarray(want @ kernel) + bias[None], rtol=1e-3, atol=1e-3
    )

  def test_heads_must_be_the_questions(self):
    with self.assertRaisesRegex(types.UserError, "model.classifier.heads"):
      classify.make(_config(heads=(("subject", V), ("text", 1))))


if __name__ == "__main__":
  absltest.main()
