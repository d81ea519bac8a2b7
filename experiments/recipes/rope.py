r"""Scaling RoPE against corner-origin RoPE, both trained on three shapes and judged on four that neither has seen.

  python -m seedream_jax.recipe --config experiments/recipes/rope.py --workdir out/rope

Both arms go on from weights/nano, which has seen 64x64 alone, where the two give the same positions; the arms of a seed
read the same pictures in the same order. WORKDIR/ARM-SEED-SIZE.json holds the judges' verdicts, recipe.json the times.
"""

from ml_collections import config_dict

from experiments.common import step

W = "{workdir}"
POSTERS = "data_pipelines.posters --world nano"
TRAIN_SIZES = "--size 64x64 --size 48x80 --size 80x48"
TEST_SIZES = ("48x64", "64x96", "96x48", "96x96")
ARMS, SEEDS = ("area", "corner"), (0, 1)
STEPS = 1_500  # of 16 pictures
PROMPTS = 240  # a size; fewer are called smoke


def get_config(arg=None):
  if arg:
    raise ValueError(f"{arg!r}: expected nothing")

  def train(rope, seed):
    options = f"content=latent,data={W}/latents,init=weights/nano,rope={rope},steps={STEPS}"
    return step(
      f"{rope}_{seed}",
      f"seedream_jax.train --config experiments/pretrain.py:nano,{options} --config.seed={seed} "
      f"--config.data.streams.train.seed={seed} --workdir {W}/{rope}-{seed}",
    )

  def judge(rope, seed, size):
    return step(
      f"{rope}_{seed}_{size}",
      f"seedream_jax.evaluate --workdir {W}/{rope}-{seed} --suite heldout --prompts {W}/prompts/{size} "
      f"--num {PROMPTS} --steps 16 --classifier '' --out {W}/{rope}-{seed}-{size}.json",
    )

  steps = (
    *(
      step(f"prompts_{size}", f"{POSTERS} --prompts heldout --size {size} --out {W}/prompts/{size}")
      for size in TEST_SIZES
    ),
    *(
      step(f"{split}_data", f"{POSTERS} {TRAIN_SIZES} --split {split} --num {num} --out {W}/data")
      for split, num in (("train", 24_000), ("val", 768))
    ),
    *(
      step(
        f"{split}_latents",
        f"data_pipelines.encode --data {W}/data:{split} --vae weights/nano --out {W}/latents",
      )
      for split in ("train", "val")
    ),
    *(
      step_
      for seed in SEEDS
      for step_ in (
        *(train(rope, seed) for rope in ARMS),
        *(judge(rope, seed, size) for rope in ARMS for size in TEST_SIZES),
      )
    ),
  )
  return config_dict.create(steps=steps)
