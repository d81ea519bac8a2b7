"""Measures what the judges score on ground truth and writes it where the library reads it.

  python -m data_pipelines.ceilings --world nano

renders every suite's scenes, judges them, and writes seedream_jax/eval/worlds/NAME.json: the
world's subjects and colours, the ceiling of every metric by suite, and the fonts it all depends on.
A suite's own prompts carry no aesthetics; "world" is `num` free draws of the whole grammar,
aesthetics included.
"""

import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from data_pipelines.posters import fonts as fonts_lib
from data_pipelines.posters import prompts, render, worlds
from data_pipelines.posters import scene as scene_lib
from seedream_jax.eval import judges as judges_lib
from seedream_jax.eval import suites
from seedream_jax.run import cli

_FOLDER = pathlib.Path(suites.__file__).parent / "worlds"
_WORLD = flags.DEFINE_string("world", "nano", "A preset: nano, small, base or full.")
_OUT = flags.DEFINE_string("out", "", "File to write; default seedream_jax/eval/worlds/WORLD.json.")
_FONTS = flags.DEFINE_string("fonts", "", "Folder of the font files; default: fontconfig.")
_NUM = flags.DEFINE_integer("num", 1024, "Free draws of the grammar.", lower_bound=1)


def measure(name: str, fonts: fonts_lib.FontSet, num: int) -> dict[str, Any]:
  """Everything a world's file holds."""
  world = worlds.make_world(name)
  sizes = (
    math.floor(world.subject_px[0] * 0.6),
    world.subject_px[1] + 2,
  )  # three in a row are drawn smaller
  judges = judges_lib.Judges(world.subjects, world.colors, sizes=sizes)
  renderer = render.shared(fonts)
  ceilings = {}
  for suite in suites.SUITES:
    asked = [
      p for p in prompts.make(world, suite, fonts) if p["lang"] == "zh"
    ]  # one picture a scene
    ceilings[suite] = _rounded([p["scene"] for p in asked], asked, renderer, judges)
    logging.info("%s: %d scenes", suite, len(asked))
  size = tuple(int(v) for v in world.sizes[0].split("x"))
  dice = (scene_lib.Dice(prompts.SEED, "ceilings", name, i) for i in range(num))
  scenes = [scene_lib.sample(d, world, size) for d in dice]
  asked = [{"id": f"{i}-zh", "lang": "zh", "scene": s} for i, s in enumerate(scenes)]
  ceilings["world"] = _rounded(scenes, asked, renderer, judges)
  return {
    "world": name,
    "subjects": list(world.subjects),
    "colors": list(world.colors),
    "sizes": list(sizes),
    "ceilings": ceilings,
    "provenance": fonts.provenance(),
  }


def _rounded(
  scenes: Sequence[scene_lib.Scene],
  asked: Sequence[dict[str, Any]],
  renderer: render.Renderer,
  judges: judges_lib.Judges,
) -> dict[str, dict[str, float]]:
  """Ceilings of rendered scenes; a picture has no prompt language, so those are left out."""
  images, exact = zip(*(renderer.render(scene) for scene in scenes))
  got = suites.measure_ceilings(images, [{**p, "scene": s} for p, s in zip(asked, exact)], judges)
  return {
    metric: {"value": round(x["value"], 4), "n": x["n"]}
    for metric, x in got.items()
    if metric.startswith(("R_", "availability")) or not metric.endswith("/zh")
  }


def main(argv: Sequence[str]) -> None:
  """Writes the file."""
  del argv
  found = measure(_WORLD.value, fonts_lib.find(_FONTS.value), _NUM.value)
  path = pathlib.Path(_OUT.value or _FOLDER / f"{_WORLD.value}.json")
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
  low = {
    f"{suite}:{metric}": x["value"]
    for suite, table in found["ceilings"].items()
    for metric, x in table.items()
    if x["value"] < suites.MIN_CEILING
  }
  print(f"{path}: below {suites.MIN_CEILING}: {low or 'none'}")


if __name__ == "__main__":
  cli.run(main)
