r"""Preferences to a better model: reward models, then reward feedback learning (Seedream 2.0, Sec. 4.3).

  python -m seedream_jax.train --config experiments/rlhf.py:nano,mode=reward,kind=alignment,data=PAIRS --workdir /tmp/rm
  python -m seedream_jax.train --config experiments/rlhf.py:nano,prompts=REFL,data=LATENTS,init=W,\
    rm_alignment=RM1/weights,rm_aesthetic=RM2/weights,rm_text=RM3/weights --workdir /tmp/refl

Mode reward trains one reward model on preference pairs (data_pipelines.preferences): kind=alignment, aesthetic or text
(pairs whose prompt quotes text); tower=FOLDER starts it from a published CLIP or Chinese-CLIP, both towers and its own
tokenizer, instead of a small tower on the model's own text encoders:

  python -m data_pipelines.convert --part tower=chinese-clip --out out/clip

Mode refl tunes the DiT and the LLM together on up to three of them; `prompts` is a
data set of split refl, `data` what pre-training's loss goes on with, `init` a folder with dit and llm;
lora=RANK tunes adapters of both alone.
"""

from experiments import common, pretrain

KINDS = ("alignment", "aesthetic", "text")
WEIGHTS = dict(alignment=1.0, aesthetic=0.5, text=1.0)  # of the hinges  # ours; undisclosed
# Published towers give rewards of 20 to 40 before any training: the bound of their temperature never stops the hinge.
TOWER_MARGIN = 100.0
MARGIN = 6.0  # alpha, in units of the reward; hardly reached, as in ImageReward's code  # ours; undisclosed

# Of published towers, whose features a larger step forgets: PickScore's (arXiv 2305.01569, Sec. 3).
_TOWER_LR = 3e-6

# batch: pairs, or prompts and pre-training examples each.
PRESETS = {
  "nano": dict(
    reward=dict(batch=64, lr=1e-3, steps=3_000), refl=dict(batch=8, lr=3e-5, steps=400), tower="nano"
  ),
  "small": dict(
    reward=dict(batch=256, lr=1e-4, steps=20_000), refl=dict(batch=64, lr=1e-5, steps=1_000), tower="small"
  ),
  "base": dict(
    reward=dict(batch=512, lr=1e-4, steps=20_000), refl=dict(batch=128, lr=1e-5, steps=1_000), tower="small"
  ),
  "full": dict(
    reward=dict(batch=1024, lr=1e-4, steps=20_000), refl=dict(batch=256, lr=1e-5, steps=1_000), tower="small"
  ),
}  # fmt: skip


def get_config(arg=None):
  arg = pretrain.parse(
    arg,
    mode="refl",
    kind="alignment",
    tower="none",
    data="out/posters",
    prompts="out/refl",
    init="weights/nano",
    reward_weight=0.01,
    pretrain_weight=1.0,
    **{f"rm_{kind}": "none" for kind in KINDS},
  )
  if arg.mode not in ("reward", "refl"):
    raise ValueError(f"mode={arg.mode}: expected reward or refl")
  if arg.kind not in KINDS:
    raise ValueError(f"kind={arg.kind}: expected one of {', '.join(KINDS)}")
  return reward_config(arg) if arg.mode == "reward" else refl_config(arg)


def reward_config(arg):
  """A reward model on pairs."""
  if arg.lora:
    raise ValueError(
      "lora: a reward's encoders are frozen and its tower is small; expected mode=refl"
    )
  size, config = PRESETS[arg.preset], pretrain.make(arg, arg.data)
  preset = size["reward"]
  config.stage = dict(name="reward", pair_weight=0.1)
  published = arg.tower != "none"
  if published:
    tower = dict(common.sizes(arg.tower, "tower"), dtype=_dtype(arg), remat=_remat(arg))
    config.model, config.frozen, config.data.tokenizer = dict(tower=tower), {}, ""
    texts = ("tower_ids_BL",)
  else:
    tower = dict(variant=size["tower"])
    config.model = dict(llm=config.model.llm, byt5=config.model.byt5, tower=tower)
    config.frozen = dict(llm=config.frozen.llm, byt5=config.frozen.byt5)
    texts = ("llm_ids_BL", "byt5_ids_BG")
  config.init.path = arg.tower if published else ""
  config.data.streams.val.sources = ((f"{arg.data}:heldout", 1.0),)
  for stream in config.data.streams.values():
    stream.features = ("id_B", "image_BRHWC", *texts)
    stream.batch_size = preset["batch"]
    if published:
      stream.tower_tokenizer = f"{arg.tower}/tower_tokenizer"
      stream.tower_tokens = min(64, tower["text"]["length"])
    if arg.kind == "text":
      stream.caption_kinds = ("textual",)
  config.optim.ema = dict(eval=(".*", 0.998 if arg.preset == "nano" else 0.9999))
  config.eval.evaluators = dict(
    val=dict(kind="ValLoss", predict="val_loss", stream="val", batches=8)
  )
  config.train.export_dtype = "float32"
  return _schedule(config, arg, dict(preset, lr=_TOWER_LR) if published else preset)


def refl_config(arg):
  """DiT and LLM on the rewards given."""
  size, config = PRESETS[arg.preset], pretrain.make(arg, arg.data)
  preset, given = size["refl"], [k for k in KINDS if arg[f"rm_{k}"] != "none"] or list(KINDS)
  runs = {
    kind: common.config_in(arg[f"rm_{kind}"]) for kind in given if arg[f"rm_{kind}"] != "none"
  }
  towers = {
    kind: runs[kind]["model"]["tower"] if kind in runs else dict(variant=size["tower"])
    for kind in given
  }
  margins = {kind: TOWER_MARGIN if "vision" in tower else MARGIN for kind, tower in towers.items()}
  denoise = {key: value for key, value in config.stage.items() if key != "name"}
  config.stage = dict(
    name="refl",
    denoise=denoise,
    rewards={
      kind: dict(weight=WEIGHTS[kind], margin=margins[kind], text_only=kind == "text")
      for kind in given
    },
    reward_weight=arg.reward_weight,
    pretrain_weight=arg.pretrain_weight,
  )
  config.model.rewards = towers
  config.frozen = dict(
    vae=config.frozen.vae,
    byt5=config.frozen.byt5,
    reward_llm=f"{config.frozen.llm}/llm.safetensors",
    **{f"reward_{kind}": f"{arg['rm_' + kind]}/tower.safetensors" for kind in given},
  )
  streams = config.data.streams
  streams.train.batch_size = preset["batch"]
  # Two streams of n buckets each would be n^2 programs: one bucket, the largest that captions fill.
  buckets = (64,) if arg.preset == "nano" else streams.train.text_buckets[-1:]
  streams.train.text_buckets = streams.val.text_buckets = buckets
  prompts = streams.train.to_dict() | dict(sources=((f"{arg.prompts}:refl", 1.0),))
  if texts := _tower_texts(runs):
    prompts |= dict(texts, features=(*prompts["features"], "tower_ids_BL"))
  streams.prompts = prompts
  streams.drawn = streams.prompts.to_dict() | dict(seed=1)
  config.data.eval_streams = ("val", "drawn")
  config.eval.evaluators.rewards = dict(
    kind="ValLoss", predict="rewards", stream="drawn", batches=8
  )
  if arg.lora:  # beside the LLM's projections too: one player trains both
    common.adapt(config, "llm", arg.lora)
    config.optim.players = {"dit+llm": config.optim.players.llm}
  # As ReFL, from a small constant rate; the average is what is kept.
  config.optim.schedule = "constant"
  config.optim.ema = dict(eval=(".*", 0.99 if arg.preset == "nano" else 0.999))
  return _schedule(config, arg, preset)


def _tower_texts(runs):
  """How the prompts are read for rewards that started from a published model; {} where none did."""
  keys = ("tower_tokenizer", "tower_tokens")
  streams = {kind: run["data"]["streams"]["train"] for kind, run in runs.items()}
  found = {kind: {k: s[k] for k in keys} for kind, s in streams.items() if keys[0] in s}
  texts = next(iter(found.values()), {})
  for kind, other in found.items():
    if other != texts:
      raise ValueError(f"rm_{kind}: reads {other}, another reward {texts}; expected one tokenizer")
  return texts


def _dtype(arg):
  return pretrain.PRESETS[arg.preset]["dtype"]


def _remat(arg):
  return "none" if arg.preset == "nano" else "full"


def _schedule(config, arg, preset):
  nano = arg.preset == "nano"
  config.optim.lr = preset["lr"]
  config.optim.warmup_steps = 20 if nano else 100
  config.train.total_steps = arg.steps or preset["steps"]
  config.ckpt.every_steps = 100 if nano else 500
  config.eval.every_steps = 100 if nano else 500
  config.ckpt.keep_every = config.eval.every_steps  # where a guard may go back to
  return config
