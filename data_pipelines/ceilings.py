"""Measures what the judges score on ground truth and writes it where the library reads it.

  python -m data_pipelines.ceilings --world nano
  python -m data_pipelines.ceilings --world nano --classifier weights/nano/judge

renders every suite's scenes, judges them, and writes seedream_jax/eval/worlds/NAME.json: the
world's subjects and colours, the ceiling of every metric by suite, and the fonts it all depends on.
A suite's own prompts carry no aesthetics; "world" is `num` free draws of the whole grammar,
aesthetics included. The aesthetics judge asks what no prompt says: its ceiling is how often it sees
the labels of the suite's scenes, each label drawn for half of them. With --classifier it measures
classifier B instead, and writes its ceilings and what its FD-judge needs (20,000 renders of other
held-out scenes) beside its weights.
"""

import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tqdm
from absl import flags, logging

from data_pipelines.posters import fonts as fonts_lib
from data_pipelines.posters import prompts, render, worlds
from data_pipelines.posters import scene as scene_lib
from seedream_jax import types
from seedream_jax.eval import aesthetics, frechet, suites
from seedream_jax.eval import judges as judges_lib
from seedream_jax.run import cli
from seedream_jax.run import judge as judge_lib

_FOLDER = pathlib.Path(suites.__file__).parent / "worlds"
_RENDERS = 12  # of each scene, for the FD-judge's floor


def measure(name: str, fonts: fonts_lib.FontSet, num: int) -> dict[str, Any]:
  """Everything a world's file holds."""
  world = worlds.make_world(name)
  sizes = (
    math.floor(world.subject_px[0] * 0.6),
    world.subject_px[1] + 2,
  )  # three in a row are drawn smaller
  judges = judges_lib.Judges(world.subjects, world.colors, sizes=sizes)
  renderer = render.shared(fonts)
  ceilings = _of_suites(world, fonts, judges)
  for suite in ceilings:
    asked = _one_a_scene(world, suite, fonts)
    ceilings[suite] |= _of_aesthetics([p["scene"] for p in asked], renderer)
  size = tuple(int(v) for v in world.sizes[0].split("x"))
  dice = (scene_lib.Dice(prompts.SEED, "ceilings", name, i) for i in range(num))
  scenes = [scene_lib.sample(d, world, size) for d in dice]
  asked = [{"id": f"{i}-zh", "lang": "zh", "scene": s} for i, s in enumerate(scenes)]
  ceilings["world"] = _rounded(scenes, asked, renderer, judges) | _of_aesthetics(scenes, renderer)
  return {
    "world": name,
    "subjects": list(world.subjects),
    "colors": list(world.colors),
    "sizes": list(sizes),
    "ceilings": ceilings,
    "provenance": fonts.provenance(),
  }


def measure_classifier(
  name: str,
  fonts: fonts_lib.FontSet,
  classifier: judge_lib.ClassifierB,
  num: int = frechet.REFERENCE_IMAGES,
) -> judge_lib.Truth:
  """What classifier B says of ground truth, the FD-judge's reference of `num` renders included."""
  world, words = worlds.make_world(name), classifier.vocabulary
  if (words.subjects, words.colors) != (world.subjects, world.colors):
    raise types.UserError(f"--classifier {classifier.folder}: not of world {name}")
  ceilings = _of_suites(world, fonts, judges_lib.SecondJudge(classifier.answers))
  suite, size = judge_lib.FD_SUITE, tuple(int(v) for v in world.sizes[0].split("x"))
  asked = _one_a_scene(world, suite, fonts)
  again = (_unsaid_anew(p, world, r) for p in asked for r in range(_RENDERS))
  render_NE = _features(again, len(asked) * _RENDERS, fonts, classifier)
  other = prompts.reference(world, suite, size, num)
  return judge_lib.Truth(
    name,
    ceilings,
    frechet.moments(_features(other, num, fonts, classifier)),
    tuple(suites.cluster_of(p) for p in asked),
    render_NE.reshape(len(asked), _RENDERS, -1),
    fonts.provenance(),
  )


def _of_suites(
  world: worlds.World, fonts: fonts_lib.FontSet, judges: judges_lib.Judges | judges_lib.SecondJudge
) -> dict[str, dict[str, dict[str, float]]]:
  """{suite: ceilings}."""
  renderer, ceilings = render.shared(fonts), {}
  for suite in suites.SUITES:
    asked = _one_a_scene(world, suite, fonts)
    ceilings[suite] = _rounded([p["scene"] for p in asked], asked, renderer, judges)
    logging.info("%s: %d scenes", suite, len(asked))
  return ceilings


def _of_aesthetics(
  scenes: Sequence[scene_lib.Scene], renderer: render.Renderer
) -> dict[str, dict[str, float]]:
  """{metric: how often the aesthetics judge sees what is there}."""
  right: dict[str, list[float]] = {}
  for i, scene in enumerate(scenes):
    dice = scene_lib.Dice(prompts.SEED, "aesthetics", i)
    axes = {axis: int(dice.chance(0.5)) for axis in worlds.AXES}
    image, _ = renderer.render({**scene, "aesthetics": axes})
    found = aesthetics.outcomes(image, scene)
    for metric in found:
      if axis := metric.partition("/")[2]:
        right.setdefault(metric, []).append(found[metric][0] == axes[axis])
    right.setdefault("aes", []).extend(
      found[f"aes/{axis}"][0] == axes[axis] for axis in aesthetics.SUMMED if f"aes/{axis}" in found
    )
  return {m: {"value": round(float(np.mean(v)), 4), "n": len(v)} for m, v in right.items()}


def _one_a_scene(world: worlds.World, suite: str, fonts: fonts_lib.FontSet) -> list[prompts.Prompt]:
  """The suite's Chinese prompts: every scene once, for what it shows has no language."""
  return [p for p in prompts.make(world, suite, fonts) if p["lang"] == "zh"]


def _unsaid_anew(prompt: prompts.Prompt, world: worlds.World, render_number: int) -> dict[str, Any]:
  """The prompt's scene with the aesthetics and small jitters of another draw."""
  dice = scene_lib.Dice(prompts.SEED, "unsaid", prompt["id"], render_number)
  axes = {axis: int(dice.chance(world.axis_rate)) for axis in worlds.AXES}
  return {**prompt["scene"], "aesthetics": axes, "seed": dice.integer(0, 2**31 - 1)}


def _features(
  scenes: Iterable[scene_lib.Scene],
  num: int,
  fonts: fonts_lib.FontSet,
  classifier: judge_lib.ClassifierB,
) -> np.ndarray:
  """features_NE of rendered scenes."""
  renderer = render.shared(fonts)
  images = (renderer.render(s)[0] for s in tqdm.tqdm(scenes, total=num, unit="img"))
  chunks = iter(lambda: list(itertools.islice(images, 1024)), [])
  return frechet.features(classifier.features, chunks)


def _rounded(
  scenes: Sequence[scene_lib.Scene],
  asked: Sequence[dict[str, Any]],
  renderer: render.Renderer,
  judges: judges_lib.Judges | judges_lib.SecondJudge,
) -> dict[str, dict[str, float]]:
  """Ceilings of rendered scenes; a picture has no prompt language, so those are left out."""
  images, exact = zip(*(renderer.render(scene) for scene in scenes))
  got = suites.measure_ceilings(images, [{**p, "scene": s} for p, s in zip(asked, exact)], judges)
  return {
    metric: {"value": round(x["value"], 4), "n": x["n"]}
    for metric, x in got.items()
    if metric.startswith(("R_", "availability")) or not metric.endswith("/zh")
    if not metric.startswith("aes")
  }


def define_flags() -> None:
  """Called once, by the program."""
  flags.DEFINE_string("world", "nano", "A preset: nano, small, base or full.")
  flags.DEFINE_string("out", "", "File to write; default seedream_jax/eval/worlds/WORLD.json.")
  flags.DEFINE_string("fonts", "", "Folder of the font files; default: fontconfig.")
  flags.DEFINE_integer("num", 1024, "Free draws of the grammar.", lower_bound=1)
  flags.DEFINE_string("classifier", "", "Weights folder of a classifier B to measure instead.")


def main(argv: Sequence[str]) -> None:
  """Writes the file."""
  del argv
  values = flags.FLAGS
  name, fonts = values.world, fonts_lib.find(values.fonts)
  if values.classifier:
    cli.prepare_jax()
    truth = measure_classifier(name, fonts, judge_lib.ClassifierB(values.classifier))
    judge_lib.write_truth(values.classifier, truth)
    path, ceilings = pathlib.Path(values.classifier), truth.ceilings
  else:
    path = pathlib.Path(values.out or _FOLDER / f"{name}.json")
    cli.check_out("--out", str(path))
    found = measure(name, fonts, values.num)
    ceilings = found["ceilings"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
  low = {
    f"{suite}:{metric}": x["value"]
    for suite, table in ceilings.items()
    for metric, x in table.items()
    if x["value"] < suites.MIN_CEILING
  }
  print(f"{path}: below {suites.MIN_CEILING}: {low or 'none'}")


if __name__ == "__main__":
  define_flags()
  cli.run(main)
