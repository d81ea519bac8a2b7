"""The order is a function of (seed, step); damage is replaced and counted; mistakes are named."""

import collections
import itertools
import json
import pathlib
import tempfile
from unittest import mock

import ml_collections
import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.data import loader, records, tokenizers, transforms
from seedream_jax.models import llm
from tests.data import datasets

FEATURES = ("id_B", "image_BHWC", "llm_ids_BL", "byt5_ids_BG", "size_B2")


class LoaderTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.root = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.tokenizer = datasets.tokenizer(cls.root)
    cls.whole = datasets.write(f"{cls.root}/whole", 67)

  def make(self, path=None, *, process_index=0, process_count=1, workers=0, **fields):
    config = dict(
      sources=((path or self.whole, 1.0),),
      features=FEATURES,
      batch_size=4,
      seed=3,
      text_buckets=(8, 16, 64),
      glyph_bytes=8,
    )
    return loader.Loader(
      ml_collections.ConfigDict({**config, **fields}),
      self.tokenizer,
      process_index=process_index,
      process_count=process_count,
      workers=workers,
    )

  def take(self, made: loader.Loader, num: int, start: int = 0) -> list[dict]:
    out = []
    for step, batch in itertools.islice(made.iterate(start), num):
      self.assertEqual(step, start + len(out))
      out.append(batch)
    return out

  def assert_same(self, got, want):
    self.assertLen(got, len(want))
    for a, b in zip(got, want):
      self.assertEqual(a.keys(), b.keys())
      for key in a:
        np.testing.assert_array_equal(a[key], b[key])
        self.assertEqual(a[key].dtype, b[key].dtype)

  def test_texts_are_padded_with_the_tokenizers_own_id(self):
    """As Qwen's are, whose pad and end ids are others than ours; and as its base models', where they are one."""
    for eos in ("<|im_end|>", "<|endoftext|>"):
      path = datasets.fast_tokenizer(f"{self.root}/fast", eos_token=eos)
      self.enterContext(mock.patch.object(self, "tokenizer", tokenizers.open_tokenizer(path)))
      cfg = llm.LLMConfig(
        400, 8, 1, 1, 1, 8, 8, pad_id=self.tokenizer.pad_id, eos_id=self.tokenizer.eos_id
      )
      made = self.make(text_buckets=(16, 64, 128))
      for batch in self.take(made, 6):
        mask_BL = np.asarray(llm.text_mask(cfg, batch["llm_ids_BL"]))
        for ids_L, mask_L, record in zip(batch["llm_ids_BL"], mask_BL, batch["id_B"]):
          texts = {c["text"]: c for c in datasets.captions_of(int(record) - 1000)}
          self.assertIn(self.tokenizer.decode(ids_L[mask_L]), texts)
          self.assertEqual(ids_L[mask_L][-1], self.tokenizer.eos_id)
          self.assertTrue((ids_L[~mask_L] == self.tokenizer.pad_id).all())

  def test_a_batch_is_what_the_records_say(self):
    made = self.make()
    for step in range(12):
      batch, (size, length) = made.batch(step), made.bucket(step)
      self.assertEqual(batch["image_BHWC"].shape, (4, *size, 3))
      self.assertEqual(batch["llm_ids_BL"].shape, (4, length))
      self.assertEqual(batch["byt5_ids_BG"].shape, (4, 8))
      for i in range(4):
        record = datasets.example(int(batch["id_B"][i]) - 1000)
        png = record["image"].getvalue()
        np.testing.assert_array_equal(batch["image_BHWC"][i], transforms.decode(png))
        self.assertEqual(batch["size_B2"][i].tolist(), [record["height"], record["width"]])
        text = self.tokenizer.decode(batch["llm_ids_BL"][i])
        self.assertIn(text, [c["text"] for c in record["captions"]])
        quoted = tokenizers.byt5_ids(tokenizers.find_quoted(text), 8)
        np.testing.assert_array_equal(batch["byt5_ids_BG"][i], quoted)
        tokens = self.tokenizer.encode(text)
        self.assertEqual(length, next(b for b in (8, 16, 64) if len(tokens) <= b))
    dtypes = {key: value.dtype.name for key, value in batch.items()}
    want = dict(id_B="uint32", image_BHWC="uint8", llm_ids_BL="int32", byt5_ids_BG="int32")
    self.assertEqual(dtypes, {**want, "size_B2": "int32"})

  def test_a_tower_reads_the_same_caption_in_its_own_ids(self):
    """At its own length, beside the LLM's ids and without them; what is too long is cut before the end token."""
    path = datasets.fast_tokenizer(f"{self.root}/tower")
    own, length = tokenizers.open_tokenizer(path), 14
    tower = dict(tower_tokenizer=path, tower_tokens=length)
    both = self.make(features=(*FEATURES, "tower_ids_BL"), **tower)
    lengths = set()
    for batch in self.take(both, 6):
      for llm_ids_L, ids_L in zip(batch["llm_ids_BL"], batch["tower_ids_BL"]):
        tokens = own.encode(self.tokenizer.decode(llm_ids_L))
        lengths.add(len(tokens) > length)
        want = tokens if len(tokens) <= length else [*tokens[: length - 1], own.eos_id]
        np.testing.assert_array_equal(ids_L, own.pad(want, length))
    self.assertEqual(lengths, {False, True})
    alone = self.make(features=("id_B", "tower_ids_BL"), **tower).batch(0)
    self.assertEqual(
      {k: v.shape for k, v in alone.items()}, {"id_B": (4,), "tower_ids_BL": (4, 14)}
    )
    with self.assertRaisesRegex(types.UserError, "data.tower_tokenizer: not given"):
      self.make(features=("tower_ids_BL",))

  def test_resuming_equals_going_on(self):
    want = self.take(self.make(), 40)  # beyond the first epoch's 14 batches or so
    for start in (1, 13, 29):
      self.assert_same(self.take(self.make(), 40 - start, start), want[start:])
    made = self.make()
    self.assert_same([made.batch(step) for step in (39, 7, 8)], [want[39], want[7], want[8]])

  def test_two_hosts_read_halves_of_one_batch(self):
    want = self.take(self.make(), 20)
    hosts = [self.take(self.make(process_index=k, process_count=2), 20) for k in range(2)]
    joined = [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*hosts)]
    self.assert_same(joined, want)

  @parameterized.parameters(1, 2)
  def test_workers_change_nothing(self, workers):
    broken = datasets.write(f"{self.root}/workers{workers}", 67, broken=(5, 9, 30))
    alone, helped = self.make(broken), self.make(broken, workers=workers)
    self.assert_same(self.take(helped, 30, 3), self.take(alone, 30, 3))
    self.assertEqual(helped.report(), alone.report())  # what workers met is counted here
    self.assertGreater(helped.report()["replaced"], 0)

  def test_a_corrupt_record_is_replaced_and_counted(self):
    broken = (5, 9, 30)
    path = datasets.write(f"{self.root}/broken", 67, broken=broken)
    made, intact = self.make(path), self.make()
    num, changed = 60, 0
    for step in range(num):
      got, want = made.batch(step), intact.batch(step)
      self.assertEqual(made.bucket(step), intact.bucket(step))
      for i in range(4):
        if int(want["id_B"][i]) - 1000 in broken:
          changed += 1
          self.assertNotIn(int(got["id_B"][i]) - 1000, broken)
        else:
          self.assertEqual(got["id_B"][i], want["id_B"][i])
    report = made.report()
    self.assertGreater(changed, 0)
    self.assertEqual(report["replaced"], changed)
    self.assertEqual(report["corrupt_records"], 3)
    self.assertEqual(report["examples"], num * 4)
    self.assertEqual(report["intact"] + report["replaced"], report["examples"])
    self.assertIn("not a picture", report["corrupt"][f"{path} record 5"])
    self.assertEqual(intact.report()["replaced"], 0)

  def test_a_replacement_is_not_in_the_batch_already(self):
    # One bucket of 7, so that the search for a replacement wraps round into the batch itself.
    path = datasets.write(f"{self.root}/once", 7, broken=(5,), sizes=((32, 32),))
    made = self.make(path, features=("id_B", "image_BHWC"))
    for step in range(60):
      self.assertLen(set(made.batch(step)["id_B"].tolist()), 4)
    self.assertGreater(made.report()["replaced"], 0)

  def test_replacements_may_be_corrupt_themselves(self):
    path = datasets.write(f"{self.root}/most", 9, broken=range(1, 7), sizes=((32, 32),))
    made = self.make(path, features=("id_B", "image_BHWC"))
    examples = changed = 0
    for step in range(20):
      number, at = made.schedule.locate(step)
      epoch = made.schedule.epoch(number)
      wanted = epoch.record[epoch.start[at] : epoch.start[at] + 4]
      got = made.batch(step)["id_B"]
      self.assertTrue(set(got.tolist()) <= {1000, 1007, 1008})
      examples, changed = examples + 4, changed + int((got != wanted + 1000).sum())
    report = made.report()
    self.assertEqual((report["examples"], report["replaced"]), (examples, changed))
    self.assertEqual(report["corrupt_records"], 6)

  def test_counts_add_up_over_whole_epochs(self):
    made = self.make()
    steps = 0
    for number in range(3):
      steps += len(made.schedule.epoch(number).start)
    for step in range(steps):
      made.batch(step)
    report = made.report()
    self.assertEqual((report["epochs"], report["batches"]), (3, steps))
    self.assertEqual(report["entries"], 3 * 67)
    self.assertEqual(report["examples"] + report["tail_dropped"], 3 * 67)
    self.assertEqual(report["records"], report["eligible"])
    json.dumps(report)

  def test_unreadable_records_are_left_out_and_counted(self):
    path = datasets.write(f"{self.root}/flipped", 67, shards=1)
    shard = pathlib.Path(path, records.shard_name("tiny", "train", 0, 1))
    noise = datasets.example(3)["image"].getvalue()[100:150]
    shard.write_bytes(shard.read_bytes().replace(noise, bytes(50)))
    made = self.make(path)
    ids = {int(i) for step in range(40) for i in made.batch(step)["id_B"]}
    self.assertNotIn(1003, ids)
    report = made.report()
    self.assertEqual((report["records"], report["eligible"], report["unreadable"]), (67, 66, 1))

  def test_damage_after_the_index_was_made(self):
    path = datasets.write(f"{self.root}/later", 67, shards=1)
    self.make(path)
    shard = pathlib.Path(path, records.shard_name("tiny", "train", 0, 1))
    noise = datasets.example(30)["image"].getvalue()[100:150]
    shard.write_bytes(shard.read_bytes().replace(noise, bytes(50)))
    made = self.make(path)
    for step in range(30):
      self.assertNotIn(1030, made.batch(step)["id_B"])
    self.assertGreater(made.report()["replaced"], 0)

  def test_all_corrupt_is_an_error(self):
    path = datasets.write(f"{self.root}/none", 67, broken=range(67))
    with self.assertRaisesRegex(types.UserError, "every record of bucket .* is corrupt"):
      self.make(path).batch(0)

  def test_mixture_by_weight(self):
    other = datasets.write(f"{self.root}/other", 31, first_id=5000)
    made = self.make(sources=((self.whole, 1.0), (other, 3.0), ("/absent", 0.0)))
    seen = collections.Counter()
    for step in range(300):
      shift = 0x9E3779B1  # the second source's ids are moved, so that it has its own noise
      ids = made.batch(step)["id_B"].astype(np.int64)
      seen.update("first" if 1000 <= i < 1067 else "second" for i in ids)
      self.assertTrue(all(1000 <= i < 1067 or 5000 <= (i - shift) % 2**32 < 5031 for i in ids))
    self.assertBetween(seen["second"] / seen.total(), 0.70, 0.80)

  def test_caption_kinds_langs_and_weights(self):
    seen = collections.Counter()
    made = self.make()
    for step in range(200):
      for ids in made.batch(step)["llm_ids_BL"]:
        seen["写着" in self.tokenizer.decode(ids)] += 1
    self.assertBetween(seen[True] / seen.total(), 0.68, 0.82)  # weight 3 of 4
    for filters in (dict(caption_kinds=("textual", "long")), dict(caption_langs=("zh",))):
      made = self.make(**filters)
      for step in range(20):
        for ids in made.batch(step)["llm_ids_BL"]:
          self.assertIn("写着", self.tokenizer.decode(ids))

  def test_records_without_a_fitting_caption_are_counted(self):
    def captions(row):
      return datasets.captions_of(row)[row % 2 : row % 2 + 1]

    path = datasets.write(f"{self.root}/half", 67, captions=captions)
    report = self.make(path, caption_langs=("zh",)).report()
    self.assertEqual((report["eligible"], report["no_caption"]), (33, 34))

  def test_latents(self):
    path = datasets.write(f"{self.root}/latents", 67, content="latent", broken=(5,))
    made = self.make(path, features=("id_B", "latent_BHWC"))
    for step in range(30):
      batch, (size, length) = made.batch(step), made.bucket(step)
      self.assertEqual(length, 0)
      self.assertEqual(batch["latent_BHWC"].shape, (4, size[0] // 8, size[1] // 8, 5))
      for i, latent_HWC in zip(batch["id_B"], batch["latent_BHWC"]):
        want = datasets.example(int(i) - 1000, content="latent")["latent"]
        self.assertEqual(latent_HWC.tobytes(), want)
    self.assertGreater(made.report()["replaced"], 0)

  def test_pairs_keep_their_order_and_say_whether_text_is_asked(self):
    path = datasets.write(f"{self.root}/pairs", 31, content="images", broken=(3, 8))
    made = self.make(path, features=("id_B", "image_BRHWC", "llm_ids_BL", "tag_B"))
    for step in range(8):
      batch, (size, _) = made.batch(step), made.bucket(step)
      self.assertEqual(batch["image_BRHWC"].shape, (4, 2, *size, 3))
      self.assertEqual(batch["image_BRHWC"].dtype, np.uint8)
      for i in range(4):
        record = datasets.example(int(batch["id_B"][i]) - 1000, content="images")
        for r, png in enumerate(record["images"]):  # 0 is preferred, 1 rejected
          want = transforms.fit(transforms.decode(png), size)
          np.testing.assert_array_equal(batch["image_BRHWC"][i, r], want)
        text = self.tokenizer.decode(batch["llm_ids_BL"][i])
        self.assertEqual(batch["tag_B"][i], int("写着" in text))
    self.assertEqual(batch["tag_B"].dtype, np.int32)
    self.assertEqual(set(made.report()["corrupt"]), {f"{path} record {row}" for row in (3, 8)})
    textual = self.make(path, features=("tag_B",), caption_kinds=("textual",))
    self.assertTrue(textual.batch(0)["tag_B"].all())
    with self.assertRaisesRegex(
      types.UserError, "holds sets of images, but features names image_B"
    ):
      self.make(path)

  def test_images_at_another_area(self):
    made = self.make(features=("image_BHWC", "size_B2"), area=64)
    shapes = set()
    for step in range(20):
      shape = made.batch(step)["image_BHWC"].shape
      self.assertEqual(shape[1:3], made.bucket(step)[0])
      shapes.add(shape[1:3])
    self.assertEqual(shapes, {(48, 80), (80, 48), (64, 64)})

  def test_labels_from_the_scene(self):
    labels = (("style", ("plain", "neon")), ("subjects.0.name", ("s7",)), ("absent.x", ("y",)))
    made = self.make(features=("id_B", "label_BA"), labels=labels)
    for step in range(20):
      batch = made.batch(step)
      for i, label_A in zip(batch["id_B"], batch["label_BA"]):
        row = int(i) - 1000
        self.assertEqual(label_A.tolist(), [row % 2, 0 if row == 7 else -1, -1])

  def test_prompts_alone_read_no_files(self):
    made = self.make(features=("llm_ids_BL", "id_B"))
    made.batch(0)
    self.assertEmpty(made._reader._open)

  @parameterized.parameters(
    (dict(features=("latent_BHWC",)), "holds images, but features names latent_BHWC; precompute"),
    (dict(features=("latents",)), "'latents', expected one of .*; nearest: latent_BHWC"),
    (dict(batch_sizes=3), "data.batch_sizes: no such field.*nearest: batch_size"),
    (dict(batch_size=0), "data.batch_size: 0, expected at least 1"),
    (dict(sources=()), "data.sources: .*expected .path, weight. pairs"),
    (dict(sources=(("/absent/x", 1.0),)), "data set /absent/x: no such folder"),
    (dict(text_buckets=(3, 5)), "captions have up to .* tokens; the largest of .* holds 5"),
    (dict(glyph_bytes=3), "captions quote up to 3 bytes; data.glyph_bytes 3 holds 2"),
    (dict(caption_kinds=("surreal",)), "no caption of kinds surreal.*has kinds short, textual"),
    (dict(batch_size=65), "batch_size 65 is more than any bucket holds"),
    (dict(features=("llm_features_BLE",)), "no LLM features; precompute them"),
    (dict(features=("label_BA",)), "data.labels: empty"),
    (dict(area=100), "area 100: expected one of 64"),
  )
  def test_errors_are_one_line(self, fields, regex):
    with self.assertRaisesRegex(types.UserError, regex) as caught:
      self.make(**fields)
    self.assertNotIn("\n", str(caught.exception))

  def test_more_errors(self):
    with self.assertRaisesRegex(types.UserError, "batch_size: 4 does not split over 3 hosts"):
      self.make(process_count=3)
    with self.assertRaisesRegex(types.UserError, "data.tokenizer: not given"):
      loader.Loader(dict(sources=((self.whole, 1),), features=FEATURES, batch_size=2))
    cut = self.make(glyph_bytes=3, glyph_overflow="cut")
    self.assertEqual(cut.batch(0)["byt5_ids_BG"].shape, (4, 3))

  def test_latents_of_two_vaes_do_not_mix(self):
    paths = []
    for name in "ab":
      path = datasets.write(f"{self.root}/vae_{name}", 9, content="latent")
      pathlib.Path(path, records.MANIFEST).write_text(json.dumps({"vae_sha256": name * 64}))
      paths.append((path, 1.0))
    with self.assertRaisesRegex(types.UserError, "latents of several VAEs"):
      self.make(sources=tuple(paths), features=("latent_BHWC",), batch_size=2)


if __name__ == "__main__":
  absltest.main()
