"""Records: the TFDS schema every data set shares, written and read without TensorFlow.

A data set is a folder of ArrayRecord shards with `dataset_info.json` and `features.json` beside
them. A record holds one picture, as a PNG (`image`) or as a precomputed VAE mean (`latent`, float16
bytes, with `latent_shape`), and the captions that describe it; or several encoded pictures of one
prompt (`images`), or their latents of one shape (`latents`), as candidates or as a pair of which the
first is preferred. `scene` is the scene tree as JSON, or "" where none is known. R pictures, H W
height, width in latent cells, C channels.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source, array_record_module

from seedream_jax import types

LANGS = ("zh", "en")
KINDS = ("short", "long", "artistic", "textual", "surreal", "label")
CONTENTS = ("image", "latent", "images", "latents")
MANIFEST = "manifest.json"  # what a pipeline says of the data set it wrote: sources, seeds, hashes
ENCODERS = (
  "vae_sha256",
  "vae",
  "crop",
  "tokenizer_sha256",
  "llm",
)  # its keys of what made latents and features

_SPLIT = re.compile(r"^(?P<path>.+):(?P<split>[A-Za-z_]\w*(\[[^\]]*\])?)$")
_EDGE = (
  1 << 16
)  # bytes hashed at each end of a shard; ArrayRecord keeps its footer in the last 64 KiB


def features(
  content: str = "image", *, text_features: bool = False, extra: Mapping[str, Any] | None = None
):
  """The TFDS schema.

  Args:
    content: "image" (PNG), "latent" (float16 bytes of the un-normalised VAE mean, C order),
      "images" (several, each encoded as Pillow reads it) or "latents" (several, of one shape).
    text_features: whether captions carry LLM features (float16 bytes, one row per token).
    extra: further TFDS features a pipeline wants to keep; the loader ignores them.
  """
  caption = {
    "text": tfds.features.Text(),
    "lang": tfds.features.Text(),
    "kind": tfds.features.Text(),
    "weight": tfds.features.Scalar(np.float32),
  }
  if text_features:
    caption["llm_features"] = tfds.features.Text()
  schema = {
    "id": tfds.features.Scalar(np.int64),
    "height": tfds.features.Scalar(np.int32),
    "width": tfds.features.Scalar(np.int32),
    "captions": tfds.features.Sequence(caption),
    "scene": tfds.features.Text(),
    "bucket": tfds.features.Text(),
  }
  if content == "image":
    schema["image"] = tfds.features.Image(shape=(None, None, 3), encoding_format="png")
  elif content == "latent":
    schema["latent"] = tfds.features.Text()
    schema["latent_shape"] = tfds.features.Tensor(shape=(3,), dtype=np.int32)
  elif content == "images":
    schema["images"] = tfds.features.Sequence(tfds.features.Text())
  elif content == "latents":
    schema["latents"] = tfds.features.Sequence(tfds.features.Text())
    schema["latent_shape"] = tfds.features.Tensor(shape=(3,), dtype=np.int32)
  else:
    raise ValueError(f"content: {content!r}, expected one of {CONTENTS}")
  return tfds.features.FeaturesDict({**schema, **(extra or {})})


def encode_latent(latent_HWC: np.ndarray) -> dict[str, Any]:
  """The record fields that hold one latent."""
  return {
    "latent": latent_HWC.astype(np.float16).tobytes(),
    "latent_shape": np.asarray(latent_HWC.shape, np.int32),
  }


def encode_latents(latent_RHWC: np.ndarray) -> dict[str, Any]:
  """The record fields that hold several."""
  return {
    "latents": [latent_HWC.astype(np.float16).tobytes() for latent_HWC in latent_RHWC],
    "latent_shape": np.asarray(latent_RHWC.shape[1:], np.int32),
  }


def decode_latent(record: Mapping[str, Any]) -> np.ndarray:
  """The float16 latent_HWC of a parsed record; ValueError when bytes and shape disagree."""
  return np.frombuffer(record["latent"], np.float16).reshape(tuple(record["latent_shape"]))


def decode_latents(record: Mapping[str, Any]) -> np.ndarray:
  """latent_RHWC, likewise."""
  data = np.stack([np.frombuffer(latent, np.float16) for latent in record["latents"]])
  return data.reshape(len(data), *record["latent_shape"])


@dataclasses.dataclass(frozen=True)
class Split:
  """One split of a data set on disk: raw records by row, and parsers for parts of them."""

  spec: str  # as the user wrote it
  directory: str
  name: str
  content: str  # one of CONTENTS
  text_features: bool
  instructions: tuple[Any, ...]  # tfds FileInstructions: (filename, skip, take, examples_in_shard)

  def __len__(self) -> int:
    return sum(i.take for i in self.instructions)

  def source(self) -> array_record_data_source.ArrayRecordDataSource:
    """Raw records by row; picklable, opens its files lazily."""
    return array_record_data_source.ArrayRecordDataSource(list(self.instructions))

  def parser(
    self, *keys: str, extra: Mapping[str, Any] | None = None
  ) -> Callable[[bytes], dict[str, Any]]:
    """A function from raw record to the named fields; "image_png" leaves the picture encoded.

    `extra` holds the TFDS features of fields that only the pipeline that wrote them knows.
    """
    schema = features(self.content, text_features=self.text_features, extra=extra)
    encoded = "image_png" in keys
    names = ["image" if key == "image_png" else key for key in keys]
    subset = tfds.features.FeaturesDict({name: schema[name] for name in names})
    decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None

    def parse(raw: bytes) -> dict[str, Any]:
      record = subset.deserialize_example_np(raw, decoders=decoders)
      if encoded:
        record["image_png"] = record.pop("image")
      return record

    return parse

  def manifest(self) -> dict[str, Any]:
    """What the pipeline that wrote the data set says of it; {} where it wrote nothing."""
    path = pathlib.Path(self.directory, MANIFEST)
    return json.loads(path.read_text()) if path.exists() else {}

  def encoders(self) -> dict[str, Any]:
    """What the manifest says of the models and the crop behind latents and features; {} of pictures."""
    manifest = self.manifest()
    return {key: manifest[key] for key in ENCODERS if key in manifest}

  @functools.cached_property
  def empty_features(self) -> np.ndarray:
    """What `data_pipelines.encode` stored as the LLM's feature of the empty prompt, float16 [E]."""
    found = self.manifest().get("llm", {}).get("empty_features")
    if not found:
      raise types.UserError(
        f"data set {self.directory}: its manifest holds no feature of the empty prompt; encode it again"
      )
    return np.array(found, np.float16)

  def manifest_sha256(self) -> str:
    """Hash of the manifest, or of `dataset_info.json` where the pipeline wrote none."""
    for name in (MANIFEST, "dataset_info.json"):
      path = os.path.join(self.directory, name)
      if os.path.exists(path):
        return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
    raise types.UserError(f"{self.directory}: no {MANIFEST} and no dataset_info.json")

  def fingerprint(self) -> str:
    """Hash of the schema and both ends of every shard: cheap, and new whenever the split is."""
    digest = hashlib.sha256(pathlib.Path(self.directory, "features.json").read_bytes())
    for part in self.instructions:
      size = os.path.getsize(part.filename)
      name = os.path.basename(part.filename)
      digest.update(f"{name} {size} {part.skip} {part.take}\n".encode())
      with open(part.filename, "rb") as f:
        digest.update(f.read(_EDGE))
        f.seek(max(0, size - _EDGE))
        digest.update(f.read(_EDGE))
    return digest.hexdigest()


def split_spec(spec: str) -> tuple[str, str]:
  """Splits "path" or "path:split" (the split defaults to train)."""
  match = _SPLIT.match(spec)
  return (match["path"], match["split"]) if match else (spec, "train")


def find_directory(path: str) -> str:
  """The folder with `dataset_info.json` at or below `path`; it must be the only one."""
  if not os.path.isdir(path):
    raise types.UserError(
      f"data set {path}: no such folder; expected one holding dataset_info.json"
    )
  for depth in range(4):  # data_dir/name/config/version
    found = sorted(pathlib.Path(path).glob("/".join(["*"] * depth + ["dataset_info.json"])))
    found = [str(f.parent) for f in found if "incomplete." not in str(f)]  # TFDS, half written
    if len(found) == 1:
      return found[0]
    if found:
      raise types.UserError(f"data set {path}: holds several, name one of {', '.join(found)}")
  raise types.UserError(
    f"data set {path}: no dataset_info.json at or below it; "
    "expected a TFDS folder of ArrayRecord shards"
  )


def open_split(spec: str) -> Split:
  """Opens "path" or "path:split"; what is missing or misshapen is a `types.UserError`."""
  path, name = split_spec(spec)
  directory = find_directory(path)
  try:
    found = tfds.features.FeaturesDict.from_config(directory)
    info = json.loads(pathlib.Path(directory, "dataset_info.json").read_text())
    splits = tfds.builder_from_directory(directory).info.splits
  except (OSError, ValueError, KeyError) as e:  # absent, or not the JSON that TFDS writes
    reason = " ".join(str(e).split())[:200]
    raise types.UserError(f"data set {directory}: its metadata cannot be read: {reason}") from e
  content = _check_schema(directory, found)
  caption = found["captions"].feature
  if info.get("fileFormat") != "array_record":
    raise types.UserError(
      f"data set {directory}: file format {info.get('fileFormat')}, expected array_record"
    )
  stem = name.split("[")[0]
  if stem not in splits:
    raise types.UserError(
      f"data set {directory}: no split {stem!r}; it has {', '.join(sorted(splits)) or 'none'}"
    )
  try:
    instructions = tuple(splits[name].file_instructions)
  except (ValueError, AssertionError) as e:
    raise types.UserError(f"data set {directory}: split {name!r}: {e}") from e
  for instruction in instructions:
    if not os.path.exists(instruction.filename):
      raise types.UserError(f"data set {directory}: shard {instruction.filename} is missing")
  return Split(spec, directory, name, content, "llm_features" in caption, instructions)


def _check_schema(directory: str, found: Any) -> str:
  """Checks that `found` has every field of the schema; returns its content."""
  content = next((name for name in ("latent", "latents", "images") if name in found), "image")
  for key, want in features(content).items():
    if key not in found:
      raise types.UserError(
        f"data set {directory}: field {key!r} is missing; it has {', '.join(sorted(found))}"
      )
    if key == "captions":
      have = ", ".join(sorted(found[key].feature))
      if missing := sorted(set(want.feature) - set(found[key].feature)):
        raise types.UserError(
          f"data set {directory}: captions lack {', '.join(missing)}; they have {have}"
        )
    elif found[key].np_dtype != want.np_dtype:
      raise types.UserError(
        f"data set {directory}: field {key!r} is {np.dtype(found[key].np_dtype).name}, "
        f"expected {np.dtype(want.np_dtype).name}"
      )
  return content


def write_shard(path: str, schema: Any, examples: Iterable[Mapping[str, Any]]) -> int:
  """Writes one ArrayRecord shard atomically; returns the number of records."""
  partial, count = f"{path}.partial", 0
  writer = array_record_module.ArrayRecordWriter(partial, "group_size:1")
  for example in examples:
    writer.write(schema.serialize_example(example))
    count += 1
  writer.close()
  os.replace(partial, path)
  return count


def shard_name(dataset: str, split: str, index: int, total: int) -> str:
  """The file name TFDS expects of shard `index` of `total`."""
  return f"{dataset}-{split}.array_record-{index:05d}-of-{total:05d}"


def write_metadata(
  directory: str,
  dataset: str,
  schema: Any,
  splits: Mapping[str, Sequence[tuple[int, int]]],
  description: str,
) -> None:
  """Writes `dataset_info.json` and `features.json`, which make a folder of shards a data set.

  Args:
    directory: where the shards lie.
    dataset: first part of the shard names.
    schema: as returned by `features`.
    splits: {split: [(records, bytes) per shard]}.
    description: one paragraph.
  """
  info = {
    "description": description,
    "disableShuffling": True,
    "fileFormat": "array_record",
    "moduleName": "",
    "name": dataset,
    "splits": [
      {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": name,
        "numBytes": str(sum(size for _, size in shards)),
        "shardLengths": [str(count) for count, _ in shards],
      }
      for name, shards in splits.items()
    ],
    "version": "1.0.0",
  }
  schema.save_config(directory)
  path = pathlib.Path(directory, "dataset_info.json")
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(info, indent=2) + "\n")
  os.replace(partial, path)  # last: a folder without it is not a data set


def iterate(split: Split, *keys: str) -> Iterator[dict[str, Any]]:
  """The named fields of every record of a split, in order; for pipelines and judges."""
  source, parse = split.source(), split.parser(*keys)
  for row in range(len(split)):
    yield parse(source[row])


def iterate_captions(spec: str, limit: int | None = None) -> Iterator[list[str]]:
  """The caption texts of each record of "path[:split]", the first `limit` records where given."""
  split = open_split(spec)
  source, parse = split.source(), split.parser("captions")
  for row in range(len(split) if limit is None else min(limit, len(split))):
    yield [text.decode() for text in parse(source[row])["captions"]["text"]]
