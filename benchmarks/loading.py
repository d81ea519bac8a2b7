r"""The loader against torch's DataLoader over the same data set, 0 and 2 workers each, in one alternating run.

  python -m benchmarks.loading --size 64x64 --out benchmarks/results/loading-64.json

Both read the ArrayRecord files of `data_pipelines.posters`, rendered into a temporary folder, with the same parser,
Pillow, SentencePiece model and normalisation, and hand out the same padded batches: that is compared, array by array,
before anything is timed. The DataLoader's data set is written as one writes it for torch: an item is one record, its
caption drawn and tokenized when it is read. Ours tokenized all captions when it made the index ("index_s", once per
data set). Workers are spawned once and stay; a round reads each side's buffers empty, then times `--images` more.
"first_s" is the wait for a side's very first batch, the start of its workers in it. Ratios are ours over theirs:
above 1 where we are quicker.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks import machine, rounds
from seedream_jax.data import index as index_lib
from seedream_jax.data import loader as loader_lib
from seedream_jax.data import records, tokenizers, transforms
from seedream_jax.run import cli

_SIZE = flags.DEFINE_string("size", "64x64", "HxW of the posters.")
_NUM = flags.DEFINE_integer("num", 2048, "Posters to render.", lower_bound=64)
_BATCH = flags.DEFINE_integer("batch", 16, "Pictures a batch.", lower_bound=1)
_IMAGES = flags.DEFINE_integer("images", 1024, "Pictures a side reads in a round.", lower_bound=64)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds.", lower_bound=1)
_WORKERS = flags.DEFINE_list("workers", ["0", "2"], "Reader processes, each tried on both sides.")
_DATA = flags.DEFINE_string(
  "data", "", "A data set rendered before, its index made; default: a temporary one."
)
_OUT = flags.DEFINE_string("out", "", "Results, .json.")

_TOKENIZER = "weights/nano/tokenizer.model"
_LENGTH, _GLYPHS = 64, 8  # LLM tokens and glyph bytes of a batch
_CHECKED = 4  # batches compared
_BUFFERED = 12  # batches, more than either side reads ahead


class Posters:
  """A data set as torch's DataLoader takes it: an item is one record's tensors."""

  def __init__(self, split: records.Split, tokenizer: tokenizers.Tokenizer):
    self._split, self._tokenizer, self._open = split, tokenizer, None

  def __getstate__(self) -> dict:
    return {**self.__dict__, "_open": None}  # files are opened where they are read

  def __len__(self) -> int:
    return len(self._split)

  def __getitem__(self, row: int) -> dict[str, Any]:
    return self.read(row, None)

  def read(self, row: int, caption: int | None) -> dict[str, Any]:
    """One record under the caption of that number, or under one drawn by weight."""
    import torch

    if self._open is None:
      self._open = self._split.source(), self._split.parser("image_png", "captions")
    source, parse = self._open
    record = parse(source[row])
    if caption is None:
      caption = int(torch.multinomial(torch.tensor(record["captions"]["weight"]), 1))
    text = record["captions"]["text"][caption].decode()
    ids = self._tokenizer.pad(self._tokenizer.encode(text), _LENGTH)
    glyphs = tokenizers.byt5_ids(tokenizers.find_quoted(text), _GLYPHS)
    return {
      "image_BHWC": torch.from_numpy(transforms.to_float(transforms.decode(record["image_png"]))),
      "llm_ids_BL": torch.from_numpy(ids),
      "byt5_ids_BG": torch.from_numpy(glyphs),
    }


def normalised(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """A training does this on the accelerator; here it counts."""
  return {**batch, "image_BHWC": transforms.to_float(batch["image_BHWC"])}


def our_batches(loader: loader_lib.Loader) -> Iterator[dict[str, np.ndarray]]:
  """Ours, as a training reads them."""
  return (normalised(batch) for _, batch in loader.iterate())


def their_batches(data: Posters, batch: int, workers: int) -> Iterator[dict[str, Any]]:
  """Theirs, shuffled epoch after epoch; workers are spawned, as ours are."""
  from torch.utils.data import DataLoader

  options = dict(multiprocessing_context="spawn", persistent_workers=True) if workers else {}
  loader = DataLoader(data, batch, shuffle=True, drop_last=True, num_workers=workers, **options)
  while True:
    yield from loader


def check(loader: loader_lib.Loader, data: Posters, index: index_lib.Index) -> None:
  """Raises unless both sides make the same arrays of the same records and captions."""
  from torch.utils.data import default_collate

  for step in range(_CHECKED):
    epoch = loader.schedule.epoch(loader.schedule.locate(step)[0])
    first = epoch.start[loader.schedule.locate(step)[1]]
    entries = slice(first, first + loader.batch_size)
    record = loader.schedule.sources[0].row[epoch.record[entries]]
    caption = epoch.caption[entries] - index.caption_start[record]
    rows = zip(index.row[record].tolist(), caption.tolist())
    theirs = default_collate([data.read(*row) for row in rows])
    ours = normalised(loader.batch(step))
    for key, x in theirs.items():
      np.testing.assert_array_equal(ours[key], x.numpy(), err_msg=f"step {step}: {key}")
      assert ours[key].dtype == x.numpy().dtype, key


def measure(batches: Iterator[Any], batch: int, images: int) -> rounds.Measures:
  """Pictures a second, beyond those that were read ahead."""
  for _ in range(_BUFFERED):
    next(batches)
  start = time.perf_counter()
  for _ in range(images // batch):
    next(batches)
  return {"images/s": images // batch * batch / (time.perf_counter() - start)}


def wait_first(batches: Iterator[Any]) -> float:
  """Seconds until the first batch."""
  start = time.perf_counter()
  next(batches)
  return time.perf_counter() - start


def render(folder: str) -> None:
  """Posters of the nano world."""
  flags_ = f"--world nano --split train --num {_NUM.value} --size {_SIZE.value} --out {folder}"
  command = [sys.executable, "-m", "data_pipelines.posters", *flags_.split()]
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  report, batch = machine.origin(), _BATCH.value
  with tempfile.TemporaryDirectory() as folder:
    if not _DATA.value:
      render(folder)
    split = records.open_split(f"{_DATA.value or folder}:train")
    tokenizer = tokenizers.LLMTokenizer(_TOKENIZER)
    begin = time.perf_counter()
    index = index_lib.open_index(split, tokenizer)
    index_s = time.perf_counter() - begin
    loaders = {
      int(workers): loader_lib.Loader(
        dict(
          sources=((split.spec, 1.0),),
          features=("image_BHWC", "llm_ids_BL", "byt5_ids_BG"),
          batch_size=batch,
          text_buckets=(_LENGTH,),
          glyph_bytes=_GLYPHS,
        ),
        tokenizer,
        workers=int(workers),
      )
      for workers in _WORKERS.value
    }
    data, batches, pairs = Posters(split, tokenizer), {}, []
    check(next(iter(loaders.values())), data, index)  # workers do not change what is read
    for workers, loader in loaders.items():
      pairs.append((f"ours, {workers} workers", f"DataLoader, {workers} workers"))
      batches |= dict(
        zip(pairs[-1], (our_batches(loader), their_batches(data, batch, workers)), strict=True)
      )
    first = {name: wait_first(side) for name, side in batches.items()}
    sides = {
      name: functools.partial(measure, side, batch, _IMAGES.value) for name, side in batches.items()
    }
    found = rounds.alternate(sides, _ROUNDS.value, desc="loading")
    for side in batches.values():
      side.close()
    result = rounds.compare(found, pairs)
    png = os.path.getsize(split.instructions[0].filename) / split.instructions[0].examples_in_shard
  report |= {
    "size": _SIZE.value,
    "batch": batch,
    "records": len(split),
    "bytes_a_record": round(png),
    "index_s": round(index_s, 3),
    "first_s": first,
    "results": result,
  }
  rounds.write(_OUT.value, report)
  print(rounds.table(f"loading {_SIZE.value}, batches of {batch}", result))
  print(f"index of {len(split)} records: {index_s:.2f} s, once")
  for name, seconds in first.items():
    print(f"{name}: first batch after {seconds:.2f} s")
  print(json.dumps(result["ratio"]))
  return 0


if __name__ == "__main__":
  cli.run(main)
