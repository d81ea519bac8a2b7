r"""Pretraining: captions -> LLM + glyph ByT5 -> MMDiT -> latents, rectified flow (Seedream 2.0, Sec. 3).

  python -m seedream_jax.train --config experiments/pretrain.py:nano --workdir /tmp/pretrain

Presets: nano (2 CPU cores), small (one 80 GB GPU), base (v5e-16 or 8 GPUs), full (v5e-256, v5p-64, v6e-256).
Options: data=FOLDER (of `data_pipelines.posters` or `.encode`), weights=FOLDER (vae, llm, byt5, tokenizer),
llm=, byt5=, vae=FOLDER (that part of another folder, of the sizes its config.json says: `data_pipelines.convert`),
init=FOLDER (a dit to go on from; none = from nothing), content=image|latent, text=ids|features (precomputed),
rope=area|corner, lora=RANK (adapters on `init` instead of all of the dit; 0 = none).
Measured costs and results stand in docs/evidence.md; small, base and full are not yet run.
"""

from experiments import common

# `shift` is SD3's alpha (eq. 23), of the preset's own size; `fsdp` -1 = over all chips.
PRESETS = {
  "nano": dict(
    batch=16, text_buckets=(16, 24, 32, 64, 256), glyph_bytes=8, dit="nano", vae="nano", llm="nano", byt5="nano",
    lr=1e-3, steps=60_000, shift=1.0, fsdp=1, dtype="float32", remat="dots",
  ),
  "small": dict(
    batch=256, text_buckets=(32, 64, 256), glyph_bytes=64, dit="small", vae="flux", llm="0.6B", byt5="small",
    lr=2e-4, steps=200_000, shift=2.0, fsdp=1, dtype="bfloat16", remat="dots",
  ),
  "base": dict(
    batch=1024, text_buckets=(64, 256), glyph_bytes=128, dit="base", vae="flux", llm="1.7B", byt5="small",
    lr=1.5e-4, steps=400_000, shift=3.0, fsdp=-1, dtype="bfloat16", remat="full", accum=2,
  ),
  "full": dict(
    batch=2048, text_buckets=(128, 512), glyph_bytes=256, dit="full", vae="flux", llm="8B", byt5="small",
    lr=1e-4, steps=600_000, shift=3.0, fsdp=-1, dtype="bfloat16", remat="full",
  ),
}  # fmt: skip

_FROZEN = ("vae", "llm", "byt5")

# Drawn as training goes, always from the same noise: WORKDIR/images/samples and TensorBoard.
PROMPTS = (
  "写着“福”的海报，有一个红灯笼",
  "a poster that says “MOON” with a crescent moon",
  "紫色背景，两条龙",
  "three keys on a white background",
  "红色背景，右下方是一只熊猫",
  "blue background, a whale in the middle",
  "粉色背景，下方有紫色的「花好」",
  'green background, "TEA" in white letters at the top',
)


def parse(arg, **more):
  """The experiment's options, with those that one built on this experiment adds."""
  defaults = dict(weights="weights/nano", content="image", text="ids", rope="area", lora=0, steps=0)
  defaults |= dict.fromkeys(_FROZEN, "")
  return common.parse_arg(arg, presets=tuple(PRESETS), **defaults, **more)


def get_config(arg=None):
  arg = parse(arg, data="out/posters", init="none")
  return make(arg, arg.data)


def make(arg, data):
  """The config of parsed options; `data` is the folder that both streams read."""
  preset, nano = PRESETS[arg.preset], arg.preset == "nano"
  config = common.base()
  config.stage = dict(
    name="denoise",
    density="logit_normal",  # SD3, Sec. 3.1: best overall rank at (0, 1)
    shift=preset["shift"],
    drop_both=0.10,
    drop_byt5=0.05,
    drop_llm=0.05,
  )
  given = {part: common.sizes(arg[part], part) for part in _FROZEN if arg[part]}
  config.model = dict(
    dit=dict(variant=preset["dit"], rope_mode=arg.rope, remat=preset["remat"], **_widths(given)),
    **{
      part: dict(given.get(part, dict(variant=preset[part])), dtype=preset["dtype"])
      for part in _FROZEN
    },
  )
  config.frozen = {part: arg[part] or arg.weights for part in _FROZEN}
  config.init.path = "" if arg.init == "none" else arg.init

  picture = "latent_BHWC" if arg.content == "latent" else "image_BHWC"
  cached = ("llm_features_BLE", "llm_empty_BE") if arg.text == "features" else ()
  stream = dict(
    features=("id_B", picture, "llm_ids_BL", "byt5_ids_BG", "size_B2", *cached),
    batch_size=preset["batch"],
    text_buckets=preset["text_buckets"],
    glyph_bytes=preset["glyph_bytes"],
  )
  config.data.tokenizer = common.tokenizer(config.frozen.llm)
  config.data.streams = dict(
    train=dict(sources=((f"{data}:train", 1.0),), seed=0, **stream),
    val=dict(sources=((f"{data}:val", 1.0),), seed=0, **stream),
  )

  config.optim.lr = preset["lr"]
  config.optim.warmup_steps = 200 if nano else 2_000
  config.optim.ema = dict(eval=(".*", 0.9995 if nano else 0.9999))
  if arg.lora:
    common.adapt(config, "dit", arg.lora)
  config.sharding.mesh = common.mesh(preset["fsdp"])
  config.train.total_steps = arg.steps or preset["steps"]
  config.train.accum_steps = preset.get("accum", 1)
  config.train.frozen_dtype = preset["dtype"]
  config.train.log_every_steps = 50 if nano else 20
  config.ckpt.every_steps = 1_000 if nano else 2_000
  config.eval.every_steps = 4_000 if nano else 5_000
  config.eval.evaluators = dict(
    val=dict(kind="ValLoss", predict="val_loss", stream="val", batches=8),
    samples=dict(
      kind="SampleGrid",
      predict="sample",
      stream="val",
      prompts=PROMPTS,
      options=dict(num_steps=16, guidance=4.0),
    ),
  )
  return config


def _widths(given):
  """The DiT's inputs, as wide as what the given models hand it; a variant of a converted folder has its own row."""
  fields = (("llm", "width", "text_dim"), ("byt5", "width", "glyph_dim"))
  fields += (("vae", "latent_channels", "latent_channels"),)
  return {ours: given[part][key] for part, key, ours in fields if key in given.get(part, {})}
