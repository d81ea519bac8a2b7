"""Contact sheets: look before you train."""

from collections.abc import Sequence
from typing import IO

import numpy as np
from PIL import Image


def contact_sheet(
  images: Sequence[np.ndarray], *, width: int = 1600, zoom: int | None = None, gap: int = 2
) -> Image.Image:
  """Tiles uint8 images_HWC of any sizes, left to right, on a page about `width` pixels wide.

  Args:
    images: what to show.
    width: of the page.
    zoom: whole factor by which each is enlarged; None brings small ones to about 128 pixels.
    gap: pixels between tiles.
  """
  tall, wide = max(x.shape[0] for x in images), max(x.shape[1] for x in images)
  zoom = zoom or max(1, 128 // max(tall, wide))
  tall, wide = tall * zoom + gap, wide * zoom + gap
  columns = max(1, min(len(images), width // wide))
  rows = -(-len(images) // columns)
  page = Image.new("RGB", (columns * wide + gap, rows * tall + gap), (90, 90, 90))
  for i, image in enumerate(images):
    tile = Image.fromarray(image)
    tile = tile.resize((tile.width * zoom, tile.height * zoom), Image.Resampling.NEAREST)
    page.paste(tile, (i % columns * wide + gap, i // columns * tall + gap))
  return page


def decode(png: IO[bytes]) -> np.ndarray:
  """A PNG file object to image_HWC uint8."""
  return np.asarray(Image.open(png).convert("RGB"))
