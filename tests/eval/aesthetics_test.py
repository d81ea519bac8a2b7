"""The aesthetics judge against renders whose labels are known, and against pictures it must not be fooled by."""

import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines.posters import fonts, render, worlds
from data_pipelines.posters import scene as scene_lib
from seedream_jax.eval import aesthetics


def _renders(count):
  world = worlds.make_world("nano").tilted(axis_rate=0.5)
  renderer = render.shared(fonts.find(""))
  for i in range(count):
    yield renderer.render(scene_lib.sample(scene_lib.Dice("aesthetics", i), world, (64, 64)))


def _flat(rgb=(206, 44, 46)):
  return np.tile(np.array(rgb, np.uint8), (64, 64, 1))


class AestheticsTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.judged = [(aesthetics.outcomes(image, scene), scene) for image, scene in _renders(120)]

  @parameterized.parameters(*aesthetics.AXES)
  def test_sees_what_is_there(self, axis):
    right = [
      found[f"aes/{axis}"][0] == scene["aesthetics"][axis]
      for found, scene in self.judged
      if f"aes/{axis}" in found
    ]
    self.assertGreater(len(right), 40)
    self.assertGreaterEqual(np.mean(right), 0.97)

  def test_the_whole_is_the_sum_of_its_axes(self):
    for found, _ in self.judged:
      parts = [found[f"aes/{axis}"] for axis in aesthetics.SUMMED if f"aes/{axis}" in found]
      self.assertEqual(found["aes"], tuple(np.sum(parts, axis=0)))

  def test_color_is_judged_on_saturated_grounds_alone(self):
    for color, judged in (("red", True), ("white", False), ("black", False), (None, False)):
      self.assertEqual("color" in aesthetics.measure(_flat(), color), judged, color)

  def test_a_plain_ground_shows_nothing(self):
    found = aesthetics.measure(_flat(), "red")
    self.assertEqual({a for a, x in found.items() if x > aesthetics.THRESHOLDS[a]}, set())

  def test_three_sides_are_no_frame(self):
    image = _flat()
    image[0], image[:, 0], image[:, -1] = 200, 200, 200
    least = aesthetics.THRESHOLDS["composition"]
    self.assertLess(aesthetics.measure(image, None)["composition"], least)
    image[-1] = 200
    self.assertGreater(aesthetics.measure(image, None)["composition"], least)


if __name__ == "__main__":
  absltest.main()
