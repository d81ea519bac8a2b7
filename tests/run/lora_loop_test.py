"""A run that trains adapters: what moves, what is kept, and what the loop still promises."""

import functools
import os
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

from experiments import align, common
from seedream_jax import types
from seedream_jax.engine import checkpoint, trees
from seedream_jax.models import lora
from seedream_jax.run import loop
from seedream_jax.run import open as open_lib
from tests.run import loop_test


@functools.cache
def _base() -> str:
  """Weights of a tiny LLM without adapters."""
  config = loop_test.tiny_config()
  part = open_lib.make_stage(config).parts()["llm"]
  folder = tempfile.mkdtemp(dir=absltest.get_default_test_tmpdir())
  rng = np.random.default_rng(0)
  draw = lambda x: (0.1 * rng.standard_normal(x.shape)).astype(np.float32)  # noqa: E731
  path = os.path.join(folder, "llm.safetensors")
  checkpoint.save_weights(path, jax.tree.map(draw, part.abstract))
  return folder


def _config(**mesh: int):
  config = loop_test.tiny_config(**mesh)
  for stream in config.data.streams.values():
    stream.text_buckets = (64,)  # one compile
  common.adapt(config, "llm", 4)
  config.init.path = _base()
  return config


def _adapter(path: str) -> bool:
  return trees.matches(lora.LEAVES, path)


class LoraLoopTest(parameterized.TestCase):
  def test_only_adapters_move_and_only_they_have_moments(self):
    workdir = loop_test.run(_config())
    exp = open_lib.open_config(open_lib.read_config(workdir), workdir)
    state = open_lib.load_state(exp)
    self.assertEqual(int(state.step), 4)
    base = trees.flatten(checkpoint.load_weights(os.path.join(_base(), "llm.safetensors")))
    params = trees.flatten(state.params["llm"])
    self.assertEqual({p for p in params if not _adapter(p)}, set(base))
    for path, x in params.items():
      if path in base:
        np.testing.assert_array_equal(x, base[path], err_msg=path)
      elif path.endswith("lora_b"):
        self.assertGreater(float(abs(x).max()), 0, path)
    adapters = {p for p in params if _adapter(p)}
    self.assertLen(adapters, 2 * 7)
    self.assertEqual(set(state.ema["llm"]["eval"]), adapters)
    moments = [x for x in jax.tree.leaves(state.opt) if x.ndim]
    self.assertLen(moments, 2 * len(adapters))
    self.assertEqual({p for p in loop_test.final(workdir) if _adapter(p)}, adapters)

  def test_starts_on_the_base_with_b_at_zero(self):
    exp = open_lib.open_config(_config(), loop_test._fresh())
    with jax.set_mesh(exp.mesh):
      params = trees.flatten(open_lib.load_state(exp).params["llm"])
    base = trees.flatten(checkpoint.load_weights(os.path.join(_base(), "llm.safetensors")))
    for path, x in params.items():
      if path.endswith("lora_a"):
        self.assertGreater(float(abs(x).max()), 0, path)
      else:
        np.testing.assert_array_equal(x, base.get(path, 0 * x), err_msg=path)

  def test_a_base_that_lacks_more_is_refused(self):
    config = _config()
    config.init.allow_missing = ()
    exp = open_lib.open_config(config, loop_test._fresh())
    with jax.set_mesh(exp.mesh), self.assertRaisesRegex(types.UserError, "no leaf .*lora_a"):
      open_lib.load_state(exp)

  def test_resume_is_bit_identical(self):
    whole, cut = loop_test.run(_config()), loop_test._fresh()
    exp = open_lib.open_config(_config(), cut)
    with jax.set_mesh(exp.mesh):
      loaders = open_lib.open_loaders(exp.config, ["train"])
      state = open_lib.load_state(exp)
      update = exp.trainer.compiled(("llm",), 1)
      for k in range(2):
        batch = jax.tree.map(jax.numpy.asarray, {"train": loaders["train"].batch(k)})
        state, _ = update(state, exp.frozen, batch)
      exp.checkpointer.save(2, state, open_lib.meta_of(exp), wait=True)
    self.assertEqual(loop.train(_config(), cut), 0)
    want, got = loop_test.final(whole), loop_test.final(cut)
    self.assertEqual(want.keys(), got.keys())
    for name, x in want.items():
      np.testing.assert_array_equal(x, got[name], err_msg=name)
    self.assertLen(loop_test.losses(cut), 2)

  @parameterized.parameters(dict(fsdp=8), dict(data=2, fsdp=2, tensor=2))
  def test_any_mesh_gives_the_single_device_curve(self, **mesh):
    want = loop_test.losses(loop_test.run(_config()))
    np.testing.assert_allclose(loop_test.losses(loop_test.run(_config(**mesh))), want, rtol=2e-5)

  def test_a_step_costs_less_than_full_tuning(self):
    def cost(config):
      layout = open_lib.lay_out(config)
      batch = {"train": {"llm_ids_BL": jax.ShapeDtypeStruct((8, 64), np.int32)}}
      with jax.set_mesh(layout.mesh):
        return layout.trainer.flops(layout.state, layout.frozen, batch, ("llm",), 1)

    full, adapted = cost(loop_test.tiny_config()), cost(_config())
    self.assertLess(adapted, 0.9 * full)

  def test_a_target_that_is_none_is_one_line(self):
    config = _config()
    config.model.llm.lora.targets = "blocks/.*/qproj/kernel"
    with self.assertRaisesRegex(
      types.UserError, r"model.llm.lora.targets: .*no kernel; nearest is '.*/q_proj/kernel'"
    ):
      open_lib.lay_out(config)

  def test_glyphs_have_no_llm_to_adapt(self):
    with self.assertRaisesRegex(ValueError, "lora=4: mode glyph trains no LLM"):
      align.get_config("nano,mode=glyph,lora=4")


if __name__ == "__main__":
  absltest.main()
