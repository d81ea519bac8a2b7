r"""Writes a model as a diffusers folder that PyTorch loads without this package.

  python -m seedream_jax.export --workdir weights/nano --out /tmp/nano [--dtype bfloat16] [--weights raw] [--onnx]
    [--lora apart]

The folder holds stock components where there are such (AutoencoderKL, Qwen3, T5, tokenizer, scheduler), and the
transformer and the pipeline in Python files of their own; its README.md says how to draw with it. `--onnx` adds
transformer.onnx, with sizes left open, and needs torch, onnx and onnxscript. Adapters are merged into the kernels in
float32; `--lora apart` leaves the DiT's out of them, in pytorch_lora_weights.safetensors.
"""

import json
import os
from collections.abc import Sequence

from absl import flags

from seedream_jax import types
from seedream_jax.interop import card as card_lib
from seedream_jax.interop import diffusers
from seedream_jax.run import cli, pipeline

_WORKDIR = flags.DEFINE_string("workdir", None, "Training workdir or weights folder.")
_OUT = flags.DEFINE_string("out", None, "The folder to write; a former export is replaced.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of all weights.")
_WEIGHTS = flags.DEFINE_enum(
  "weights",
  "ema",
  ["ema", "raw"],
  "Of a training workdir: the EMA that is sampled from, or the parameters themselves.",
)
_ONNX = flags.DEFINE_bool("onnx", False, "Also write transformer.onnx.")
_LORA = flags.DEFINE_enum(
  "lora",
  "merged",
  ["merged", "apart"],
  "The DiT's adapters: in its kernels, or in a file beside the base model.",
)
flags.mark_flags_as_required(["workdir", "out"])


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  cli.prepare_jax()
  cli.check_out("--out", _OUT.value, folder=True)
  diffusers.check_replaceable(_OUT.value)  # before the work, not after it
  onnx = _onnx() if _ONNX.value else None
  opened = pipeline.open_pipeline(_WORKDIR.value, weights=_WEIGHTS.value)
  stage, config = opened.stage, opened.config
  base = stage.model.configs["dit"].rope_base * opened.multiple
  model = diffusers.Model(
    configs=stage.model.configs,
    params=opened.params,
    tokenizer=opened.tokenizer.path,
    shift=stage.cfg.shift,
    shift_base=stage.cfg.shift_base,
    text_buckets=opened.text_buckets,
    default_size=int(base),
    ours=json.loads(config.to_json_best_effort()),
  )
  if _LORA.value == "apart":
    model, adapters = diffusers.apart(model)
  else:
    model, adapters = diffusers.merged(model), None
  card = card_lib.write(model, _WORKDIR.value, _OUT.value, _DTYPE.value, _WEIGHTS.value)
  with diffusers.replacing(_OUT.value) as folder:
    diffusers.write(folder, model, _DTYPE.value, card, adapters)
    if onnx:
      onnx.export(folder)
  size = sum(
    os.path.getsize(os.path.join(root, file))
    for root, _, files in os.walk(_OUT.value)
    for file in files
  )
  print(
    json.dumps({"out": _OUT.value, "bytes": size, "dtype": _DTYPE.value, "weights": _WEIGHTS.value})
  )
  return 0


def _onnx():
  try:
    from seedream_jax.interop import onnx
  except ImportError as e:
    raise types.UserError(
      f"--onnx: {e.name} is not installed; pip install seedream_jax[torch]"
    ) from e
  return onnx


if __name__ == "__main__":
  cli.run(main)
