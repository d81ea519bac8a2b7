r"""Raters of preferences: classifier A, and the reader of glyphs. Never a judge.

  python -m data_pipelines.posters --world nano --size 64x64 --seed 20 --faces sans,serif,kai,kai_bold \
    --style_rate 0.4 --axis_rate 0.5 --split train --num 65536 --out OUT       # and --split val --num 2048
  python -m seedream_jax.train --config experiments/rater.py:nano,data=OUT --workdir W/objects
  python -m seedream_jax.train --config experiments/rater.py:nano,reads=glyphs,data=OUT --workdir W/glyphs
  python -m data_pipelines.pack --part classifier=W/objects/weights --out RATERS/objects
  python -m data_pipelines.pack --part glyph_reader=W/glyphs/weights --out RATERS/glyphs

Another seed, other styles and other typefaces than the judges' (experiments/judge.py): a rater and a judge share no
render. Presets: nano (2 CPU cores), small, base, full (objects alone).
Options: reads=objects|glyphs, data=FOLDER, steps=.
What weights/raters holds, and what it can tell, stands in its README.
"""

from experiments import common, judge

READS = ("objects", "glyphs")
SLOTS = 5  # the longest string of the nano world
PLACES = ("top", "bottom", "left", "right")  # as seedream_jax.stages.read has them
GLYPH_STEPS = 3_000


def get_config(arg=None):
  arg = common.parse_arg(
    arg, presets=tuple(judge.PRESETS), reads=READS[0], data="out/rater", steps=0
  )
  if arg.reads not in READS or (arg.reads == "glyphs" and arg.preset != "nano"):
    raise ValueError(f"reads={arg.reads} of {arg.preset}: valid: objects, or glyphs of nano")
  config = judge.get_config(f"{arg.preset},data={arg.data},steps={arg.steps}")
  config.seed = 1  # classifier A starts elsewhere than B
  config.data.streams.train.sources = ((f"{arg.data}:train", 1.0),)
  if arg.reads == "objects":
    return config
  characters = tuple(judge.VOCABULARY["nano"]["characters"])
  config.stage = dict(name="read")
  config.model = dict(
    glyph_reader=dict(variant="nano", slots=SLOTS, characters=len(characters)),
  )
  columns = *((f"text.content.{i}", characters) for i in range(SLOTS)), ("text.place", PLACES)
  for stream in config.data.streams.values():
    stream.labels = columns
  config.train.total_steps = arg.steps or GLYPH_STEPS
  return config
