r"""What weights/raters holds, from nothing: classifier A and the reader of glyphs, which choose between candidates.

  python -m seedream_jax.recipe --config experiments/recipes/raters.py --workdir out/raters

Half an hour on two CPU cores. `raters.py:smoke` does it on less data, with fewer steps.
"""

from ml_collections import config_dict

from experiments.common import step

W = "{workdir}"
# Other faces, styles and renders than the judges' (experiments/rater.py).
POSTERS = (
  "data_pipelines.posters --world nano --size 64x64 --seed 20 --faces sans,serif,kai,kai_bold --style_rate 0.4 "
  "--axis_rate 0.5"
)
RATERS = (("objects", "classifier", 3_000), ("glyphs", "glyph_reader", 1_500))  # reads, part, steps


def get_config(arg=None):
  if arg not in (None, "", "smoke"):
    raise ValueError(f"{arg!r}: expected nothing or smoke")
  num = 4_096 if arg else 65_536
  steps = [
    step(split, f"{POSTERS} --split {split} --num {count} --out {W}/rater")
    for split, count in (("train", num), ("val", 2_048))
  ]
  for reads, part, count in RATERS:
    config = f"experiments/rater.py:nano,reads={reads},data={W}/rater,steps={60 if arg else count}"
    steps += [
      step(reads, f"seedream_jax.train --config {config} --workdir {W}/{reads}"),
      step(
        f"{reads}_packed",
        f"data_pipelines.pack --part {part}={W}/{reads}/weights --dtype bfloat16 --out {W}/weights/{reads}",
      ),
    ]
  return config_dict.create(steps=tuple(steps))
