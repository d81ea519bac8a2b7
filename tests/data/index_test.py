"""The index holds what the records say, is cached by content, and survives damage."""

import glob
import os
import pathlib
import tempfile

import numpy as np
from absl.testing import absltest

from seedream_jax import types
from seedream_jax.data import index as index_lib
from seedream_jax.data import records, tokenizers
from tests.data import datasets


class IndexTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    self.dir = self.enter_context(tempfile.TemporaryDirectory())
    self.tokenizer = datasets.tokenizer(self.dir)

  def _split(self, num: int = 11, **kwargs) -> records.Split:
    return records.open_split(datasets.write(f"{self.dir}/data", num, **kwargs))

  def test_holds_what_the_records_say(self):
    index = index_lib.build(self._split(), self.tokenizer)
    self.assertLen(index, 11)
    for row in range(11):
      want = datasets.example(row)
      self.assertEqual(index.id[row], want["id"])
      self.assertEqual(tuple(index.size[row]), (want["height"], want["width"]))
      self.assertEqual(index.bucket_names[index.bucket[row]], want["bucket"])
      self.assertEqual(np.diff(index.caption_start)[row], 2)
      for number, caption in enumerate(want["captions"]):
        at = index.caption_start[row] + number
        self.assertEqual(index.token_ids(at).tolist(), self.tokenizer.encode(caption["text"]))
        quoted = tokenizers.glyph_bytes(tokenizers.find_quoted(caption["text"]))
        self.assertEqual(index.quoted(at), quoted)
        self.assertEqual(index.weight[at], caption["weight"])
        self.assertEqual(index.kind_names[index.kind[at]], caption["kind"])
        self.assertEqual(index.lang_names[index.lang[at]], caption["lang"])

  def test_without_a_tokenizer_texts_have_no_ids(self):
    index = index_lib.build(self._split(), None)
    self.assertEmpty(index.tokens)
    self.assertEqual(index.token_start.max(), 0)
    self.assertEqual(index.quoted(1).decode(), "春")

  def test_is_cached_by_data_set_and_tokenizer(self):
    split = self._split()
    built = index_lib.open_index(split, self.tokenizer)
    files = glob.glob(f"{split.directory}/index/*.npz")
    self.assertLen(files, 1)
    before = os.stat(files[0]).st_mtime_ns
    again = index_lib.open_index(split, self.tokenizer)
    self.assertEqual(os.stat(files[0]).st_mtime_ns, before)
    for name in ("id", "tokens", "glyphs", "kind_names", "caption_start"):
      np.testing.assert_array_equal(getattr(built, name), getattr(again, name))
      self.assertEqual(getattr(built, name).dtype, getattr(again, name).dtype)
    other = datasets.tokenizer(self.dir, num=20)
    self.assertNotEqual(other.sha256, self.tokenizer.sha256)
    index_lib.open_index(split, other)
    self.assertLen(glob.glob(f"{split.directory}/index/*.npz"), 2)
    rebuilt = self._split(first_id=5)
    self.assertEqual(index_lib.open_index(rebuilt, self.tokenizer).id[0], 5)

  def test_a_damaged_cache_is_built_anew(self):
    split = self._split()
    index_lib.open_index(split, self.tokenizer)
    (path,) = glob.glob(f"{split.directory}/index/*.npz")
    with open(path, "r+b") as f:
      f.truncate(200)
    self.assertLen(index_lib.open_index(split, self.tokenizer), 11)
    with np.load(path) as data:
      self.assertLen(data["id"], 11)

  def test_unreadable_records_are_listed(self):
    split = self._split(shards=1)
    path = split.instructions[0].filename
    png = datasets.example(3)["image"].getvalue()  # noise, so it stands as it is in the file
    data = pathlib.Path(path).read_bytes()
    self.assertEqual(data.count(png[100:150]), 1)
    pathlib.Path(path).write_bytes(data.replace(png[100:150], bytes(50)))
    index = index_lib.build(records.open_split(split.directory), self.tokenizer)
    self.assertEqual(index.unreadable.tolist(), [3])
    self.assertEqual(index.row.tolist(), [0, 1, 2, 4, 5, 6, 7, 8, 9, 10])
    self.assertEqual(index.id.tolist(), [1000 + row for row in index.row])

  def test_ids_must_be_unique(self):
    path = datasets.write(f"{self.dir}/twice", 4, captions=datasets.captions_of)
    schema = records.features()
    shard = f"{path}/{records.shard_name('tiny', 'train', 1, 2)}"
    records.write_shard(shard, schema, (datasets.example(row) for row in (1, 3)))
    with self.assertRaisesRegex(types.UserError, "id 1001 occurs 2 times"):
      index_lib.build(records.open_split(path), None)


if __name__ == "__main__":
  absltest.main()
