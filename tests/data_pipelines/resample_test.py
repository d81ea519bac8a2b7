"""Resampling: what is drawn how often, and that a record comes through whole."""

import collections
import json
import os
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines import resample
from data_pipelines.posters import builder
from seedream_jax.data import records
from tests.data import datasets


class DrawTest(parameterized.TestCase):
  VALUES = ["a"] * 60 + ["b"] * 30 + ["c"] * 10

  @parameterized.parameters((0.0, (60, 30, 10)), (1.0, (100 / 3,) * 3), (0.5, (46.4, 32.8, 18.9)))
  def test_shares(self, power, want):
    picks = resample.draw(self.VALUES, 100, power, seed=0)
    counts = collections.Counter(self.VALUES[i] for i in picks)
    self.assertEqual(len(picks), 100)
    for value, share in zip("abc", want):
      self.assertAlmostEqual(counts[value], share, delta=1.6)

  def test_a_record_comes_floor_or_ceil_of_its_expected_count(self):
    for seed in range(5):
      picks = resample.draw(self.VALUES, 230, 0.0, seed=seed)
      self.assertEqual(set(collections.Counter(picks).values()), {2, 3})
    self.assertFalse(
      np.array_equal(*(resample.draw(self.VALUES, 130, 0.0, seed=s) for s in (0, 1)))
    )

  def test_paths(self):
    scene = {"subjects": [{"emoji": "x"}], "text": None, "count": 2}
    for path, want in (
      ("subjects.0.emoji", "x"),
      ("subjects.1.emoji", ""),
      ("text.lang", ""),
      ("count", "2"),
    ):
      self.assertEqual(resample.value_at(scene, path), want)


class BuildTest(absltest.TestCase):
  def test_records_come_through_whole(self):
    root = tempfile.mkdtemp()
    specs = [f"{datasets.write(os.path.join(root, n), 20)}:train" for n in ("one", "two")]
    splits = tuple(records.open_split(spec) for spec in specs)
    source = resample.Resampled(splits, "train", "n", 25, 0.0, 3)
    out = os.path.join(root, "out")
    builder.build(builder.Plan(source, 25, shard_size=10), out)
    keys = ("id", "image_png", "captions", "scene", "bucket")
    union = [row for split in splits for row in records.iterate(split, *keys)]
    got = list(records.iterate(records.open_split(f"{out}:train"), *keys))
    self.assertLen(got, 25)
    for pick, row in zip(source.picks, got):
      want = union[pick]
      self.assertEqual(
        {k: want[k] for k in keys if k != "captions"}, {k: row[k] for k in keys if k != "captions"}
      )
      self.assertEqual(list(want["captions"]["text"]), list(row["captions"]["text"]))
    with open(os.path.join(out, records.MANIFEST)) as f:
      told = json.load(f)["splits"]["train"]
    self.assertEqual(sum(told["after"].values()), 25)
    self.assertEqual(sum(told["before"].values()), 40)
    again = builder.build(builder.Plan(source, 25, shard_size=10), out)
    self.assertEqual(again.kept, 25)


if __name__ == "__main__":
  absltest.main()
