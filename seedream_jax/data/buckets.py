"""Buckets: the finite table of picture sizes and text lengths that reach the compiler.

A picture bucket is (height, width) in pixels. Each area side s has sizes of about s*s pixels, with
sides a multiple of a step, from 1:2 to 2:1. The paper trains on mixed aspect ratios (Sec. 4.1) and
does not list them: # ours; undisclosed.
"""

import functools
import math
import re
from collections.abc import Sequence

from seedream_jax import types

AREAS = (64, 128, 256, 512, 768, 1024)  # side of the square picture of each area
TEXT = (16, 32, 64, 256)  # LLM tokens, the end token included
MAX_RATIO = 2.0  # longest allowed side over the shortest, within the table
_MULTIPLE = 16  # VAE factor 8 times patch 2
_SLACK = 1.3  # how far beyond MAX_RATIO a picture's own ratio may lie and still be cropped

Size = tuple[int, int]


@functools.cache
def table(area: int) -> tuple[Size, ...]:
  """All sizes of one area, by height; `area` is the side of its square.

  Raises:
    types.UserError: when the area is not in the table.
  """
  if area not in AREAS:
    raise types.UserError(f"area {area}: expected one of {', '.join(map(str, AREAS))}")
  step = max(_MULTIPLE, area // 16)
  sides = range(step, 2 * area + 1, step)
  sizes = set()
  for short in sides:
    long = round(area * area / short / step) * step
    if short <= area <= long and long <= MAX_RATIO * short:
      sizes |= {(short, long), (long, short)}
  return tuple(sorted(sizes))


def assign(height: int, width: int, area: int) -> Size:
  """The bucket of `area` whose aspect ratio is nearest.

  Raises:
    types.UserError: when the picture's ratio, or the area, is beyond the table.
  """
  if height < 1 or width < 1:
    raise types.UserError(f"picture of {height}x{width}: expected positive sides")
  ratio = max(height, width) / min(height, width)
  if ratio > (limit := MAX_RATIO * _SLACK):
    raise types.UserError(
      f"picture of {height}x{width}: ratio {ratio:.2f} is out of the bucket table, "
      f"expected at most {limit:.2f}"
    )
  want = math.log(height / width)
  return min(table(area), key=lambda size: (abs(math.log(size[0] / size[1]) - want), size))


def name(size: Size) -> str:
  """The text "HxW", as records store it."""
  return f"{size[0]}x{size[1]}"


def parse(text: str) -> Size:
  """(height, width) of "HxW"; both must be positive multiples of 16 (VAE factor times patch)."""
  match = re.fullmatch(r"(\d+)x(\d+)", text)
  size = (int(match[1]), int(match[2])) if match else (0, 0)
  if not all(side > 0 and side % _MULTIPLE == 0 for side in size):
    raise types.UserError(
      f"bucket {text!r}: expected HxW with sides a multiple of {_MULTIPLE}, such as 64x64"
    )
  return size


def text_bucket(length: int, text_buckets: Sequence[int] = TEXT) -> int:
  """The smallest text bucket that holds `length` tokens; longer text is a `types.UserError`."""
  for bucket in sorted(text_buckets):
    if length <= bucket:
      return bucket
  raise types.UserError(
    f"prompt of {length} tokens: the largest text bucket holds {max(text_buckets)}"
  )
