r"""What weights/clip holds, from nothing: the tower that reward models start from where no published CLIP is at hand.

  python -m seedream_jax.recipe --config experiments/recipes/clip.py --workdir out/clip

An hour on two CPU cores for the tower, by the time of a step (not run since its text side has queries), some minutes
for its renders. `clip.py:smoke` does it on less data, with fewer steps.
"""

from ml_collections import config_dict

from experiments.common import step

W = "{workdir}"
POSTERS = (
  f"data_pipelines.posters --world nano --size 64x64 --seed 30 --axis_rate 0.5 --out {W}/posters"
)
SIBLINGS = 4  # a scene and three that differ from it in one thing each


def get_config(arg=None):
  if arg not in (None, "", "smoke"):
    raise ValueError(f"{arg!r}: expected nothing or smoke")
  num, steps = (4_096, 60) if arg else (131_072, 3_000)
  config = f"experiments/rlhf.py:nano,mode=clip,data={W}/posters,siblings={SIBLINGS},steps={steps}"
  return config_dict.create(
    steps=(
      step("train", f"{POSTERS} --split train --num {num} --siblings {SIBLINGS}"),
      step("val", f"{POSTERS} --split val --num 1024"),
      step("tower", f"seedream_jax.train --config {config} --workdir {W}/tower"),
      step(
        "packed",
        f"data_pipelines.pack --part tower={W}/tower/weights --dtype bfloat16 --out {W}/weights",
      ),
    )
  )
