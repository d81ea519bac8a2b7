"""Order and captions are functions of (seed, step); every entry is in a batch or in a tail."""

import collections
import pickle
import time

import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.data import schedule


def source(
  num: int, *, weights=(1.0,), pictures: int = 2, texts: int = 3, first: int = 0, siblings: int = 1
):
  """`num` records with len(weights) captions each; buckets by record and by caption."""
  count = len(weights)
  share = np.cumsum(weights) / np.sum(weights)
  flat = np.arange(num * count)
  return schedule.Source(
    row=np.arange(num),
    id=np.arange(first, first + num) * 7919,
    family=np.arange(first, first + num) // siblings * 7919,
    picture=(np.arange(num) % pictures).astype(np.int32),
    caption=flat,
    last=np.arange(num) * count + count - 1,
    cumulative=np.repeat(np.arange(num), count) + np.tile(share, num),
    text=(flat % texts).astype(np.int32),
  )


def make(sources=None, weights=(1.0,), batch_size=7, seed=3, **kwargs):
  return schedule.Schedule(sources or [source(211)], weights, 3, batch_size, seed, **kwargs)


def batches(plan: schedule.Schedule, steps) -> list[tuple]:
  out = []
  for step in steps:
    number, at = plan.locate(step)
    epoch = plan.epoch(number)
    part = slice(epoch.start[at], epoch.start[at] + plan.batch_size)
    entries = zip(epoch.source[part], epoch.record[part], epoch.caption[part])
    out.append((int(epoch.group[at]), [tuple(map(int, e)) for e in entries]))
  return out


class ScheduleTest(parameterized.TestCase):
  def test_any_access_order_gives_the_same_steps(self):
    forward = batches(make(), range(100))
    plan = make()
    for step in (99, 3, 57, 58, 0, 98):
      self.assertEqual(batches(plan, [step]), [forward[step]])
    self.assertEqual(batches(pickle.loads(pickle.dumps(plan)), range(100)), forward)

  def test_siblings_share_a_batch(self):
    plan = make([source(120, pictures=1, texts=1, siblings=4)], batch_size=8)
    seen, order = [], []
    for _, entries in batches(plan, range(15)):
      families = [record // 4 for _, record, _ in entries]
      self.assertEqual(families, [families[0]] * 4 + [families[4]] * 4)
      self.assertEqual([record % 4 for _, record, _ in entries], [0, 1, 2, 3] * 2)
      seen += [record for _, record, _ in entries]
      order += families[::4]
    self.assertEqual(sorted(seen), list(range(120)))
    self.assertNotEqual(order, sorted(order))

  def test_seed_and_epoch_change_the_order(self):
    self.assertNotEqual(batches(make(seed=3), range(9)), batches(make(seed=4), range(9)))
    order, other = make(seed=3).epoch(0).record, make(seed=4).epoch(0).record
    self.assertNotEqual(order.tolist(), other.tolist())
    self.assertNotEqual(order.tolist(), make(seed=3).epoch(1).record.tolist())

  def test_the_order_stays_what_it_was(self):
    """Update only when the order is meant to change: it breaks the resumption of running jobs."""
    got = [[record for _, record, _ in entries] for _, entries in batches(make(), range(2))]
    want = [[164, 56, 158, 110, 194, 50, 92], [126, 102, 66, 18, 198, 132, 162]]
    self.assertEqual(got, want)

  def test_a_batch_has_one_bucket(self):
    plan = make([source(211, weights=(1.0, 2.0))])
    for group, entries in batches(plan, range(60)):
      for s, record, caption in entries:
        view = plan.sources[s]
        self.assertEqual(group, view.picture[record] * 3 + view.text[caption])

  def test_an_epoch_holds_each_record_once_in_batches_or_tails(self):
    plan, steps = make(), 0
    for number in range(3):
      epoch = plan.epoch(number)
      self.assertEqual(sorted(epoch.record.tolist()), list(range(211)))
      self.assertEqual(plan.locate(steps), (number, 0))
      steps += len(epoch.start)
      self.assertEqual(plan.locate(steps - 1), (number, len(epoch.start) - 1))
      taken = [e for start in epoch.start for e in range(start, start + 7)]
      self.assertLen(set(taken), 7 * len(epoch.start))  # no entry twice
      tails = np.diff(epoch.bounds) % 7
      self.assertEqual(len(taken) + tails.sum(), 211)
      for group, tail in enumerate(tails):  # exactly the rest of each group is left
        rest = set(range(epoch.bounds[group], epoch.bounds[group + 1])) - set(taken)
        self.assertLen(rest, tail)

  def test_captions_are_drawn_by_weight(self):
    num, weights = 5000, (1.0, 3.0, 0.0, 4.0)
    plan = make([source(num, weights=weights)])
    drawn = plan.epoch(0).caption % 4
    got = np.bincount(drawn, minlength=4) / num
    want = np.array(weights) / 8
    np.testing.assert_array_less(np.abs(got - want), 4 * np.sqrt(0.25 / num))
    self.assertEqual(got[2], 0)

  def test_captions_change_between_epochs(self):
    plan, draws = make([source(500, weights=(1.0, 1.0))]), []
    for number in range(2):
      epoch = plan.epoch(number)
      draws.append(epoch.caption[np.argsort(epoch.record)])
    same = np.mean(draws[0] == draws[1])
    self.assertBetween(same, 0.4, 0.6)  # independent draws agree half of the time

  def test_mixture_follows_weights_and_favours_no_record(self):
    sources = [source(100), source(30, first=1000)]
    plan = make(sources, weights=(1.0, 3.0))
    seen = collections.Counter()
    for number in range(40):
      epoch = plan.epoch(number)
      counts = np.bincount(epoch.source, minlength=2)
      self.assertEqual(counts.tolist(), [33, 97])  # 130 entries by 1:3, the larger remainder first
      seen.update(zip(epoch.source.tolist(), epoch.record.tolist()))
    for s, passes in ((0, 40 * 33 / 100), (1, 40 * 97 / 30)):
      times = [seen[s, record] for record in range(len(sources[s]))]
      self.assertBetween(min(times), int(passes), np.ceil(passes))
      self.assertBetween(max(times), int(passes), np.ceil(passes))

  def test_runs_are_aligned_and_lose_nothing(self):
    plan = make([source(2003)], run_steps=4)
    groups = [group for group, _ in batches(plan, range(700))]
    aligned = sum(len(set(groups[s : s + 4])) == 1 for s in range(0, 700, 4))
    loose = make([source(2003)])
    loose_groups = [group for group, _ in batches(loose, range(700))]
    chance = sum(len(set(loose_groups[s : s + 4])) == 1 for s in range(0, 700, 4))
    self.assertGreater(aligned, 0.8 * 700 / 4)
    self.assertLess(chance, 0.2 * 700 / 4)
    for number in range(2):
      self.assertEqual(
        sorted(plan.epoch(number).start.tolist()), sorted(loose.epoch(number).start.tolist())
      )

  def test_no_full_batch(self):
    with self.assertRaisesRegex(types.UserError, "batch_size 40 .* fullest of 6 holds 36"):
      make(batch_size=40)

  def test_hashes_are_those_of_splitmix64(self):
    # First outputs for seed 0: https://prng.di.unimi.it/splitmix64.c
    state = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    want = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    self.assertEqual([int(x) for x in schedule.mix(state)], want)
    draws = (schedule.keyed((1, 2), np.arange(10_000)) >> np.uint64(11)) * 2.0**-53
    self.assertBetween(draws.mean(), 0.48, 0.52)
    self.assertLess(abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]), 0.05)

  def test_a_million_records_are_cheap(self):
    plan = make([source(1_000_000, weights=(1.0, 1.0, 1.0))], batch_size=64)
    start = time.process_time()
    plan.epoch(0)
    self.assertLess(time.process_time() - start, 10)
    start = time.process_time()
    for step in range(200):
      plan.group(step)
    self.assertLess(time.process_time() - start, 0.2)


if __name__ == "__main__":
  absltest.main()
