"""What every experiment starts from: the fixed groups, the argument parser, the sharding rules."""

import difflib
import json
import os

from ml_collections import config_dict

# Kernels are (in, out), stacked kernels (depth, in, out): specs align to the trailing dims; "?" = shard if it divides.
SHARDING_RULES = (
  # adaLN's kernels are not gathered: their columns stay where they are (ops/partition.py).
  (r".*blocks/layers/.*/modulation/proj/(kernel|bias)", ("fsdp?",)),
  # By the hidden width, the longer: shards stay whole tiles of a TPU's memory up to 4 times as many chips.
  (r".*/mlp_in/kernel", (None, ("tensor?", "fsdp?"))),
  (r".*/mlp_out/kernel", (("tensor?", "fsdp?"), None)),
  (r".*/(qkv|q|k|v|gate|up|wi_0|wi_1)/kernel", ("fsdp?", "tensor?")),
  (r".*/(out|down|wo|o)/kernel", ("tensor?", "fsdp?")),
  # An adapter's factors (in, rank) and (rank, out) lie as the kernel beside them; rank is never cut.
  (r".*/(out|mlp_out|down|wo|o)/lora_a", ("tensor?", None)),
  (r".*/(out|mlp_out|down|wo|o)/lora_b", (None, "fsdp?")),
  (r".*/lora_a", ("fsdp?", None)),
  (r".*/lora_b", (None, "tensor?")),
  (r"(.*/)?(embed|embedding|position|positions)(/.*)?", (None, "fsdp?")),
  (r"(.*/)?kernel", ("fsdp?", "tensor?")),
  (r".*", ()),
)


# Every projection of the scanned blocks, by part.
LORA_TARGETS = {
  "dit": r"blocks/.*/(q|k|v|out|mlp_in|mlp_out)/kernel",
  "llm": r"blocks/.*_proj/kernel",
}
_LORA_LEAVES = r".*/lora_[ab]"


def parse_arg(arg: str | None, presets: tuple[str, ...], **defaults):
  """':nano', ':small,res=512' -> a ConfigDict of `preset` and `defaults` overridden."""
  out = config_dict.create(preset=presets[0], **defaults)
  for item in filter(None, (arg or "").split(",")):
    key, _, value = item.partition("=")
    if not value and key in presets:
      out.preset = key
    elif value and key in defaults:
      kind = type(defaults[key])
      out[key] = value.lower() in ("1", "true") if kind is bool else kind(value)
    else:
      valid = (*presets, *(f"{k}=" for k in defaults))
      near = difflib.get_close_matches(item, valid, n=1)
      raise ValueError(
        f"{item!r} is no preset or option; valid: {', '.join(valid)}"
        + (f"; nearest: {near[0]}" if near else "")
      )
  return out


def mesh(fsdp: int):
  """All chips on `fsdp` when it is -1; else `fsdp` of them, copied over `data`."""
  return dict(data=1 if fsdp < 0 else -1, fsdp=fsdp, tensor=1, context=1)


def adapt(config, part: str, rank: int):
  """Trains adapters of `rank` beside `part`'s projections, and nothing else of it; `init.path` may lack them."""
  config.model[part].lora = dict(rank=rank, alpha=float(rank), targets=LORA_TARGETS[part])
  config.optim.players[part] = dict(trainable=((_LORA_LEAVES, True), (".*", False)))
  config.init.allow_missing = (_LORA_LEAVES,)


def config_in(folder: str):
  """The config.json of a weights folder (data_pipelines.convert, .pack, or a run's own), lists as tuples."""
  try:
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
      return _tuples(json.load(f))
  except (OSError, ValueError) as e:
    raise ValueError(
      f"{folder}: no readable config.json there, expected a weights folder ({e})"
    ) from e


def sizes(folder: str, part: str):
  """What a weights folder's config says of one of its models."""
  model = config_in(folder).get("model", {})
  if part not in model:
    raise ValueError(f"{folder}: holds no {part}; it holds {', '.join(sorted(model)) or 'nothing'}")
  return model[part]


def tokenizer(folder: str) -> str:
  """A published model brings a tokenizer.json, one trained here a SentencePiece model."""
  path = os.path.join(folder, "tokenizer.json")
  return path if os.path.exists(path) else os.path.join(folder, "tokenizer.model")


def _tuples(value):
  if isinstance(value, dict):
    return {key: _tuples(x) for key, x in value.items()}
  return tuple(_tuples(x) for x in value) if isinstance(value, list) else value


def step(name: str, command: str, gates=()):
  """One step of a recipe: a command line, and (metric, least value) pairs on what it prints last."""
  return dict(name=name, command=command, gates=gates)


def base():
  """The fixed top-level groups with the loop's own defaults."""
  config = config_dict.ConfigDict()
  config.seed = 0
  config.stage = config_dict.create(name=config_dict.required_placeholder(str))
  config.model = config_dict.ConfigDict()
  config.frozen = config_dict.ConfigDict()  # part -> weights folder
  config.init = config_dict.create(
    path="", allow_missing=(), allow_extra=(), allow_missing_players=""
  )
  config.data = config_dict.create(
    tokenizer="",
    streams=config_dict.ConfigDict(),
    eval_streams=("val",),  # streams that only evaluators read
  )
  config.optim = config_dict.create(
    optimizer="adamw",
    lr=1e-3,
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    weight_decay=0.01,
    clip_norm=1.0,
    warmup_steps=200,
    schedule="cosine",
    final_lr_fraction=0.02,
    lr_mults=((".*", 1.0),),
    trainable=((".*", True),),
    ema=config_dict.ConfigDict(),
    players=config_dict.ConfigDict(),
  )
  config.sharding = config_dict.create(  # num_devices: the first so many; 0 = all
    mesh=mesh(fsdp=1), num_devices=0, rules=SHARDING_RULES
  )
  config.train = config_dict.create(
    total_steps=10_000,
    accum_steps=1,
    steps_per_call=1,
    log_every_steps=20,
    max_bad_steps=5,  # skipped updates in a row before the run stops
    frozen_dtype="float32",
    export_dtype="bfloat16",
    count_flops=True,
  )
  config.ckpt = config_dict.create(every_steps=500, keep=2, keep_every=0)
  config.eval = config_dict.create(every_steps=500, evaluators=config_dict.ConfigDict())
  return config
