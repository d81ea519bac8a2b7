r"""Turns published models into a weights folder that experiments name.

  python -m data_pipelines.convert --part llm=Qwen3-0.6B --part byt5=byt5-small --part vae=FLUX.1-dev/vae --out out/pub
  python -m seedream_jax.train --config experiments/pretrain.py:small,llm=out/pub,byt5=out/pub,vae=out/pub ...
  python -m data_pipelines.convert --part tower=chinese-clip --out out/clip      # what a reward model starts from
  python -m seedream_jax.train --config experiments/rlhf.py:small,mode=reward,tower=out/clip ...

A folder is as published, config.json and safetensors (docs/interop.md lists the families). Writes PART.safetensors in
the dtypes that are stored, config.json with every size under model.PART, the LLM's tokenizer, a tower's in
tower_tokenizer/, and provenance.json. Tensors go from shard to file one at a time. All of it is written to OUT.partial,
which becomes OUT when it is whole: killed and run again, the bytes are the same.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers as fast
import tqdm
from absl import flags

from seedream_jax import types
from seedream_jax.data import tokenizers
from seedream_jax.engine import checkpoint, weights
from seedream_jax.interop import config_json, huggingface
from seedream_jax.models import byt5, llm, two_tower, vae
from seedream_jax.run import cli
from seedream_jax.run import open as open_lib

MODULES = {"llm": llm.LLM, "byt5": byt5.ByT5, "vae": vae.VAE, "tower": two_tower.TwoTower}
_TOWERS = ("clip", "chinese_clip")  # values of model_type
_OF_A_RUN = ("remat", "dtype", "lora")  # fields that say how a model is run, not what it is
_TOKENIZER_OF = {"llm": "", "tower": "tower_tokenizer"}  # part -> folder within OUT


@dataclasses.dataclass(frozen=True)
class Plan:
  """One part, read as far as its headers."""

  part: str
  source: huggingface.Source
  cfg: Any
  leaves: Mapping[str, Any]  # {path: shape and dtype}
  pieces: Callable[[str], Any]  # as `weights.stream_weights` takes it

  @property
  def nbytes(self) -> int:
    """Of all leaves."""
    return sum(x.size * x.dtype.itemsize for x in self.leaves.values())


def plan(item: str) -> Plan:
  """What NAME=FOLDER asks for; everything that can be refused of its weights is refused here.

  Raises:
    types.UserError: a part or a family that is not known, or weights that do not fit what config.json says.
  """
  part, _, folder = item.partition("=")
  if part not in MODULES or not folder:
    near = open_lib.nearest(part, list(MODULES))
    raise types.UserError(f"--part {item}: expected NAME=FOLDER with a known part{near}")
  source, family = huggingface.Source(folder), part
  if part == "tower":
    family = config_json.Reader.open(folder).choice("model_type", "", _TOWERS)
  cfg = huggingface.CONFIGS[family](folder)
  model = types.Part.from_module(lambda rngs: MODULES[part](cfg, rngs=rngs))
  given = huggingface.vae_stats(folder, cfg) if part == "vae" else None
  leaves, pieces = huggingface.stream_part(family, source, model.abstract, given=given)
  return Plan(part, source, cfg, leaves, pieces)


def plan_all(items: Sequence[str], out: str) -> list[Plan]:
  """Every part of `out`, which must not exist yet; errors also name a part given twice, and none at all."""
  if os.path.lexists(out):
    raise types.UserError(f"--out {out}: exists; give a new folder")
  if not items:
    raise types.UserError(f"--part: not given; expected NAME=FOLDER, NAME of {', '.join(MODULES)}")
  plans = [plan(item) for item in items]
  names = [p.part for p in plans]
  for name in names:
    if names.count(name) > 1:
      raise types.UserError(f"--part {name}=: given twice; expected one folder a part")
  return plans


def convert(
  plans: Sequence[Plan], out: str, progress: Callable[[int], None] = lambda count: None
) -> None:
  """Writes the weights folder `out`.

  Args:
    plans: from `plan_all`.
    out: the folder.
    progress: told of bytes written.

  Raises:
    types.UserError: a tokenizer that is missing or has other ids than its model, or a disk that is full.
  """
  partial = f"{os.path.abspath(out)}.partial"
  shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
  os.makedirs(partial)
  try:
    _fill(partial, plans, progress)
  except types.UserError:
    shutil.rmtree(partial)
    raise
  os.rename(partial, out)


def _fill(folder: str, plans: Sequence[Plan], progress: Callable[[int], None]) -> None:
  for p in plans:  # first: what is wrong with one shows before the long work
    if p.part in _TOKENIZER_OF:
      _write_tokenizer(os.path.join(folder, _TOKENIZER_OF[p.part]), p)
  provenance = {}
  for p in plans:
    target = os.path.join(folder, f"{p.part}.safetensors")
    about = {"source": os.path.basename(os.path.abspath(p.source.folder))}
    weights.stream_weights(target, p.leaves, _told(p.pieces, progress), metadata=about)
    provenance[p.part] = {**about, "sha256": checkpoint.sha256(target)}
  found = {"model": {p.part: sizes(p.cfg) for p in plans}}
  _write_json(os.path.join(folder, "config.json"), found)
  _write_json(os.path.join(folder, "provenance.json"), provenance)


def sizes(cfg: Any) -> dict[str, Any]:
  """A model config as the JSON that an experiment's `model` group takes."""

  def kept(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {
      key: kept(value) if isinstance(value, dict) else value
      for key, value in fields.items()
      if key not in _OF_A_RUN
    }

  return kept(dataclasses.asdict(cfg))


def _told(pieces, progress):
  def read(path: str):
    for x in pieces(path):
      yield x
      progress(x.nbytes)

  return read


def _write_tokenizer(folder: str, p: Plan) -> None:
  """The part's tokenizer, known to give ids that its model has."""
  source = p.source.folder
  os.makedirs(folder, exist_ok=True)
  path = next(
    (
      os.path.join(source, name)
      for name in ("tokenizer.json", "tokenizer.model")
      if os.path.exists(os.path.join(source, name))
    ),
    "",
  )
  if path:
    made = tokenizers.open_tokenizer(path)
  elif os.path.exists(os.path.join(source, "vocab.txt")):
    made = _wordpieces(source, folder)
  else:
    raise types.UserError(
      f"{source}: has no tokenizer.json, SentencePiece tokenizer.model or BERT vocab.txt, without which a model of "
      "texts reads nothing"
    )
  if p.part == "llm":
    open_lib.check_tokenizer(made, p.cfg)
  else:
    open_lib.check_tower_tokenizer(made, p.cfg)
  for name, file in made.files().items():
    if os.path.dirname(file) != folder:
      shutil.copyfile(file, os.path.join(folder, name))


def _wordpieces(source: str, folder: str) -> tokenizers.Tokenizer:
  """BERT's vocab.txt, as Chinese-CLIP publishes it, written to `folder` as tokenizer.json."""
  about = os.path.join(source, "tokenizer_config.json")
  about = config_json.read_json(about) if os.path.exists(about) else {}
  made = fast.BertWordPieceTokenizer(
    os.path.join(source, "vocab.txt"), lowercase=bool(about.get("do_lower_case", True))
  )
  made.save(os.path.join(folder, "tokenizer.json"))
  special = {"eos_token": "[SEP]", "pad_token": "[PAD]"}
  _write_json(os.path.join(folder, "tokenizer_config.json"), special)
  return tokenizers.open_tokenizer(folder)


def _write_json(path: str, value: Any) -> None:
  with open(path, "w", encoding="utf-8") as f:
    json.dump(value, f, indent=1, sort_keys=True)


def define_flags() -> None:
  """Called once, by the program."""
  names = ", ".join(MODULES)
  flags.DEFINE_multi_string(
    "part", [], f"NAME=FOLDER, NAME of {names}; may be given several times."
  )
  flags.DEFINE_string("out", None, "The weights folder to write; must not exist.", required=True)


def main(argv: Sequence[str]) -> int:
  """Entry point; the last line printed is a JSON object."""
  del argv
  values = flags.FLAGS
  cli.check_out("--out", values.out, folder=True)
  plans = plan_all(values.part, values.out)
  size = sum(p.nbytes for p in plans)
  with tqdm.tqdm(total=size, desc="convert", unit="B", unit_scale=True) as bar:
    convert(plans, values.out, bar.update)
  print(json.dumps({"out": values.out, "parts": len(plans), "bytes": size}))
  return 0


if __name__ == "__main__":
  define_flags()
  cli.run(main)
