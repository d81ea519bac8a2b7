r"""Renders posters into a TFDS data set, or frozen prompt sets into JSON lines.

  python -m data_pipelines.posters --world nano --split train --num 160000 --size 64x64 --out DIR
  python -m data_pipelines.posters --world nano --split train --num 20000 --damage 0.3 --out DIR
  python -m data_pipelines.posters --world nano --split train --num 8000 --glyphs 4,7 --out DIR
  python -m data_pipelines.posters --world nano --split train --num 8000 --siblings 4 --out DIR
  python -m data_pipelines.posters --world nano --prompts bench,heldout,hard,val,text --out DIR
  python -m data_pipelines.posters --world nano --prompts heldout --size 64x96 --out DIR  # for pictures of that size
  python -m data_pipelines.posters --world nano --split val --num 96 --sheet sheet.png  # only look

An interrupted run resumes where it stopped. Several --size values take turns.
"""

import os
import re

import tqdm
from absl import flags

from data_pipelines.posters import (
  builder,
  damage,
  fonts,
  glyphs,
  poster,
  prompts,
  sheet,
  splits,
  worlds,
)
from seedream_jax import types
from seedream_jax.run import cli

_WORLD = flags.DEFINE_string("world", "nano", f"preset: {', '.join(worlds.NAMES)}")
_SPLIT = flags.DEFINE_string("split", "train", f"one of {', '.join(splits.NAMES)}")
_NUM = flags.DEFINE_integer("num", 1000, "records to render")
_SIZE = flags.DEFINE_list("size", [], "HxW[,HxW...], sides 16..1024; default: the world's sizes")
_OUT = flags.DEFINE_string("out", "", "folder of the data set or of the prompt files")
_SEED = flags.DEFINE_integer("seed", 0, "another seed renders other records of the same split")
_WORKERS = flags.DEFINE_integer("workers", 2, "processes; the bytes do not depend on it")
_FONTS = flags.DEFINE_string("fonts", "", f"folder of fonts; default: fontconfig, {fonts.PACKAGES}")
_AXIS_RATE = flags.DEFINE_float("axis_rate", None, "share of positives on each aesthetic axis")
_SAY_AXES = flags.DEFINE_bool(
  "say_axes", False, "captions name the positive aesthetic axes; prompts, all four"
)
_NUM_SUBJECTS = flags.DEFINE_integer(
  "num_subjects", 0, "draw the world's first so many subjects alone", lower_bound=0
)
_STYLE_RATE = flags.DEFINE_float("style_rate", None, "share of records in a style")
_FACES = flags.DEFINE_list(
  "faces", [], f"typefaces instead of the world's: {', '.join(worlds.FACES)}"
)
_SIBLINGS = flags.DEFINE_integer(
  "siblings", 1, "records in a row that differ in one thing each, of split train", lower_bound=1
)
_SHARD_SIZE = flags.DEFINE_integer("shard_size", 4096, "records per shard")
_SHEET = flags.DEFINE_string("sheet", "", "contact sheet (PNG) of the first records; alone or too")
_PROMPTS = flags.DEFINE_list("prompts", [], f"write suites instead: {', '.join(prompts.SUITES)}")
_DAMAGE = flags.DEFINE_float("damage", None, "share of records damaged on purpose, with labels")
_GLYPHS = flags.DEFINE_list("glyphs", [], "J,K: sheets of J strings and K hard negatives of each")
_GLYPH_BYTES = flags.DEFINE_integer("glyph_bytes", 8, "G of the ByT5 that reads the sheets")


def parse_sizes(values: list[str]) -> tuple[tuple[int, int], ...]:
  """("64x64", "48x80") to ((64, 64), (48, 80)).

  Raises:
    types.UserError: on anything else.
  """
  out = []
  for value in values:
    match = re.fullmatch(r"(\d+)x(\d+)", value)
    if not match or not all(16 <= int(side) <= 1024 for side in match.groups()):
      raise types.UserError(f"--size: {value!r}; expected HxW with sides from 16 to 1024, as 64x64")
    out.append((int(match[1]), int(match[2])))
  return tuple(out)


def make_source(world: worlds.World) -> builder.Source:
  """The source the flags ask for."""
  if _SPLIT.value not in splits.NAMES:
    names = ", ".join(splits.NAMES)
    raise types.UserError(f"--split: unknown {_SPLIT.value!r}; expected one of {names}")
  found = fonts.find(_FONTS.value)
  if _GLYPHS.value:
    if len(_GLYPHS.value) != 2 or not all(v.isdigit() for v in _GLYPHS.value):
      raise types.UserError(f"--glyphs: {','.join(_GLYPHS.value)!r}; expected J,K, as 4,7")
    strings, negatives = map(int, _GLYPHS.value)
    if not 4 <= _GLYPH_BYTES.value <= 64:
      raise types.UserError(f"--glyph_bytes: {_GLYPH_BYTES.value}; expected 4 to 64")
    return glyphs.Sheets(
      world.name,
      _SPLIT.value,
      _SEED.value,
      found,
      strings,
      negatives,
      max_bytes=_GLYPH_BYTES.value - 1,
    )
  sizes = parse_sizes(_SIZE.value or list(world.sizes))
  for flag in (_AXIS_RATE, _STYLE_RATE):
    if flag.value is not None and not 0 <= flag.value <= 1:
      raise types.UserError(f"--{flag.name}: {flag.value}; expected 0 to 1")
  if unknown := [face for face in _FACES.value if face not in worlds.FACES]:
    names = ", ".join(worlds.FACES)
    raise types.UserError(f"--faces: unknown {unknown[0]!r}; expected of {names}")
  if _SIBLINGS.value > 1 and _SPLIT.value != "train":
    raise types.UserError(f"--siblings: of split {_SPLIT.value!r}; expected of train alone")
  posters = poster.Posters(
    world.name,
    _SPLIT.value,
    sizes,
    _SEED.value,
    found,
    _AXIS_RATE.value,
    _SAY_AXES.value,
    _NUM_SUBJECTS.value,
    _STYLE_RATE.value,
    tuple(_FACES.value),
    _SIBLINGS.value,
  )
  if _DAMAGE.value is None:
    return posters
  if not 0 <= _DAMAGE.value <= 1:
    raise types.UserError(f"--damage: {_DAMAGE.value}; expected 0 to 1")
  return damage.Damaged(posters, _DAMAGE.value)


def main(argv: list[str]) -> None:
  """Entry point."""
  del argv
  world = worlds.make_world(_WORLD.value)
  if not _OUT.value and not _SHEET.value:
    raise types.UserError("--out: not given; expected the folder to write the data set to")
  if _OUT.value:
    cli.check_out("--out", _OUT.value, folder=True)
  if _SHEET.value:
    cli.check_out("--sheet", _SHEET.value)
  if _PROMPTS.value:
    if unknown := set(_PROMPTS.value) - set(prompts.SUITES):
      names = ", ".join(prompts.SUITES)
      raise types.UserError(f"--prompts: unknown {min(unknown)!r}; expected of {names}")
    sizes = parse_sizes(_SIZE.value or [world.sizes[0]])
    if len(sizes) > 1:
      raise types.UserError(f"--size: {','.join(_SIZE.value)}; expected one for a prompt set")
    world = world.tilted(say_axes=_SAY_AXES.value)
    for suite in _PROMPTS.value:
      print(f"wrote {prompts.write(world, suite, _OUT.value, fonts.find(_FONTS.value), sizes[0])}")
    return
  if not 1 <= _NUM.value <= splits.MAX_RECORDS:
    raise types.UserError(f"--num: {_NUM.value}; expected 1 to {splits.MAX_RECORDS}")
  if _SHARD_SIZE.value < 1:
    raise types.UserError(f"--shard_size: {_SHARD_SIZE.value}; expected at least 1")
  plan = builder.Plan(make_source(world), _NUM.value, _SHARD_SIZE.value)
  if _SHEET.value:
    records = [plan.source.example(i) for i in range(min(plan.num, 12 if _GLYPHS.value else 96))]
    os.makedirs(os.path.dirname(os.path.abspath(_SHEET.value)), exist_ok=True)
    sheet.contact_sheet([sheet.decode(r["image"]) for r in records]).save(_SHEET.value, "PNG")
    print(f"wrote {_SHEET.value}")
  if not _OUT.value:
    return
  with tqdm.tqdm(total=plan.num, unit="img", desc=f"{world.name}/{plan.source.split}") as bar:
    report = builder.build(plan, _OUT.value, workers=_WORKERS.value, progress=bar.update)
  print(f"{_OUT.value}: {report.records} records, {report.rendered} rendered, {report.kept} kept")


if __name__ == "__main__":
  cli.run(main)
