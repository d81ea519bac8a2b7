"""Data sets on disk: readable, repeatable to the byte, resumable, honest about their fonts."""

import dataclasses
import json
import pathlib
import sys
import tempfile
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest

from data_pipelines.posters import builder, fonts, poster, splits
from seedream_jax import types
from seedream_jax.data import records

FONTS = fonts.find()


def _plan(split="train", num=7, seed=0, sizes=((64, 64), (48, 80))):
  return builder.Plan(poster.Posters("nano", split, sizes, seed, FONTS), num, shard_size=3)


def _files(folder: str) -> dict[str, bytes]:
  paths = sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file())
  return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


class BuilderTest(absltest.TestCase):
  def _folder(self) -> str:
    return self.enterContext(tempfile.TemporaryDirectory())

  def test_reads_back_through_tfds_without_tensorflow(self):
    folder = self._folder()
    plan, seen = _plan(), []
    report = builder.build(plan, folder, progress=seen.append)
    self.assertEqual((report, seen), (builder.Report(7, 7, 0), [3, 3, 1]))
    source = tfds.builder_from_directory(folder).as_data_source("train")
    self.assertLen(source, 7)
    for i in range(7):
      image_HWC, scene, said = plan.source.draw(i)
      record = source[i]
      np.testing.assert_array_equal(record["image"], image_HWC)
      self.assertEqual(record["image"].shape, (64, 64, 3) if i % 2 == 0 else (48, 80, 3))
      self.assertEqual((record["height"], record["width"]), image_HWC.shape[:2])
      self.assertEqual(record["bucket"].decode(), "x".join(map(str, image_HWC.shape[:2])))
      self.assertEqual(json.loads(record["scene"]), scene)
      self.assertEqual(splits.split_of(scene), "train")
      self.assertEqual([t.decode() for t in record["captions"]["text"]], [c["text"] for c in said])
      self.assertEqual(record["id"], i)
    self.assertLen(records.open_split(f"{folder}:train"), 7)
    self.assertNotIn("tensorflow", sys.modules)

  def test_same_seed_same_bytes(self):
    one, two, other = self._folder(), self._folder(), self._folder()
    builder.build(_plan(), one)
    builder.build(_plan(), two)
    self.assertEqual(_files(one), _files(two))
    builder.build(_plan(seed=1), other)
    self.assertNotEqual(_files(one)[SHARD], _files(other)[SHARD])

  def test_resumes_what_is_missing_or_half_written(self):
    folder = self._folder()
    builder.build(_plan(), folder)
    whole = _files(folder)
    first, second = (pathlib.Path(folder, SHARD.replace("00000-of", f"0000{i}-of")) for i in (0, 1))
    first.write_bytes(first.read_bytes()[:-100])
    second.unlink()
    pathlib.Path(f"{second}.partial").write_bytes(b"half")
    report = builder.build(_plan(), folder)
    self.assertEqual((report.rendered, report.kept), (6, 1))
    self.assertEqual(_files(folder), whole)
    self.assertEqual(builder.build(_plan(), folder).rendered, 0)

  def test_an_interrupted_build_is_no_data_set(self):
    folder, calls = self._folder(), []

    def stop(done):
      calls.append(done)
      if len(calls) == 2:
        raise KeyboardInterrupt

    with self.assertRaises(KeyboardInterrupt):
      builder.build(_plan(), folder, progress=stop)
    with self.assertRaises(types.UserError):
      records.open_split(f"{folder}:train")
    self.assertEqual(builder.build(_plan(), folder).kept, 6)

  def test_splits_share_a_folder(self):
    folder = self._folder()
    builder.build(_plan(), folder)
    builder.build(_plan("val", 4), folder)
    found = tfds.builder_from_directory(folder).info.splits
    self.assertEqual({k: v.num_examples for k, v in found.items()}, {"train": 7, "val": 4})
    ids = [
      r["id"]
      for s in ("train", "val")
      for r in records.iterate(records.open_split(f"{folder}:{s}"), "id")
    ]
    self.assertLen(set(ids), 11)

  def test_a_mismatch_is_said(self):
    folder = self._folder()
    builder.build(_plan(), folder)
    for plan, what in ((_plan(seed=1), "seed=0"), (_plan(num=8), "num=7")):
      with self.assertRaisesRegex(types.UserError, what):
        builder.build(plan, folder)
    changed = {**FONTS.provenance(), "pillow": "0.0"}
    with mock.patch.object(fonts.FontSet, "provenance", return_value=changed):
      with self.assertRaisesRegex(types.UserError, "pillow"):
        builder.build(_plan("val"), folder)
      self.assertLen(builder.check_provenance(folder, FONTS), 1)
    self.assertEmpty(builder.check_provenance(folder, FONTS))

  def test_manifest_names_fonts_and_pillow(self):
    folder = self._folder()
    builder.build(_plan(num=1), folder)
    split = json.loads(_files(folder)[records.MANIFEST])["splits"]["train"]
    self.assertContainsSubset({"pillow", *fonts.FACES}, split["provenance"])
    for face in fonts.FACES:
      self.assertRegex(split["provenance"][face], r"sha256:[0-9a-f]{64}")


class FontsTest(absltest.TestCase):
  def test_missing_fonts_name_packages_and_flag(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    with self.assertRaisesRegex(types.UserError, f"{fonts.PACKAGES}.*--fonts"):
      fonts.find(folder)
    with self.assertRaisesRegex(types.UserError, "not a folder"):
      fonts.find(f"{folder}/none")

  def test_a_folder_serves_as_well(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    for _, path, _ in FONTS.files:
      link = pathlib.Path(folder, pathlib.Path(path).name)
      if not link.exists():
        link.symlink_to(path)
    self.assertEqual(fonts.find(folder).provenance(), FONTS.provenance())

  def test_collections_open_at_simplified_chinese(self):
    for face in ("sans_bold", "sans", "serif_bold", "serif"):
      family, _ = FONTS.load(face, 20).getname()
      self.assertEndsWith(family, "CJK SC")
    with self.assertRaises(StopIteration):
      dataclasses.replace(FONTS, files=()).load("sans", 20)


SHARD = "posters-train.array_record-00000-of-00003"

if __name__ == "__main__":
  absltest.main()
