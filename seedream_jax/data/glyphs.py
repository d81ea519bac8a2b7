"""Glyph sheets: records of rendered strings and their hard negatives, box by box, for aligning
ByT5.

A sheet is one picture of J strings, each drawn 1 + K times: the true string, then K augmented ones
(characters replaced, repeated, dropped, added), which are its hard negatives. Every sheet of a data
set has one size, J and K. The order is a pure function of (seed, step), as in `data/loader.py`.

B this host's batch, H W pixels, J strings a sheet, N = 1 + K, G glyph bytes, 4 = (y0, x0, y1, x1)
as fractions.
"""

import collections
import dataclasses
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from seedream_jax import types
from seedream_jax.data import records, schedule, tokenizers, transforms

FEATURES = ("id_B", "sheet_BHWC", "boxes_BJN4", "byt5_ids_BJNG")
_KEYS = ("id", "image", "boxes", "strings")


def features() -> tfds.features.FeaturesDict:
  """The shared schema, and a box and a string for each of the J (1 + K) cells, J outermost."""
  extra = {
    "boxes": tfds.features.Tensor(shape=(None, 4), dtype=np.float32),
    "strings": tfds.features.Sequence(tfds.features.Text()),
    "num_strings": tfds.features.Scalar(np.int32),  # J
  }
  return records.features("image", extra=extra)


@dataclasses.dataclass(frozen=True)
class GlyphConfig:
  """One stream of sheets.

  Attributes:
    source: "path" or "path:split".
    batch_size: sheets, over all hosts.
    seed: of the order.
    glyph_bytes: G, the end token included.
    negatives: hard negatives used of each string's K, the first ones; 0 uses all.
    features: always FEATURES; it tells this stream from a captioned one in a config.
  """

  source: str
  batch_size: int
  seed: int = 0
  glyph_bytes: int = 8
  negatives: int = 0
  features: tuple[str, ...] = FEATURES

  def __post_init__(self):
    for name in ("batch_size", "glyph_bytes"):
      if getattr(self, name) < 1:
        raise types.UserError(f"data.{name}: {getattr(self, name)}, expected at least 1")
    if self.negatives < 0:
      raise types.UserError(f"data.negatives: {self.negatives}, expected 0 (all) or more")


class GlyphLoader:
  """Batches of sheets, for one host; used as `loader.Loader` is."""

  def __init__(
    self, config: GlyphConfig | Mapping[str, Any], *, process_index: int = 0, process_count: int = 1
  ):
    """Opens the source and reads its first sheet, which every other must resemble."""
    self.config = config if isinstance(config, GlyphConfig) else GlyphConfig(**config)
    if self.batch_size % process_count:
      raise types.UserError(
        f"data.batch_size: {self.batch_size} does not split over {process_count} hosts"
      )
    self._reader = _Reader(self.config, process_index, process_count)
    if len(self._reader) < self.batch_size:
      raise types.UserError(
        f"data set {self.config.source}: {len(self._reader)} sheets, fewer than a batch, "
        f"{self.batch_size}"
      )
    self._counts = collections.Counter()
    self._corrupt: dict[str, str] = {}

  @property
  def batch_size(self) -> int:
    """Of the global batch."""
    return self.config.batch_size

  def bucket(self, step: int) -> tuple[tuple[int, int], int]:
    """((sheet height, width), G): one for all steps."""
    del step
    return self._reader.size, self.config.glyph_bytes

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """This host's batch of a step; counted in `report`."""
    return self._count(self._reader(step))[1]

  def iterate(self, start_step: int = 0) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(step, batch) from `start_step` on, for ever, read ahead of the consumer."""
    dataset = grain.MapDataset.source(range(start_step, sys.maxsize // 2)).map(self._reader)
    for item in dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)):
      yield self._count(item)

  def report(self) -> dict[str, Any]:
    """What this host has delivered: examples = steps * batch / hosts = intact + replaced."""
    examples, replaced = self._counts["examples"], self._counts["replaced"]
    return {
      "records": len(self._reader),
      "steps": self._counts["steps"],
      "examples": examples,
      "intact": examples - replaced,
      "replaced": replaced,
      "corrupt": dict(self._corrupt),
      "tail_dropped_per_epoch": len(self._reader) % self.batch_size,
    }

  def _count(
    self, item: tuple[int, dict, int, dict[str, str]]
  ) -> tuple[int, dict[str, np.ndarray]]:
    step, batch, replaced, corrupt = item
    self._counts.update(steps=1, examples=len(batch["id_B"]), replaced=replaced)
    for where, reason in corrupt.items():
      if where not in self._corrupt:
        self._corrupt[where] = reason
        logging.warning("%s is corrupt, replaced by the next sheet: %s", where, reason)
    return step, batch


class _Reader:
  """step -> (step, batch, sheets replaced, {where: why})."""

  def __init__(self, config: GlyphConfig, host: int, hosts: int):
    self.config = config
    share = config.batch_size // hosts
    self.slots = range(host * share, (host + 1) * share)
    self.split = records.open_split(config.source)
    known = tfds.features.FeaturesDict.from_config(self.split.directory)
    for key in ("boxes", "strings", "num_strings"):
      if key not in known:
        raise types.UserError(
          f"data set {self.split.directory}: no field {key!r}; expected glyph sheets"
        )
    self.schema = tfds.features.FeaturesDict({k: features()[k] for k in (*_KEYS, "num_strings")})
    self.source = self.split.source()
    first = self._parse(0)
    self.size: tuple[int, int] = first["image"].shape[:2]
    self.strings, self.boxes = int(first["num_strings"]), len(first["boxes"])
    if not self.strings or self.boxes % self.strings:
      raise types.UserError(
        f"data set {self.split.directory}: {self.boxes} boxes for {self.strings} strings"
      )
    self.used = 1 + config.negatives if config.negatives else self.boxes // self.strings
    if self.used > self.boxes // self.strings:
      raise types.UserError(
        f"data.negatives: {config.negatives}, sheets hold {self.boxes // self.strings - 1} a string"
      )

  def __len__(self) -> int:
    return len(self.split)

  def __call__(self, step: int) -> tuple[int, dict[str, np.ndarray], int, dict[str, str]]:
    epoch, at = divmod(step, len(self) // self.config.batch_size)
    keys = schedule.keyed((self.config.seed, epoch), np.arange(len(self)))
    order, corrupt = np.argsort(keys, kind="stable"), {}
    start = at * self.config.batch_size
    sheets = [self._read_slot(order, start + slot, corrupt) for slot in self.slots]
    batch = {k: np.stack([sheet[k] for sheet, _ in sheets]) for k in FEATURES}
    return step, batch, sum(moved for _, moved in sheets), corrupt

  def _read_slot(self, order: np.ndarray, at: int, corrupt: dict[str, str]) -> tuple[dict, bool]:
    """The sheet at a place of the order, or the next readable one a batch on; whether it moved."""
    for turn in range(len(self)):
      row = int(order[(at + turn * self.config.batch_size) % len(self)])
      try:
        return self._read(row), turn > 0
      except Exception as e:  # whatever the reader, the parser or Pillow makes of damaged bytes
        corrupt[f"{self.config.source} record {row}"] = f"{type(e).__name__}: {e}"[:200]
    raise types.UserError(f"data set {self.config.source}: no sheet can be read: {corrupt}")

  def _parse(self, row: int) -> dict[str, Any]:
    decoders = {"image": tfds.decode.SkipDecoding()}
    record = self.schema.deserialize_example_np(self.source[row], decoders=decoders)
    return {**record, "image": transforms.decode(record["image"])}

  def _read(self, row: int) -> dict[str, np.ndarray]:
    record = self._parse(row)
    got = (record["image"].shape[:2], int(record["num_strings"]), len(record["boxes"]))
    want = (self.size, self.strings, self.boxes)
    if got != want:
      raise ValueError(f"sheet of (size, strings, boxes) {got}, expected {want}")
    keep = np.arange(self.boxes).reshape(self.strings, -1)[:, : self.used]
    spans = [[record["strings"][i].decode() for i in row] for row in keep]
    return {
      "id_B": np.uint32(record["id"]),
      "sheet_BHWC": record["image"],
      "boxes_BJN4": record["boxes"][keep],
      "byt5_ids_BJNG": _ids(spans, self.config.glyph_bytes),
    }


def _ids(spans_JN: Sequence[Sequence[str]], length: int) -> np.ndarray:
  """int32 ids_JNG; text beyond G is refused, for two cut strings could be one."""
  return np.stack([[tokenizers.byt5_ids([s], length) for s in row] for row in spans_JN])
