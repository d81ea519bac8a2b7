"""Records go through TFDS both ways without TensorFlow; what is wrong on disk is named."""

import json
import os
import pathlib
import sys
import tempfile

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.data import records, transforms
from tests.data import datasets


class Tiny(tfds.core.GeneratorBasedBuilder):
  """A TFDS builder over the schema."""

  VERSION = tfds.core.Version("1.0.0")
  code_path = None  # else TFDS wants importlib_resources to look for checksums beside this file

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=records.features())

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for row in range(5):
      yield row, datasets.example(row)


class RecordsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.dir = self.enter_context(tempfile.TemporaryDirectory())

  def test_reads_what_a_tfds_builder_writes(self):
    Tiny(data_dir=self.dir, file_format="array_record").download_and_prepare()
    split = records.open_split(self.dir)  # finds tiny/1.0.0 below
    self.assertEndsWith(split.directory, "tiny/1.0.0")
    found = {r["id"]: r for r in records.iterate(split, "id", "image_png", "captions", "bucket")}
    self.assertLen(found, 5)
    for row in range(5):
      want = datasets.example(row)
      got = found[want["id"]]
      np.testing.assert_array_equal(
        transforms.decode(got["image_png"]), transforms.decode(want["image"].getvalue())
      )
      texts = [text.decode() for text in got["captions"]["text"]]
      self.assertEqual(texts, [c["text"] for c in want["captions"]])
      self.assertEqual(got["bucket"].decode(), want["bucket"])

  def test_tfds_reads_what_we_write(self):
    datasets.write(self.dir, 5)
    source = tfds.builder_from_directory(self.dir).as_data_source("train")
    self.assertEqual([source[i]["id"] for i in range(5)], [1000, 1001, 1002, 1003, 1004])
    self.assertEqual(source[1]["image"].shape, (48, 32, 3))
    self.assertNotIn("tensorflow", sys.modules)

  def test_latent_round_trip_keeps_every_bit(self):
    latent_HWC = np.arange(30, dtype=np.float32).reshape(2, 3, 5)
    latent_HWC[-1, -1, -1] = 0.0  # trailing zero bytes must survive
    record = records.encode_latent(latent_HWC)
    schema = records.features("latent")
    base = {k: v for k, v in datasets.example(0).items() if k != "image"}
    parsed = schema.deserialize_example_np(schema.serialize_example({**base, **record}))
    np.testing.assert_array_equal(records.decode_latent(parsed), latent_HWC.astype(np.float16))

  def test_slices_and_splits(self):
    datasets.write(self.dir, 7, split="val", shards=3)
    split = records.open_split(f"{self.dir}:val[2:6]")
    ids = [r["id"] for r in records.iterate(split, "id")]
    self.assertEqual(ids, [1002, 1003, 1004, 1005])
    self.assertLen(list(records.iterate_captions(f"{self.dir}:val", 3)), 3)

  @parameterized.parameters(
    ("a/b", "a/b", "train"),
    ("a/b:val", "a/b", "val"),
    ("a:b/c", "a:b/c", "train"),
    ("gs://x/y:val[:9]", "gs://x/y", "val[:9]"),
  )
  def test_split_spec(self, spec, path, split):
    self.assertEqual(records.split_spec(spec), (path, split))

  def test_fingerprint_sees_a_rebuilt_split(self):
    one = records.open_split(datasets.write(f"{self.dir}/a", 7)).fingerprint()
    same = records.open_split(datasets.write(f"{self.dir}/b", 7)).fingerprint()
    other = records.open_split(datasets.write(f"{self.dir}/c", 7, first_id=5)).fingerprint()
    self.assertEqual(one, same)
    self.assertNotEqual(one, other)

  def test_an_interrupted_shard_has_no_final_name(self):
    def examples():
      yield datasets.example(0)
      raise KeyboardInterrupt

    path = os.path.join(self.dir, "shard")
    with self.assertRaises(KeyboardInterrupt):
      records.write_shard(path, records.features(), examples())
    self.assertFalse(os.path.exists(path))

  def _raises(self, spec, regex):
    with self.assertRaisesRegex(types.UserError, regex) as caught:
      records.open_split(spec)
    self.assertNotIn("\n", str(caught.exception))

  def test_errors_name_path_and_what_was_expected(self):
    self._raises(f"{self.dir}/absent", "absent: no such folder")
    self._raises(self.dir, "no dataset_info.json at or below it")
    datasets.write(f"{self.dir}/a", 2)
    datasets.write(f"{self.dir}/b", 2)
    self._raises(self.dir, "holds several, name one of .*a, .*b")
    self._raises(f"{self.dir}/a:val", "no split 'val'; it has train")
    os.remove(f"{self.dir}/a/{records.shard_name('tiny', 'train', 1, 2)}")
    self._raises(f"{self.dir}/a", "shard .*00001-of-00002 is missing")
    pathlib.Path(f"{self.dir}/b/features.json").write_text("{")
    self._raises(f"{self.dir}/b", "metadata cannot be read")

  def test_wrong_schema(self):
    datasets.write(self.dir, 2)
    path = pathlib.Path(self.dir, "features.json")
    whole = json.loads(path.read_text())
    fields = whole["featuresDict"]["features"]
    del fields["bucket"]
    path.write_text(json.dumps(whole))
    self._raises(self.dir, "field 'bucket' is missing; it has captions, height, id")
    fields["bucket"] = fields["height"]
    path.write_text(json.dumps(whole))
    self._raises(self.dir, "field 'bucket' is int32, expected object")


if __name__ == "__main__":
  absltest.main()
