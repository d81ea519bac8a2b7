r"""Supervised fine-tuning on a small curated set, with negatives that a model drew (Seedream 2.0, Sec. 4.2).

  python -m seedream_jax.train --config experiments/sft.py:nano --workdir /tmp/sft

Three data sets: what was collected by hand (curated); what data_pipelines.resample drew from it and from continued
training's data, every subject alike, so that alignment stays (balanced=none leaves it out); and what
data_pipelines.negatives makes of a model's own pictures, labelled as generated (negatives=none leaves them out).
`sample --negative generated` or `empty_generated` then leads guidance away from them. `init` is a folder of
experiments/ct.py.
"""

from experiments import ct, pretrain

SHARES = dict(curated=0.40, balanced=0.40, negatives=0.20)  # of a batch  # ours; undisclosed
STEPS = {"nano": 1_000, "small": 5_000, "base": 10_000, "full": 10_000}
LR_FRACTION = 0.1  # of pre-training's peak  # ours; undisclosed
# A record that does not say is of unknown origin: zeros, which the row of "real" stays at too.
ORIGIN = ("origin", ("real", "generated"))
ORIGIN_LEAF = "cond/origin/table"  # what a DiT of continued training lacks
ORIGIN_LR = 30.0  # times the rest's, or what ct.NEW_LR makes of continued training's rate  # ours; undisclosed


def get_config(arg=None):
  arg = pretrain.parse(
    arg,
    curated="out/sft/curated",
    balanced="out/sft/balanced",
    negatives="out/sft/negatives",
    val="out/ct/auto",
    init="out/ct/run/weights",
  )
  config = pretrain.make(arg, data="")
  given = {name: arg[name] for name in SHARES if arg[name] != "none"}
  total = sum(SHARES[name] for name in given)
  config.data.streams.train.sources = tuple(
    (f"{folder}:train", SHARES[name] / total) for name, folder in given.items()
  )
  config.data.streams.val.sources = ((f"{arg.val}:val", 1.0),)
  ct.add_labels(config, extra=(ORIGIN,))
  config.model.dit.conds = ("time", "size", "pooled", "origin")
  config.init.allow_missing += (ORIGIN_LEAF,)
  # At the rate of the rest it learns nothing: a branch that names it draws what an empty one does.
  config.optim.lr_mults = ((ORIGIN_LEAF, ORIGIN_LR), *config.optim.lr_mults)
  if arg.lora:
    trainable = config.optim.players.dit.trainable
    config.optim.players.dit.trainable = ((ORIGIN_LEAF, True), *trainable)
  config.optim.lr *= LR_FRACTION
  config.train.total_steps = arg.steps or STEPS[arg.preset]
  return config
