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


def pack(parts: Sequence[str], out: str, tokenizer_path: str = "", dtype: str = "float32") -> None:
  """Writes the weights folder `out`.

  Args:
    parts: NAME=FOLDER; the last one's config.json is taken.
    out: the folder.
    tokenizer_path: SentencePiece model, or tokenizer.json, to include; "" for none.
    dtype: of floating leaves.

  Raises:
    types.UserError: before anything is written.
  """
  if not parts:
    raise types.UserError("--part: not given; expected NAME=FOLDER")
  configs = {}
  for item in parts:  # all of them before anything is written
    name, _, folder = item.partition("=")
    source = os.path.join(folder, f"{name}.safetensors")
    if not os.path.exists(source):
      raise types.UserError(f"--part {item}: {source} does not exist; expected NAME=FOLDER")
    leaves, _ = checkpoint.read_header(source)
    configs[item] = _adapters(folder, name, leaves)
  if not os.path.isfile(os.path.join(folder, "config.json")):
    raise types.UserError(f"--part {item}: no config.json in {folder}, whose run would name it")
  config = config_json.read_json(os.path.join(folder, "config.json"))
  if tokenizer_path and not os.path.isfile(tokenizer_path):
    raise types.UserError(f"--tokenizer {tokenizer_path}: no such file")
  tokenizer = tokenizers.open_tokenizer(tokenizer_path) if tokenizer_path else None
  provenance = {}
  for item in parts:
    name, _, folder = item.partition("=")
    source = os.path.join(folder, f"{name}.safetensors")
    _, metadata = checkpoint.read_header(source)
    target = os.path.join(out, f"{name}.safetensors")
    tree = lora.merge(checkpoint.load_weights(source), configs[item])
    checkpoint.save_weights(target, tree, dtype=dtype, metadata=metadata)
    provenance[name] = {
      **metadata,
      "source_sha256": checkpoint.sha256(source),
      "sha256": checkpoint.sha256(target),
    }
  if tokenizer:
    for name, path in tokenizer.files().items():
      shutil.copyfile(path, os.path.join(out, name))
    provenance["tokenizer"] = {"sha256": checkpoint.sha256(tokenizer_path)}
  target = os.path.join(out, "config.json")
  shutil.copyfile(os.path.join(folder, "config.json"), target)
  if lora.strip(config) != config:
    with open(target, "w", encoding="utf-8") as f:
      json.dump(lora.strip(config), f, indent=1)
  with open(os.path.join(out, "provenance.json"), "w", encoding="utf-8") as f:
    json.dump(provenance, f, indent=1, sort_keys=True)


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


def define_flags() -> None:
  """Called once, by the program."""
  flags.DEFINE_multi_string("part", [], "NAME=FOLDER; may be given several times.")
  flags.DEFINE_string("tokenizer", "", "SentencePiece model, or tokenizer.json, to include.")
  flags.DEFINE_string("out", None, "Folder to write.", required=True)
  flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of floating leaves.")


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  values = flags.FLAGS
  cli.check_out("--out", values.out, folder=True)
  pack(values.part, values.out, values.tokenizer, values.dtype)
  size = sum(entry.stat().st_size for entry in os.scandir(values.out))
  print(json.dumps({"out": values.out, "bytes": size}))
  return 0


if __name__ == "__main__":
  define_flags()
  cli.run(main)
