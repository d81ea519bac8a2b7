r"""Collects trained parts into one weights folder that sample, evaluate and the next stage open.

  python -m data_pipelines.pack --part dit=W/pretrain/weights --part vae=W/autoencoder/weights \
    --tokenizer W/tokenizer.model --out weights/nano --dtype bfloat16

Writes PART.safetensors, tokenizer.model (or tokenizer.json and tokenizer_config.json), the config of the last part's
run as config.json, and provenance.json: where each file came from, its sha256 and the step it was trained to. Adapters
are merged into the kernels they stand beside, as the part's own run weighed them, and leave the config.
"""

import json
import os
import shutil
from collections.abc import Iterable, Sequence

from absl import flags

from seedream_jax import types
from seedream_jax.data import tokenizers
from seedream_jax.engine import checkpoint, trees
from seedream_jax.interop import config_json
from seedream_jax.models import lora
from seedream_jax.run import cli

_PART = flags.DEFINE_multi_string("part", [], "NAME=FOLDER; may be given several times.")
_TOKENIZER = flags.DEFINE_string(
  "tokenizer", "", "SentencePiece model, or tokenizer.json, to include."
)
_OUT = flags.DEFINE_string("out", None, "Folder to write.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of floating leaves.")
flags.mark_flags_as_required(["out"])


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  cli.check_out("--out", _OUT.value, folder=True)
  if not _PART.value:
    raise types.UserError("--part: not given; expected NAME=FOLDER")
  configs = {}
  for item in _PART.value:  # all of them before anything is written
    name, _, folder = item.partition("=")
    source = os.path.join(folder, f"{name}.safetensors")
    if not os.path.exists(source):
      raise types.UserError(f"--part {item}: {source} does not exist; expected NAME=FOLDER")
    leaves, _ = checkpoint.read_header(source)
    configs[item] = _adapters(folder, name, leaves)
  if not os.path.isfile(os.path.join(folder, "config.json")):
    raise types.UserError(f"--part {item}: no config.json in {folder}, whose run would name it")
  config = config_json.read_json(os.path.join(folder, "config.json"))
  if _TOKENIZER.value and not os.path.isfile(_TOKENIZER.value):
    raise types.UserError(f"--tokenizer {_TOKENIZER.value}: no such file")
  tokenizer = tokenizers.open_tokenizer(_TOKENIZER.value) if _TOKENIZER.value else None
  provenance = {}
  for item in _PART.value:
    name, _, folder = item.partition("=")
    source = os.path.join(folder, f"{name}.safetensors")
    _, metadata = checkpoint.read_header(source)
    target = os.path.join(_OUT.value, f"{name}.safetensors")
    tree = lora.merge(checkpoint.load_weights(source), configs[item])
    checkpoint.save_weights(target, tree, dtype=_DTYPE.value, metadata=metadata)
    provenance[name] = {
      **metadata,
      "source_sha256": checkpoint.sha256(source),
      "sha256": checkpoint.sha256(target),
    }
  if tokenizer:
    for name, path in tokenizer.files().items():
      shutil.copyfile(path, os.path.join(_OUT.value, name))
    provenance["tokenizer"] = {"sha256": checkpoint.sha256(_TOKENIZER.value)}
  target = os.path.join(_OUT.value, "config.json")
  shutil.copyfile(os.path.join(folder, "config.json"), target)
  if lora.strip(config) != config:
    with open(target, "w", encoding="utf-8") as f:
      json.dump(lora.strip(config), f, indent=1)
  with open(os.path.join(_OUT.value, "provenance.json"), "w", encoding="utf-8") as f:
    json.dump(provenance, f, indent=1, sort_keys=True)
  print(
    json.dumps({"out": _OUT.value, "bytes": sum(e.stat().st_size for e in os.scandir(_OUT.value))})
  )
  return 0


def _adapters(folder: str, part: str, leaves: Iterable[str]) -> lora.LoRAConfig | None:
  """What the part's run says of its adapters; None where it has none."""
  if not any(trees.matches(lora.LEAVES, path) for path in leaves):
    return None
  path = os.path.join(folder, "config.json")
  fields = config_json.read_json(path).get("model", {}).get(part, {}).get("lora")
  if not fields:
    raise types.UserError(
      f"--part {part}={folder}: holds adapters, but {path} has no model.{part}.lora to weigh them"
    )
  return lora.make_config(fields)


if __name__ == "__main__":
  cli.run(main)
