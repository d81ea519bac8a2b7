"""What candidates are drawn of: prompts of a file, or captions of a posters split; never of a suite.

A line of the file is {"prompt": ..., "id": ..., "lang": ..., "scene": ...}; all but the prompt may be
left out, but what has no scene can be rated only for what needs none. The files that
`data_pipelines.posters --prompts preference` writes are of this form.
"""

import dataclasses
import difflib
import hashlib
import json
import os
from typing import Any

from data_pipelines.posters import captions, poster, splits, worlds
from data_pipelines.posters import fonts as fonts_lib
from data_pipelines.posters import scene as scene_lib
from seedream_jax import types
from seedream_jax.data import records, tokenizers

TEXT = "text"  # the tag of a prompt that asks for rendered text
ALLOWED = ("preference", "refl", "train")  # a scene of any other split is for judging
_SEED = "preferences"  # of the caption drawn


@dataclasses.dataclass(frozen=True)
class Prompt:
  """One prompt; hashable by its id alone."""

  id: str
  text: str
  lang: str
  size: tuple[int, int]  # height, width of the pictures
  scene: dict[str, Any] | None = dataclasses.field(default=None, hash=False)

  @property
  def tags(self) -> tuple[str, ...]:
    """(TEXT,) where the prompt quotes what the picture must spell."""
    return (TEXT,) if tokenizers.find_quoted(self.text) else ()


def language(text: str) -> str:
  """The language of a prompt, by the script of what it does not quote, or of all where that is none."""
  rest = text
  for span in tokenizers.find_quoted(text):
    rest = rest.replace(span, "", 1)
  if any(map(_is_han, rest)):
    return "zh"
  return "zh" if any(map(_is_han, text)) and not any(c.isalpha() for c in rest) else "en"


def _is_han(char: str) -> bool:
  return "\u4e00" <= char <= "\u9fff"


def read(path: str, size: tuple[int, int], num: int = 0) -> list[Prompt]:
  """The prompts of a JSONL file, the first `num` where given; `size` is of those without a scene.

  Raises:
    types.UserError: naming the line that is no prompt, or is of a split kept for judging.
  """
  if not os.path.isfile(path):
    raise types.UserError(
      f"--prompts {path}: no such file; write one with python -m data_pipelines.posters "
      "--prompts preference"
    )
  out: dict[str, Prompt] = {}
  with open(path, "rb") as f:
    for number, line in enumerate(f, 1):
      try:
        if not (said := line.decode("utf-8-sig").strip()):
          continue
        prompt = _parse(json.loads(said), size)
      except (ValueError, TypeError) as e:
        raise types.UserError(f"--prompts {path}: line {number}: {e}") from e
      if prompt.id in out:
        raise types.UserError(f"--prompts {path}: line {number}: id {prompt.id!r} occurs again")
      out[prompt.id] = prompt
      if len(out) == num:
        break
  if not out:
    raise types.UserError(f"--prompts {path}: no prompts")
  return list(out.values())


def _parse(given: Any, size: tuple[int, int]) -> Prompt:
  if not isinstance(given, dict) or not isinstance(given.get("prompt"), str):
    raise ValueError('expected an object with "prompt"')
  text, scene = given["prompt"].strip(), given.get("scene")
  if not text:
    raise ValueError("prompt without text")
  ident = given.get("id") or hashlib.sha256(text.encode()).hexdigest()[:16]
  lang = given.get("lang") or language(text)
  if lang not in records.LANGS:
    raise ValueError(f"lang {lang!r}, expected one of {', '.join(records.LANGS)}")
  if scene is None:
    return Prompt(str(ident), text, lang, size)
  try:
    split, size = splits.split_of(scene), (int(scene["size"][0]), int(scene["size"][1]))
  except (KeyError, IndexError, TypeError) as e:
    raise ValueError(f"scene lacks {e}; expected a posters' scene tree") from e
  if split not in ALLOWED:
    raise ValueError(
      f"prompt {ident} shows a scene of split {split!r}, which is kept for judging; "
      f"expected scenes of {', '.join(ALLOWED)}"
    )
  return Prompt(str(ident), text, lang, size, scene)


def draw(
  world: str, split: str, num: int, size: tuple[int, int], seed: int, fonts: fonts_lib.FontSet
) -> list[Prompt]:
  """`num` captions of a posters split, one a scene, kinds and languages alike.

  Raises:
    types.UserError: when the split is unknown or kept for judging.
  """
  if split not in ALLOWED:
    near = difflib.get_close_matches(split, ALLOWED, 1) or ALLOWED[:1]
    why = "is kept for judging" if split in splits.NAMES else "is unknown"
    raise types.UserError(
      f"--split {split}: {why}; expected one of {', '.join(ALLOWED)}; nearest: {near[0]}"
    )
  rules = worlds.make_world(world)
  out = []
  for i in range(num):
    dice = scene_lib.Dice(seed, _SEED, world, split, i)
    scene = scene_lib.sample_in(split, dice, rules, size)
    said = dice.pick(captions.all_of(scene, dice, rules))
    ident = f"{world}-{split}-{seed}-{i:06d}-{said['lang']}"
    out.append(Prompt(ident, said["text"], said["lang"], size, scene))
  renderer = poster.render.shared(fonts)
  return [dataclasses.replace(p, scene=renderer.measure(p.scene)) for p in out]
