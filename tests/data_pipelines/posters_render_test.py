"""Pixels tell what the scene says: boxes hold the ink, subjects sit at their centres."""

import copy
import itertools

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image, ImageDraw

from data_pipelines.posters import fonts, palette, render, worlds
from data_pipelines.posters import scene as scene_lib

FONTS = fonts.find()
SIZES = ((64, 64), (48, 80), (96, 48), (131, 127), (288, 512))
PLAIN = dict.fromkeys(worlds.AXES, 0)


def _scene(world, seed, size, **changes):
  scene = scene_lib.sample(scene_lib.Dice("render", seed), world, size)
  return {**scene, "aesthetics": PLAIN, **changes}


def _template(emoji: str, px: int) -> tuple[np.ndarray, np.ndarray]:
  """(premultiplied RGB, coverage) of the emoji, longer side `px`, without the renderer."""
  canvas = Image.new("RGBA", (200, 200))
  font = FONTS.load("emoji", fonts.EMOJI_SIZE)
  draw = ImageDraw.Draw(canvas)
  draw.text((20, 20), emoji.replace("\ufe0f", ""), font=font, embedded_color=True)
  canvas = canvas.crop(canvas.getchannel("A").getbbox()).convert("RGBa")
  scale = px / max(canvas.size)
  size = tuple(max(1, round(v * scale)) for v in canvas.size)
  sprite = np.asarray(canvas.resize(size, Image.Resampling.BOX), np.float32)
  return sprite[..., :3], sprite[..., 3:] / 255


class RenderTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.renderer = render.Renderer(FONTS)

  @parameterized.product(size=SIZES, name=("nano", "small"))
  def test_text_box_is_exactly_the_ink(self, size, name):
    world = worlds.make_world(name).tilted(text_rate=1.0)
    for seed in range(14):
      scene = _scene(world, seed, size)
      image, done = self.renderer.render(scene)
      bare, _ = self.renderer.render({**scene, "text": None})
      changed = (image.astype(int) != bare).any(-1)
      y0, x0, y1, x1 = done["text"]["box"]
      self.assertTrue(0 <= y0 < y1 <= size[0] and 0 <= x0 < x1 <= size[1])
      inside = changed[y0:y1, x0:x1]
      self.assertEqual(changed.sum(), inside.sum())
      sides = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
      self.assertTrue(all(side.any() for side in sides))

  def test_text_keeps_to_the_zone_its_place_names(self):
    world = worlds.make_world("nano").tilted(text_rate=1.0, bare_text_rate=0.0)
    for seed in range(60):
      scene = self.renderer.measure(_scene(world, seed, (64, 64)))
      (y0, _, y1, _), top = scene["text"]["box"], scene["text"]["place"] == "top"
      self.assertTrue(y1 <= 32 if top else y0 >= 32)
      subject = scene["subjects"][0]
      low, high = (subject["center"][0] + d * subject["size"] / 2 for d in (-1, 1))
      self.assertTrue(low >= 32 if top else high <= 32)

  @parameterized.parameters(*SIZES)
  def test_subjects_are_matched_at_their_centres(self, *size):
    world = worlds.make_world("nano").tilted(text_rate=0.0, style_rate=0.0)
    for seed in range(16):
      scene = _scene(world, seed, size)
      image, done = self.renderer.render(scene)
      bare, _ = self.renderer.render({**scene, "subjects": []})
      for subject in done["subjects"]:
        rgb, cover = _template(subject["emoji"], subject["size"])
        self.assertEqual(max(rgb.shape), subject["size"])
        error = {}
        for shift in itertools.product((-1, 0, 1), repeat=2):
          centre = zip(subject["center"], shift, rgb.shape[:2], strict=True)
          y, x = (int(c + d - n / 2) for c, d, n in centre)
          rows, columns = slice(y, y + rgb.shape[0]), slice(x, x + rgb.shape[1])
          want = bare[rows, columns] * (1 - cover) + rgb
          error[shift] = np.square(image[rows, columns] - want).mean()
        self.assertEqual(min(error, key=error.get), (0, 0), subject)
        self.assertLess(error[0, 0], 200)

  def test_same_seed_same_pixels(self):
    world = worlds.make_world("nano").tilted(axis_rate=0.5, style_rate=0.5)
    scenes = [scene_lib.sample(scene_lib.Dice(i), world, (64, 64)) for i in range(40)]
    before = copy.deepcopy(scenes)
    first = [self.renderer.render(s)[0] for s in scenes]
    fresh = render.Renderer(FONTS)  # other cache, other order
    again = [fresh.render(s)[0] for s in reversed(scenes)][::-1]
    np.testing.assert_array_equal(first, again)
    self.assertEqual(scenes, before)  # rendering leaves its argument alone

  def test_measure_agrees_with_render(self):
    world = worlds.make_world("small")
    for seed in range(20):
      scene = _scene(world, seed, (128, 96))
      self.assertEqual(self.renderer.measure(scene), self.renderer.render(scene)[1])

  @parameterized.parameters(*worlds.AXES)
  def test_an_axis_shows_but_is_mild(self, axis):
    world = worlds.make_world("nano").tilted(style_rate=0.0)
    for seed in range(8):
      scene = _scene(world, seed, (64, 64))
      plain, done = self.renderer.render(scene)
      image, same = self.renderer.render({**scene, "aesthetics": {**PLAIN, axis: 1}})
      self.assertEqual(done["text"], same["text"])
      change = np.abs(image.astype(float) - plain)
      self.assertGreater(change.mean(), 0.05)
      self.assertLess(change.mean(), 26)

  def test_background_colour_is_the_nearest_name(self):
    world = worlds.make_world("nano").tilted(axis_rate=0.25)
    table = np.array([palette.COLORS[c] for c in palette.NANO])
    right = 0
    for seed in range(200):
      scene = scene_lib.sample(scene_lib.Dice("color", seed), world, (64, 64))
      image, _ = self.renderer.render(scene)
      pixel = np.median(image.reshape(-1, 3), axis=0)
      name = palette.NANO[np.square(table - pixel).sum(1).argmin()]
      right += name == scene["background"]["color"]
    self.assertGreaterEqual(right, 196)

  @parameterized.parameters(*worlds.STYLES)
  def test_a_style_redraws_subjects_only(self, style):
    world = worlds.make_world("nano").tilted(text_rate=1.0, bare_text_rate=0.0)
    scene = _scene(world, 1, (64, 64), style="plain")
    plain, done = self.renderer.render(scene)
    image, _ = self.renderer.render({**scene, "style": style})
    (y0, x0, y1, x1) = done["text"]["box"]
    change = np.abs(image.astype(float) - plain).max(-1)
    self.assertLess(change[y0:y1, x0:x1].max(), 16)
    (y, x), half = done["subjects"][0]["center"], done["subjects"][0]["size"] // 2
    rows, columns = slice(int(y) - half, int(y) + half), slice(int(x) - half, int(x) + half)
    self.assertGreater(change[rows, columns].mean(), 6)

  def test_every_subject_is_in_the_font(self):
    for name in ("nano", "small"):
      for emoji in worlds.make_world(name).subjects:
        self.assertTrue(self.renderer.has_ink(emoji), emoji)


if __name__ == "__main__":
  absltest.main()
