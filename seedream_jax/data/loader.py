"""The loader: data sets to batches, in an order that is a pure function of (seed, step).

`Loader.batch(step)` is random access; `Loader.iterate(step)` is the same through grain, with a
prefetch thread or worker processes; restoring a run is passing its step. An element of the grain
dataset is one whole batch of this host, so workers and threads cannot reorder examples, and hosts
read slices of one global batch. `reader.FEATURES` names what a batch may hold.
"""

import collections
import dataclasses
import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags, logging

from seedream_jax import types
from seedream_jax.data import buckets, reader, records, schedule, tokenizers
from seedream_jax.data import index as index_lib

_NAMED_CORRUPT = 20  # corrupt records a report names
_NOUNS = {
  "image": "images",
  "latent": "latents",
  "images": "sets of images",
  "latents": "sets of latents",
}


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
  """One stream of data.

  Attributes:
    sources: (path or "path:split", weight) pairs; weights are shares of an epoch.
    features: which of `reader.FEATURES` a batch holds.
    batch_size: global, over all hosts.
    seed: of the order and of the caption draws.
    text_buckets: LLM lengths, the end token included.
    glyph_bytes: G, the end token included.
    glyph_overflow: "error" or "cut": what to do with quoted text beyond G.
    tower_tokenizer: of a published two-tower model, for `tower_ids_BL`.
    tower_tokens: their L; a longer text is cut, as such models' tokenizers do, and keeps its end token.
    caption_kinds: only captions of these kinds; () is all.
    caption_langs: only captions of these languages; () is all.
    area: side of the square of the picture bucket; 0 keeps the bucket each record names.
    labels: (dotted path into the scene tree, vocabulary) pairs; a value outside it gives -1.
    run_steps: batches alike that follow each other, so that a trainer can run several in one call.
    siblings: records in a row of a source that stay together in the order, as posters' --siblings writes them; whole
      families share a batch where it divides by them and there is one text bucket.
  """

  sources: tuple[tuple[str, float], ...]
  features: tuple[str, ...]
  batch_size: int
  seed: int = 0
  text_buckets: tuple[int, ...] = buckets.TEXT
  glyph_bytes: int = 8
  glyph_overflow: str = "error"
  tower_tokenizer: str = ""
  tower_tokens: int = 64
  caption_kinds: tuple[str, ...] = ()
  caption_langs: tuple[str, ...] = ()
  area: int = 0
  labels: tuple[tuple[str, tuple[Any, ...]], ...] = ()
  run_steps: int = 1
  siblings: int = 1

  def __post_init__(self) -> None:
    for feature in self.features:
      if feature not in reader.FEATURES:
        raise types.UserError(f"data.features: {feature!r}{_nearest(feature, reader.FEATURES)}")
    for name in ("batch_size", "glyph_bytes", "tower_tokens", "run_steps", "siblings"):
      if getattr(self, name) < 1:
        raise types.UserError(f"data.{name}: {getattr(self, name)}, expected at least 1")
    pairs = all(len(s) == 2 and s[1] >= 0 for s in self.sources)
    if not pairs or not any(weight > 0 for _, weight in self.sources):
      raise types.UserError(
        f"data.sources: {self.sources!r}, expected (path, weight) pairs with weights above 0"
      )
    if self.glyph_overflow not in ("error", "cut"):
      raise types.UserError(f"data.glyph_overflow: {self.glyph_overflow!r}, expected error or cut")
    if not self.text_buckets or min(self.text_buckets) < 1:
      raise types.UserError(
        f"data.text_buckets: {self.text_buckets!r}, expected lengths of at least 1"
      )
    if "tower_ids_BL" in self.features and not self.tower_tokenizer:
      raise types.UserError("data.tower_tokenizer: not given, but features names tower_ids_BL")
    if "label_BA" in self.features and not self.labels:
      raise types.UserError("data.labels: empty, but features names label_BA")


def make_config(values: Mapping[str, Any]) -> LoaderConfig:
  """`LoaderConfig(**values)` from a dict or ConfigDict; what is unknown is a `types.UserError`."""
  names = [f.name for f in dataclasses.fields(LoaderConfig)]
  for key in values:
    if key not in names:
      raise types.UserError(f"data.{key}: no such field{_nearest(key, names)}")
  for key in ("sources", "features", "batch_size"):
    if key not in values:
      raise types.UserError(f"data.{key}: missing")
  return LoaderConfig(**dict(values))


def _nearest(name: str, valid: Iterable[str]) -> str:
  close = difflib.get_close_matches(name, list(valid), 1)
  return f", expected one of {', '.join(valid)}" + (f"; nearest: {close[0]}" if close else "")


class Loader:
  """Batches of one stream, for one host."""

  def __init__(
    self,
    config: LoaderConfig | Mapping[str, Any],
    tokenizer: tokenizers.Tokenizer | None = None,
    *,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
  ):
    """Opens the sources, reads or builds their indices, and checks that every caption fits.

    Args:
      config: the stream's config, or its fields.
      tokenizer: needed for LLM ids and features; without these, length does not bucket texts.
      process_index: this host.
      process_count: all hosts; must divide the batch.
      workers: reader processes of `iterate`; 0 is one background thread. The batches are the same.
    """
    cfg = self.config = config if isinstance(config, LoaderConfig) else make_config(config)
    self.workers = workers
    if cfg.batch_size % process_count:
      raise types.UserError(
        f"data.batch_size: {cfg.batch_size} does not split over {process_count} hosts"
      )
    reads_text = "llm_ids_BL" in cfg.features or "llm_features_BLE" in cfg.features
    if reads_text and tokenizer is None:
      raise types.UserError("data.tokenizer: not given, but features names LLM ids or features")
    tokenizer = tokenizer if reads_text else None
    self._text_buckets = tuple(sorted(cfg.text_buckets)) if reads_text else (0,)
    used = [(spec, weight) for spec, weight in cfg.sources if weight > 0]
    self._splits = tuple(records.open_split(spec) for spec, _ in used)
    _check_contents(cfg, self._splits, tokenizer)
    self._indices = tuple(index_lib.open_index(split, tokenizer) for split in self._splits)
    self.tower_tokenizer, tower = None, None
    if "tower_ids_BL" in cfg.features:
      made = self.tower_tokenizer = tokenizers.open_tokenizer(cfg.tower_tokenizer)
      read = tuple(index_lib.open_index(split, made) for split in self._splits)
      tower = reader.TowerTexts(made, read, cfg.tower_tokens)
    self._pictures: list[buckets.Size] = []
    views = [self._view(split, index) for split, index in zip(self._splits, self._indices)]
    self.schedule = schedule.Schedule(
      views,
      [weight for _, weight in used],
      len(self._text_buckets),
      cfg.batch_size,
      cfg.seed,
      cfg.run_steps,
    )
    share = cfg.batch_size // process_count
    self._reader = reader.Reader(
      schedule=self.schedule,
      splits=self._splits,
      indices=self._indices,
      pictures=tuple(self._pictures),
      text_buckets=self._text_buckets,
      slots=range(process_index * share, (process_index + 1) * share),
      features=tuple(cfg.features),
      glyph_bytes=cfg.glyph_bytes,
      labels=tuple(cfg.labels),
      pad_id=tokenizer.pad_id if tokenizer else tokenizers.PAD,
      tower=tower,
    )
    self._counts = collections.Counter()
    self._corrupt: dict[str, str] = {}
    self._epochs: dict[int, tuple[int, int]] = {}  # entered: (batches, entries)

  @property
  def batch_size(self) -> int:
    """Of the global batch."""
    return self.config.batch_size

  def bucket(self, step: int) -> tuple[buckets.Size, int]:
    """(picture bucket in pixels, text bucket) of a step; the latter is 0 without LLM ids."""
    picture, text = divmod(self.schedule.group(step), len(self._text_buckets))
    return self._pictures[picture], self._text_buckets[text]

  def batch(self, step: int) -> dict[str, np.ndarray]:
    """This host's batch of a step; counted in `report`."""
    return self._count(self._reader(step))[1]

  def iterate(self, start_step: int = 0) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """(step, batch) from `start_step` on, for ever, read ahead of the consumer."""
    steps = grain.MapDataset.source(_Steps(start_step)).map(self._reader)
    ahead = 2 if self.workers else 8  # batches read ahead, by each worker and here
    dataset = steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead))
    if self.workers:
      _parse_absl_flags()
      options = grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=ahead)
      dataset = dataset.mp_prefetch(options)
    iterator = iter(dataset)
    try:
      for item in iterator:
        yield self._count(item)
    finally:
      iterator.close()

  def report(self) -> dict[str, Any]:
    """What this host has delivered, and what is missing from it, and why.

    records = eligible + no_caption + unreadable; examples = steps * batch_size / hosts = intact +
    replaced; over the epochs entered, entries = batches * batch_size + tail_dropped.
    """
    examples, replaced = self._counts["examples"], self._counts["replaced"]
    batches, entries = (sum(n) for n in zip((0, 0), *self._epochs.values()))
    return {
      "records": sum(len(split) for split in self._splits),
      "eligible": sum(len(source) for source in self.schedule.sources),
      "no_caption": sum(len(i) - len(s) for i, s in zip(self._indices, self.schedule.sources)),
      "unreadable": sum(len(index.unreadable) for index in self._indices),
      "steps": self._counts["steps"],
      "examples": examples,
      "intact": examples - replaced,
      "replaced": replaced,
      "corrupt_records": len(self._corrupt),
      "corrupt": dict(list(self._corrupt.items())[:_NAMED_CORRUPT]),
      "epochs": len(self._epochs),
      "entries": entries,
      "batches": batches,
      "tail_dropped": entries - batches * self.batch_size,
    }

  def _count(self, item: reader.Item) -> tuple[int, dict[str, np.ndarray]]:
    self._counts.update(steps=1, examples=len(self._reader.slots), replaced=item.replaced)
    for where, reason in item.corrupt.items():
      if where not in self._corrupt:
        self._corrupt[where] = reason
        logging.warning("%s is corrupt, replaced by the next of its bucket: %s", where, reason)
    number, _ = self.schedule.locate(item.step)
    if number not in self._epochs:
      epoch = self.schedule.epoch(number)
      self._epochs[number] = (len(epoch.start), epoch.num_entries)
    return item.step, item.batch

  def _view(self, split: records.Split, index: index_lib.Index) -> schedule.Source:
    """The part of an index that the config lets through, with buckets assigned."""
    caption = _eligible(self.config, split, index)
    record = np.repeat(np.arange(len(index)), np.diff(index.caption_start))[caption]
    row, first, count = np.unique(record, return_index=True, return_counts=True)
    weight = index.weight[caption].astype(np.float64)
    total = np.cumsum(weight)
    before = np.repeat((total - weight)[first], count)
    share = (total - before) / np.repeat(np.add.reduceat(weight, first), count)
    sizes, codes = _picture_sizes(self.config, split, index, row)
    self._pictures += [size for size in dict.fromkeys(sizes) if size not in self._pictures]
    numbers = np.array([self._pictures.index(size) for size in sizes], np.int32)
    return schedule.Source(
      row=row,
      id=index.id[row],
      family=index.row[row] // self.config.siblings if self.config.siblings > 1 else index.id[row],
      picture=numbers[codes],
      caption=caption,
      last=first + count - 1,
      cumulative=np.repeat(np.arange(len(row)), count) + np.minimum(share, 1.0),
      text=_text_codes(self.config, split, index, caption, self._text_buckets),
    )


def _eligible(cfg: LoaderConfig, split: records.Split, index: index_lib.Index) -> np.ndarray:
  """Captions of the wanted kinds and languages whose weight is above 0."""
  keep = index.weight > 0
  for wanted, codes, names in (
    (cfg.caption_kinds, index.kind, index.kind_names),
    (cfg.caption_langs, index.lang, index.lang_names),
  ):
    if wanted:
      keep &= np.isin(codes, np.flatnonzero(np.isin(names, wanted)))
  if not keep.any():
    raise types.UserError(
      f"data set {split.directory}: no caption of kinds {', '.join(cfg.caption_kinds) or 'any'}, "
      f"langs {', '.join(cfg.caption_langs) or 'any'}; it has kinds {', '.join(index.kind_names)}, "
      f"langs {', '.join(index.lang_names)}"
    )
  return np.flatnonzero(keep)


def _picture_sizes(
  cfg: LoaderConfig, split: records.Split, index: index_lib.Index, row: np.ndarray
) -> tuple[list[buckets.Size], np.ndarray]:
  """(bucket sizes, each record's place among them)."""
  try:
    if cfg.area:
      kinds, codes = np.unique(index.size[row], axis=0, return_inverse=True)
      sizes = [buckets.assign(int(h), int(w), cfg.area) for h, w in kinds]
    else:
      kinds, codes = np.unique(index.bucket[row], return_inverse=True)
      sizes = [buckets.parse(str(index.bucket_names[kind])) for kind in kinds]
  except types.UserError as e:
    raise types.UserError(f"data set {split.directory}: {e}") from e
  return sizes, codes.reshape(-1)


def _text_codes(
  cfg: LoaderConfig,
  split: records.Split,
  index: index_lib.Index,
  caption: np.ndarray,
  text_buckets: tuple[int, ...],
) -> np.ndarray:
  """Each caption's text bucket; text beyond the largest, or quoted text beyond G, is refused."""
  quoted, room = np.diff(index.glyph_start)[caption], cfg.glyph_bytes - 1
  checked = "byt5_ids_BG" in cfg.features and cfg.glyph_overflow == "error"
  if checked and (over := int((quoted > room).sum())):
    raise types.UserError(
      f"data set {split.directory}: {over} captions quote up to {quoted.max()} bytes; "
      f"data.glyph_bytes {cfg.glyph_bytes} holds {room} (data.glyph_overflow=cut would cut them)"
    )
  length = np.diff(index.token_start)[caption]
  if over := int((length > text_buckets[-1]).sum()):
    raise types.UserError(
      f"data set {split.directory}: {over} captions have up to {length.max()} tokens; "
      f"the largest of data.text_buckets holds {text_buckets[-1]}"
    )
  return np.searchsorted(text_buckets, length).astype(np.int32)


def _check_contents(
  cfg: LoaderConfig,
  splits: tuple[records.Split, ...],
  tokenizer: tokenizers.Tokenizer | None,
) -> None:
  """Refuses sources that lack what `features` asks for, or that other models made."""
  vaes = {}
  for split in splits:
    for feature, content in reader.PICTURES.items():
      if feature in cfg.features and split.content != content:
        precomputed = content.startswith("latent")
        hint = "; precompute latents with data_pipelines.encode" if precomputed else ""
        raise types.UserError(
          f"data set {split.directory}: holds {_NOUNS[split.content]}, "
          f"but features names {feature}{hint}"
        )
    if {"latent_BHWC", "latent_BRHWC"} & set(cfg.features):
      vaes[split.manifest().get("vae_sha256", "unknown")] = split.directory
      if cfg.area:
        raise types.UserError(f"data.area: {cfg.area}, but latents cannot be resized; expected 0")
    if {"llm_features_BLE", "llm_empty_BE"} & set(cfg.features):
      if not split.text_features:
        raise types.UserError(
          f"data set {split.directory}: no LLM features; precompute them with data_pipelines.encode"
        )
      made_with = str(split.manifest().get("tokenizer_sha256"))
      if made_with != tokenizer.sha256:
        raise types.UserError(
          f"data set {split.directory}: LLM features were made with tokenizer {made_with[:12]}, "
          f"expected {tokenizer.path} ({tokenizer.sha256[:12]})"
        )
  if len(vaes) > 1:
    made = ", ".join(f"{where} by {sha[:12]}" for sha, where in vaes.items())
    raise types.UserError(f"data.sources: latents of several VAEs, expected one: {made}")


class _Steps:
  """The numbers start, start + 1, ...: grain's random-access source."""

  def __init__(self, start: int):
    self.start = start

  def __len__(self) -> int:
    return sys.maxsize // 2 - self.start

  def __getitem__(self, position: int) -> int:
    return self.start + int(position)


def _parse_absl_flags() -> None:
  """Worker processes read absl flags, which a program without absl.app has not parsed."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(sys.argv[:1])
