"""What an image shows against what its prompt asked: text, colour; and the rule that a judge must earn trust.

Judges are never a reward and never a rater: no stage imports this file. A judge is as good as its ceiling, its
score on ground truth; below `MIN_CEILING` a suite refuses to print it. Text metrics follow Seedream 2.0
(arXiv 2503.07703), Sec. 5: R_a = 1 - N_e/N, R_h = N_c/N, availability.

Dimension key: H W pixels.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

MIN_CEILING = 0.97

# Named colours of the posters and how they are drawn; drawn colours jitter around these.
PALETTE: dict[str, tuple[int, int, int]] = {}


class TextScore(NamedTuple):
  """Counts for one string; metrics are ratios of their sums."""

  target: int  # N, characters asked for
  errors: int  # N_e, least edits that turn the reading into the target; more than N when text was inserted
  correct: int  # N_c, target characters in place in the best alignment
  exact: bool


def score_text(target: str, reading: str) -> TextScore:
  """Compares folded strings."""
  errors, correct = align(target, reading)
  return TextScore(len(target), errors, correct, target == reading)


def align(target: str, reading: str) -> tuple[int, int]:
  """(edit distance, characters matched): of all alignments with the fewest edits, one with the most matches."""
  row = [(j, 0) for j in range(len(reading) + 1)]  # (edits, -matches) from target[:i] to reading[:j]
  for i, want in enumerate(target, 1):
    diagonal, row[0] = row[0], (i, 0)
    for j, got in enumerate(reading, 1):
      edits, matches = diagonal
      keep = (edits, matches - 1) if want == got else (edits + 1, matches)
      diagonal, row[j] = row[j], min(keep, _add(row[j]), _add(row[j - 1]))
  edits, matches = row[-1]
  return edits, -matches


def _add(cell: tuple[int, int]) -> tuple[int, int]:
  return cell[0] + 1, cell[1]


def background_color(image_HW3: np.ndarray, taken_HW: np.ndarray | None = None) -> np.ndarray:
  """The image's background, as the median of its rim and of what no subject covers.

  Args:
    image_HW3: uint8.
    taken_HW: True where a detected subject stands.
  """
  height, width = image_HW3.shape[:2]
  use_HW = np.ones((height, width), bool) if taken_HW is None else ~taken_HW
  if not use_HW.any():
    use_HW[...] = True
  pixels = image_HW3[use_HW].astype(np.float32)
  cells = (pixels / 32).astype(np.int32) @ np.array([64, 8, 1])
  fullest = np.bincount(cells, minlength=512).argmax()
  return np.median(pixels[cells == fullest], axis=0)
