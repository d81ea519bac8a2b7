"""Sprites and the fonts they come from."""

import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines.posters import fonts as posters_fonts
from data_pipelines.posters import render
from seedream_jax import types
from seedream_jax.eval import fonts, templates
from tests.eval import tiny


def setUpModule():
  tiny.require_fonts()


class TemplatesTest(parameterized.TestCase):
  @parameterized.parameters("🐼", "✂️", "🏮", "👖")
  def test_the_longer_side_fills_the_square(self, emoji):
    rgba = templates.scaled(emoji, 29)
    ink = rgba[..., 3] > 0.02
    self.assertEqual(rgba.shape, (29, 29, 4))
    self.assertGreaterEqual(max(ink.any(0).sum(), ink.any(1).sum()), 28)
    self.assertTrue((rgba[..., :3] <= rgba[..., 3:] + 0.02).all())  # premultiplied

  @parameterized.product(style=tuple(templates.STYLES), emoji=("🐼", "🐉", "🍌"))
  def test_the_posters_draw_what_the_judge_looks_for(self, style, emoji):
    drawn = render.shared(posters_fonts.find()).sprite(emoji, 30, style) / 255.0
    looked_for = templates.scaled(emoji, 30, style)
    top, left = ((30 - n) // 2 for n in drawn.shape[:2])
    window = looked_for[top : top + drawn.shape[0], left : left + drawn.shape[1]]
    self.assertGreater(np.corrcoef(drawn.reshape(-1), window.reshape(-1))[0, 1], 0.9)

  def test_missing_fonts_name_the_package(self):
    with self.assertRaisesRegex(
      types.UserError, "'No Such Face' is not installed.*apt-get install"
    ):
      fonts.find("No Such Face")


if __name__ == "__main__":
  absltest.main()
