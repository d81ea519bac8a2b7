r"""Preferences to a better model: reward models, then reward feedback learning (Seedream 2.0, Sec. 4.3); or DPO.

  python -m seedream_jax.train --config experiments/rlhf.py:nano,mode=reward,kind=alignment,data=PAIRS --workdir /tmp/rm
  python -m seedream_jax.train --config experiments/rlhf.py:nano,prompts=REFL,data=LATENTS,init=W,\
    rm_alignment=RM1/weights,rm_aesthetic=RM2/weights,rm_text=RM3/weights --workdir /tmp/refl
  python -m seedream_jax.train --config experiments/rlhf.py:nano,mode=dpo,data=PAIRS,init=W --workdir /tmp/dpo
  python -m seedream_jax.train --config experiments/rlhf.py:nano,mode=clip,data=POSTERS,siblings=4 --workdir /tmp/clip

Mode reward trains one reward model on preference pairs (data_pipelines.preferences): kind=alignment, aesthetic or text
(pairs whose prompt quotes text). tower=FOLDER starts it from what mode clip trained, a small tower on the model's own
text encoders, or from a published CLIP or Chinese-CLIP, both towers and its own tokenizer:

  python -m data_pipelines.convert --part tower=chinese-clip --out out/clip

Mode clip trains such a small tower on pictures and captions; siblings=N where N records in a row differ in one thing
each.

Mode refl tunes the DiT and the LLM together on up to three of them; `prompts` is a
data set of split refl, `data` what pre-training's loss goes on with, `init` a folder with dit and llm;
lora=RANK tunes adapters of both alone. rm_guard=FOLDER names a reward model that is watched and not optimised: once it
falls while the rewards rise, the run ends with the weights that it liked best. Mode dpo tunes the DiT on the pairs
themselves, without a reward: `data` and kind as in mode reward, `init` gives its start, which is also the frozen
reference; lora=RANK tunes adapters alone.
"""

from experiments import common, pretrain

MODES = ("clip", "reward", "refl", "dpo")
KINDS = ("alignment", "aesthetic", "text")
# Of the hinges. Looks rise easily: at 1 they turned bones yellow and cost subjects; at 0.25, beside an alignment reward
# alone, they cost none.  # ours; undisclosed
WEIGHTS = dict(alignment=1.0, aesthetic=0.25, text=1.0)
BETA = 2_000.0  # of DPO, as Diffusion-DPO's for SD 1.5  # ours; undisclosed
OWN_TEXTS = ("llm_ids_BL", "byt5_ids_BG")  # what a tower on the model's own encoders reads
# alpha, the bound of the temperature. Towers that knew pictures before give rewards of 10 to 40: none is out of reach,
# and no hinge falls silent where a reward is still to be won.  # ours; undisclosed
MARGIN = 100.0
# Standard deviation of the noise on a CLIP's training pictures, of [-1, 1], and of a reward's that starts from it. None
# where a reward learns from scratch, which is for looks: grain is one of them.  # ours; undisclosed
NOISE = 0.3
# As the judges' pictures are drawn; a reward's gradient from t = 0.7 down, where things take shape and before which x0'
# is a blur.  # ours; undisclosed
ROLLOUT = dict(num_steps=10, solver="dpmpp2m", first_step=3, last_step=9)
# How far a guard may fall below its best: on 128 pictures, falls of 0.02 and 0.20 ended the first run of size, whose
# rewards had risen by as little.  # ours
GUARD_MARGIN = 0.5

# Of published towers, whose features a larger step forgets: PickScore's (arXiv 2305.01569, Sec. 3).
_TOWER_LR = 3e-6
_STARTED = 0.3  # of the rate, where mode clip has trained the tower before  # ours
# Of its ranking loss: such a tower's temperature is some 40, far too sure for raters that are right in 3 of 4.  # ours
_STARTED_BETA = 0.2

# batch: pairs, or, of refl, prompts and pre-training examples each.
PRESETS = {
  "nano": dict(
    clip=dict(batch=128, lr=1e-3, steps=3_000), reward=dict(batch=64, lr=1e-3, steps=3_000),
    refl=dict(batch=8, lr=3e-5, steps=300),
    dpo=dict(batch=16, lr=5e-6, steps=1_000), tower="nano",
  ),
  "small": dict(
    clip=dict(batch=4096, lr=5e-4, steps=50_000), reward=dict(batch=256, lr=1e-4, steps=20_000),
    refl=dict(batch=64, lr=1e-5, steps=1_000),
    dpo=dict(batch=128, lr=2e-6, steps=2_000), tower="small",
  ),
  "base": dict(
    clip=dict(batch=8192, lr=5e-4, steps=50_000), reward=dict(batch=512, lr=1e-4, steps=20_000),
    refl=dict(batch=128, lr=1e-5, steps=1_000),
    dpo=dict(batch=512, lr=5e-6, steps=2_000), tower="small",
  ),
  "full": dict(
    clip=dict(batch=16384, lr=5e-4, steps=50_000), reward=dict(batch=1024, lr=1e-4, steps=20_000),
    refl=dict(batch=256, lr=1e-5, steps=1_000),
    dpo=dict(batch=2048, lr=1e-5, steps=2_000), tower="small",
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
    reward_weight=0.05,
    pretrain_weight=1.0,
    siblings=1,
    **{f"rm_{kind}": "none" for kind in (*KINDS, "guard")},
  )
  if arg.mode not in MODES:
    raise ValueError(f"mode={arg.mode}: expected one of {', '.join(MODES)}")
  if arg.kind not in KINDS:
    raise ValueError(f"kind={arg.kind}: expected one of {', '.join(KINDS)}")
  make = dict(clip=clip_config, reward=reward_config, refl=refl_config, dpo=dpo_config)
  return make[arg.mode](arg)


def clip_config(arg):
  """A tower on pictures and captions, from scratch."""
  preset, config = PRESETS[arg.preset]["clip"], _tower_config(arg, "clip")
  config.stage = dict(name="contrast", noise_std=NOISE)
  for stream in config.data.streams.values():
    stream.features = ("id_B", "image_BHWC", *OWN_TEXTS)
    stream.batch_size = preset["batch"]
    stream.text_buckets = _one_bucket(arg, stream)  # the batch is the negatives: all lengths in one
  config.data.streams.train.siblings = arg.siblings
  return _schedule(config, arg, preset)


def reward_config(arg):
  """A reward model on pairs."""
  preset, config, texts = PRESETS[arg.preset]["reward"], _tower_config(arg, "reward"), OWN_TEXTS
  config.stage = dict(name="reward", pair_weight=0.1, beta=1.0, noise_std=0.0)
  started = arg.tower != "none"
  tower = dict(common.sizes(arg.tower, "tower")) if started else {}
  published = "vision" in tower
  if published:
    tower |= dict(dtype=_dtype(arg), remat=_remat(arg))
    config.model, config.frozen, config.data.tokenizer = dict(tower=tower), {}, ""
    texts = ("tower_ids_BL",)
  elif started:
    config.model.tower = tower
    # Captions it has seen: the ranking loss alone agrees a little more often, and forgets how to read (evidence.md).
    config.stage.update(
      pair_weight=0.0, beta=_STARTED_BETA, noise_std=_noise(common.config_in(arg.tower))
    )
  config.init.path = arg.tower if started else ""
  _read_pairs(config, arg, preset, ("id_B", "image_BRHWC", *texts))
  if published:
    for stream in config.data.streams.values():
      stream.tower_tokenizer = f"{arg.tower}/tower_tokenizer"
      stream.tower_tokens = min(64, tower["text"]["length"])
  rate = _TOWER_LR if published else preset["lr"] * (_STARTED if started else 1)
  return _schedule(config, arg, dict(preset, lr=rate))


def refl_config(arg):
  """DiT and LLM on the rewards given."""
  size, config = PRESETS[arg.preset], pretrain.make(arg, arg.data)
  preset, given = size["refl"], [k for k in KINDS if arg[f"rm_{k}"] != "none"] or list(KINDS)
  weights = {kind: WEIGHTS[kind] for kind in given}
  guarded = arg.rm_guard != "none"
  if guarded:
    weights["guard"] = 0.0
  runs = {
    kind: common.config_in(arg[f"rm_{kind}"]) for kind in weights if arg[f"rm_{kind}"] != "none"
  }
  towers = {
    kind: runs[kind]["model"]["tower"] if kind in runs else dict(variant=size["tower"])
    for kind in weights
  }
  denoise = {key: value for key, value in config.stage.items() if key != "name"}
  config.stage = dict(
    name="refl",
    denoise=denoise,
    rewards={
      kind: dict(
        weight=weight, margin=MARGIN, text_only=kind == "text", noise_std=_noise(runs.get(kind))
      )
      for kind, weight in weights.items()
    },
    **ROLLOUT,
    reward_weight=arg.reward_weight,
    pretrain_weight=arg.pretrain_weight,
    decode_at_once=0 if arg.preset == "nano" else 1,
  )
  config.model.rewards = towers
  config.model.llm.remat = _remat(arg)  # trained here, where pre-training freezes it
  config.frozen = dict(
    vae=config.frozen.vae,
    byt5=config.frozen.byt5,
    reward_llm=f"{config.frozen.llm}/llm.safetensors",
    **{f"reward_{kind}": f"{arg['rm_' + kind]}/tower.safetensors" for kind in weights},
  )
  streams = config.data.streams
  streams.train.batch_size = preset["batch"]
  # Two streams of n buckets each would be n^2 programs.
  streams.train.text_buckets = streams.val.text_buckets = _one_bucket(arg, streams.train)
  prompts = streams.train.to_dict() | dict(sources=((f"{arg.prompts}:refl", 1.0),))
  if texts := _tower_texts(runs):
    prompts |= dict(texts, features=(*prompts["features"], "tower_ids_BL"))
  streams.prompts = prompts
  streams.drawn = streams.prompts.to_dict() | dict(seed=1)
  config.data.eval_streams = ("val", "drawn")
  config.eval.evaluators.rewards = dict(
    kind="Guard" if guarded else "ValLoss", predict="rewards", stream="drawn", batches=16
  )
  if guarded:
    config.eval.evaluators.rewards.update(score="guard", rewards=tuple(given), margin=GUARD_MARGIN)
  if arg.lora:  # beside the LLM's projections too: one player trains both
    common.adapt(config, "llm", arg.lora)
    config.optim.players = {"dit+llm": config.optim.players.llm}
  # As ReFL, from a small constant rate; the average is what is kept.
  config.optim.schedule = "constant"
  config.optim.ema = dict(eval=(".*", 0.99 if arg.preset == "nano" else 0.999))
  return _schedule(config, arg, preset)


def dpo_config(arg):
  """The DiT on pairs, held to what it starts from."""
  config, preset = pretrain.make(arg, arg.data), PRESETS[arg.preset]["dpo"]
  denoise = {key: value for key, value in config.stage.items() if key != "name"}
  config.stage = dict(name="dpo", denoise=denoise, beta=BETA)
  config.frozen.reference = f"{arg.init}/dit.safetensors"
  config.init.path = ""  # the policy starts as the reference
  features = config.data.streams.train.features
  pairs = tuple(name.replace("_BHWC", "_BRHWC") for name in features)
  _read_pairs(config, arg, preset, pairs)
  config.optim.schedule = "constant"
  config.optim.ema = dict(eval=(".*", 0.99 if arg.preset == "nano" else 0.999))
  return _schedule(config, arg, preset)


def _tower_config(arg, mode):
  """What modes clip and reward share: a tower of the preset's size on the frozen encoders."""
  config = pretrain.make(arg, arg.data)
  if arg.lora:
    raise ValueError(
      f"lora: the encoders of mode={mode} are frozen and its tower is small; expected mode=refl or dpo"
    )
  tower = dict(variant=PRESETS[arg.preset]["tower"])
  config.model = dict(llm=config.model.llm, byt5=config.model.byt5, tower=tower)
  config.frozen = dict(llm=config.frozen.llm, byt5=config.frozen.byt5)
  config.init.path = ""
  config.optim.ema = dict(eval=(".*", 0.998 if arg.preset == "nano" else 0.9999))
  config.eval.evaluators = dict(
    val=dict(kind="ValLoss", predict="val_loss", stream="val", batches=8)
  )
  config.train.export_dtype = "float32"
  return config


def _read_pairs(config, arg, preset, features):
  config.data.streams.val.sources = ((f"{arg.data}:heldout", 1.0),)
  for stream in config.data.streams.values():
    stream.features, stream.batch_size = features, preset["batch"]
    if arg.kind == "text":
      stream.caption_kinds = ("textual",)


def _one_bucket(arg, stream):
  """The largest length that captions fill."""
  return (64,) if arg.preset == "nano" else stream.text_buckets[-1:]


def _noise(run):
  """noise_std of the run that made a tower; 0 where its config has none, or there is no run."""
  return (run or {}).get("stage", {}).get("noise_std", 0.0)


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
