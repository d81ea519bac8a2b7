"""Candidate sets: several pictures of one prompt, each with where it came from.

A record has the schema's fields with content "images", and as extra fields the prompt's id, its tags
and one origin a picture, as JSON: {"model", "seed", "damage"}.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data_pipelines.preferences import asked
from seedream_jax import types
from seedream_jax.data import buckets, records, transforms

DATASET = "candidates"
SPLIT = "train"  # a data set of candidates has this one
RENDERS = TRUTH, DAMAGED, SLIP = (
  "truth",
  "damaged",
  "slip",
)  # models that are none: renders of the scene
_EXTRA = ("prompt_id", "tags", "origins")


@dataclasses.dataclass(frozen=True)
class CandidateSet:
  """One record, its pictures still encoded."""

  row: int
  prompt: asked.Prompt
  images: tuple[bytes, ...]
  origins: tuple[dict[str, Any], ...]  # model, seed, damage ("" where none)

  def decode(self, k: int) -> np.ndarray:
    """uint8 image_HWC of picture `k`."""
    return transforms.decode(self.images[k])

  def digest(self, k: int) -> str:
    """The first 16 hex digits of the picture's sha256: what a pair remembers it by."""
    return hashlib.sha256(self.images[k]).hexdigest()[:16]


def extra() -> dict[str, Any]:
  """TFDS features beside the shared schema's."""
  return {name: tfds.features.Text() for name in _EXTRA}


def schema() -> tfds.features.FeaturesDict:
  """The TFDS schema of `record`."""
  return records.features("images", extra=extra())


def record(
  prompt: asked.Prompt, images: list[np.ndarray], origins: list[dict[str, Any]]
) -> dict[str, Any]:
  """One record of pictures of one size."""
  digest = hashlib.sha256(prompt.id.encode()).digest()
  kind = "textual" if asked.TEXT in prompt.tags else "short"
  return {
    "id": int.from_bytes(digest[:8], "little") >> 2,
    "height": prompt.size[0],
    "width": prompt.size[1],
    "captions": [{"text": prompt.text, "lang": prompt.lang, "kind": kind, "weight": 1.0}],
    "scene": "" if prompt.scene is None else json.dumps(prompt.scene, ensure_ascii=False),
    "bucket": buckets.name(prompt.size),
    "images": [transforms.encode_png(image_HWC).getvalue() for image_HWC in images],
    "prompt_id": prompt.id,
    "tags": json.dumps(prompt.tags),
    "origins": json.dumps(origins, ensure_ascii=False),
  }


def open_sets(spec: str, flag: str = "--data") -> records.Split:
  """The split of candidate sets at "path" or "path:split".

  Raises:
    types.UserError: when there is none, or it holds something else.
  """
  split = records.open_split(spec)
  found = tfds.features.FeaturesDict.from_config(split.directory)
  if split.content != "images" or not set(_EXTRA) <= set(found):
    raise types.UserError(
      f"{flag} {spec}: holds no candidate sets; expected what "
      "python -m data_pipelines.preferences sample writes"
    )
  return split


class Reader:
  """Candidate sets by row."""

  def __init__(self, split: records.Split):
    self._files = split.source()
    keys = ("height", "width", "captions", "scene", "images", *_EXTRA)
    self._parse, self._num = split.parser(*keys, extra=extra()), len(split)

  def __len__(self) -> int:
    return self._num

  def __iter__(self) -> Iterator[CandidateSet]:
    return (self[row] for row in range(self._num))

  def __getitem__(self, row: int) -> CandidateSet:
    got = self._parse(self._files[row])
    prompt = asked.Prompt(
      got["prompt_id"].decode(),
      got["captions"]["text"][0].decode(),
      got["captions"]["lang"][0].decode(),
      (int(got["height"]), int(got["width"])),
      json.loads(got["scene"]) if got["scene"] else None,
    )
    origins = tuple(json.loads(got["origins"]))
    return CandidateSet(row, prompt, tuple(got["images"]), origins)
