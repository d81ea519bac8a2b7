"""Sheets and pages hold every prompt, and the pictures they are about."""

import base64
import io
import json
import os
import re
import tempfile
from xml.etree import ElementTree

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from seedream_jax.eval import fonts, report
from tests.eval import tiny

_PROMPTS = (
  "蓝色背景，上方写着红色的“春天”",
  "a panda on yellow",
  "右边一只<大熊猫> & 龙",
  'a poster that says "LOVE"',
  "龙",
)


def setUpModule():
  tiny.require_fonts()


def _sheet():
  images = [np.full((5, 7, 3), (40 * i + 17, 3, 250), np.uint8) for i in range(len(_PROMPTS))]
  return report.Sheet("samples 样张", images, _PROMPTS, ["", "missed: count"])


class SheetTest(parameterized.TestCase):
  def test_every_picture_and_prompt_is_drawn(self):
    columns, cell = 2, 120
    got = np.asarray(report.sample_sheet(_sheet(), columns=columns, cell=cell))
    paper = got[0, 0]
    for i in range(len(_PROMPTS)):
      x = 12 + (i % columns) * (cell + 12)
      column = got[:, x : x + cell]
      mine = (column == (40 * i + 17, 3, 250)).all(-1)
      rows = np.nonzero(mine.any(1))[0]
      self.assertEqual(mine.sum(), 5 * 17 * 7 * 17)  # a whole factor, 17, fits 7 pixels in 120
      below = column[rows[-1] + 10 : rows[-1] + 60]
      self.assertTrue((below != paper).any(), f"no words under picture {i}")

  def test_chinese_is_not_a_row_of_boxes(self):
    font = fonts.load(report.FAMILY, 14)
    self.assertNotEqual(font.getmask("春").getbbox(), font.getmask("\U0010ffff").getbbox())
    a, b = (np.asarray(font.getmask(c)).sum() for c in "春龙")
    self.assertNotEqual(a, b)

  @parameterized.parameters(
    *_PROMPTS, "aVeryLongWordWithoutAnyBreaks" * 3, "“引号”不离开它的字，标点也不。"
  )
  def test_wrapping_loses_nothing_and_fits(self, prompt):
    font = fonts.load(report.FAMILY, 14)
    lines = report.wrap(prompt, font, 60, 99)
    self.assertEqual("".join(lines).replace(" ", ""), prompt.replace(" ", ""))
    self.assertLessEqual(max(font.getlength(line) for line in lines), 60)
    for line in lines[1:]:
      self.assertNotIn(line[:1], "，。”）")

  def test_a_long_prompt_ends_in_an_ellipsis(self):
    font = fonts.load(report.FAMILY, 14)
    lines = report.wrap("字" * 50, font, 60, 3)
    self.assertLen(lines, 3)
    self.assertEndsWith(lines[-1], "…")
    self.assertLessEqual(font.getlength(lines[-1]), 60)

  def test_large_pictures_shrink(self):
    self.assertEqual(report.fit(np.zeros((300, 600, 3), np.uint8), 100).size, (100, 50))

  def test_counts_must_agree(self):
    with self.assertRaisesRegex(ValueError, "1 images, 2 prompts"):
      report.sample_sheet(report.Sheet("", [np.zeros((4, 4, 3), np.uint8)], ["a", "b"]))


class PageTest(parameterized.TestCase):
  def _page(self, **options):
    path = os.path.join(tempfile.mkdtemp(), "new", "page.html")
    report.html_page(path, title="Run <1>", subtitle="nano", **options)
    with open(path, encoding="utf-8") as f:
      return f.read()

  def test_every_prompt_and_picture_is_inside(self):
    page = self._page(sheets=[_sheet()])
    text = re.sub(r"<[^>]*>", "", page)
    for prompt in _PROMPTS:
      self.assertIn(report.html.escape(prompt), text)
    pictures = re.findall(r"data:image/png;base64,([^\"]+)", page)
    self.assertLen(pictures, len(_PROMPTS))
    first = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0]))))
    np.testing.assert_array_equal(first, _sheet().images[0])
    self.assertNotRegex(page, r"(src|href)=\"http")  # self-contained
    self.assertIn("Run &lt;1&gt;", page)

  def test_curves_keep_their_shape(self):
    curve = report.Curve("run a", [0, 100, 200, 300], [3.0, 1.0, None, 2.0])
    svg = re.search(r"<svg.*?</svg>", report.plot("val/loss", [curve]), re.S).group()
    lines = ElementTree.fromstring(svg).findall("polyline")
    self.assertLen(lines, 2)  # broken at the missing value
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in lines[0].get("points").split())
    self.assertLess(x0, x1)
    self.assertLess(y0, y1)  # 3 stands above 1, and SVG counts downwards
    self.assertIn("no data", report.plot("x", [report.Curve("a", [1], [None])]))
    self.assertIn("<svg", report.plot("flat", [report.Curve("a", [5], [0.0])]))

  def test_tables_show_metrics_and_refusals(self):
    summary = {
      "suite": "bench", "n": 12, "clusters": 6, "strength": "smoke",
      "metrics": {"subject": {"value": 0.5, "lo": 0.25, "hi": 0.75, "ceiling": 0.991, "n": 12}},
      "refused": {"count": {"ceiling": 0.91, "reason": "ceiling below 0.97"}},
    }  # fmt: skip
    page = self._page(reports=[summary])
    for piece in (
      "0.250 – 0.750",
      "0.991",
      "refused: ceiling below 0.97",
      "smoke only, no evidence",
    ):
      self.assertIn(piece, page)

  @parameterized.parameters((0, 1), (0.0, 12_000), (-3.2, 4.7), (0.001, 0.0011))
  def test_ticks_are_round_and_inside(self, low, high):
    ticks = report._ticks(low, high)
    self.assertBetween(len(ticks), 2, 6)
    self.assertTrue(all(low - 1e-9 <= t <= high + 1e-9 for t in ticks))

  def test_json_is_whole_or_absent(self):
    folder = tempfile.mkdtemp()
    path = os.path.join(folder, "a", "report.json")
    report.write_json(path, {"prompt": "春"})
    with open(path, encoding="utf-8") as f:
      self.assertEqual(json.load(f), {"prompt": "春"})
    with self.assertRaises(ValueError):
      report.write_json(path, {"bad": float("nan")})
    with open(path, encoding="utf-8") as f:
      self.assertEqual(json.load(f), {"prompt": "春"})


if __name__ == "__main__":
  absltest.main()
