"""Writes records as a TFDS data set of ArrayRecord shards: atomic, resumable, without TensorFlow.

A source makes record i from nothing but its own fields and i, so workers and restarts change no
byte. A shard appears under its final name only when whole, with a receipt beside it; a rerun keeps
shards whose receipt matches and makes the rest. The manifest names what the pixels depend on.
"""

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.posters import fonts as fonts_lib
from seedream_jax import types
from seedream_jax.data import records

_RECEIPTS = "receipts"
_SHARED = ("content", "world", "grammar", "provenance")  # what the splits of one folder agree on


class Source(Protocol):
  """Where records come from; picklable."""

  dataset: str
  description: str
  split: str

  def describe(self) -> dict[str, Any]:
    """Everything the records depend on, as JSON."""

  def schema(self) -> tfds.features.FeaturesDict:
    """The TFDS schema of `example`."""

  def example(self, index: int) -> dict[str, Any]:
    """Record `index`: the same on every call, in every process."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """How much of a source one split will hold.

  Attributes:
    source: where the records come from.
    num: records.
    shard_size: most records of a file.
    encoders: `records.Split.encoders`, which the manifest says for all splits; {} of pictures.
  """

  source: Source
  num: int
  shard_size: int = 4096
  encoders: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def num_shards(self) -> int:
    """Shards of at most `shard_size` records."""
    return -(-self.num // self.shard_size)

  def rows(self, shard: int) -> range:
    """Record indices of one shard."""
    return range(shard * self.shard_size, min(self.num, (shard + 1) * self.shard_size))

  def describe(self) -> dict[str, Any]:
    """Everything the shards depend on, as JSON."""
    return {**self.source.describe(), "shard_size": self.shard_size, "num": self.num}

  def digest(self) -> str:
    """Hash of `describe`: a receipt with another is of another plan."""
    return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Report:
  """What a build did."""

  records: int
  rendered: int
  kept: int


def build(
  plan: Plan,
  directory: str,
  *,
  workers: int = 1,
  progress: Callable[[int], None] = lambda n: None,
) -> Report:
  """Makes one split in `directory`, beside the splits already there.

  Args:
    plan: what to make.
    directory: the data set's folder.
    workers: processes; 1 works in this one.
    progress: told the number of records of each shard, as it is done or found done.

  Raises:
    types.UserError: when `directory` holds another world, fonts or Pillow, or another plan of this
      split.
  """
  folder = pathlib.Path(directory)
  manifest = _check_manifest(folder, plan)
  (folder / _RECEIPTS).mkdir(parents=True, exist_ok=True)
  for half in folder.glob(f"{plan.source.dataset}-{plan.source.split}.*.partial"):
    half.unlink()
  todo = [shard for shard in range(plan.num_shards) if not _is_done(folder, plan, shard)]
  kept = plan.num - sum(len(plan.rows(shard)) for shard in todo)
  if kept:
    progress(kept)
  if workers <= 1 or len(todo) <= 1:
    for shard in todo:
      progress(_write_shard(plan, directory, shard))
  else:
    _write_in_processes(plan, directory, todo, workers, progress)
  _commit(folder, plan, manifest)
  return Report(plan.num, plan.num - kept, kept)


def check_provenance(directory: str, fonts: fonts_lib.FontSet) -> list[str]:
  """What of fonts and Pillow differs from the manifest, a line each; empty when nothing does."""
  manifest = json.loads((pathlib.Path(directory) / records.MANIFEST).read_text())
  here, out = fonts.provenance(), []
  for name, split in manifest["splits"].items():
    built = split["provenance"]
    changed = [key for key in built if built[key] != here.get(key)]
    out += [f"{name}: built with {key} {built[key]}, here {here.get(key)}" for key in changed]
  return out


class _StableSchema:
  """A schema with one byte string per record: protobuf else orders a map as it likes."""

  def __init__(self, schema: tfds.features.FeaturesDict):
    self._schema = schema

  def serialize_example(self, example: dict[str, Any]) -> bytes:
    message = tf_example_pb2.Example.FromString(self._schema.serialize_example(example))
    return message.SerializeToString(deterministic=True)


def _write_in_processes(
  plan: Plan, directory: str, todo: list[int], workers: int, progress: Callable[[int], None]
) -> None:
  context = multiprocessing.get_context("spawn")
  workers = min(workers, len(todo))
  with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
    jobs = [pool.submit(_write_shard, plan, directory, shard) for shard in todo]
    try:
      for job in concurrent.futures.as_completed(jobs):
        progress(job.result())
    except BaseException:
      pool.shutdown(wait=True, cancel_futures=True)
      raise


def _write_shard(plan: Plan, directory: str, shard: int) -> int:
  folder = pathlib.Path(directory)
  path = _shard_path(folder, plan, shard)
  examples = (plan.source.example(i) for i in plan.rows(shard))
  count = records.write_shard(str(path), _StableSchema(plan.source.schema()), examples)
  receipt = {"plan": plan.digest(), "records": count, "bytes": path.stat().st_size}
  _write_json(_receipt_path(folder, plan, shard), receipt)
  return count


def _shard_path(folder: pathlib.Path, plan: Plan, shard: int) -> pathlib.Path:
  source = plan.source
  return folder / records.shard_name(source.dataset, source.split, shard, plan.num_shards)


def _receipt_path(folder: pathlib.Path, plan: Plan, shard: int) -> pathlib.Path:
  return folder / _RECEIPTS / f"{_shard_path(folder, plan, shard).name}.json"


def _receipt(folder: pathlib.Path, plan: Plan, shard: int) -> dict[str, Any] | None:
  try:
    return json.loads(_receipt_path(folder, plan, shard).read_text())
  except (FileNotFoundError, json.JSONDecodeError):
    return None


def _is_done(folder: pathlib.Path, plan: Plan, shard: int) -> bool:
  """A shard counts when its receipt is this plan's and the file has the size the receipt states."""
  receipt, path = _receipt(folder, plan, shard), _shard_path(folder, plan, shard)
  if receipt is None or receipt["plan"] != plan.digest() or not path.exists():
    return False
  return receipt["records"] == len(plan.rows(shard)) and receipt["bytes"] == path.stat().st_size


def _check_manifest(folder: pathlib.Path, plan: Plan) -> dict[str, Any]:
  """The manifest so far; says what disagrees with the plan."""
  path, dataset = folder / records.MANIFEST, plan.source.dataset
  manifest = json.loads(path.read_text()) if path.exists() else {"dataset": dataset, "splits": {}}
  if manifest["dataset"] != dataset:
    raise types.UserError(
      f"{folder}: holds {manifest['dataset']}, not {dataset}; give another --out"
    )
  if manifest["splits"] and (differs := _unequal(manifest, plan.encoders)):
    raise types.UserError(f"{folder}: its records have another {differs}; give another --out")
  want = plan.describe()
  for other in manifest["splits"].values():
    for key in _SHARED:
      if other.get(key) != want.get(key):
        what = _difference(key, other.get(key), want.get(key))
        raise types.UserError(f"{folder}: {what}; give another --out")
  old = manifest["splits"].get(plan.source.split, want)
  for key in want:
    if old.get(key) != want[key]:
      raise types.UserError(
        f"{folder}: split {plan.source.split} has {key}={old.get(key)}, asked {want[key]}; "
        "give another --out"
      )
  return manifest


def _unequal(manifest: Mapping[str, Any], encoders: Mapping[str, Any]) -> str:
  """The first key of either that the two do not say alike, or ""."""
  return next((key for key in records.ENCODERS if manifest.get(key) != encoders.get(key)), "")


def _difference(key: str, old: Any, new: Any) -> str:
  if not isinstance(old, dict) or not isinstance(new, dict):
    return f"built with {key} {old!r}, asked {new!r}"
  name = next(n for n in {**old, **new} if old.get(n) != new.get(n))
  return f"built with {name} {old.get(name)}, found {new.get(name)}: a seed gives other pixels"


def _commit(folder: pathlib.Path, plan: Plan, manifest: dict[str, Any]) -> None:
  """Makes the finished split part of the data set: `dataset_info.json` comes last."""
  receipts = [_receipt(folder, plan, shard) for shard in range(plan.num_shards)]
  shards = [[r["records"], r["bytes"]] for r in receipts]
  manifest["splits"][plan.source.split] = {**plan.describe(), "shards": shards}
  _write_json(folder / records.MANIFEST, manifest | plan.encoders)
  counts = {k: [tuple(s) for s in split["shards"]] for k, split in manifest["splits"].items()}
  source = plan.source
  records.write_metadata(str(folder), source.dataset, source.schema(), counts, source.description)


def _write_json(path: pathlib.Path, value: Any) -> None:
  partial = path.with_name(path.name + ".partial")
  partial.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
  os.replace(partial, path)
