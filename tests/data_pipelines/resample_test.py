"""Resampling: what is drawn how often, and that a record comes through whole."""

import collections
import json
import os
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines import resample
from data_pipelines.posters import builder
from seedream_jax import types
from seedream_jax.data import loader, records
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
      whole = [k for k in keys if k not in ("id", "captions")]
      self.assertEqual({k: want[k] for k in whole}, {k: row[k] for k in whole})
      self.assertEqual(list(want["captions"]["text"]), list(row["captions"]["text"]))
    ids, once = [row["id"] for row in got], {row["id"] for row in union}
    self.assertLen(set(ids), 25)  # both sets have the same ids
    self.assertEqual(
      sum(ident in once for ident in ids), len({union[i]["id"] for i in source.picks})
    )
    with open(os.path.join(out, records.MANIFEST)) as f:
      told = json.load(f)["splits"]["train"]
    self.assertEqual(sum(told["after"].values()), 25)
    self.assertEqual(sum(told["before"].values()), 40)
    again = builder.build(builder.Plan(source, 25, shard_size=10), out)
    self.assertEqual(again.kept, 25)

  def test_latents_keep_their_vae_so_that_they_mix_with_what_they_came_from(self):
    root = tempfile.mkdtemp()
    vae = {"vae_sha256": "a" * 64, "vae": {"sha256": "a" * 64}, "crop": "centre"}
    specs = []
    for name in ("one", "two"):
      path = datasets.write(os.path.join(root, name), 12, content="latent", sizes=((64, 64),))
      pathlib.Path(path, records.MANIFEST).write_text(json.dumps({"splits": {}, **vae}))
      specs.append(f"{path}:train")
    out = os.path.join(root, "out")
    splits = resample.open_sources(specs)
    builder.build(resample.plan(resample.Resampled(splits, "train", "style", 9, 1.0, 0)), out)
    self.assertEqual(records.open_split(f"{out}:train").encoders(), vae)
    mixed = loader.Loader(
      dict(
        sources=((specs[0], 1.0), (f"{out}:train", 1.0)), features=("latent_BHWC",), batch_size=4
      )
    )
    self.assertEqual(mixed.batch(0)["latent_BHWC"].shape, (4, 8, 8, 5))
    manifest = pathlib.Path(root, "two", records.MANIFEST)
    manifest.write_text(json.dumps({"splits": {}, **vae, "vae_sha256": "b" * 64}))
    with self.assertRaisesRegex(types.UserError, "latents of several VAEs"):
      resample.open_sources(specs)
    other = resample.Resampled(resample.open_sources(specs[1:]), "val", "style", 9, 1.0, 0)
    with self.assertRaisesRegex(types.UserError, "another vae_sha256; give another --out"):
      builder.build(resample.plan(other), out)


if __name__ == "__main__":
  absltest.main()
