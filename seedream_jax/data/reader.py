"""The reader: step -> this host's batch. The only part of the loader that runs in worker processes.

A record that cannot be read is replaced by the next entry of its bucket that can, counted from the
batch's end; the choice depends on the schedule alone, so every host and worker makes the same one.

B this host's batch, H W height, width (pixel or latent), C channels, L LLM tokens, G glyph bytes,
E LLM width, A labels, R candidates: 2 = preferred, rejected.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from seedream_jax import types
from seedream_jax.data import buckets, records, schedule, tokenizers, transforms
from seedream_jax.data import index as index_lib

FEATURES = (
  "id_B",  # uint32
  "image_BHWC",  # uint8
  "image_BRHWC",  # uint8, all pictures of a record, as many in each
  "latent_BHWC",  # float16, un-normalised VAE mean
  "latent_BRHWC",  # float16, all of a record
  "size_B2",  # int32, height and width of the picture bucket in pixels
  "llm_ids_BL",  # int32
  "byt5_ids_BG",  # int32
  "tower_ids_BL",  # int32, the caption's ids for a published two-tower model
  "llm_features_BLE",  # float16, precomputed
  "llm_empty_BE",  # float16, the empty prompt's one feature, precomputed
  "label_BA",  # int32, looked up in the scene tree
  "tag_B",  # int32, 1 where the caption is textual: asks for rendered text
)
PICTURES = {  # content
  "image_BHWC": "image",
  "image_BRHWC": "images",
  "latent_BHWC": "latent",
  "latent_BRHWC": "latents",
}
# What each feature reads of a record; the others come from the index.
_READS = {
  "image_BHWC": ("image_png",),
  "image_BRHWC": ("images",),
  "latent_BHWC": ("latent", "latent_shape"),
  "latent_BRHWC": ("latents", "latent_shape"),
  "llm_features_BLE": ("captions",),
  "label_BA": ("scene",),
}
_SOURCE_ID = 0x9E3779B1  # added to ids per source, so that two sources do not share noise


@dataclasses.dataclass(frozen=True)
class Item:
  """What a worker hands back: a batch, and what it met on the way."""

  step: int
  batch: dict[str, np.ndarray]
  replaced: int
  corrupt: dict[str, str]  # where -> why


@dataclasses.dataclass(frozen=True)
class TowerTexts:
  """The same captions as another tokenizer cuts them, all of one length."""

  tokenizer: tokenizers.Tokenizer
  indices: tuple[index_lib.Index, ...]  # one per source
  length: int

  def ids(self, source: int, caption: int) -> np.ndarray:
    """int32 ids_L of a caption."""
    return self.tokenizer.pad(self.indices[source].token_ids(caption), self.length, cut=True)


@dataclasses.dataclass(frozen=True)
class Reader:
  """Callable and picklable; opens its files where it runs.

  Attributes:
    schedule: names the entries of each step.
    splits: one per source.
    indices: one per source.
    pictures: picture buckets by number.
    text_buckets: text buckets by number.
    slots: this host's part of the global batch.
    features: which of FEATURES a batch holds.
    glyph_bytes: G.
    labels: (dotted path, vocabulary) pairs.
    pad_id: the LLM tokenizer's.
    tower: the captions as a published two-tower model reads them.
  """

  schedule: schedule.Schedule
  splits: tuple[records.Split, ...]
  indices: tuple[index_lib.Index, ...]
  pictures: tuple[buckets.Size, ...]
  text_buckets: tuple[int, ...]
  slots: range
  features: tuple[str, ...]
  glyph_bytes: int
  labels: tuple[tuple[str, Sequence[Any]], ...]
  pad_id: int
  tower: TowerTexts | None = None
  _open: dict[int, tuple[Any, Callable]] = dataclasses.field(default_factory=dict)

  def __getstate__(self) -> dict:
    return {**self.__dict__, "_open": {}}

  def __call__(self, step: int) -> Item:
    """Reads one batch.

    Raises:
      types.UserError: when every record of the step's bucket is corrupt.
    """
    number, at = self.schedule.locate(step)
    epoch = self.schedule.epoch(number)
    picture, text = divmod(int(epoch.group[at]), len(self.text_buckets))
    size, length = self.pictures[picture], self.text_buckets[text]
    entries, parts, corrupt = [], [], {}
    for slot in self.slots:
      entry, part = self._read_slot(epoch, at, slot, size, corrupt)
      entries.append(entry)
      parts.append(part)
    replaced = sum(e != epoch.start[at] + slot for e, slot in zip(entries, self.slots))
    batch = self._collate(epoch, np.array(entries), parts, size, length)
    return Item(step, batch, int(replaced), corrupt)

  def _read_slot(
    self, epoch: schedule.Epoch, at: int, slot: int, size: buckets.Size, corrupt: dict[str, str]
  ) -> tuple[int, dict[str, np.ndarray]]:
    """(entry, its arrays): the entry at a slot of the batch, or what replaces it."""
    start, group = int(epoch.start[at]), epoch.group[at]
    low, high = int(epoch.bounds[group]), int(epoch.bounds[group + 1])
    ahead = high - low - self.schedule.batch_size  # entries of the bucket outside this batch
    after = (self.schedule.batch_size + (slot + i) % ahead for i in range(ahead))
    offsets = itertools.chain((slot,), after, range(self.schedule.batch_size))
    for entry in (low + (start + offset - low) % (high - low) for offset in offsets):
      source, row = self._locate(epoch, entry)
      where = f"{self.splits[source].spec} record {row}"
      if where in corrupt:
        continue
      try:
        return entry, self._read(epoch, entry, size)
      except Exception as e:  # whatever the reader, the parser or Pillow makes of damaged bytes
        corrupt[where] = f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
    raise types.UserError(
      f"data: every record of bucket {buckets.name(size)} is corrupt; {where}: {corrupt[where]}"
    )

  def _locate(self, epoch: schedule.Epoch, entry: int) -> tuple[int, int]:
    """(source, row of its split) of an entry."""
    source = int(epoch.source[entry])
    record = self.schedule.sources[source].row[epoch.record[entry]]
    return source, int(self.indices[source].row[record])

  def _read(self, epoch: schedule.Epoch, entry: int, size: buckets.Size) -> dict[str, np.ndarray]:
    """The arrays of one entry that are not in the index."""
    keys = [key for feature in self.features for key in _READS.get(feature, ())]
    if not keys:
      return {}
    source, row = self._locate(epoch, entry)
    if source not in self._open:
      split = self.splits[source]
      self._open[source] = split.source(), split.parser(*keys)
    files, parse = self._open[source]
    record = parse(files[row])
    out = {}
    if "image_BHWC" in self.features:
      out["image_BHWC"] = transforms.fit(transforms.decode(record["image_png"]), size)
    if "image_BRHWC" in self.features:
      pictures = [transforms.fit(transforms.decode(png), size) for png in record["images"]]
      out["image_BRHWC"] = np.stack(pictures)
    if "latent_BHWC" in self.features:
      out["latent_BHWC"] = _checked(records.decode_latent(record), size)
    if "latent_BRHWC" in self.features:
      out["latent_BRHWC"] = _checked(records.decode_latents(record), size)
    if "label_BA" in self.features:
      scene = json.loads(record["scene"] or b"{}")
      labels = [_label(scene, path, vocabulary) for path, vocabulary in self.labels]
      out["label_BA"] = np.array(labels, np.int32)
    if "llm_features_BLE" in self.features:
      index, caption = self.indices[source], int(epoch.caption[entry])
      number = caption - index.caption_start[self.schedule.sources[source].row[epoch.record[entry]]]
      tokens = index.token_start[caption + 1] - index.token_start[caption]
      data = np.frombuffer(record["captions"]["llm_features"][number], np.float16)
      out["llm_features_BLE"] = data.reshape(tokens, -1)
    return out

  def _collate(
    self,
    epoch: schedule.Epoch,
    entries: np.ndarray,
    parts: list[dict[str, np.ndarray]],
    size: buckets.Size,
    length: int,
  ) -> dict[str, np.ndarray]:
    out, num = {}, len(entries)
    source, caption = epoch.source[entries], epoch.caption[entries]
    for feature in self.features:
      if feature in (*PICTURES, "label_BA"):
        out[feature] = np.stack([part[feature] for part in parts])
      elif feature == "id_B":
        pairs = zip(source, epoch.record[entries])
        ids = np.array([self.schedule.sources[s].id[r] for s, r in pairs], np.int64)
        ids = ids + source.astype(np.int64) * _SOURCE_ID
        out[feature] = (ids & 0xFFFFFFFF).astype(np.uint32)
      elif feature == "tag_B":
        kinds = [
          self.indices[s].kind_names[self.indices[s].kind[c]] for s, c in zip(source, caption)
        ]
        out[feature] = np.array([kind == "textual" for kind in kinds], np.int32)
      elif feature == "size_B2":
        out[feature] = np.tile(np.array(size, np.int32), (num, 1))
      elif feature == "llm_ids_BL":
        out[feature] = np.full((num, length), self.pad_id, np.int32)
        for row, s, c in zip(out[feature], source, caption):
          ids = self.indices[s].token_ids(c)
          row[: len(ids)] = ids
      elif feature == "tower_ids_BL":
        out[feature] = np.stack([self.tower.ids(s, c) for s, c in zip(source, caption)])
      elif feature == "byt5_ids_BG":
        quoted = [self.indices[s].quoted(c) for s, c in zip(source, caption)]
        out[feature] = np.stack([tokenizers.byt5_from_bytes(q, self.glyph_bytes) for q in quoted])
      elif feature == "llm_features_BLE":
        width = parts[0][feature].shape[1]
        out[feature] = np.zeros((num, length, width), np.float16)
        for row, part in zip(out[feature], parts):
          row[: len(part[feature])] = part[feature]
      elif feature == "llm_empty_BE":
        out[feature] = np.stack([self.splits[s].empty_features for s in source])
    return out


def _checked(latent: np.ndarray, size: buckets.Size) -> np.ndarray:
  """latent_HWC or latent_RHWC, whose sides must be as the bucket's."""
  height, width = latent.shape[-3:-1]
  if size[0] * width != size[1] * height:
    raise ValueError(f"latent of shape {latent.shape} in bucket {buckets.name(size)}")
  return latent


def _label(scene: Any, path: str, vocabulary: Sequence[Any]) -> int:
  """Position in `vocabulary` of the scene's value at "subjects.0.name", say; -1 outside it.

  A number steps into a list, or into a string: "text.content.0" is the first character.
  """
  for key in path.split("."):
    if isinstance(scene, dict):
      scene = scene.get(key)
    elif isinstance(scene, list | str) and key.isdigit() and int(key) < len(scene):
      scene = scene[int(key)]
    else:
      return -1
  return list(vocabulary).index(scene) if scene in vocabulary else -1
