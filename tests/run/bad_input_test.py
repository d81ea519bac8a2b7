"""Bad input to any verb: exit code 2, one line on stderr that says what and where, and nothing written."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax
import numpy as np
from absl.testing import absltest, parameterized

from experiments import pretrain
from seedream_jax import types
from seedream_jax.engine import checkpoint
from seedream_jax.run import cli
from seedream_jax.run import open as open_lib
from tests.data import datasets
from tests.models import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Imports everything once, then forks a process for each command line: real programs without the seconds they take to
# start. Nothing here computes, so there are no threads yet to be lost in a fork.
SERVER = """
import gc, importlib, json, os, runpy, sys
for name in ("loop", "gates", "score"):
  importlib.import_module("seedream_jax.run." + name)
for name in ("denoise", "align", "autoencode"):
  importlib.import_module("seedream_jax.stages." + name)
for name in ("builder", "poster", "glyphs", "damage", "sheet", "prompts"):
  importlib.import_module("data_pipelines.posters." + name)
for name in ("sample", "rate", "label", "importer"):
  importlib.import_module("data_pipelines.preferences." + name)
gc.freeze()  # a collection in a child would copy every page
for line in sys.stdin:
  argv, env, log = json.loads(line)
  pid = os.fork()
  if pid == 0:
    os.environ.update(env)
    for fd in (1, 2):
      os.dup2(os.open(f"{log}.{fd}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), fd)
    sys.argv = argv
    try:
      runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as e:
      sys.stdout.flush(), sys.stderr.flush()
      os._exit(e.code or 0)  # taking all of it down takes as long as the rest
    sys.exit()
  print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
MODEL = dict(
  llm=tiny.LLM | dict(vocab_size=512),
  byt5=tiny.BYT5,
  vae=dict(variant="nano", widths=(4, 6, 6), norm_groups=2, latent_channels=3),
  dit=dict(
    variant="nano", patch=2, width=16, depth=2, num_heads=2, latent_channels=3, text_dim=12,
    glyph_dim=10, max_text_len=64, glyph_len=8, downsample=4,
  ),
)  # fmt: skip
NANO = "experiments/pretrain.py:nano"
TRAIN = "seedream_jax.train --workdir {new} --config"
OPENS = f"{TRAIN} {{w}}/tiny.py:nano,weights={{w}}/weights,data={{w}}/data"
SAMPLE = "seedream_jax.sample --steps 1 --out {new}.png --workdir"
PANDA = f"{SAMPLE} {{w}}/weights --prompt panda"
EVALUATE = "seedream_jax.evaluate --out {new}.json --workdir"
EXPORT = "seedream_jax.export --out {new} --workdir"
RECIPE = "seedream_jax.recipe --workdir {new} --config"
POSTERS = "data_pipelines.posters --num 1 --out"
PREFERENCES = "data_pipelines.preferences"
FOLDER = "data_pipelines.folder --images {w} --out {new} --captions"
NOT_A_FOLDER = "{w}/empty/new"  # a file stands in the way; a mode would not stop root

# name, command line, what the line must say
CASES = (
  ("key", f"{TRAIN} {NANO} --config.optim.lrr=1", 'config: .*Did you mean "lr"'),
  ("group", f"{TRAIN} {NANO} --config.optm.lr=1", "config: .*optm"),
  ("value", f"{TRAIN} {NANO} --config.optim.lr=fast", "config.optim.lr=fast: .*float"),
  ("whole", f"{TRAIN} {NANO} --config.seed=1.5", "config.seed=1.5: .*int"),
  ("preset", f"{TRAIN} experiments/pretrain.py:nanno", "pretrain.py:nanno: .*; nearest: nano"),
  ("option", f"{TRAIN} {NANO},step=3", "pretrain.py:nano,step=3: .*; nearest: steps="),
  ("option_value", f"{TRAIN} {NANO},steps=x", "pretrain.py:nano,steps=x: .*'x'"),
  ("no_config", f"{TRAIN} experiments/pretrian.py:nano", "pretrian.py: .*: experiments/pretrain.py"),
  ("no_config_overridden", f"{TRAIN} nope.py --config.seed=1", "--config: nope.py: No such file"),
  ("folder_config", f"{TRAIN} experiments", "--config: experiments: Is a directory"),
  ("broken_config", f"{TRAIN} {{w}}/broken.py", "--config: .*broken.py"),
  ("recipe_as_config", f"{TRAIN} experiments/recipes/nano.py", "config has no group 'seed'"),
  ("no_config_flag", "seedream_jax.train --workdir {new}", "flag --config=None"),
  ("flag", f"{TRAIN} {NANO} --workdri=x", "flag 'workdri'. Did you mean: workdir"),
  ("argument", f"{TRAIN} {NANO} config.seed=1", "unexpected argument 'config.seed=1'"),
  ("workdir", f"seedream_jax.train --config {NANO} --workdir {NOT_A_FOLDER}", "empty/new: cannot"),
  ("no_weights", f"{OPENS} --config.frozen.llm=none", "frozen.llm: none/llm.safetensors: no such"),
  ("frozen", f"{OPENS} --config.frozen.byt5={{w}}/wrong", "frozen.byt5: .*has shape .2,., expected"),
  ("init", f"{OPENS},init={{w}}/wrong", "init.path: .*wrong/dit.safetensors: leaf .*, expected"),
  ("data", f"{OPENS},data={{w}}/none", "data set .*/none: no such folder"),
  ("val_data", OPENS, "data set .*/data: no split 'val'; it has train"),
  ("tokenizer", f"{OPENS} --config.data.tokenizer={{w}}/none", "tokenizer .*/none: no such file"),
  ("other_ids", f"{OPENS} --config.data.tokenizer={{w}}/fast/tokenizer.json",
   "model.llm.pad_id: 0, but the tokenizer .*/fast/tokenizer.json has 30"),
  ("until", f"{RECIPE} experiments/recipes/nano.py --until lmm", "no step 'lmm' .nearest valid: lm"),
  ("scale", f"{RECIPE} experiments/recipes/nano.py:quik", "nano.py:quik: 'quik': expected .*quick"),
  ("config_as_recipe", f"{RECIPE} {NANO}", "--config: holds no steps"),
  ("step", f"PATH= {RECIPE} {{w}}/fonts_step.py", "fonts: fontconfig .* is not installed"),
  ("gate", f"{RECIPE} {{w}}/gate_step.py", "gate low: zh = 0.5000, needs >= 0.9"),
  ("long", f"{SAMPLE} {{w}}/weights --prompt={'panda' * 99}", "tokens: the model reads at most 64"),
  ("long_quote", f"{SAMPLE} {{w}}/weights --prompt=“{'春' * 9}”", "27 bytes: the model reads at most 7"),
  ("no_prompt", f"{SAMPLE} {{w}}/weights", "no prompt: give --prompt"),
  ("no_prompts", f"{SAMPLE} {{w}}/weights --prompts {{w}}/empty", "no prompt: give --prompt"),
  ("prompts", f"{SAMPLE} {{w}}/weights --prompts {{w}}/none", "--prompts .*/none: cannot read"),
  ("size", f"{PANDA} --size 64", "--size '64': expected HxW"),
  ("odd_size", f"{PANDA} --size 60x99999", "60x99999: .* nearest: 64x4096"),
  ("seed", f"{PANDA} --seed 99999999999999999999", "--seed=99999999999999999999: "),
  ("guidance", f"{PANDA} --guidance nan", "--guidance nan: expected a finite number"),
  ("solver", f"{PANDA} --solver eulr", "--solver=eulr: value should be one of <.*euler"),
  ("out", f"{PANDA} --out {NOT_A_FOLDER}", "--out .*empty/new: .*empty is no folder"),
  ("out_is_file", f"{PANDA} --out {{w}}/empty", "--out .*/empty: is a file; expected a folder"),
  ("latents_out", f"{PANDA} --latents-out {NOT_A_FOLDER}", "--latents-out .*empty/new: "),
  ("noise_shape", f"{PANDA} --noise {{w}}/shape.npy", "shape .2, 3., expected .1, 16, 16, 3. for"),
  ("noise_cut", f"{PANDA} --noise {{w}}/cut.npy", "--noise .*/cut.npy: not a readable .npy"),
  ("noise_empty", f"{PANDA} --noise {{w}}/empty", "--noise .*/empty: not a readable .npy"),
  ("noise_zip", f"{PANDA} --noise {{w}}/zip.npz", "--noise .*/zip.npz: not a readable .npy"),
  ("noise_text", f"{PANDA} --noise {{w}}/text.npy", "--noise .*/text.npy: holds <U1, expected"),
  ("noise_nan", f"{PANDA} --noise {{w}}/nan.npy", "--noise .*/nan.npy: .*not finite"),
  ("folder", f"{SAMPLE} {{w}}/none --prompt panda", "--workdir .*/none: no config.json there"),
  ("no_json", f"{SAMPLE} {{w}}/no_json --prompt panda", "no_json/config.json: not JSON"),
  ("list_json", f"{SAMPLE} {{w}}/list_json --prompt panda", "list_json/config.json: holds a list"),
  ("other_stage", f"{SAMPLE} {{w}}/align --prompt panda", "not of a stage that draws pictures"),
  ("no_labels", f"{SAMPLE} {{w}}/weights --prompt panda --aesthetics 0.5", "aesthetics=0.5: this DiT has no"),
  ("no_part", f"{SAMPLE} {{w}}/no_part --prompt panda", "no_part/vae.safetensors: no such file"),
  ("wrong_part", f"{SAMPLE} {{w}}/wrong --prompt panda", "dit.safetensors: leaf .*, expected"),
  ("foreign", f"{SAMPLE} {{w}}/foreign --prompt panda", "model.llm.pad_id: 0, but the tokenizer"),
  ("no_tokenizer", f"{SAMPLE} {{w}}/no_tokenizer --prompt panda", "tokenizer.model: no such file"),
  ("suite", f"{EVALUATE} {{w}}/weights --suite heldut", "suite 'heldut' .nearest valid: heldout"),
  ("judged", f"{EVALUATE} {{w}}/none", "--workdir .*/none: no config.json there"),
  ("world", f"{EVALUATE} {{w}}/none --world nan", "nan_heldout.jsonl: no such prompt file"),
  ("report", f"seedream_jax.evaluate --workdir x --out {NOT_A_FOLDER}", "--out .*empty/new: "),
  ("export", f"{EXPORT} {{w}}/none", "--workdir .*/none: no config.json there"),
  ("export_part", f"{EXPORT} {{w}}/no_part", "no_part/vae.safetensors: no such file"),
  ("export_dtype", f"{EXPORT} {{w}}/weights --dtype float8", "--dtype=float8: value should be one of"),
  ("export_raw", f"{EXPORT} {{w}}/weights --weights raw", "--weights raw: .* holds one set"),
  ("export_out", f"{EXPORT} {{w}}/weights --out {{w}}/data", "exists and is no former export"),
  ("export_file", f"{EXPORT} {{w}}/weights --out {{w}}/empty", "--out .*/empty: is a file"),
  ("gate_data", f"{EVALUATE} {{w}}/weights --suite vae", "--suite vae needs --data"),
  ("gate_stage", f"{EVALUATE} {{w}}/weights --suite vae --data x", "reads 'reconstruct', its stage"),
  ("fonts", f"{POSTERS} {{new}} --fonts {{w}}/none", "--fonts: .*/none' is not a folder"),
  ("no_fonts", f"{POSTERS} {{new}} --fonts {{w}}", "NotoColorEmoji.ttf.* not found in .*install"),
  ("fontconfig", f"PATH= {POSTERS} {{new}}", "fontconfig .* is not installed; install fonts-noto"),
  ("posters_flag", f"{POSTERS} {{new}} --workers two", "--workers=two: .*int"),
  ("posters_size", f"{POSTERS} {{new}} --size 8x8", "--size: '8x8'; expected HxW with sides from"),
  ("posters_world", f"{POSTERS} {{new}} --world nan", "'nan'; did you mean 'nano'"),
  ("posters_suites", f"{POSTERS} {{new}} --prompts bench,txt", "--prompts: unknown 'txt'; .* text"),
  ("posters_sizes", f"{POSTERS} {{new}} --prompts val --size 64x64,64x96", "--size: 64x64,64x96; expected one"),
  ("posters_out", f"{POSTERS} {NOT_A_FOLDER}", "--out .*empty/new: "),
  ("posters_sheet", f"{POSTERS} {{new}} --sheet {NOT_A_FOLDER}", "--sheet .*empty/new: "),
  ("no_picture", f"{FOLDER} {{w}}/captions.jsonl", "none of 1 pictures is good; empty: not a pict"),
  ("captions", f"{FOLDER} {{w}}", "--captions .*: no such file; expected JSON lines"),
  ("utf8", f"{FOLDER} {{w}}/shape.npy", "shape.npy: line 1: 'utf-8' codec"),
  ("split", f"{FOLDER} {{w}}/captions.jsonl --split a/b", "--split 'a/b': expected a word"),
  ("folder_out", f"{FOLDER} {{w}}/captions.jsonl --out {NOT_A_FOLDER}", "--out .*empty/new: "),
  ("vae", "data_pipelines.encode --data {w}/data --vae {w}/none --out {new}", "vae.safetensors is miss"),
  ("encoded", "data_pipelines.encode --data {w}/data:trn --vae x --out {new}", "no split 'trn'; it has"),
  ("encode_out", f"data_pipelines.encode --data x --vae x --out {NOT_A_FOLDER}", "--out .*empty/new"),
  ("texts", "data_pipelines.tokenizer --data {w}/none --out {new}", "data set .*/none: no such folder"),
  ("model_out", f"data_pipelines.tokenizer --data {{w}}/data --out {NOT_A_FOLDER}", "--out .*empty/new"),
  ("no_pack", "data_pipelines.pack --out {new}", "--part: not given; expected NAME=FOLDER"),
  ("pack", "data_pipelines.pack --part dit={w}/none --out {new}", "--part dit=.*dit.safetensors does not exist"),
  ("pack_cut", "data_pipelines.pack --part vae={w}/weights --part dit={w}/cut --out {new}", "not whole"),
  ("pack_tokenizer", "data_pipelines.pack --part dit={w}/weights --tokenizer {w}/none --out {new}",
   "--tokenizer .*/none: no such file"),
  ("verb", f"{PREFERENCES} smaple", "verb 'smaple': expected one of sample, .*; nearest: sample"),
  ("no_verb", PREFERENCES, "verb '': expected one of sample, rate, label, import"),
  ("verb_flag", f"{PREFERENCES} rate --dta x", "flag 'dta'. Did you mean: data"),
  ("verb_out", f"{PREFERENCES} rate --data x --out {NOT_A_FOLDER}", "--out .*empty/new: "),
  ("asked", f"{PREFERENCES} sample --prompts {{w}}/none --render truth --out {{new}}", "none: no such file"),
  ("asked_of_judges", f"{PREFERENCES} sample --split bench --num 1 --render truth --out {{new}}", "kept for judging"),
  ("drawn_by_none", f"{PREFERENCES} sample --split refl --num 1 --out {{new}}", "--model: not given, nor --render"),
  ("rendered", f"{PREFERENCES} sample --split refl --num 1 --render true --out {{new}}", "--render 'true': expected"),
  ("not_drawn", f"{PREFERENCES} rate --data {{w}}/data --out {{new}}.jsonl", "--data .*holds no candidate sets"),
  ("labelled", f"{PREFERENCES} label --rater a --data {{w}}/data --out {{new}}.jsonl", "holds no candidate sets"),
  ("no_import", f"{PREFERENCES} import --out {{new}}", "--pairs, --pickapic and --hpd: expected one of them"),
  ("import_pairs", f"{PREFERENCES} import --pairs {{w}}/none --out {{new}}", "--pairs .*/none: no such file"),
  ("import_line", f"{PREFERENCES} import --pairs {{w}}/captions.jsonl --out {{new}}", "line 1: lacks 'id'; a pair has"),
  ("import_parquet", f"{PREFERENCES} import --pickapic {{w}}/empty --out {{new}}", "empty: not a readable Parquet"),
  ("import_images", f"{PREFERENCES} import --hpd {{w}}/list_json/config.json --images {{w}}/none --out {{new}}",
   "--images .*/none: no such folder"),
)  # fmt: skip
STEP = """
from ml_collections import config_dict
def get_config():
  step = dict(name="low", command={command!r}, gates=(("zh", 0.9),))
  return config_dict.create(steps=(step,))
"""


def get_config(arg=None):
  """Pretraining of what is too small to learn; WORLD/tiny.py hands it to `train`."""
  config = pretrain.get_config(arg)
  config.model = MODEL
  for stream in config.data.streams.values():
    stream.update(batch_size=2, text_buckets=(64,))
  config.sharding.num_devices = 1
  return config


def write_world(w: pathlib.Path) -> None:
  """Tiny weights, data and tokenizer, and everything that is wrong with their like."""
  config = get_config("nano")
  parts = open_lib.make_stage(config).parts()
  for folder in ("weights", "wrong", "no_tokenizer", "foreign"):
    for name, part in parts.items():
      tree = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), part.abstract)
      if folder == "wrong":
        tree = jax.tree.map(lambda x: np.zeros(2, np.float32), tree)
      checkpoint.save_weights(w / folder / f"{name}.safetensors", tree)
  configs = dict(no_json="{", list_json="[]", align='{"stage": {"name": "align"}}', cut="{}")
  for folder in ("weights", "wrong", "no_part", "no_tokenizer", "foreign"):
    configs[folder] = config.to_json_best_effort()
  for folder, text in configs.items():
    (w / folder).mkdir(exist_ok=True)
    (w / folder / "config.json").write_text(text)
  dit = (w / "weights" / "dit.safetensors").read_bytes()
  (w / "cut" / "dit.safetensors").write_bytes(dit[:-4])
  (w / "no_part" / "dit.safetensors").write_bytes(dit)
  os.replace(datasets.tokenizer(str(w)).path, w / "weights" / "tokenizer.model")
  for folder in (
    "fast",
    "foreign",
  ):  # a published one, whose pad and end are not what the config says
    datasets.fast_tokenizer(str(w / folder))
  datasets.write(str(w / "data"), 12)
  (w / "tiny.py").write_text("from tests.run.bad_input_test import get_config\n")
  (w / "broken.py").write_text("def get_config(:\n")
  (w / "empty").touch()
  (w / "captions.jsonl").write_text('{"file_name": "empty", "text": "a panda"}\n')
  noise = np.zeros((1, 16, 16, 3), np.float32)
  np.save(w / "shape.npy", np.zeros((2, 3), np.float32))
  np.save(w / "text.npy", noise.astype("U1"))
  np.save(w / "nan.npy", noise + np.float32("nan"))
  np.savez(w / "zip.npz", noise)
  (w / "cut.npy").write_bytes((w / "nan.npy").read_bytes()[:-4])
  (w / "score.json").write_text('{"zh": 0.5}')
  (w / "fonts_step.py").write_text(STEP.format(command="data_pipelines.posters.fonts"))
  (w / "gate_step.py").write_text(STEP.format(command=f"json.tool --compact {w}/score.json"))


class BadInputTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.world = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.log = os.path.join(cls.enterClassContext(tempfile.TemporaryDirectory()), "log")
    write_world(cls.world)
    cls.server = subprocess.Popen(
      [sys.executable, "-c", SERVER],
      cwd=ROOT,
      env=os.environ | {"JAX_PLATFORMS": "cpu"},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  @classmethod
  def tearDownClass(cls):
    cls.server.communicate()
    super().tearDownClass()

  def setUp(self):
    super().setUp()
    self.new = self.world / self._testMethodName  # what must not come to be

  def run_verb(self, command: str) -> tuple[int, list[str]]:
    """(exit code, lines on stderr)."""
    path, command = command.startswith("PATH="), command.removeprefix("PATH= ")
    argv = [word.format(w=self.world, new=self.new) for word in command.split()]
    env = {"PATH": ""} if path else {}
    print(json.dumps([argv, env, self.log]), file=self.server.stdin, flush=True)
    code = int(self.server.stdout.readline())
    return code, pathlib.Path(f"{self.log}.2").read_text().splitlines()

  def files(self) -> dict[str, int]:
    """All but the data set, beside which a loader keeps its index."""
    found = [p for p in self.world.rglob("*") if "data" not in p.parts]
    return {str(p): p.stat().st_mtime_ns for p in found}

  @parameterized.named_parameters(*CASES)
  def test_one_line_and_nothing_written(self, command, regex):
    before = self.files()
    code, lines = self.run_verb(command)
    said = "\n".join(lines)
    self.assertEqual(code, 2, said)
    self.assertNotIn("Traceback", said)
    self.assertLen([line for line in lines if line.startswith("error: ")], 1, said)
    self.assertRegex(said, f"(?m)^error: .*{regex}")
    self.assertEqual(self.files(), before)

  @parameterized.parameters(
    ("stage.name", "denois", "no stage 'denois' .nearest valid: denoise"),
    ("train.total_steps", 0, "train.total_steps: 0, expected at least 1"),
    ("train.export_dtype", "float23", "no dtype 'float23' .nearest valid: float32"),
    ("train.accum_steps", 3, "train.batch_size: 2, train.accum_steps = 3 .* nearest: 3"),
    (
      "sharding.num_devices",
      8,
      "train.batch_size: 2, sharding.mesh: data x fsdp = 8 .* nearest: 8",
    ),
    ("optim.schedule", "cosin", "schedule='cosin', .*did you mean 'cosine'"),
    ("optim.players", {"dti": {}}, "no player 'dti' .nearest valid: dit"),
    ("frozen.vea", "x", "no part 'vea' .nearest valid: vae"),
  )
  def test_a_config_is_refused_before_anything_is_made(self, key, value, regex):
    config = get_config("nano")
    *groups, name = key.split(".")
    group = functools.reduce(lambda c, g: c[g], groups, config)
    group[name] = value
    with self.assertRaisesRegex(types.UserError, regex), cli.claim(str(self.new)):
      open_lib.open_config(config, str(self.new))
    self.assertFalse(self.new.exists())


if __name__ == "__main__":
  absltest.main()
