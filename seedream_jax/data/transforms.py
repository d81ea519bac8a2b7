"""Transforms: bytes to pictures, pictures to buckets; numpy and Pillow only.

H W height, width in pixels, C channels. No random flip and no random crop: both would break the
text a caption quotes.
"""

import io

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

CROP = "resize_cover_center"  # the one crop policy; its name is written into provenance


def decode(encoded: bytes) -> np.ndarray:
  """uint8 RGB image_HWC of any picture Pillow reads.

  Transparency is laid on white and the EXIF orientation obeyed.

  Raises:
    ValueError: when the bytes are not a whole picture.
  """
  try:
    with Image.open(io.BytesIO(encoded)) as picture:
      picture.load()
      picture = ImageOps.exif_transpose(picture)
      if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
      return np.asarray(picture.convert("RGB"))
  except UnidentifiedImageError:  # its own message names a memory address
    raise ValueError("not a picture: unknown format") from None
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:  # Pillow's own
    raise ValueError(f"not a picture: {e}") from e


def encode_png(image_HWC: np.ndarray) -> io.BytesIO:
  """A PNG as the file object a TFDS Image feature takes."""
  out = io.BytesIO()
  Image.fromarray(image_HWC).save(out, "PNG", compress_level=6)
  out.seek(0)
  return out


def fit(image_HWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Scales the picture to cover `size` and cuts the centre; one of that size passes untouched."""
  height, width = image_HWC.shape[:2]
  if (height, width) == tuple(size):
    return image_HWC
  scale = max(size[0] / height, size[1] / width)
  tall, wide = max(size[0], round(height * scale)), max(size[1], round(width * scale))
  picture = Image.fromarray(image_HWC).resize((wide, tall), Image.Resampling.LANCZOS)
  top, left = (tall - size[0]) // 2, (wide - size[1]) // 2
  return np.asarray(picture.crop((left, top, left + size[1], top + size[0])))


def to_float(image_HWC: np.ndarray) -> np.ndarray:
  """uint8 to float32 in [-1, 1]; any leading dims."""
  return image_HWC.astype(np.float32) / 127.5 - 1.0


def to_uint8(image_HWC: np.ndarray) -> np.ndarray:
  """float in [-1, 1] to uint8, clipped and rounded; any leading dims."""
  scaled = (np.asarray(image_HWC, np.float32) + 1.0) * 127.5
  return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
