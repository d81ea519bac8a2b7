"""Evaluators with fake predict functions: what they see, and what they report."""

import itertools
import tempfile
import types as python_types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import config_dict

from seedream_jax import types
from seedream_jax.engine import mesh
from seedream_jax.eval import evaluators, fonts, report
from tests.eval import tiny


class _Stream:
  """Batches of ids 8k .. 8k + 7, with pictures of one size."""

  def __init__(self, picture="image_BHWC", size=(10, 14)):
    self.asked, self._picture, self._size = [], picture, size

  def batch(self, step):
    self.asked.append(step)
    ids = np.arange(8 * step, 8 * step + 8)
    return {
      "id_B": ids.astype(np.uint32),
      "llm_ids_BL": np.stack([ids, ids + 1], 1).astype(np.int32),
      "byt5_ids_BG": np.zeros((8, 3), np.int32),
      self._picture: np.zeros((8, *self._size, 3), np.float16),
    }


class _Writer:
  def __init__(self):
    self.seen = {}

  def images(self, step, name, image):
    self.seen[name, step] = image


class _Stage:
  """A model whose latents are half as wide and as high as images, with two channels."""

  def __init__(self):
    self.model = self

  def encode_image(self, params, image_BHWC):
    del params
    if image_BHWC.shape[1] == 5:  # a latent
      return image_BHWC[..., :2]
    return image_BHWC[:, ::2, ::2, :2]


def _run(workdir="", **shape):
  devices = mesh.make(shape or {"data": 8}, jax.devices()[: shape.get("data", 8)])
  return python_types.SimpleNamespace(
    stage=_Stage(), frozen={"bias": jnp.float32(0.5)}, workdir=workdir, mesh=devices
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
  del frozen, rng
  data = batch["train"]
  off = params["dit"]["a"]["w"] - 3.0  # 0 under the EMA, black without
  level_B = data["llm_ids_BL"][:, 0] / 10.0 - 0.5 + off
  noise_BHWC = jnp.repeat(data["noise_BHWC"][..., :1], 3, axis=-1)
  return level_B[:, None, None, None] + gain * 0.1 * noise_BHWC


def _encode(prompts):
  i = np.arange(len(prompts), dtype=np.int32)
  return {"llm_ids_BL": np.stack([i, i], 1), "byt5_ids_BG": np.zeros((len(prompts), 3), np.int32)}


def _grid(stream, count, **kwargs):
  prompts = [f"图 {i}" for i in range(count)]
  return evaluators.SampleGrid("grid", _sample, stream, prompts=prompts, encode=_encode, **kwargs)


def _no_fonts():
  missing = types.UserError("font 'Noto Sans CJK SC' is not installed")
  return mock.patch.object(fonts, "load", side_effect=missing)


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

  def test_pairs_by_name(self):
    def fn(params, frozen, batch, rng):
      one, two = jnp.float32(1), jnp.float32(2)
      return {"a": (3 * one, two), "b": (one, 2 * two)}

    got = evaluators.ValLoss("val", fn, _Stream(), batches=2).run(_run(), _state(), 0, _Writer())
    self.assertEqual(got, {"val/a": 1.5, "val/b": 0.25})

  @parameterized.parameters(
    # (held-out score, reward) at steps 10, 20, ...: where to go back to, if anywhere
    ([(1, 0), (2, 1), (3, 2), (4, 3)], None),  # both rise
    ([(1, 0), (3, 1), (2, 2)], None),  # one fall is no trend
    ([(1, 0), (3, 1), (2, 2), (2, 3)], 20),
    ([(1, 0), (3, 1), (2.9, 2), (2.8, 3)], None),  # within the margin
    ([(1, 0), (3, 3), (2, 2), (1, 1)], None),  # the rewards fall too: no exploitation
    ([(1, 0), (3, 1), (2, 2), (4, 3), (2, 4)], None),  # it recovered
  )
  def test_guard_goes_back_when_the_score_falls_and_rewards_rise(self, seen, want):
    rows = iter(seen)

    def fn(params, frozen, batch, rng):
      return {
        "held": (params["dit"]["held"], jnp.float32(1)),
        "mine": (params["dit"]["mine"], jnp.float32(1)),
      }

    workdir = tempfile.mkdtemp()

    def make():
      return evaluators.Guard(
        "guard", fn, _Stream(), score="held", rewards=("mine",), margin=0.5, batches=1
      )

    guard = make()
    for i, (score, reward) in enumerate(rows):
      params = {"dit": {"held": jnp.float32(score), "mine": jnp.float32(reward)}}
      state = types.TrainState(jnp.int32(0), params, {}, {"dit": {}}, jnp.int32(0))
      guard.run(_run(workdir=workdir), state, 10 * (i + 1), _Writer())
    self.assertEqual(guard.back_to(workdir), want)
    self.assertEqual(make().back_to(workdir), want)  # as a run started again sees it

  def test_empty_slots_are_left_out(self):
    fn = lambda p, f, b, r: (jnp.array([3.0, 0.0]), jnp.array([2.0, 0.0]))  # noqa: E731
    got = evaluators.ValLoss("val", fn, _Stream(), batches=1).run(_run(), _state(), 0, _Writer())
    self.assertEqual(got, {"val/loss": 1.5, "val/loss_0": 1.5})

  def test_sample_grid_repeats_its_noise(self):
    writer = _Writer()
    plugin = _grid(_Stream(), 6, columns=3, options={"gain": 0.3})
    with _no_fonts():
      for step in (10, 20):
        self.assertEqual(plugin.run(_run(), _state(), step, writer), {})
    first, second = writer.seen["grid", 10], writer.seen["grid", 20]
    self.assertEqual((first.shape, first.dtype), ((10, 21, 3), np.uint8))
    np.testing.assert_array_equal(first, second)
    level = [
      first[5 * (i // 3) : 5 * (i // 3) + 5, 7 * (i % 3) : 7 * (i % 3) + 7].mean() for i in range(6)
    ]
    self.assertTrue(all(a < b for a, b in itertools.pairwise(level)))  # prompts in reading order
    self.assertGreater(first[:5, :7].std(), 0)

  def test_sample_grid_follows_its_seed_and_nothing_else(self):
    writer = _Writer()
    with _no_fonts():
      for step, stream, run, seed in (
        (0, _Stream(), _run(), 0),
        (1, _Stream(), _run(data=2), 0),
        (2, _Stream("latent_BHWC", (5, 7)), _run(), 0),
        (3, _Stream(), _run(), 1),
      ):
        _grid(stream, 3, seed=seed).run(run, _state(), step, writer)
    for step in (1, 2):
      np.testing.assert_array_equal(writer.seen["grid", 0], writer.seen["grid", step])
    self.assertFalse(np.array_equal(writer.seen["grid", 0], writer.seen["grid", 3]))

  def test_sample_grid_writes_prompts(self):
    tiny.require_fonts()
    writer = _Writer()
    plugin = _grid(_Stream(), 5)
    with mock.patch.object(report, "sample_sheet", wraps=report.sample_sheet) as draw:
      plugin.run(_run(), _state(), 3, writer)
    self.assertEqual(draw.call_args[0][0].prompts, tuple(f"图 {i}" for i in range(5)))
    self.assertGreater(writer.seen["grid", 3].shape[0], 2 * 192)

  def test_sample_grid_without_fonts_leaves_the_prompts_out(self):
    writer = _Writer()
    with _no_fonts(), self.assertLogs(level="WARNING"):
      _grid(_Stream(), 5).run(_run(), _state(), 3, writer)
    self.assertEqual(writer.seen["grid", 3].shape, (10, 28, 3))

  def test_config_makes_evaluators(self):
    opened = []

    def open_stream(name):
      opened.append(name)
      return _Stream()

    config = config_dict.create(
      every_steps=5,
      evaluators=dict(
        val=dict(kind="ValLoss", predict="val_loss", stream="val", batches=2),
        grid=dict(kind="SampleGrid", predict="sample", stream="val", prompts=("a", "b")),
      ),
    )
    plugins = evaluators.make_all(
      config, {"val_loss": _val_loss, "sample": _sample}, open_stream, encode=_encode
    )
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
    (dict(kind="SampleGrid", predict="val_loss"), "SampleGrid needs prompts"),
  )
  def test_users_mistakes(self, spec, message):
    with self.assertRaisesRegex(types.UserError, message):
      evaluators.make_all(
        {"evaluators": {"x": spec}}, {"val_loss": _val_loss}, lambda name: _Stream()
      )


if __name__ == "__main__":
  absltest.main()
