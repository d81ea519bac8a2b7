"""A user's folder becomes a data set; bad pictures are counted and named, bad lines are errors."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from data_pipelines import folder
from seedream_jax import types
from seedream_jax.data import loader, records, transforms


class FolderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.dir = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.images, self.out = self.dir / "images", str(self.dir / "out")
    (self.images / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (64, 64)), ("sub/b.jpg", (90, 140)), ("c.webp", (150, 93))):
      Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(self.images / name)
    (self.images / "text.png").write_text("not a picture at all")
    (self.images / "cut.png").write_bytes((self.images / "a.png").read_bytes()[:900])
    Image.new("RGB", (200, 40)).save(self.images / "wide.png")
    Image.new("RGB", (60, 70)).save(self.images / "small.png")

  def captions(self, *lines) -> str:
    path = self.dir / "captions.jsonl"
    text = "\n".join(x if isinstance(x, str) else json.dumps(x, ensure_ascii=False) for x in lines)
    path.write_text(text + "\n", encoding="utf-8")
    return str(path)

  def all_lines(self):
    names = ("a.png", "text.png", "sub/b.jpg", "cut.png", "wide.png", "gone.png", "small.png")
    return [{"file_name": name, "text": f"picture {name}"} for name in (*names, "c.webp")]

  def build(self, lines, **kwargs):
    listed = folder.read_captions(self.captions(*lines))
    return folder.build(str(self.images), listed, self.out, area=64, **kwargs)

  @parameterized.parameters(1, 3)
  def test_good_pictures_in_order_bad_ones_named(self, workers):
    report = self.build(self.all_lines(), workers=workers, shard_size=2)
    self.assertEqual(report.good, 3)
    self.assertEqual(set(report.bad), {"text.png", "cut.png", "wide.png", "gone.png", "small.png"})
    self.assertEqual(report.bad["text.png"], "not a picture: unknown format")
    self.assertIn("not a picture", report.bad["cut.png"])
    self.assertIn("out of the bucket table", report.bad["wide.png"])
    self.assertIn("No such file", report.bad["gone.png"])
    self.assertEqual(report.bad["small.png"], "too small: 70x60 for bucket 64x64")
    split = records.open_split(self.out)
    got = list(records.iterate(split, "id", "bucket", "image_png", "captions", "scene"))
    self.assertEqual([r["bucket"].decode() for r in got], ["64x64", "48x80", "80x48"])
    self.assertEqual([part.take for part in split.instructions], [2, 1])
    want = folder.record_id("a.png")
    self.assertEqual(got[0]["id"], want)
    np.testing.assert_array_equal(
      transforms.decode(got[0]["image_png"]),
      transforms.decode((self.images / "a.png").read_bytes()),
    )
    self.assertEqual(transforms.decode(got[1]["image_png"]).shape, (48, 80, 3))
    manifest = split.manifest()
    self.assertEqual((manifest["good"], manifest["bad"]), (3, 5))
    self.assertEqual(manifest["reasons"]["not a picture"], 2)
    self.assertEqual(manifest["bad_files"], report.bad)

  def test_the_loader_reads_it(self):
    self.build(self.all_lines())
    made = loader.Loader(dict(sources=((self.out, 1),), features=("image_BHWC",), batch_size=1))
    self.assertEqual(made.batch(0)["image_BHWC"].shape, (1, *made.bucket(0)[0], 3))

  def test_enlarge(self):
    report = self.build([{"file_name": "small.png", "text": "x"}], enlarge=True)
    self.assertEqual((report.good, report.bad), (1, {}))

  def test_caption_forms_and_defaults(self):
    caption = {"text": "big", "lang": "zh", "kind": "long", "weight": 2}
    path = self.captions(
      {"file_name": "a.png", "text": "写着“春”的海报"},
      "",
      {"file_name": "b.png", "captions": [caption, "plain text"]},
      {"file_name": "a.png", "text": "second"},
    )
    got = folder.read_captions(path)
    self.assertEqual(list(got), ["a.png", "b.png"])
    first = {"text": "写着“春”的海报", "lang": "zh", "kind": "textual", "weight": 1.0}
    second = {"text": "second", "lang": "en", "kind": "short", "weight": 1.0}
    self.assertEqual(got["a.png"], [first, second])
    self.assertEqual(got["b.png"], [{**caption, "weight": 2.0}, {**second, "text": "plain text"}])

  @parameterized.parameters(
    ("{", "line 2: Expecting"),
    ("[]", 'line 2: expected an object with "file_name"'),
    ({"text": "x"}, 'line 2: expected an object with "file_name"'),
    ({"file_name": "a"}, 'line 2: expected "text", or "captions"'),
    ({"file_name": "a", "captions": []}, 'line 2: expected "text", or "captions"'),
    ({"file_name": "a", "text": " "}, "line 2: caption without text"),
    ({"file_name": "a", "captions": [{"txt": "x"}]}, "line 2: caption has txt; expected text"),
    ({"file_name": "a", "captions": [{"text": "x", "lang": "fr"}]}, "lang 'fr'; expected one of"),
    ({"file_name": "a", "captions": [{"text": "x", "kind": "odd"}]}, "kind 'odd'; expected one of"),
    ({"file_name": "a", "captions": [{"text": "x", "weight": -1}]}, "weight -1.0; expected"),
    ({"file_name": "a", "captions": [{"text": "x", "weight": "y"}]}, "line 2: could not convert"),
    ({"file_name": "a", "captions": [3]}, "line 2: "),
  )
  def test_bad_lines(self, line, regex):
    path = self.captions({"file_name": "a.png", "text": "fine"}, line)
    with self.assertRaisesRegex(types.UserError, regex) as caught:
      folder.read_captions(path)
    self.assertNotIn("\n", str(caught.exception))

  def test_errors(self):
    with self.assertRaisesRegex(types.UserError, "none of 2 pictures is good; text.png: not a pic"):
      self.build([{"file_name": name, "text": "x"} for name in ("text.png", "gone.png")])
    self.build([{"file_name": "a.png", "text": "x"}])
    with self.assertRaisesRegex(types.UserError, "holds a data set already"):
      self.build([{"file_name": "a.png", "text": "x"}])
    with self.assertRaisesRegex(types.UserError, "area 70: expected one of"):
      folder.build(str(self.images), {}, self.out, area=70)
    with self.assertRaisesRegex(types.UserError, "no such folder"):
      folder.build("/absent", {}, f"{self.out}2", area=64)
    with self.assertRaisesRegex(types.UserError, "no such file; expected JSON lines"):
      folder.read_captions("/absent.jsonl")

  def test_program(self):
    command = [sys.executable, "-m", "data_pipelines.folder", "--area", "64"]
    command += ["--images", str(self.images), "--captions", self.captions(*self.all_lines())]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    root = pathlib.Path(folder.__file__).parents[1]

    def run(*extra):
      return subprocess.run([*command, *extra], cwd=root, env=env, capture_output=True, text=True)

    good = run("--out", self.out)
    self.assertEqual(good.returncode, 0, good.stderr)
    self.assertIn("left out text.png: not a picture: unknown format", good.stdout)
    counts = json.loads(good.stdout.splitlines()[-1])
    self.assertEqual((counts["good"], counts["bad"]), (3, 5))
    self.captions({"file_name": "text.png", "text": "x"})
    bad = run("--out", f"{self.out}2")
    self.assertEqual(bad.returncode, 2)
    self.assertRegex(bad.stderr.splitlines()[-1], "^error: .*none of 1 pictures is good; text.png")
    self.assertNotIn("Traceback", bad.stderr)


if __name__ == "__main__":
  absltest.main()
