"""The read stage: a golden step, its loss in numpy, pictures without text, and what prediction reads."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from ml_collections import ConfigDict

from seedream_jax.stages import read

B, H, W, L, V = 5, 16, 24, 3, 7
# Three slots and the place; the last picture has no text.
LABELS = np.array(
  [[2, -1, -1, 0], [6, 0, 2, 1], [1, 1, -1, 2], [3, -1, -1, 3], [-1, -1, -1, -1]], np.int32
)
GOLDEN_MESSAGE = (
  "Loss or gradient of one step changed. If the change was meant to alter numerics, update GOLDEN "
  "and say why in the commit; if not, it is a bug."
)
GOLDEN = {"loss": 8.109653, "grad_rms": 0.04535643}


def _batch(label_BA=LABELS):
  rng = np.random.default_rng(0)
  ids = np.array([3, 2**32 - 5, 8, 9, 11], np.uint32)
  return {
    "id_B": ids,
    "image_BHWC": rng.integers(0, 256, (B, H, W, 3), np.uint8),
    "label_BA": label_BA,
  }


class ReadTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    model = dict(
      variant="nano", widths=(4, 6), zone=(8, 12), hidden=11, slots=L, characters=V, norm_groups=2
    )
    config = ConfigDict(dict(stage=dict(name="read"), model=dict(glyph_reader=model)))
    cls.stage = read.make(config)
    rng = np.random.default_rng(1)
    abstract = cls.stage.parts()["glyph_reader"].abstract
    draw = lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32)  # noqa: E731
    cls.params = {"glyph_reader": jax.tree.map(draw, abstract)}

    def total(params, batch):
      loss = cls.stage.loss(
        params,
        {},
        {},
        {"train": batch},
        jax.random.key(7),
        player="glyph_reader",
        step=jnp.int32(0),
      )
      return loss.total, loss

    cls.fn = staticmethod(jax.jit(jax.grad(total, has_aux=True)))
    fns = cls.stage.predict_fns()
    cls.predict = staticmethod(
      jax.jit(lambda p, b: {n: fn(p, {}, {"train": b}, None) for n, fn in fns.items()})
    )

  def test_golden_step(self):
    grads, got = self.fn(self.params, _batch())
    leaves = [np.asarray(g).ravel() for g in jax.tree.leaves(grads)]
    rms = float(np.sqrt(np.mean(np.square(np.concatenate(leaves)))))
    found = {"loss": float(got.total), "grad_rms": rms}
    for name, want in GOLDEN.items():
      self.assertAlmostEqual(found[name] / want, 1, delta=1e-4, msg=f"{GOLDEN_MESSAGE} {found}")

  def test_the_loss_by_hand(self):
    got = self.predict(self.params, _batch())
    target = np.where(LABELS[:, :-1] < 0, V, LABELS[:, :-1])
    picked = np.take_along_axis(np.asarray(got["log_probs"]), target[..., None], -1)[..., 0]
    total, weight = got["val_loss"]
    np.testing.assert_allclose(total, -picked[:4].mean(1).sum(), rtol=1e-5)
    self.assertEqual(weight, 4)  # the one without text is not asked
    np.testing.assert_allclose(np.exp(got["log_probs"]).sum(-1), 1, rtol=1e-5)

  def test_accuracies_count_what_is_written(self):
    # What it reads without noise is right where it is the label.
    log_probs = self.predict(self.params, _batch())["log_probs"]
    label_BA = np.concatenate([np.argmax(log_probs, -1), LABELS[:, -1:]], axis=1).astype(np.int32)
    label_BA[0, 0] = (label_BA[0, 0] + 1) % V
    image_BHWC = np.float32(_batch()["image_BHWC"]) / np.float32(127.5) - np.float32(1)
    loss = self.stage._loss(self.params, image_BHWC, label_BA)
    right, num = loss.metrics["string_accuracy"]
    self.assertEqual((float(right), float(num)), (3, 4))

  def test_prediction_reads_the_place_alone(self):
    want = self.predict(self.params, _batch())["log_probs"]
    blind = LABELS.copy()
    blind[:, :-1] = -1
    np.testing.assert_array_equal(self.predict(self.params, _batch(blind))["log_probs"], want)
    moved = blind.copy()
    moved[:, -1] = 1 - np.clip(moved[:, -1], 0, 1)
    other = self.predict(self.params, _batch(moved))["log_probs"]
    self.assertGreater(np.abs(other[0] - want[0]).max(), 1e-3)

  def test_columns_of_another_length_are_refused(self):
    with self.assertRaisesRegex(ValueError, "expected 3 slots and a place"):
      self.fn(self.params, _batch(LABELS[:, 1:]))


if __name__ == "__main__":
  absltest.main()
