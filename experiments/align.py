r"""Aligning the text encoders before the DiT sees them (Seedream 2.0, Secs. 3.2-3.3).

  python -m seedream_jax.train --config experiments/align.py:nano,mode=lm,data=OUT --workdir /tmp/lm
  python -m seedream_jax.train --config experiments/align.py:nano,mode=pair,data=OUT,init=/tmp/lm/weights \
    --workdir /tmp/pair
  python -m seedream_jax.train --config experiments/align.py:nano,mode=glyph,data=OUT --workdir /tmp/glyph

Modes: lm = causal language modelling on captions; pair = the LLM on image-text pairs; glyph = ByT5
against glyph images.
lora=RANK trains adapters beside the LLM's projections instead of all of it (lm and pair).
Presets: nano (2 CPU cores), small, base and full (published LLM and ByT5 sizes; not yet run).
"""

from experiments import common

PRESETS = {
  "nano": dict(batch=64, llm="nano", byt5="nano", lr=2e-3, steps=dict(lm=1000, pair=600, glyph=3000), fsdp=1),
  "small": dict(batch=256, llm="0.6B", byt5="small", lr=2e-4, steps=dict(lm=20_000, pair=50_000, glyph=50_000), fsdp=1),
  "base": dict(batch=512, llm="1.7B", byt5="small", lr=1e-4, steps=dict(lm=20_000, pair=50_000, glyph=50_000), fsdp=-1),
  "full": dict(batch=1024, llm="8B", byt5="small", lr=5e-5, steps=dict(lm=20_000, pair=50_000, glyph=50_000), fsdp=-1),
}  # fmt: skip


def get_config(arg=None):
  arg = common.parse_arg(
    arg,
    presets=tuple(PRESETS),
    mode="lm",
    data="out/posters",
    tokenizer="weights/nano/tokenizer.model",
    init="none",
    lora=0,
    steps=0,
  )
  if arg.mode not in ("lm", "pair", "glyph"):
    raise ValueError(f"mode={arg.mode}: expected lm, pair or glyph")
  preset, nano = PRESETS[arg.preset], arg.preset == "nano"
  config = common.base()
  tower = "nano" if nano else "small"
  llm = dict(variant=preset["llm"])
  config.stage, config.model = {
    "lm": (dict(recall_weight=1.0), dict(llm=llm)),
    "pair": (dict(lm_weight=0.5, recall_weight=1.0), dict(llm=llm, tower=dict(variant=tower))),
    "glyph": (
      # nano takes negatives as anchors too: eight times the pairs for the same work
      dict(hard_weight=1.0, anchors="all" if nano else "true"),
      dict(byt5=dict(variant=preset["byt5"]), glyph_tower=dict(variant=tower)),
    ),
  }[arg.mode]
  config.stage.update(name="align", mode=arg.mode)
  config.init.path = "" if arg.init == "none" else arg.init
  if arg.lora and arg.mode == "glyph":
    raise ValueError(f"lora={arg.lora}: mode glyph trains no LLM")
  if arg.lora:
    common.adapt(config, "llm", arg.lora)
  config.init.allow_missing_players = "tower"  # pair mode starts its picture tower fresh
  config.data.tokenizer = arg.tokenizer
  # A trained LLM is tuned gently: at the full rate it forgot, recall loss 0.012 -> 0.07 in 200 steps. The glyph
  # stage at the full rate fell to chance at step 80 and stayed there.
  config.optim.lr = preset["lr"] / (1 if arg.mode == "lm" else 4)
  config.optim.warmup_steps = 100 if nano else 1_000
  config.sharding.mesh = common.mesh(preset["fsdp"])
  config.train.total_steps = arg.steps or preset["steps"][arg.mode]
  config.train.export_dtype = "float32"
  if arg.mode == "glyph":
    stream = dict(batch_size=preset["batch"] // 8, seed=0, glyph_bytes=8 if nano else 64)
    config.data.streams = {s: dict(source=f"{arg.data}:{s}", **stream) for s in ("train", "val")}
    config.data.tokenizer = ""
  else:
    features = ("id_B", "llm_ids_BL") + (("image_BHWC",) if arg.mode == "pair" else ())
    stream = dict(
      batch_size=preset["batch"], features=features, seed=0, text_buckets=(16, 32, 64, 256)
    )
    config.data.streams = {
      s: dict(sources=((f"{arg.data}:{s}", 1.0),), **stream) for s in ("train", "val")
    }
  config.eval.evaluators = dict(
    val=dict(kind="ValLoss", predict="val_loss", stream="val", batches=4)
  )
  return config
