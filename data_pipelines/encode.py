r"""Precomputes VAE latents, and LLM features if asked, of a data set into a new one.

  python -m data_pipelines.encode --data out/posters:train --vae weights/nano --out out/latents
  ... --llm weights/nano --tokenizer weights/nano/tokenizer.model   # also the LLM's features
  ... --task 0/4                                        # one of four jobs that share the work

The posterior's mean is stored un-normalised, as float16. Output shard i holds what shard i of the
source held, and appears whole, with a receipt: a rerun keeps finished shards and encodes the rest. Of a set of
pictures, such as a pair of preferences, each gets its latent, all in the bucket of the first.
The manifest names the weights (sha256), the source (hash of its manifest) and the crop; one folder
takes further splits, but no other models. Records that cannot be read are left out and counted.

H W C height, width, channels of a picture or latent; B a batch; L tokens of a text bucket, E width.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import tqdm
from absl import flags, logging

from seedream_jax import types
from seedream_jax.data import buckets, records, tokenizers, transforms
from seedream_jax.engine import checkpoint, mesh, sharding
from seedream_jax.models import llm, vae
from seedream_jax.run import cli
from seedream_jax.run import open as open_lib

DATASET = "latents"
_RECEIPTS = "receipts"
_NAMED_DROPPED = 20  # dropped records a receipt names
_TEXT_BUCKETS = (*buckets.TEXT, 1024)

Encode = Callable[[np.ndarray], np.ndarray]  # a batch in, a batch out


@dataclasses.dataclass(frozen=True)
class Plan:
  """What one split of the output will hold.

  Attributes:
    source: the split to encode.
    vae: what the manifest says of the VAE: sha256 and config.
    llm: what it says of the LLM, its tokenizer included; None computes no text features.
    area: side of the square of the picture bucket; 0 keeps the bucket each record names.
  """

  source: records.Split
  vae: dict[str, Any]
  llm: dict[str, Any] | None = None
  area: int = 0

  def models(self) -> dict[str, Any]:
    """What every split of one folder must share."""
    out = {"vae_sha256": self.vae["sha256"], "vae": self.vae, "crop": transforms.CROP}
    if self.llm:
      out |= {"tokenizer_sha256": self.llm["tokenizer_sha256"], "llm": self.llm}
    return out

  def describe(self) -> dict[str, Any]:
    """Everything the bytes of the split depend on, as JSON."""
    source = {"name": self.source.name, "fingerprint": self.source.fingerprint()}
    return {"source": source, "area": self.area, **self.models()}

  @functools.cached_property
  def digest(self) -> str:
    """Of `describe`."""
    return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

  @property
  def content(self) -> str:
    """Of the output."""
    return "latents" if self.source.content == "images" else "latent"

  @property
  def split(self) -> str:
    """Name of the split, without any slice."""
    return self.source.name.split("[")[0]

  @functools.cached_property
  def shards(self) -> list[range]:
    """Rows of the source that each output shard holds: those of one source shard."""
    ends = itertools.accumulate((part.take for part in self.source.instructions), initial=0)
    return [range(first, end) for first, end in itertools.pairwise(ends)]


@dataclasses.dataclass(frozen=True)
class Report:
  """What a run did, in records."""

  encoded: int
  kept: int  # found done
  dropped: int  # in all shards
  complete: bool  # no shard is left to another task


def encode(
  plan: Plan,
  directory: str,
  encode_images: Encode,
  *,
  encode_texts: Encode | None = None,
  tokenizer: tokenizers.Tokenizer | None = None,
  batch_size: int = 64,
  task: tuple[int, int] = (0, 1),
  progress: Callable[[int], None] = lambda count: None,
) -> Report:
  """Encodes the split's shards that are not done yet, beside the splits already in `directory`.

  Args:
    plan: what to encode.
    directory: the output data set.
    encode_images: uint8 image_BHWC to latent_BHWC, the un-normalised mean.
    encode_texts: int32 ids_BL to features_BLE, needed with `plan.llm`.
    tokenizer: needed with `plan.llm`.
    batch_size: B of both functions; the last batch of a bucket is padded.
    task: (k, n): this run takes every n-th shard from the k-th.
    progress: told the number of source records of each step forward.

  Raises:
    types.UserError: when `directory` holds other models or another plan of this split.
  """
  folder = pathlib.Path(directory)
  _check_manifest(folder, plan)
  (folder / _RECEIPTS).mkdir(parents=True, exist_ok=True)
  encoded = kept = 0
  for shard in range(task[0], len(plan.shards), task[1]):
    rows = plan.shards[shard]
    if _receipt(folder, plan, shard):
      kept += len(rows)
      progress(len(rows))
      continue
    images = _Batcher(encode_images, batch_size)
    texts = _Batcher(encode_texts, batch_size) if plan.llm else None
    work = _Shard(plan, rows, images, texts, tokenizer, progress)
    path = _shard_path(folder, plan, shard)
    schema = records.features(plan.content, text_features=plan.llm is not None)
    count = records.write_shard(str(path), schema, work.examples())
    receipt = dict(plan=plan.digest, records=count, bytes=path.stat().st_size, **work.dropped())
    _write_json(_receipt_path(folder, plan, shard), receipt)
    encoded += count
  receipts = [_receipt(folder, plan, shard) for shard in range(len(plan.shards))]
  if complete := all(receipts):
    _commit(folder, plan, receipts)
  return Report(encoded, kept, sum(r["num_dropped"] for r in receipts if r), complete)


class _Batcher:
  """Runs `encode` on full batches of equal shape; results are fetched by ticket."""

  def __init__(self, function: Encode, batch_size: int):
    self._function, self._batch_size = function, batch_size
    self._pending: dict[tuple[int, ...], list[tuple[Any, np.ndarray]]] = collections.defaultdict(
      list
    )
    self.done: dict[Any, np.ndarray] = {}

  def put(self, ticket: Any, x: np.ndarray) -> None:
    pending = self._pending[x.shape]
    pending.append((ticket, x))
    if len(pending) == self._batch_size:
      self._run(x.shape)

  def flush(self) -> None:
    for shape in [shape for shape, pending in self._pending.items() if pending]:
      self._run(shape)

  def _run(self, shape: tuple[int, ...]) -> None:
    pending = self._pending.pop(shape)
    batch = np.stack([x for _, x in pending])
    room = self._batch_size - len(pending)  # padded, so that each shape compiles once
    out = self._function(np.concatenate([batch, np.repeat(batch[-1:], room, axis=0)]))
    for (ticket, _), y in zip(pending, out):
      if not (np.abs(y) <= np.finfo(np.float16).max).all():  # false for NaN too
        raise types.UserError(
          f"record {ticket[0]}: the encoder gives values that float16 cannot hold"
        )
      self.done[ticket] = y


class _Shard:
  """The encoded records of one shard, in order."""

  def __init__(
    self,
    plan: Plan,
    rows: range,
    images: _Batcher,
    texts: _Batcher | None,
    tokenizer: tokenizers.Tokenizer | None,
    progress: Callable[[int], None],
  ):
    self._plan, self._rows, self._progress = plan, rows, progress
    self._images, self._texts, self._tokenizer = images, texts, tokenizer
    self._dropped: dict[str, str] = {}

  def dropped(self) -> dict[str, Any]:
    """Known once `examples` is exhausted."""
    named = dict(list(self._dropped.items())[:_NAMED_DROPPED])
    return {"num_dropped": len(self._dropped), "dropped": named}

  def examples(self) -> Iterator[dict[str, Any]]:
    files = self._plan.source.source()
    pictures = "images" if self._plan.content == "latents" else "image_png"
    parse = self._plan.source.parser(
      "id", pictures, "height", "width", "captions", "scene", "bucket"
    )
    waiting: collections.deque[tuple[list[tuple[int, int]], dict[str, Any]]] = collections.deque()
    for row in self._rows:
      try:
        record = parse(files[row])
        encoded = record.pop(pictures)
        images = self._fit(record, encoded if pictures == "images" else [encoded])
      except Exception as e:  # whatever the reader, the parser or Pillow makes of damaged bytes
        self._dropped[str(row)] = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
        logging.warning("%s record %d is left out: %s", self._plan.source.spec, row, e)
      else:
        height, width = images[0].shape[:2]
        record |= dict(height=height, width=width, bucket=buckets.name((height, width)))
        record["captions"] = self._captions(row, record["captions"])
        tickets = [(row, number) for number in range(len(images))]
        for ticket, image_HWC in zip(tickets, images):
          self._images.put(ticket, image_HWC)
        waiting.append((tickets, record))
      while waiting and self._is_ready(*waiting[0]):
        yield self._finish(*waiting.popleft())
      self._progress(1)
    self._images.flush()
    if self._texts:
      self._texts.flush()
    for tickets, record in waiting:
      yield self._finish(tickets, record)

  def _fit(self, record: dict[str, Any], encoded: Sequence[bytes]) -> list[np.ndarray]:
    """The record's pictures, in its bucket."""
    if self._plan.area:
      size = buckets.assign(int(record["height"]), int(record["width"]), self._plan.area)
    else:
      size = buckets.parse(record["bucket"].decode())
    return [transforms.fit(transforms.decode(picture), size) for picture in encoded]

  def _captions(self, row: int, columns: dict[str, list]) -> list[dict[str, Any]]:
    captions = [dict(zip(columns, values)) for values in zip(*columns.values())]
    for number, caption in enumerate(captions if self._texts else ()):
      ids = self._tokenizer.encode(caption["text"].decode())
      length = buckets.text_bucket(len(ids), _TEXT_BUCKETS)
      self._texts.put((row, number), self._tokenizer.pad(ids, length))
      caption["tokens"] = len(ids)
    return captions

  def _is_ready(self, pictures: list[tuple[int, int]], record: dict[str, Any]) -> bool:
    row = pictures[0][0]
    texts = [(row, number) for number in range(len(record["captions"]))] if self._texts else []
    done = (t in self._images.done for t in pictures)
    return all(done) and all(t in self._texts.done for t in texts)

  def _finish(self, pictures: list[tuple[int, int]], record: dict[str, Any]) -> dict[str, Any]:
    if self._texts:
      row = pictures[0][0]
      for number, caption in enumerate(record["captions"]):
        features_LE = self._texts.done.pop((row, number))[: caption.pop("tokens")]
        caption["llm_features"] = features_LE.astype(np.float16).tobytes()
    latents = [self._images.done.pop(ticket) for ticket in pictures]
    if self._plan.content == "latents":
      return {**record, **records.encode_latents(np.stack(latents))}
    return {**record, **records.encode_latent(latents[0])}


def _shard_path(folder: pathlib.Path, plan: Plan, shard: int) -> pathlib.Path:
  return folder / records.shard_name(DATASET, plan.split, shard, len(plan.shards))


def _receipt_path(folder: pathlib.Path, plan: Plan, shard: int) -> pathlib.Path:
  return folder / _RECEIPTS / f"{_shard_path(folder, plan, shard).name}.json"


def _receipt(folder: pathlib.Path, plan: Plan, shard: int) -> dict[str, Any] | None:
  """A shard's receipt, when it is this plan's and the file has the size it states."""
  path = _shard_path(folder, plan, shard)
  try:
    receipt = json.loads(_receipt_path(folder, plan, shard).read_text())
    whole = receipt["plan"] == plan.digest and receipt["bytes"] == path.stat().st_size
  except (OSError, ValueError, KeyError):  # absent or cut short
    return None
  return receipt if whole else None


def _check_manifest(folder: pathlib.Path, plan: Plan) -> None:
  path = folder / records.MANIFEST
  if not path.exists():
    return
  manifest = json.loads(path.read_text())
  models = json.loads(json.dumps(plan.models()))  # as JSON has them: a tuple is a list
  for key in sorted(records.ENCODERS):
    if manifest.get(key) != models.get(key):
      raise types.UserError(
        f"--out {folder}: holds {key} {_short(manifest.get(key))}, this run has "
        f"{_short(models.get(key))}; give another folder"
      )
  old = manifest["splits"].get(plan.split)
  if old and old["plan"] != plan.digest:
    raise types.UserError(
      f"--out {folder}: holds split {plan.split} of {old['source']['spec']} at area {old['area']}, "
      f"and that source or area has changed; give another folder"
    )


def _short(value: Any) -> str:
  return str(value)[:100]


def _commit(folder: pathlib.Path, plan: Plan, receipts: list[dict[str, Any]]) -> None:
  """Makes the finished split part of the data set: manifest first, `dataset_info.json` last."""
  path = folder / records.MANIFEST
  manifest = json.loads(path.read_text()) if path.exists() else {"dataset": DATASET, "splits": {}}
  manifest["splits"][plan.split] = {
    "source": {
      "spec": plan.source.spec,
      "manifest_sha256": plan.source.manifest_sha256(),
      "fingerprint": plan.source.fingerprint(),
    },
    "plan": plan.digest,
    "area": plan.area,
    "num_dropped": sum(r["num_dropped"] for r in receipts),
    "dropped": {row: reason for r in receipts for row, reason in r["dropped"].items()},
    "shards": [[r["records"], r["bytes"]] for r in receipts],
  }
  _write_json(path, manifest | plan.models())
  shards = {name: [tuple(s) for s in s["shards"]] for name, s in manifest["splits"].items()}
  schema = records.features(plan.content, text_features=plan.llm is not None)
  records.write_metadata(str(folder), DATASET, schema, shards, "VAE latents; see manifest.json.")


def _write_json(path: pathlib.Path, value: Any) -> None:
  partial = path.with_suffix(".partial")
  partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
  os.replace(partial, path)


_MODULES = {"vae": (vae.VAE, vae.make_config), "llm": (llm.LLM, llm.make_config)}


class _Model:
  """Weights on every device of this host, and a compiled function over batches split among them."""

  def __init__(self, name: str, folder: str, variant: str, dtype: str):
    module, make_config = _MODULES[name]
    path = os.path.join(folder, f"{name}.safetensors")
    if not os.path.exists(path):
      raise types.UserError(f"--{name} {folder}: {path} is missing; expected a weights folder")
    fields = dict(variant=variant) if variant else _variant_of(folder, name)
    config = make_config(**{**fields, "dtype": dtype})
    part = types.Part.from_module(lambda rngs: module(config, rngs=rngs))
    self._mesh = mesh.make({"data": len(jax.local_devices())}, jax.local_devices())
    self._sharding = sharding.batch(self._mesh)
    params = checkpoint.load_weights(path, part.abstract)
    self._params = jax.device_put(params, sharding.replicated(self._mesh))
    self.config = config
    # Pad and end tokens are the tokenizer's, whose hash stands beside this.
    fields = {
      k: v for k, v in dataclasses.asdict(config).items() if k not in ("pad_id", "eos_id", "lora")
    }
    self.describe = {"sha256": checkpoint.sha256(path), "config": fields}

    def apply(params: types.Params, x: jax.Array) -> jax.Array:
      if name == "llm":
        return part.bind(params)(x)
      image_BHWC = x.astype("float32") / 127.5 - 1.0  # transforms.to_float, on the device
      return part.bind(params).encode(image_BHWC)[0]

    self._apply = jax.jit(apply)

  def __call__(self, x: np.ndarray) -> np.ndarray:
    if len(x) % self._mesh.size:
      raise types.UserError(
        f"--batch_size {len(x)}: expected a multiple of {self._mesh.size} devices"
      )
    with jax.set_mesh(self._mesh):
      return np.asarray(self._apply(self._params, jax.device_put(x, self._sharding)), np.float32)


def _variant_of(folder: str, part: str) -> dict[str, Any]:
  """The part's model fields in the `config.json` beside the weights; {} where there is none."""
  if not os.path.exists(os.path.join(folder, "config.json")):
    return {}
  return dict(open_lib.read_config(folder).to_dict().get("model", {}).get(part, {}))


def empty_features(encode_texts: Encode, eos_id: int) -> list[float]:
  """The feature of the empty prompt's one token, which a dropped or negative prompt shows; as float16 holds it."""
  ids_BL = np.full((len(jax.local_devices()), 1), eos_id, np.int32)
  return encode_texts(ids_BL)[0, 0].astype(np.float16).astype(float).tolist()


def _parse_task(text: str) -> tuple[int, int]:
  try:
    index, total = (int(part) for part in text.split("/"))
  except ValueError:
    index, total = -1, 0
  if not 0 <= index < total:
    raise types.UserError(f"--task {text!r}: expected K/N with 0 <= K < N, such as 0/4")
  return index, total


def define_flags() -> None:
  """Called once, by the program."""
  flags.DEFINE_string("data", None, "Data set to encode: folder[:split].", required=True)
  flags.DEFINE_string("out", None, "Folder of the new data set.", required=True)
  flags.DEFINE_string("vae", None, "Weights folder with vae.safetensors.", required=True)
  flags.DEFINE_string(
    "vae_variant", "", "Default: what config.json beside the weights says, or nano."
  )
  flags.DEFINE_string("llm", "", "Weights folder with llm.safetensors: also stores text features.")
  flags.DEFINE_string("llm_variant", "", "As vae_variant.")
  flags.DEFINE_string("tokenizer", "", "SentencePiece model, or tokenizer.json, of the LLM.")
  flags.DEFINE_integer("area", 0, "Side of the picture bucket's square; 0 keeps the records' own.")
  flags.DEFINE_integer("batch_size", 64, "Pictures, or texts, a batch.", lower_bound=1)
  flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")
  flags.DEFINE_string("task", "0/1", "K/N: encode every N-th shard from the K-th.")


def main(argv: list[str]) -> int:
  """Entry point; the last line printed is a JSON object of counts."""
  del argv
  values, task = flags.FLAGS, _parse_task(flags.FLAGS.task)
  if bool(values.llm) != bool(values.tokenizer):
    raise types.UserError("--llm and --tokenizer: expected both or neither")
  cli.check_out("--out", values.out, folder=True)
  if values.area:
    buckets.table(values.area)
  source = records.open_split(values.data)
  if source.content not in ("image", "images"):
    raise types.UserError(f"--data {values.data}: holds latents, expected images")
  cli.prepare_jax()
  images = _Model("vae", values.vae, values.vae_variant, values.dtype)
  texts = tokenizer = about_texts = None
  if values.llm:
    texts = _Model("llm", values.llm, values.llm_variant, values.dtype)
    tokenizer = tokenizers.open_tokenizer(values.tokenizer)
    open_lib.check_tokenizer(tokenizer, texts.config)
    about_texts = {**texts.describe, "tokenizer_sha256": tokenizer.sha256}
    about_texts["empty_features"] = empty_features(texts, tokenizer.eos_id)
  plan = Plan(source, images.describe, about_texts, values.area)
  total = sum(len(rows) for rows in plan.shards[task[0] :: task[1]])
  with tqdm.tqdm(total=total, desc=f"encode {values.data}", unit="rec", dynamic_ncols=True) as bar:
    report = encode(
      plan,
      values.out,
      images,
      encode_texts=texts,
      tokenizer=tokenizer,
      batch_size=values.batch_size,
      task=task,
      progress=bar.update,
    )
  print(json.dumps(dataclasses.asdict(report)))
  return 0


if __name__ == "__main__":
  define_flags()
  cli.run(main)
