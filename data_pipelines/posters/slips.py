"""Scenes with one thing wrong: renders that miss what was asked for and look as good as those that do not.

Models make such mistakes seldom and all at once; a render makes exactly one, for nothing. A reward that is to tell
"two dragons" from "three" needs pairs that differ in nothing else, and so does a CLIP: siblings of one scene, each with
captions of its own, are the hard negatives of one another.
"""

import copy

from data_pipelines.posters import palette, splits, subjects, words, worlds
from data_pipelines.posters import scene as scene_lib

KINDS = ("subject", "count", "color", "text")
_TRIES = 100


def kinds(scene: scene_lib.Scene) -> tuple[str, ...]:
  """What can go wrong in a scene, in the order of KINDS; at least its colour."""
  text, things = scene["text"], scene["subjects"]
  possible = {
    "subject": bool(things),
    "count": len(things) > 1,
    "color": True,
    "text": text is not None,
  }
  return tuple(kind for kind in KINDS if possible[kind])


def slip(
  scene: scene_lib.Scene, kind: str, world: worlds.World, dice: scene_lib.Dice
) -> scene_lib.Scene:
  """A copy of `scene` with one thing of `kind` wrong: still of the world's own things, colours and characters."""
  wrong = copy.deepcopy(scene)
  _SLIPS[kind](wrong, world, dice)
  return wrong


def slip_in(
  split: str, scene: scene_lib.Scene, turn: int, world: worlds.World, dice: scene_lib.Dice
) -> scene_lib.Scene:
  """A slip that the split may show, by rejection: of the kind whose turn it is, else of the next.

  Only train is wide enough for it; some of its scenes have no other ground that is not held out.
  """
  possible = kinds(scene)
  for i in range(_TRIES * len(possible)):
    wrong = slip(scene, possible[(turn + i // _TRIES) % len(possible)], world, dice)
    if splits.split_of(wrong) == split:
      return wrong
  raise RuntimeError(f"{split}: no slip of {possible} in {_TRIES} tries each")


def _subject(scene: scene_lib.Scene, world: worlds.World, dice: scene_lib.Dice) -> None:
  shown = {thing["emoji"] for thing in scene["subjects"]}
  old = dice.pick(sorted(shown))
  ground = set(filter(None, (scene["background"]["color"], scene["background"]["color2"])))
  others = [subjects.lookup(name) for name in world.subjects]
  new = dice.pick([s for s in others if s.emoji not in shown and not ground & set(s.avoid)])
  for thing in scene["subjects"]:
    if thing["emoji"] == old:
      thing.update(emoji=new.emoji, name=new.en)


def _count(scene: scene_lib.Scene, world: worlds.World, dice: scene_lib.Dice) -> None:
  del world
  gone = dice.integer(0, len(scene["subjects"]) - 1)
  del scene["subjects"][gone]
  scene["count"] = len(scene["subjects"])
  scene["counterfactual"] = False  # it was of two things


def _color(scene: scene_lib.Scene, world: worlds.World, dice: scene_lib.Dice) -> None:
  ground, text = scene["background"], scene["text"]
  unfit = {color for thing in scene["subjects"] for color in subjects.lookup(thing["emoji"]).avoid}
  unfit |= {ground["color"], ground["color2"]}
  others = [color for color in world.colors if color not in unfit]
  if text is not None:  # it must stay readable, or two things are wrong
    others = [c for c in others if text["color"] in palette.readable_on((c,), world.colors)]
  ground["color"] = dice.pick(others or [c for c in world.colors if c != ground["color"]])


def _text(scene: scene_lib.Scene, world: worlds.World, dice: scene_lib.Dice) -> None:
  del world
  text = scene["text"]
  letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if text["lang"] == "en" else words.NANO_CHARS
  content, at = text["content"], dice.integer(0, len(text["content"]) - 1)
  new = dice.pick([c for c in letters if c.lower() != content[at].lower()])
  text["content"] = content[:at] + new + content[at + 1 :]


_SLIPS = dict(zip(KINDS, (_subject, _count, _color, _text), strict=True))
