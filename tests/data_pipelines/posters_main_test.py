"""The command: workers change no byte, and a user's mistake is one line and exit code 2."""

import dataclasses
import pathlib
import subprocess
import sys
import tempfile

from absl.testing import absltest, parameterized

from data_pipelines.posters import __main__ as cli
from data_pipelines.posters import builder, fonts, poster
from seedream_jax import types


class MainTest(parameterized.TestCase):
  @parameterized.parameters("64", "64x", "8x64", "64x4096", "ax64", "")
  def test_bad_sizes(self, value):
    with self.assertRaisesRegex(types.UserError, "--size"):
      cli.parse_sizes([value])

  def test_sizes(self):
    self.assertEqual(cli.parse_sizes(["64x64", "48x80"]), ((64, 64), (48, 80)))

  def test_user_errors_exit_2_with_one_line(self):
    command = [sys.executable, "-m", "data_pipelines.posters", "--world", "nan", "--out", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    self.assertEqual(done.returncode, 2)
    self.assertEqual(done.stderr.count("\n"), 1)
    self.assertIn("'nano'", done.stderr)

  def test_workers_change_no_byte(self):
    source = poster.Posters("nano", "train", ((64, 64),), 0, fonts.find())
    made = []
    for workers in (1, 2):
      folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
      builder.build(builder.Plan(source, 5, shard_size=3), str(folder), workers=workers)
      files = (p for p in folder.rglob("*") if p.is_file())
      made.append({str(p.relative_to(folder)): p.read_bytes() for p in files})
    self.assertEqual(*made)

  def test_faces_and_styles_are_named_only_where_given(self):
    plain = poster.Posters("nano", "train", ((64, 64),), 0, fonts.find())
    other = dataclasses.replace(plain, faces=("kai", "serif"), style_rate=1.0)
    more = {"faces": ["kai", "serif"], "style_rate": 1.0}
    self.assertEmpty({"faces", "style_rate"} & set(plain.describe()))
    self.assertEqual(other.describe(), {**plain.describe(), **more})
    scenes = [other.draw(i)[1] for i in range(30)]
    self.assertEqual({s["text"]["face"] for s in scenes if s["text"]}, {"kai", "serif"})
    self.assertNotIn("plain", {s["style"] for s in scenes})


if __name__ == "__main__":
  absltest.main()
