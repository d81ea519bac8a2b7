"""The schedule: which entries step k holds, as a pure numpy function of (seed, k).

An entry is a (record, caption) pair. In each pass over a source every record draws one caption by
weight; the draw and the order are hashes of (seed, source, pass, record id), so they depend neither
on hosts nor on workers nor on numpy's generators. Entries are grouped by (picture bucket, text
bucket), cut to full batches, and the batches are shuffled; what fills no batch is dropped for that
epoch and counted. With several sources an epoch takes from each a share by weight, and each
source's passes run on across epochs, so no record is favoured.
"""

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np

from seedream_jax import types

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CAPTION, _ORDER, _BATCH = 1, 2, 3  # what a hash is for


def mix(x: np.ndarray) -> np.ndarray:
  """SplitMix64's finaliser on uint64 (Steele, Lea, Flood, OOPSLA 2014)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def keyed(key: Sequence[int], values: np.ndarray) -> np.ndarray:
  """uint64 hashes of integer `values` under an integer key."""
  with np.errstate(over="ignore"):
    state = np.zeros(1, np.uint64)
    for part in key:
      state = mix(state + _GOLDEN + np.uint64(part % (1 << 64)))
    return mix(mix(values.astype(np.int64).view(np.uint64) + _GOLDEN) ^ state)


@dataclasses.dataclass(frozen=True)
class Source:
  """What one source offers: its eligible records, and their eligible captions by weight."""

  row: np.ndarray  # int64, into the source's index
  id: np.ndarray  # int64
  family: (
    np.ndarray
  )  # int64, what orders a pass: records of one stay together; the id where each is its own
  picture: np.ndarray  # int32, picture bucket, numbered across sources
  caption: np.ndarray  # int64, caption number in the source's index, flat over records
  last: np.ndarray  # int64, per record: the flat position of its last caption
  cumulative: np.ndarray  # float64, per flat caption: record position + cumulative share; ascending
  text: np.ndarray  # int32, per flat caption: text bucket number

  def __len__(self) -> int:
    return len(self.row)

  def draw(self, key: Sequence[int]) -> np.ndarray:
    """The flat caption position each record draws under `key`."""
    share = (keyed(key, self.id) >> np.uint64(11)) * 2.0**-53
    place = np.searchsorted(self.cumulative, np.arange(len(self)) + share, side="right")
    return np.minimum(place, self.last)


@dataclasses.dataclass(frozen=True)
class Epoch:
  """One epoch's entries sorted by group, and its batches in order.

  Batch b is the entries `start[b] : start[b] + batch_size`.
  """

  source: np.ndarray  # int32 per entry
  record: np.ndarray  # int64 per entry, position in that Source
  caption: np.ndarray  # int64 per entry, caption number in that source's index
  start: np.ndarray  # int64 per batch, first entry
  group: np.ndarray  # int32 per batch
  bounds: np.ndarray  # int64 [groups + 1], where each group's entries lie

  @property
  def num_entries(self) -> int:
    """Those in batches and those in tails."""
    return len(self.record)


class Schedule:
  """Random access to epochs and steps; thread-safe; picklable."""

  def __init__(
    self,
    sources: Sequence[Source],
    weights: Sequence[float],
    num_texts: int,
    batch_size: int,
    seed: int,
    run_steps: int = 1,
  ):
    """Takes sources with weights above zero.

    Args:
      sources: at least one, none empty.
      weights: share of each source in an epoch.
      num_texts: number of text buckets; group = picture bucket * num_texts + text bucket.
      batch_size: entries of one global batch.
      seed: of order and caption draws.
      run_steps: batches of one group that follow each other, aligned to multiples of it where
        possible, so that a trainer can run several steps in one call.
    """
    self.sources, self.num_texts, self.run_steps = tuple(sources), num_texts, run_steps
    self.batch_size, self.seed = batch_size, seed
    self.num_groups = (max(int(s.picture.max()) for s in sources) + 1) * num_texts
    self.quota = _quotas([len(s) for s in sources], weights)
    self._starts = [0]  # first step of each epoch known so far, and of the one after
    self._epochs: dict[int, Epoch] = {}
    self._passes: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
    self._lock = threading.RLock()
    if self._num_batches(0) == 0:
      sizes = sorted(self._group_counts(0)[1].tolist(), reverse=True)
      raise types.UserError(
        f"data: batch_size {batch_size} is more than any bucket holds; "
        f"the fullest of {len(sizes)} holds {sizes[0]}"
      )

  def __getstate__(self) -> dict:
    return {**self.__dict__, "_lock": None, "_epochs": {}, "_passes": {}}

  def __setstate__(self, state: dict) -> None:
    self.__dict__.update(state, _lock=threading.RLock())

  def locate(self, step: int) -> tuple[int, int]:
    """(epoch, batch within it) of a step."""
    with self._lock:
      while self._starts[-1] <= step:
        self._starts.append(self._starts[-1] + self._num_batches(len(self._starts) - 1))
      epoch = int(np.searchsorted(self._starts, step, side="right")) - 1
      return epoch, step - self._starts[epoch]

  def epoch(self, number: int) -> Epoch:
    """The schedule of one epoch; the last two are kept."""
    with self._lock:
      if number not in self._epochs:
        while len(self._starts) <= number:
          self._starts.append(self._starts[-1] + self._num_batches(len(self._starts) - 1))
        while len(self._epochs) >= 2:
          del self._epochs[next(iter(self._epochs))]
        self._epochs[number] = self._make_epoch(number)
      return self._epochs[number]

  def group(self, step: int) -> int:
    """The group of step's batch."""
    number, batch = self.locate(step)
    return int(self.epoch(number).group[batch])

  def _pass(self, source: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(order, flat caption position per record) of one pass over a source."""
    key = (source, number)
    if key not in self._passes:
      view = self.sources[source]
      order = np.argsort(keyed((self.seed, _ORDER, source, number), view.family), kind="stable")
      while len(self._passes) >= 2 * len(self.sources):
        del self._passes[next(iter(self._passes))]
      self._passes[key] = (order, view.draw((self.seed, _CAPTION, source, number)))
    return self._passes[key]

  def _take(self, source: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(record, flat caption position) of what `source` gives to `epoch`."""
    size, quota = len(self.sources[source]), self.quota[source]
    records, places, at = [], [], epoch * quota
    while at < (epoch + 1) * quota:
      number, skip = divmod(at, size)
      order, draw = self._pass(source, number)
      chosen = order[skip : skip + min(size - skip, (epoch + 1) * quota - at)]
      records.append(chosen)
      places.append(draw[chosen])
      at += len(chosen)
    if not records:
      return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(records), np.concatenate(places)

  def _groups(self, source: int, record: np.ndarray, place: np.ndarray) -> np.ndarray:
    view = self.sources[source]
    return view.picture[record] * self.num_texts + view.text[place]

  def _group_counts(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(groups present, entries in each) of an epoch."""
    counts = np.zeros(self.num_groups, np.int64)
    for k in range(len(self.sources)):
      counts += np.bincount(self._groups(k, *self._take(k, number)), minlength=self.num_groups)
    present = np.flatnonzero(counts)
    return present, counts[present]

  def _num_batches(self, number: int) -> int:
    return int((self._group_counts(number)[1] // self.batch_size).sum())

  def _make_epoch(self, number: int) -> Epoch:
    taken = [self._take(k, number) for k in range(len(self.sources))]
    group = np.concatenate([self._groups(k, *t) for k, t in enumerate(taken)])
    source = np.repeat(np.arange(len(taken), dtype=np.int32), [len(t[0]) for t in taken])
    record = np.concatenate([t[0] for t in taken])
    caption = np.concatenate([self.sources[k].caption[t[1]] for k, t in enumerate(taken)])
    if len(taken) > 1:  # one source alone is in hashed order already
      key = keyed((self.seed, _BATCH, number), np.arange(len(group)))
      order = np.lexsort((key, group))
    else:
      order = np.argsort(group, kind="stable")
    bounds = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=self.num_groups))])
    full = np.diff(bounds) // self.batch_size
    batch_group = np.repeat(np.arange(self.num_groups, dtype=np.int32), full)
    within = np.arange(len(batch_group)) - np.repeat(np.cumsum(full) - full, full)
    start = bounds[batch_group] + within * self.batch_size
    batches = self._shuffle_batches(number, batch_group, within)
    return Epoch(
      source[order], record[order], caption[order], start[batches], batch_group[batches], bounds
    )

  def _shuffle_batches(self, number: int, group: np.ndarray, within: np.ndarray) -> np.ndarray:
    """The order of an epoch's batches; runs of `run_steps` alike stay together, aligned."""
    run, key = self.run_steps, (self.seed, _BATCH, number, 1)
    if run == 1:
      return np.argsort(keyed(key, np.arange(len(group))), kind="stable")
    per_group = np.bincount(group, minlength=self.num_groups)
    in_run = within < (per_group // run * run)[group]
    runs = np.flatnonzero(in_run).reshape(-1, run)
    runs = runs[np.argsort(keyed(key, np.arange(len(runs))), kind="stable")]
    singles = np.flatnonzero(~in_run)
    singles = singles[np.argsort(keyed((*key, 1), singles), kind="stable")]
    lead = -self._starts[number] % run  # singles that bring the first run to a multiple of `run`
    if lead > len(singles) and len(runs):
      singles, runs = np.concatenate([singles, runs[-1]]), runs[:-1]
    return np.concatenate([singles[:lead], runs.reshape(-1), singles[lead:]])


def _quotas(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
  """Entries each source gives to an epoch: as many as all records, by weight, largest remainder."""
  share = np.asarray(weights, np.float64) / np.sum(weights) * sum(sizes)
  quota = np.floor(share).astype(np.int64)
  for k in np.argsort(quota - share, kind="stable")[: sum(sizes) - int(quota.sum())]:
    quota[k] += 1
  return [int(q) for q in quota]
