"""Pictures decode to RGB, damage is a ValueError, fitting covers and cuts the centre."""

import io

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from seedream_jax.data import transforms


def encoded(picture: Image.Image, kind: str, **kwargs) -> bytes:
  out = io.BytesIO()
  picture.save(out, kind, **kwargs)
  return out.getvalue()


class TransformsTest(parameterized.TestCase):
  def test_png_round_trip(self):
    image_HWC = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(
      transforms.decode(transforms.encode_png(image_HWC).getvalue()), image_HWC
    )

  def test_transparency_is_laid_on_white(self):
    picture = Image.new("RGBA", (3, 2), (10, 20, 30, 0))
    self.assertEqual(transforms.decode(encoded(picture, "PNG")).min(), 255)
    half = Image.new("LA", (3, 2), (0, 128))
    self.assertBetween(transforms.decode(encoded(half, "PNG"))[0, 0, 0], 126, 128)

  def test_gray_and_palette_become_rgb(self):
    for mode in ("L", "P", "1", "CMYK"):
      kind = "TIFF" if mode == "CMYK" else "PNG"
      self.assertEqual(transforms.decode(encoded(Image.new(mode, (3, 2)), kind)).shape, (2, 3, 3))

  def test_orientation_is_obeyed(self):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    self.assertEqual(
      transforms.decode(encoded(Image.new("RGB", (6, 4)), "JPEG", exif=exif)).shape, (6, 4, 3)
    )

  def test_damage_is_a_value_error_that_is_the_same_each_time(self):
    data = encoded(Image.effect_noise((31, 23), 90), "PNG")
    for bad in (b"", b"text", data[: len(data) // 2], data[:60] + b"x" * 9 + data[69:]):
      messages = set()
      for _ in range(2):
        with self.assertRaisesRegex(ValueError, "not a picture: ") as caught:
          transforms.decode(bad)
        messages.add(str(caught.exception))
      self.assertLen(messages, 1)

  def test_fit_passes_a_picture_of_the_size(self):
    image_HWC = np.zeros((5, 7, 3), np.uint8)
    self.assertIs(transforms.fit(image_HWC, (5, 7)), image_HWC)

  @parameterized.parameters(((40, 20), (10, 10)), ((20, 40), (10, 10)), ((13, 17), (32, 48)))
  def test_fit_gives_the_size_and_keeps_the_centre(self, have, want):
    image_HWC = np.zeros((*have, 3), np.uint8)
    image_HWC[have[0] // 2 - 2 : have[0] // 2 + 2, have[1] // 2 - 2 : have[1] // 2 + 2] = 255
    got_HWC = transforms.fit(image_HWC, want)
    self.assertEqual(got_HWC.shape, (*want, 3))
    self.assertGreater(got_HWC[want[0] // 2, want[1] // 2].min(), 200)
    self.assertEqual(got_HWC[0, 0].max(), 0)

  def test_fit_does_not_stretch(self):
    image_HWC = np.zeros((60, 30, 3), np.uint8)
    image_HWC[15:45] = 255  # a 30x30 square in the middle; covering 16x16 keeps the square only
    self.assertGreater(transforms.fit(image_HWC, (16, 16))[2:-2].min(), 240)

  def test_float_and_back(self):
    image_HWC = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    x_HWC = transforms.to_float(image_HWC)
    self.assertEqual((x_HWC.min(), x_HWC.max(), x_HWC.dtype), (-1.0, 1.0, np.float32))
    np.testing.assert_array_equal(transforms.to_uint8(x_HWC), image_HWC)
    np.testing.assert_array_equal(transforms.to_uint8(np.array([-3.0, 2.0])), [0, 255])


if __name__ == "__main__":
  absltest.main()
