"""Frozen prompt sets: fully-named prompts with the scene they describe, disjoint from training by
hash.

Each suite draws its scenes from its own split (see splits.py), so no two suites share a prompt.
`bench` has eight categories; `hard` is where a base model should score between 30% and 80% of the
judge's ceiling.
"""

import difflib
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from data_pipelines.posters import captions, render, splits, subjects, words, worlds
from data_pipelines.posters import fonts as fonts_lib
from data_pipelines.posters import scene as scene_lib
from seedream_jax import types

Prompt = dict[str, Any]  # id, prompt, lang, category, scene
_Test = Callable[[scene_lib.Scene], bool]

SEED = 2502  # fixed before any training; never changes

SUITES = ("bench", "heldout", "hard", "val", "text", "preference", "refl")
SCENES = 240  # per suite; each is prompted in Chinese and in English
_ALL_AXES = dict.fromkeys(worlds.AXES, 1)


def _plain(scene: scene_lib.Scene) -> bool:
  return scene["style"] == "plain"


def _is_culture(scene: scene_lib.Scene) -> bool:
  said = scene["text"] is not None and scene["text"]["content"] in words.CULTURE_WORDS
  return said or any(s["emoji"] in subjects.CULTURE for s in scene["subjects"])


def _is_alike(scene: scene_lib.Scene) -> bool:
  return len({s["emoji"] for s in scene["subjects"]}) == 1


def _few_shot(scene: scene_lib.Scene) -> bool:
  return scene["text"] is not None and bool(set(scene["text"]["content"]) & set(words.FEW_SHOT))


_NO_TEXT = {"text_rate": 0.0, "style_rate": 0.0}
_MANY = {**_NO_TEXT, "counts": (0.0, 0.5, 0.5)}
_ONE = {**_NO_TEXT, "counts": (1.0, 0.0, 0.0)}

# Category: (rates that make it likely, what must hold).
_BENCH: dict[str, tuple[dict[str, Any], _Test]] = {
  "subject": (_ONE, lambda s: s["count"] == 1),
  "count": (
    {**_MANY, "same_rate": 1.0, "counterfactual_rate": 0.0},
    lambda s: s["count"] > 1 and _is_alike(s),
  ),
  "color": (
    {"text_rate": 1.0, "bare_text_rate": 0.0, "style_rate": 0.0},
    lambda s: s["text"] is not None,
  ),
  "place": (
    _MANY | {"same_rate": 0.0, "counterfactual_rate": 0.0},
    lambda s: s["count"] > 1 and not _is_alike(s),
  ),
  "text": ({"text_rate": 1.0, "style_rate": 0.0}, lambda s: s["text"] is not None),
  "style": ({"style_rate": 1.0}, lambda s: not _plain(s) and s["count"] > 0),
  "culture": ({"style_rate": 0.0}, _is_culture),
  "counterfactual": ({**_MANY, "counterfactual_rate": 1.0}, lambda s: s["counterfactual"]),
}


def _hard(world: worlds.World) -> dict[str, tuple[dict[str, Any], _Test]]:
  low = {"zh_px": (world.zh_px[0],) * 2, "en_px": (world.en_px[0],) * 2}  # small text
  return {
    "count": (
      {**_MANY, "same_rate": 1.0, "counts": (0.0, 0.3, 0.7), "counterfactual_rate": 0.0},
      _is_alike,
    ),
    "swap": ({**_MANY, "same_rate": 0.0, "counterfactual_rate": 0.0}, lambda s: not _is_alike(s)),
    "small_text": (
      {"text_rate": 1.0, "bare_text_rate": 0.0, "random_text_rate": 1.0, **low},
      lambda s: s["count"] > 0,
    ),
    "few_shot": (
      {"text_rate": 1.0, "zh_rate": 1.0, "few_shot_rate": 1.0, "rare_rate": 0.0},
      _few_shot,
    ),
    "counterfactual": ({**_MANY, "counterfactual_rate": 1.0}, lambda s: s["counterfactual"]),
  }


def _categories(world: worlds.World, suite: str) -> dict[str, tuple[dict[str, Any], _Test]]:
  text = {"text_rate": 1.0, "style_rate": 0.0}
  if suite == "bench":
    return _BENCH
  if suite == "hard":
    return _hard(world)
  if suite == "text":
    return {
      "zh": ({**text, "zh_rate": 1.0}, lambda s: s["text"]["lang"] == "zh"),
      "en": ({**text, "zh_rate": 0.0}, lambda s: s["text"]["lang"] == "en"),
    }
  if suite == "heldout":
    return {
      "pair": (_ONE, lambda s: s["text"] is None),
      "zh": ({**text, "zh_rate": 1.0, "bare_text_rate": 1.0}, lambda s: s["text"]["lang"] == "zh"),
      "en": ({**text, "zh_rate": 0.0, "bare_text_rate": 1.0}, lambda s: s["text"]["lang"] == "en"),
    }
  return {"any": ({}, lambda s: True)}


def make(
  world: worlds.World,
  suite: str,
  fonts: fonts_lib.FontSet | None = None,
  *,
  size: tuple[int, int] | None = None,
) -> list[Prompt]:
  """The prompts of one suite: every scene in Chinese, then in English.

  Args:
    world: the preset.
    suite: one of SUITES.
    fonts: with fonts, scenes carry exact text boxes and centres; without, boxes are None.
    size: (height, width); default the world's first.

  Raises:
    types.UserError: naming the nearest suite.
  """
  if suite not in SUITES:
    near = difflib.get_close_matches(suite, SUITES, 1) or ["bench"]
    raise types.UserError(
      f"suite: unknown {suite!r}; did you mean {near[0]!r}? expected one of {', '.join(SUITES)}"
    )
  if size is None:
    size = tuple(int(v) for v in world.sizes[0].split("x"))
  renderer = None if fonts is None else render.Renderer(fonts)
  out = []
  for i, (category, scene) in enumerate(_scenes(world, suite, size)):
    if renderer is not None:
      scene = renderer.measure(scene)
    for lang in ("zh", "en"):
      out.append(
        {
          "id": f"{world.name}-{suite}-{i:04d}-{lang}",
          "prompt": captions.full(scene, lang, len(world.faces) > 1)
          + (captions.axis_words(_ALL_AXES, lang) if world.say_axes else ""),
          "lang": lang,
          "category": category,
          "scene": scene,
        }
      )
  return out


def _scenes(
  world: worlds.World, suite: str, size: tuple[int, int]
) -> Iterator[tuple[str, scene_lib.Scene]]:
  """(category, scene), no two of one content, without aesthetics."""
  seen = set()
  for i in range(SCENES):
    dice = scene_lib.Dice(SEED, "prompts", world.name, suite, i)
    name, drawn = _draws(world.tilted(axis_rate=0.0), suite, size, i, dice)
    scene = next(s for s in drawn if splits.content_key(s) not in seen)
    seen.add(splits.content_key(scene))
    yield name, scene


def _draws(
  world: worlds.World, suite: str, size: tuple[int, int], i: int, dice: scene_lib.Dice
) -> tuple[str, Iterator[scene_lib.Scene]]:
  """The category of a suite's scene `i`, and scenes of it without end."""
  categories = _categories(world, suite)
  name = list(categories)[i % len(categories)]
  rates, test = categories[name]
  if rates is _ONE:  # each subject in turn, so that a score speaks of all of them
    subject = world.subjects[i // len(categories) % len(world.subjects)]
    colors = tuple(c for c in world.colors if c not in subjects.lookup(subject).avoid)
    rates = {**rates, "subjects": (subject,), "colors": colors}
  tilted = world.tilted(**rates)
  endless = (scene_lib.sample_in(suite, dice, tilted, size) for _ in itertools.count())
  return name, filter(test, endless)


def reference(
  world: worlds.World, suite: str, size: tuple[int, int], num: int
) -> Iterator[scene_lib.Scene]:
  """`num` other scenes as a suite's are drawn, with the world's aesthetics; contents may repeat."""
  for i in range(num):
    dice = scene_lib.Dice(SEED, "reference", world.name, suite, i)
    yield next(_draws(world, suite, size, i, dice)[1])


def write(
  world: worlds.World,
  suite: str,
  directory: str,
  fonts: fonts_lib.FontSet | None = None,
  size: tuple[int, int] | None = None,
) -> str:
  """Writes one suite as JSON lines, for pictures of `size` (default: as `make`); returns the path."""
  if not directory:
    raise types.UserError("--out: not given; expected the folder to write prompt files to")
  folder = pathlib.Path(directory)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"{world.name}_{suite}.jsonl"
  lines = [json.dumps(p, ensure_ascii=False) for p in make(world, suite, fonts, size=size)]
  path.write_text("\n".join(lines) + "\n")
  return str(path)
