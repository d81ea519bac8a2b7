"""Every shipped config: its groups, its parts, its shardings."""

import functools
import importlib
import json
import os
import pathlib
import tempfile

import jax
import ml_collections
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.engine import mesh, sharding
from seedream_jax.run import open as open_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = pathlib.Path(__file__).parent / "golden"
PRESETS = ("nano", "small", "base", "full")
EXPERIMENTS = [(name, "") for name in ("autoencoder", "pretrain", "ct", "sft", "judge", "rater")]
EXPERIMENTS += [("align", f",mode={m}") for m in ("lm", "pair", "glyph")]
EXPERIMENTS += [("rlhf", f",mode={m}") for m in ("clip", "reward", "refl", "dpo")]
CASES = [(name, preset, rest) for name, rest in EXPERIMENTS for preset in PRESETS]
CASES.append(("rater", "nano", ",reads=glyphs"))


@functools.cache
def config_of(name: str, arg: str) -> ml_collections.ConfigDict:
  return importlib.import_module(f"experiments.{name}").get_config(arg)


class ConfigsTest(parameterized.TestCase):
  def test_no_experiment_is_forgotten(self):
    files = {p.stem for p in (ROOT / "experiments").glob("*.py")} - {"__init__", "common"}
    self.assertEqual(files, {name for name, _ in EXPERIMENTS})

  @parameterized.parameters(*CASES)
  def test_groups_and_parts(self, name, preset, rest):
    config = config_of(name, preset + rest)
    self.assertEqual(set(config), set(open_lib.GROUPS))
    stage = open_lib.make_stage(config)
    frozen = set(stage.parts()) - set(stage.players)
    self.assertEqual(set(config.frozen), frozen)
    for player in config.optim.players:
      self.assertIn(player, stage.players)
    devices = mesh.make(dict(data=1, fsdp=4, tensor=2))
    for part in stage.parts().values():
      sharding.infer(part.abstract, config.sharding.rules, devices)  # raises where no rule fits

  @parameterized.parameters(*((name, rest) for name, preset, rest in CASES if preset == "nano"))
  def test_a_run_is_laid_out(self, name, rest):
    """What training does before it reads anything, the stage's init included."""
    layout = open_lib.lay_out(config_of(name, "nano" + rest), jax.devices()[:1])
    self.assertEqual(set(layout.state.params), set(layout.stage.players))

  @parameterized.parameters(*((n, r) for n, p, r in CASES if p == "nano" and n != "align"))
  def test_a_misspelt_stage_field_is_named(self, name, rest):
    config = config_of(name, "nano" + rest).copy_and_resolve_references()
    with config.unlocked():
      config.stage.wieght = 1.0
    with self.assertRaisesRegex(types.UserError, "'wieght'; nearest is"):
      open_lib.make_stage(config)

  def test_a_guard_is_watched_and_its_evaluator_reads_it(self):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    told = dict(model=dict(tower=dict(variant="nano")), data=dict(streams=dict(train={})))
    pathlib.Path(folder, "config.json").write_text(json.dumps(told))
    config = config_of("rlhf", f"nano,rm_text={folder},rm_guard={folder}")
    self.assertEqual(
      {name: fields.weight > 0 for name, fields in config.stage.rewards.items()},
      dict(text=True, guard=False),
    )
    self.assertEqual(set(config.frozen), set(open_lib.make_stage(config).parts()) - {"dit+llm"})
    watched = config.eval.evaluators.rewards
    self.assertEqual((watched.kind, watched.score), ("Guard", "guard"))
    self.assertEqual(tuple(watched.rewards), ("text",))
    self.assertGreater(watched.margin, 0)  # chance alone must not end a run

  def test_a_reward_starts_from_what_mode_clip_trained(self):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    made = config_of("rlhf", "nano,mode=clip,siblings=4")
    self.assertEqual(made.data.streams.train.siblings, 4)
    with made.unlocked():
      made.model.tower.embed_dim = 24
    pathlib.Path(folder, "config.json").write_text(made.to_json())
    config = config_of("rlhf", f"nano,mode=reward,tower={folder}")
    self.assertEqual((config.init.path, config.model.tower.embed_dim), (folder, 24))
    self.assertLess(config.optim.lr, config_of("rlhf", "nano,mode=reward").optim.lr)
    made, started = (open_lib.make_stage(c).parts()["tower"].abstract for c in (made, config))
    self.assertEqual(jax.tree.leaves(made), jax.tree.leaves(started))

  @parameterized.parameters(*PRESETS)
  def test_golden_sharding(self, preset):
    config = config_of("pretrain", preset)
    devices = mesh.make(dict(data=1, fsdp=4, tensor=2))
    abstract = open_lib.make_stage(config).parts()["dit"].abstract
    table = sharding.table(abstract, sharding.infer(abstract, config.sharding.rules, devices))
    path = GOLDEN / f"pretrain_{preset}.txt"
    text = "\n".join(table) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
      path.parent.mkdir(exist_ok=True)
      path.write_text(text)
    self.assertEqual(
      path.read_text(), text, "shardings changed; if meant, run this test with UPDATE_GOLDEN=1"
    )

  def test_full_is_eight_billion_and_wholly_sharded_where_it_is_big(self):
    config = config_of("pretrain", "full")
    part = open_lib.make_stage(config).parts()["dit"]
    leaves = jax.tree.leaves(part.abstract)
    self.assertGreaterEqual(sum(x.size for x in leaves), 8_000_000_000)
    devices = mesh.make(dict(data=1, fsdp=4, tensor=2))
    for leaf, shard in zip(
      leaves, jax.tree.leaves(sharding.infer(part.abstract, config.sharding.rules, devices))
    ):
      if leaf.size > 50_000_000:
        self.assertFalse(shard.is_fully_replicated, leaf.shape)

  def test_an_unknown_option_is_refused_with_the_nearest(self):
    with self.assertRaisesRegex(ValueError, "nearest: nano"):
      importlib.import_module("experiments.pretrain").get_config("nanno")


class RatchetTest(absltest.TestCase):
  def test_files_stay_small_and_named(self):
    for folder in ("seedream_jax", "data_pipelines", "experiments"):
      for path in (ROOT / folder).rglob("*.py"):
        self.assertLessEqual(len(path.read_text().splitlines()), 500, str(path))
        self.assertNotIn(path.name, ("utils.py", "helpers.py", "misc.py"))


if __name__ == "__main__":
  absltest.main()
