r"""Classifier B, the second judge: what a poster shows, and the features of the FD-judge. Never a reward.

  python -m data_pipelines.posters --world nano --size 64x64 --split judge --num 65536 --out OUT
  python -m data_pipelines.posters --world nano --size 64x64 --split heldout --num 20480 --out OUT
  python -m data_pipelines.posters --world nano --size 64x64 --split val --num 2048 --out OUT
  python -m seedream_jax.train --config experiments/judge.py:nano,data=OUT --workdir W
  python -m data_pipelines.pack --part classifier=W/weights --out weights/nano/judge --dtype bfloat16
  python -m data_pipelines.ceilings --world nano --classifier weights/nano/judge

Split `judge` is for this file alone, and no generator sees `heldout`: together they are the whole grammar.
Presets: nano (2 CPU cores), small, base, full (one GPU; not yet run). Options: data=FOLDER, steps=.
"""

import json
import pathlib

from experiments import common

PRESETS = {
  "nano": dict(batch=64, classifier="nano", world="nano", lr=1e-3, steps=5_000, fsdp=1),
  "small": dict(batch=256, classifier="small", world="small", lr=1e-3, steps=20_000, fsdp=1),
  "base": dict(batch=256, classifier="base", world="small", lr=5e-4, steps=40_000, fsdp=1),
  "full": dict(batch=256, classifier="full", world="small", lr=5e-4, steps=60_000, fsdp=-1),
}
# As data_pipelines.posters.worlds has them; base and full draw small's.
VOCABULARY = json.loads((pathlib.Path(__file__).parent / "vocabulary.json").read_text("utf-8"))
MAX_COUNT = 3  # subjects in a scene
HELD_OUT_RATE = 0.20  # of the grammar's own draws; measured on 3,000


def get_config(arg=None):
  arg = common.parse_arg(arg, presets=tuple(PRESETS), data="out/judge", steps=0)
  preset, nano = PRESETS[arg.preset], arg.preset == "nano"
  words = VOCABULARY[preset["world"]]
  subjects, colors = tuple(words["subjects"]), tuple(words["colors"])
  config = common.base()
  config.stage = dict(name="classify")
  config.model = dict(
    classifier=dict(
      variant=preset["classifier"],
      heads=(
        ("subject", len(subjects)),
        ("color", len(colors)),
        ("count", MAX_COUNT + 1),
        ("text", 1),
      ),
    )
  )
  stream = dict(
    features=("id_B", "image_BHWC", "label_BA"),
    batch_size=preset["batch"],
    seed=0,
    labels=(  # the order that seedream_jax.data.labels decodes
      *((f"subjects.{i}.emoji", subjects) for i in range(MAX_COUNT)),
      ("background.color", colors),
      ("count", tuple(range(MAX_COUNT + 1))),
      ("text.lang", ("zh", "en")),
    ),
  )
  shares = ((f"{arg.data}:judge", 1 - HELD_OUT_RATE), (f"{arg.data}:heldout", HELD_OUT_RATE))
  config.data.streams = dict(
    train=dict(sources=shares, **stream),
    val=dict(sources=((f"{arg.data}:val", 1.0),), **stream),
  )
  config.optim.lr = preset["lr"]
  config.optim.warmup_steps = 100 if nano else 1_000
  config.optim.ema = dict(eval=(".*", 0.998 if nano else 0.9999))
  config.sharding.mesh = common.mesh(preset["fsdp"])
  config.train.total_steps = arg.steps or preset["steps"]
  config.train.export_dtype = "float32"
  config.eval.evaluators = dict(
    val=dict(kind="ValLoss", predict="val_loss", stream="val", batches=8),
  )
  return config
