"""Which split a scene belongs to: a pure function of what it shows.

Of a subject's backgrounds, of the pairs of adjacent Chinese characters and of the English words one in
seven is held out, by hash. What is left falls into train, val, bench, hard, ... by the hash of
everything its full caption can say; pixels and aesthetics do not enter, so two splits never share a
fully-named prompt. Only `train` is for generators; `judge` is for classifier B alone.
"""

import functools
import hashlib
import itertools
import json

from data_pipelines.posters import palette, subjects

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


@functools.cache
def held_out_colors(emoji: str) -> tuple[str, ...]:
  """The backgrounds on which this subject is never trained: one of the nano world's and one of the others.

  Two of fourteen is one in HELD_OUT. A hash of each pair alone would leave every third subject of the nano
  world without a held-out background, and a held-out score silent about it.
  """
  avoid = subjects.lookup(emoji).avoid
  groups = (palette.NANO, [color for color in palette.ALL if color not in palette.NANO])
  usable = ([color for color in group if color not in avoid] for group in groups)
  return tuple(min(colors, key=lambda c: hash_of("pair", emoji, c)) for colors in usable if colors)


def pair_is_held_out(emoji: str, color: str) -> bool:
  """Whether this subject is never trained on this background colour."""
  return color in held_out_colors(emoji)


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
