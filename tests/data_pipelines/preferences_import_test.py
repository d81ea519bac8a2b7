"""Choices become records: the preferred picture first, whatever the layout they are published in."""

import io
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl.testing import absltest, parameterized
from PIL import Image

from data_pipelines.posters import fonts, splits
from data_pipelines.preferences import asked, candidates, importer, pairs, published, rate, sample
from seedream_jax import types
from seedream_jax.data import loader, records, transforms
from tests.data import datasets
from tests.data_pipelines import preferences_rate_test as raters_test


def jpeg(seed: int, size=(64, 96)) -> bytes:
  """A picture of one colour, which a JPEG keeps."""
  out = io.BytesIO()
  color = np.random.default_rng(seed).integers(0, 256, 3)
  Image.fromarray(np.tile(np.uint8(color), (*size, 1))).save(out, "jpeg", quality=95)
  return out.getvalue()


def row(k: int, one: float, other: float, **more):
  """A row in Pick-a-Pic's columns."""
  fields = dict(jpg_0=jpeg(2 * k), jpg_1=jpeg(2 * k + 1), label_0=one, label_1=other)
  return {
    "caption": f"a cat {k}",
    "has_label": True,
    "ranking_id": k,
    "user_id": 7,
    **fields,
    **more,
  }


class ImportTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.dir = self.enter_context(tempfile.TemporaryDirectory())

  def parquet(self, rows, name="a.parquet"):
    path = f"{self.dir}/{name}"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path

  def build(self, choices, **kwargs):
    kwargs.setdefault("area", 64)
    return importer.build(choices, f"{self.dir}/out", **kwargs)

  def found(self, split="train"):
    parsed = records.open_split(f"{self.dir}/out:{split}")
    return list(records.iterate(parsed, "id", "captions", "images", "scene", "bucket"))

  def test_pickapic(self):
    rows = [
      row(0, 1.0, 0.0),
      row(1, 0.0, 1.0, caption=' say "HI" '),
      row(2, 0.5, 0.5),
      row(3, 1.0, 0.0, has_label=False),
      row(4, 1.0, 0.0, jpg_1=b"no picture"),
      row(5, 1.0, 0.0, jpg_0=None),
      row(6, 1.0, 0.0, caption="写着春的海报"),
    ]
    counts = self.build(published.pickapic(self.parquet(rows)), percent=0)
    reasons = {"tie": 1, "no label": 1, "not a picture": 1, "no picture": 1}
    self.assertEqual(counts, {"pairs": {"train": 3, "heldout": 0}, "left_out": reasons})
    one, two, three = self.found()
    self.assertEqual(one["images"], [jpeg(0), jpeg(1)])
    self.assertEqual(two["images"], [jpeg(3), jpeg(2)])  # the second was preferred
    self.assertEqual([r["captions"]["kind"][0] for r in (one, two)], [b"short", b"textual"])
    self.assertEqual(two["captions"]["text"], [b'say "HI"'])
    self.assertEqual([r["captions"]["lang"][0] for r in (one, three)], [b"en", b"zh"])
    self.assertEqual(one["bucket"], b"48x80")
    self.assertEqual(records.open_split(f"{self.dir}/out").manifest()["left_out"], reasons)

  def test_pickapic_as_hugging_face_writes_pictures(self):
    as_struct = row(0, 0.0, 1.0) | {
      k: {"bytes": jpeg(k == "jpg_1"), "path": ""} for k in ("jpg_0", "jpg_1")
    }
    (choice,) = published.pickapic(self.parquet([as_struct]))
    self.assertEqual(choice.images, (jpeg(1), jpeg(0)))

  def write_hpd(self, rows):
    for k in range(4):
      pathlib.Path(self.dir, f"{k}.jpg").write_bytes(jpeg(k))
    path = f"{self.dir}/hpd.json"
    pathlib.Path(path).write_text(json.dumps(rows))
    return list(published.hpd(path, self.dir))

  def test_hpd_preferences(self):
    rows = [
      {"prompt": "a", "file_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1]},
      {"prompt": "b", "image_path": ["2.jpg", "3.jpg"], "human_preference": [1, 0]},
      {"prompt": "c", "image_path": ["2.jpg", "absent.jpg"], "human_preference": [1, 0]},
    ]
    one, two, three = self.write_hpd(rows)
    self.assertEqual((one.prompt, one.images), ("a", (jpeg(1), jpeg(0))))
    self.assertEqual((two.prompt, two.images), ("b", (jpeg(2), jpeg(3))))
    self.assertStartsWith(str(three), "no picture: No such file")

  def test_hpd_rankings_give_every_pair(self):
    raw = [{"rank": [1, 2, 3], "user_hash": "x"}, {"rank": [2, 1, 3], "user_hash": "y"}]
    paths = ["0.jpg", "1.jpg", "2.jpg"]
    found = self.write_hpd([{"prompt": "a", "image_path": paths, "raw_annotations": raw}])
    said = [str(c) if isinstance(c, published.Skipped) else c.images for c in found]
    self.assertEqual(said, ["tie", (jpeg(0), jpeg(2)), (jpeg(1), jpeg(2))])
    found = self.write_hpd([{"prompt": "a", "image_path": paths, "rank": [3, 1, 2]}])
    want = [(jpeg(1), jpeg(0)), (jpeg(2), jpeg(0)), (jpeg(1), jpeg(2))]
    self.assertEqual([c.images for c in found], want)

  def test_hpd_in_parquet(self):
    self.write_hpd([])
    rows = [{"prompt": "a", "image_path": ["0.jpg", "1.jpg"], "human_preference": [0, 1]}]
    (choice,) = published.hpd(self.parquet(rows), self.dir)
    self.assertEqual(choice.images, (jpeg(1), jpeg(0)))

  def test_the_loader_gives_the_preferred_first(self):
    rows = [row(k, float(k % 2), float(1 - k % 2), caption=f"a cat {k}") for k in range(24)]
    self.build(published.pickapic(self.parquet(rows)), percent=0, shard_size=7)
    features = ("id_B", "image_BRHWC", "llm_ids_BL", "tag_B")
    tokenizer = datasets.tokenizer(self.dir)
    made = loader.Loader(
      dict(sources=((f"{self.dir}/out", 1.0),), features=features, batch_size=4), tokenizer
    )
    batch = made.batch(0)
    self.assertEqual(batch["image_BRHWC"].shape, (4, 2, 48, 80, 3))
    by_text = {f"a cat {k}": k for k in range(24)}
    for ids_L, image_RHWC in zip(batch["llm_ids_BL"], batch["image_BRHWC"]):
      k = by_text[tokenizer.decode(ids_L)]
      want = [jpeg(2 * k + (k + 1) % 2), jpeg(2 * k + k % 2)]
      for got, encoded in zip(image_RHWC, want):
        color = transforms.decode(encoded).mean((0, 1))
        np.testing.assert_allclose(got.mean((0, 1)), color, atol=2)

  def test_no_prompt_is_in_both_splits(self):
    rows = [
      row(k, 1.0, 0.0, caption=f"A  cat {k % 40}" if k < 40 else f"a cat {k % 40}")
      for k in range(80)
    ]
    counts = self.build(published.pickapic(self.parquet(rows)), percent=30)
    self.assertBetween(counts["pairs"]["heldout"], 8, 44)
    said = {
      split: {r["captions"]["text"][0].decode().lower().split()[-1] for r in self.found(split)}
      for split in importer.SPLITS
    }
    self.assertEmpty(said["train"] & said["heldout"])
    self.assertLen(said["train"] | said["heldout"], 40)

  @parameterized.parameters(
    (dict(), "no pair can be used; left out: {'tie': 1}"),
    (dict(area=0), "no pair can be used; left out: {'tie': 1}"),
  )
  def test_nothing_to_use(self, kwargs, regex):
    with self.assertRaisesRegex(types.UserError, regex):
      self.build(published.pickapic(self.parquet([row(0, 0.5, 0.5)])), **kwargs)
    self.assertFalse(os.path.exists(f"{self.dir}/out/dataset_info.json"))

  def test_bad_files(self):
    with self.assertRaisesRegex(types.UserError, "--pickapic .*none.*: no such file"):
      list(published.pickapic(f"{self.dir}/none*"))
    with self.assertRaisesRegex(types.UserError, "no column 'caption'; it has a"):
      list(published.pickapic(self.parquet([{"a": 1}])))
    pathlib.Path(self.dir, "text.parquet").write_text("no")
    with self.assertRaisesRegex(types.UserError, "not a readable Parquet file"):
      list(published.pickapic(f"{self.dir}/text.parquet"))
    for bad, regex in (
      ({"prompt": "a"}, "row 0 lacks image_path"),
      ({"image_path": ["0.jpg"]}, "row 0 lacks prompt"),
      ({"prompt": "a", "image_path": ["0.jpg"]}, "row 0 lacks human_preference"),
      ({"prompt": "a", "image_path": ["0.jpg"], "rank": [1, 2]}, "does not fit its 1 image paths"),
    ):
      with self.assertRaisesRegex(types.UserError, regex):
        self.write_hpd([bad])
    with self.assertRaisesRegex(types.UserError, "--images .*/none: no such folder"):
      list(published.hpd(f"{self.dir}/hpd.json", f"{self.dir}/none"))


class OwnTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.dir = cls.enterClassContext(tempfile.TemporaryDirectory())
    said = asked.draw("nano", "preference", 30, (64, 64), 0, fonts.find())
    drawers = tuple(sample.RenderDrawer(n, fonts.find()) for n in ("truth", "damaged"))
    sample.build(sample.Candidates(tuple(said), drawers), f"{cls.dir}/sets")
    cls.reader = candidates.Reader(candidates.open_sets(f"{cls.dir}/sets"))
    cls.path = f"{cls.dir}/pairs.jsonl"
    std = dict(alignment=0.02, text=0.02, aesthetic=0.02)
    many = [raters_test.Fake("alignment"), raters_test.Fake("text", asked.TEXT)]
    cls.made, _ = rate.rate(
      cls.reader,
      many,
      data=pairs.relative(f"{cls.dir}/sets", cls.path),
      noise=std,
      weights=raters_test.WEIGHTS,
      pairs_per_set=3,
    )
    pairs.write(cls.path, cls.made)

  def test_rated_pairs_become_records(self):
    out = f"{self.dir}/imported"
    counts = importer.build(importer.own(self.path), out, percent=20)
    rated = [p for p in self.made if p.preferred != "tie"]
    self.assertEqual(sum(counts["pairs"].values()), len(rated))
    scenes = {}
    for split in importer.SPLITS:
      opened = records.open_split(f"{out}:{split}")
      for got in records.iterate(opened, "captions", "images", "scene", "bucket"):
        scenes.setdefault(splits.content_key(json.loads(got["scene"])), set()).add(split)
        pair = next(p for p in rated if self.encoded(p) == got["images"])
        self.assertEqual(got["captions"]["text"][0].decode(), pair.prompt)
        is_textual = got["captions"]["kind"][0] == b"textual"
        self.assertEqual(is_textual, asked.TEXT in pair.tags)
        self.assertEqual(got["bucket"], b"64x64")
    self.assertTrue(all(len(found) == 1 for found in scenes.values()))

  def encoded(self, pair, choice=None):
    choice = pair.preferred if choice is None else choice
    refs = pair.images if choice == 0 else pair.images[::-1]
    return [self.reader[ref["row"]].images[ref["candidate"]] for ref in refs]

  def test_one_dimension_alone_may_choose(self):
    # The two fake raters disagree on every pair.
    chosen = {d: {} for d in ("alignment", "text")}
    for dimension, found in chosen.items():
      for choice in importer.own(self.path, dimension):
        if not isinstance(choice, published.Skipped):
          found[choice.id] = choice.images
    self.assertNotEmpty(chosen["text"])
    self.assertLess(len(chosen["text"]), len(chosen["alignment"]))
    for pair in self.made:
      scores = pair.scores.get("text")
      if scores and scores[0] != scores[1]:
        want = self.encoded(pair, int(scores[1] > scores[0]))
        self.assertEqual(list(chosen["text"][pair.id]), want)

  def test_pareto_keeps_what_no_dimension_speaks_against(self):
    kept = [c for c in importer.own(self.path, pareto=True) if not isinstance(c, published.Skipped)]
    for choice in kept:
      self.assertTrue(all(a >= b for a, b in choice.about["scores"].values()))
    everything = [c for c in importer.own(self.path) if not isinstance(c, published.Skipped)]
    self.assertBetween(len(kept), 1, len(everything) - 1)

  def test_pictures_that_changed_are_refused(self):
    path = f"{self.dir}/changed.jsonl"
    lines = pathlib.Path(self.path).read_text()
    digest = self.made[0].images[0]["sha256"]
    pathlib.Path(path).write_text(lines.replace(digest, "f" * 16))
    with self.assertRaisesRegex(types.UserError, "is another picture now"):
      list(importer.own(path))
    pathlib.Path(path).write_text(lines.replace('"row": 0,', '"row": 999,'))
    with self.assertRaisesRegex(types.UserError, "has no row 999"):
      list(importer.own(path))

  def test_the_command(self):
    verb = [sys.executable, "-m", "data_pipelines.preferences", "import"]
    out = f"{self.dir}/by_command"
    command = [*verb, "--pairs", self.path, "--dimension", "text", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    counts = json.loads(done.stdout.splitlines()[-1])
    self.assertEqual(records.open_split(out).manifest()["dimension"], "text")
    self.assertGreater(counts["left_out"]["no text"], 0)
    done = subprocess.run(command, capture_output=True, text=True)
    self.assertEqual((done.returncode, done.stderr.count("\n")), (2, 1), done.stderr)
    self.assertIn("holds a data set already", done.stderr)


if __name__ == "__main__":
  absltest.main()
