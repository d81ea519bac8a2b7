"""Reads one string from one zone: PP-OCRv4's recogniser on the zone trimmed to its ink, x4.

No detector and no angle classifier: the prompt names the zone, and on 64 px images a detector loses
more than the generator does. Weights and dictionary are those in the wheel of
rapidocr_onnxruntime 1.4.x.

Dimension key: H W pixels, L time steps of the recogniser, V its alphabet.
"""

import functools
import importlib.util
import os
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image

from seedream_jax import types
from seedream_jax.eval import pixels

MODEL = "ch_PP-OCRv4_rec_infer.onnx"
HEIGHT = 48  # what the recogniser was trained at
MIN_WIDTH = 320  # as RapidOCR pads
WIDTH_STEP = 64  # widths come in steps, so that a reading does not depend on its batch
UPSCALE = 4
MIN_CONTRAST = 24.0  # RGB distance from the background below which nothing is ink
MARGIN = 1  # pixels kept around the ink
SPECK = 0.01  # a piece with less than this share of the ink is noise


def fold(text: str) -> str:
  """Case, width and spaces folded: what a reader would call the same string."""
  return "".join(unicodedata.normalize("NFKC", text).casefold().split())


class Recognizer:
  """The text of lines; one thread by default, so that judging does not slow a training run."""

  def __init__(self, *, threads: int = 1, batch_size: int = 16):
    session, self._alphabet = _session(threads)
    self._run = functools.partial(session.run, None)
    self._batch_size = batch_size

  def __call__(self, lines: Sequence[np.ndarray]) -> list[str]:
    """Reads uint8 lines [H, W, 3] of any size; order in = order out."""
    groups: dict[int, list[int]] = {}
    ready = [_normalize(line) for line in lines]
    for i, line in enumerate(ready):
      groups.setdefault(line.shape[-1], []).append(i)
    texts = [""] * len(lines)
    for members in groups.values():
      for start in range(0, len(members), self._batch_size):
        chunk = members[start : start + self._batch_size]
        (probs_BLV,) = self._run({"x": np.stack([ready[i] for i in chunk])})
        for i, ids_L in zip(chunk, probs_BLV.argmax(-1)):
          texts[i] = self._decode(ids_L)
    return texts

  def _decode(self, ids_L: np.ndarray) -> str:
    """Greedy CTC: repeats merged, blank (id 0) dropped."""
    keep_L = (ids_L != 0) & np.concatenate(([True], ids_L[1:] != ids_L[:-1]))
    return "".join(self._alphabet[i] for i in ids_L[keep_L])


def read(
  images: Sequence[np.ndarray], boxes: Sequence[Sequence[int]], recognizer: Recognizer
) -> list[str]:
  """The folded text in each image's zone [y0, x0, y1, x1); an empty zone reads ''."""
  lines, owners = [], []
  for i, (image, box) in enumerate(zip(images, boxes)):
    line = trim(np.asarray(image), box)
    if line is not None:
      lines.append(enlarge(line))
      owners.append(i)
  texts = [""] * len(images)
  for i, text in zip(owners, recognizer(lines)):
    texts[i] = fold(text)
  return texts


def trim(image_HW3: np.ndarray, box: Sequence[int]) -> np.ndarray | None:
  """The zone cut to its ink, or None when there is none."""
  ink_HW = ink(image_HW3, box)
  if not ink_HW.any():
    return None
  (y0, y1), (x0, x1) = (_extent(ink_HW.any(axis)) for axis in (1, 0))
  return image_HW3[max(y0 - MARGIN, 0) : y1 + MARGIN, max(x0 - MARGIN, 0) : x1 + MARGIN]


def ink(image_HW3: np.ndarray, box: Sequence[int]) -> np.ndarray:
  """True where the zone holds ink: pixels far from the background, in pieces that belong there.

  Left out: specks, a frame along the image's edge, and pieces that lie mostly outside the zone, as
  a subject does that reaches over the zone's border.
  """
  y0, x0, y1, x1 = box
  distance_HW = np.sqrt(
    np.square(image_HW3.astype(np.float32) - pixels.background(image_HW3)).sum(-1)
  )
  mask_HW = distance_HW > _threshold(distance_HW[y0:y1, x0:x1])
  _clear_frame(mask_HW)
  labels_HW = pixels.components(mask_HW)
  whole = np.bincount(labels_HW.reshape(-1))
  inside = np.bincount(labels_HW[y0:y1, x0:x1].reshape(-1), minlength=len(whole))
  inside[0] = 0
  keep = (2 * inside >= whole) & (inside >= max(SPECK * inside.sum(), 3))
  zone_HW = np.zeros_like(mask_HW)
  zone_HW[y0:y1, x0:x1] = keep[labels_HW[y0:y1, x0:x1]]
  return zone_HW


def far(distance_HW: np.ndarray) -> np.ndarray:
  """True where a distance from the background is that of ink, by Otsu's threshold.

  Otsu, so that faint texture is not ink where there are strong strokes.
  """
  return distance_HW > _threshold(distance_HW)


def _threshold(distance_HW: np.ndarray) -> float:
  return max(MIN_CONTRAST, pixels.otsu(distance_HW))


def _clear_frame(mask_HW: np.ndarray, depth: float = 0.03, filled: float = 0.7) -> None:
  """Clears rows and columns near the image's edge that are nearly all ink."""
  for mask in (mask_HW, mask_HW[::-1], mask_HW.T, mask_HW.T[::-1]):
    edge = mask[: max(round(depth * len(mask)), 1)]
    edge[edge.mean(1) > filled] = False


def enlarge(line_HW3: np.ndarray, factor: int = UPSCALE) -> np.ndarray:
  """Bicubic enlargement."""
  height, width = line_HW3.shape[:2]
  return _resize(line_HW3, width * factor, height * factor)


@functools.cache
def _session(threads: int) -> tuple["onnxruntime.InferenceSession", list[str]]:  # noqa: F821
  spec = importlib.util.find_spec("rapidocr_onnxruntime")
  if spec is None:
    raise types.UserError(
      "text judging needs rapidocr_onnxruntime 1.4.x: pip install 'seedream_jax[ocr]'"
    )
  import onnxruntime  # an extra; the judges of subject and colour work without it

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = options.inter_op_num_threads = threads
  options.log_severity_level = 3
  path = os.path.join(spec.submodule_search_locations[0], "models", MODEL)
  session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
  alphabet = session.get_modelmeta().custom_metadata_map["character"].splitlines()
  return session, ["", *alphabet, " "]


def _normalize(line_HW3: np.ndarray) -> np.ndarray:
  """PaddleOCR's input: height 48, BGR, [-1, 1], zeros to the right."""
  height, width = line_HW3.shape[:2]
  scaled = max(int(np.ceil(HEIGHT * width / height)), 1)
  padded = max(MIN_WIDTH, -(-scaled // WIDTH_STEP) * WIDTH_STEP)
  resized = _resize(line_HW3, scaled, HEIGHT, Image.Resampling.BILINEAR)
  out = np.zeros((3, HEIGHT, padded), np.float32)
  out[:, :, :scaled] = resized[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1.0
  return out


def _resize(
  image_HW3: np.ndarray, width: int, height: int, how: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
  return np.asarray(Image.fromarray(np.ascontiguousarray(image_HW3)).resize((width, height), how))


def _extent(line: np.ndarray) -> tuple[int, int]:
  (where,) = np.nonzero(line)
  return int(where[0]), int(where[-1]) + 1
