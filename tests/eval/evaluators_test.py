"""Evaluators with fake predict functions: what they see, and what they report."""

import itertools
import types as python_types

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import config_dict

from seedream_jax import types
from seedream_jax.engine import mesh
from seedream_jax.eval import evaluators
from tests.eval import tiny


class _Stream:
  """Batches of ids 8k .. 8k + 7."""

  def __init__(self):
    self.asked = []

  def batch(self, step):
    self.asked.append(step)
    ids = np.arange(8 * step, 8 * step + 8)
    return {
      "id_B": ids.astype(np.uint32),
      "llm_ids_BL": np.stack([ids, ids + 1], 1).astype(np.int32),
      "byt5_ids_BG": np.zeros((8, 3), np.int32),
    }


class _Writer:
  def __init__(self):
    self.seen = {}

  def images(self, step, name, image):
    self.seen[name, step] = image


def _run():
  return python_types.SimpleNamespace(
    frozen={"bias": jnp.float32(0.5)}, mesh=mesh.make({"data": 8})
  )


def _state(ema=True):
  params = {"dit": {"a": {"w": jnp.float32(2.0)}, "b": jnp.float32(7.0)}}
  held = {"dit": {"eval": {"a/w": jnp.float32(3.0)}} if ema else {}}
  return types.TrainState(jnp.int32(0), params, {}, held, jnp.int32(0))


def _val_loss(params, frozen, batch, rng):
  """Eight slots: example i has error w * slot + bias."""
  del rng
  slot_B8 = jax.nn.one_hot(batch["train"]["id_B"] % 8, 8)
  error_B = params["dit"]["a"]["w"] * (batch["train"]["id_B"] % 8) + frozen["bias"]
  return jnp.sum(error_B[:, None] * slot_B8, axis=0), jnp.sum(slot_B8, axis=0)


def _sample(params, frozen, batch, rng=None, *, gain=1.0):
  """A flat picture whose brightness is the example's first id, plus noise of the given gain."""
  del params, frozen, rng
  data = batch["train"]
  level_B = data["llm_ids_BL"][:, 0] / 10.0 - 0.5
  noise_BHWC = jnp.repeat(data["noise_BHWC"][..., :1], 3, axis=-1)
  return level_B[:, None, None, None] + gain * 0.1 * noise_BHWC


class EvaluatorsTest(parameterized.TestCase):
  @parameterized.parameters((True, 3.0), (False, 2.0))
  def test_val_loss_is_the_weighted_mean_under_ema(self, ema, w):
    stream = _Stream()
    plugin = evaluators.ValLoss("val", _val_loss, stream, batches=3)
    got = plugin.run(_run(), _state(ema), 100, _Writer())
    self.assertEqual(stream.asked, [0, 1, 2])
    self.assertAlmostEqual(got["val/loss"], w * 3.5 + 0.5, places=5)
    for k in range(8):
      self.assertAlmostEqual(got[f"val/loss_{k}"], w * k + 0.5, places=5)

  def test_scalar_sums(self):
    def fn(params, frozen, batch, rng):
      return jnp.sum(batch["train"]["id_B"].astype(jnp.float32)), jnp.float32(8)

    got = evaluators.ValLoss("val", fn, _Stream(), batches=2).run(_run(), _state(), 0, _Writer())
    self.assertEqual(got, {"val/loss": 7.5})

  def test_empty_slots_are_left_out(self):
    fn = lambda p, f, b, r: (jnp.array([3.0, 0.0]), jnp.array([2.0, 0.0]))  # noqa: E731
    got = evaluators.ValLoss("val", fn, _Stream(), batches=1).run(_run(), _state(), 0, _Writer())
    self.assertEqual(got, {"val/loss": 1.5, "val/loss_0": 1.5})

  def test_sample_grid_repeats_its_noise(self):
    writer = _Writer()
    plugin = evaluators.SampleGrid(
      "grid",
      _sample,
      _Stream(),
      latent_shape=(5, 7, 2),
      num_images=6,
      columns=3,
      options={"gain": 0.3},
    )
    for step in (10, 20):
      self.assertEqual(plugin.run(_run(), _state(), step, writer), {})
    first, second = writer.seen["grid", 10], writer.seen["grid", 20]
    self.assertEqual((first.shape, first.dtype), ((10, 21, 3), np.uint8))
    np.testing.assert_array_equal(first, second)
    level = [
      first[5 * (i // 3) : 5 * (i // 3) + 5, 7 * (i % 3) : 7 * (i % 3) + 7].mean() for i in range(6)
    ]
    self.assertTrue(all(a < b for a, b in itertools.pairwise(level)))  # ids in reading order
    self.assertGreater(first[:5, :7].std(), 0)

  def test_sample_grid_follows_its_seed(self):
    writer = _Writer()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
      plugin = evaluators.SampleGrid(name, _sample, _Stream(), latent_shape=(5, 7, 2), seed=seed)
      plugin.run(_run(), _state(), 0, writer)
    np.testing.assert_array_equal(writer.seen["a", 0], writer.seen["b", 0])
    self.assertFalse(np.array_equal(writer.seen["a", 0], writer.seen["c", 0]))

  def test_sample_grid_writes_prompts(self):
    tiny.require_fonts()
    seen = []

    def decode(ids):
      seen.append(tuple(ids))
      return f"图 {ids[0]}"

    writer = _Writer()
    plugin = evaluators.SampleGrid(
      "grid", _sample, _Stream(), latent_shape=(8, 8, 2), num_images=5, decode=decode
    )
    plugin.run(_run(), _state(), 3, writer)
    self.assertEqual(seen, [(i, i + 1) for i in range(5)])
    self.assertGreater(writer.seen["grid", 3].shape[0], 2 * 192)

  def test_config_makes_evaluators(self):
    opened = []

    def open_stream(name):
      opened.append(name)
      return _Stream()

    config = config_dict.create(
      every_steps=5,
      evaluators=dict(
        val=dict(kind="ValLoss", predict="val_loss", stream="val", batches=2),
        grid=dict(kind="SampleGrid", predict="sample", stream="val", latent_shape=(5, 7, 2)),
      ),
    )
    plugins = evaluators.make_all(config, {"val_loss": _val_loss, "sample": _sample}, open_stream)
    by_kind = {type(p).__name__: p for p in plugins}
    self.assertCountEqual(by_kind, ["ValLoss", "SampleGrid"])
    self.assertEqual(opened, ["val"])
    self.assertIn("val/loss", by_kind["ValLoss"].run(_run(), _state(), 0, _Writer()))

  @parameterized.parameters(
    (
      dict(kind="ValLos", predict="val_loss"),
      "eval.evaluators.x.kind: unknown 'ValLos'; nearest: ValLoss",
    ),
    (dict(kind="ValLoss", predict="valloss"), "x.predict: unknown 'valloss'; nearest: val_loss"),
    (dict(kind="ValLoss", predict="val_loss", batchs=3), "unknown 'batchs'; nearest: batches"),
    (dict(kind="SampleGrid", predict="val_loss"), "SampleGrid needs latent_shape"),
  )
  def test_users_mistakes(self, spec, message):
    with self.assertRaisesRegex(types.UserError, message):
      evaluators.make_all(
        {"evaluators": {"x": spec}}, {"val_loss": _val_loss}, lambda name: _Stream()
      )


if __name__ == "__main__":
  absltest.main()
