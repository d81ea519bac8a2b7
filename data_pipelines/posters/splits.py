"""Which split a scene belongs to: a pure function of what it shows.

A subject x background pair, a pair of adjacent Chinese characters and an English word are each held
out one time in seven, by hash. What is left falls into train, val, bench, hard, ... by the hash of
everything its full caption can say; pixels and aesthetics do not enter, so two splits never share a
fully-named prompt. Only `train` is for generators; `judge` is for classifier B alone.
"""

import functools
import hashlib
import itertools
import json

HELD_OUT = 7  # one in seven
# Percent of the hash range; the rest is train.
_RANGES = {"val": 2, "bench": 2, "hard": 2, "text": 2, "preference": 2, "refl": 2, "judge": 10}
# A record's id holds its split's place here: append only.
NAMES = ("train", "val", "bench", "hard", "text", "preference", "refl", "heldout", "judge")
MAX_RECORDS = 2**27  # ids are uint32 in a batch: split index, then 27 bits of record index


@functools.lru_cache(1 << 18)
def hash_of(*parts: str) -> int:
  """A 64-bit hash of strings, the same on every machine."""
  return int.from_bytes(hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest(), "big")


def pair_is_held_out(emoji: str, color: str) -> bool:
  """Whether this subject is never trained on this background colour."""
  return hash_of("pair", emoji, color) % HELD_OUT == 0


def text_is_held_out(content: str, lang: str) -> bool:
  """Whether the string holds a held-out character pair (zh) or word (en)."""
  if lang == "en":
    return any(hash_of("en", word.upper()) % HELD_OUT == 0 for word in content.split())
  return any(hash_of("zh", a + b) % HELD_OUT == 0 for a, b in itertools.pairwise(content))


def held_out(scene: dict) -> bool:
  """Whether any part of the scene is held out."""
  background, text = scene["background"], scene["text"]
  colors = [c for c in (background["color"], background["color2"]) if c]
  if any(pair_is_held_out(s["emoji"], c) for s in scene["subjects"] for c in colors):
    return True
  return text is not None and text_is_held_out(text["content"], text["lang"])


def content_key(scene: dict) -> str:
  """Everything a fully-named caption may say, canonically."""
  background, text = scene["background"], scene["text"]
  said = [
    [background["kind"], background["color"], background["color2"]],
    sorted([s["emoji"], s["place"], s["scale"]] for s in scene["subjects"]),
    text and [text["content"], text["place"], text["color"], text["face"], text["direction"]],
    scene["style"],
    scene["counterfactual"],
  ]
  return json.dumps(said, ensure_ascii=False)


def split_of(scene: dict) -> str:
  """The only split that may show this scene."""
  if held_out(scene):
    return "heldout"
  at = hash_of.__wrapped__("split", content_key(scene)) % 100
  for name, width in _RANGES.items():
    if at < width:
      return name
    at -= width
  return "train"


def record_id(split: str, index: int) -> int:
  """A dataset-wide id below 2**32."""
  return NAMES.index(split) * MAX_RECORDS + index
