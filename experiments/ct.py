r"""Continued training on better pictures, with VMix's aesthetic labels as a condition (Seedream 2.0, Sec. 4.1).

  python -m seedream_jax.train --config experiments/ct.py:nano --workdir /tmp/ct

Two data sets are read together: what a measure picks from the pre-training data, and a smaller hand-picked one.
Options: auto=, hand=FOLDER, hand_ratio=0.5 (share of examples that are hand-picked), val=FOLDER, weights=FOLDER (vae,
llm, byt5, tokenizer), init=FOLDER (the dit to go on from), content=image|latent, labels=0 (the same training without
labels), lora=RANK, steps=N. experiments/recipes/ct.py makes the data and the comparisons.
"""

from experiments import pretrain

# (words where the label is positive, where it is negative): rare tokens, after VMix, Sec. 3.2.
LABELS = (
  ("色彩鲜明 vibrant color", "[V]"),
  ("光线柔和 soft lighting", "[S]"),
  ("纸纹质感 paper texture", "[K]"),
  ("构图考究 fine composition", "[Z]"),
)
AXES = ("color", "lighting", "texture", "composition")  # of a poster's scene, in the labels' order
NEW_LEAVES = ("vmix/.*", ".*/vmix_v/kernel")  # what a DiT without labels lacks

STEPS = {"nano": 2_000, "small": 20_000, "base": 40_000, "full": 40_000}
LR_FRACTION = 0.3  # of pre-training's peak  # ours; undisclosed
NEW_LR = 10.0  # times that, for what starts at zero beside a trained model  # ours; undisclosed


def get_config(arg=None):
  arg = pretrain.parse(
    arg,
    auto="out/ct/auto",
    hand="out/ct/hand",
    hand_ratio=0.5,
    val="out/ct/auto",
    init="weights/nano",
    labels=True,
  )
  config = pretrain.make(arg, data="")
  if not 0 < arg.hand_ratio < 1:
    raise ValueError(f"hand_ratio={arg.hand_ratio}: expected between 0 and 1")
  streams = config.data.streams
  streams.train.sources = (
    (f"{arg.auto}:train", 1.0 - arg.hand_ratio),
    (f"{arg.hand}:train", arg.hand_ratio),
  )
  streams.val.sources = ((f"{arg.val}:val", 1.0),)
  if arg.labels:
    add_labels(config)
  config.optim.lr *= LR_FRACTION
  config.train.total_steps = arg.steps or STEPS[arg.preset]
  return config


def add_labels(config, extra=()):
  """Gives the DiT its labels, and the streams the columns they are read from; `extra` columns follow."""
  columns = tuple((f"aesthetics.{axis}", (0, 1)) for axis in AXES) + tuple(extra)
  for name in ("train", "val"):
    stream = config.data.streams[name]
    stream.features += ("label_BA",)
    stream.labels = columns
  config.model.dit.labels = len(LABELS)
  config.stage.labels = LABELS
  config.stage.drop_labels = 0.1
  config.init.allow_missing += NEW_LEAVES
  config.optim.lr_mults = (*((leaf, NEW_LR) for leaf in NEW_LEAVES), *config.optim.lr_mults)
  new = (("vmix/labels", False), *((leaf, True) for leaf in NEW_LEAVES))
  if "dit" in config.optim.players:  # adapters: the rest stays, as in VMix
    config.optim.players.dit.trainable = (*new, *config.optim.players.dit.trainable)
  else:
    config.optim.trainable = (*new[:1], (".*", True))
