r"""`make demo`: posters, 200 steps of pretraining continued from weights/nano, a sheet of 16 prompts, a smoke score.

python -m seedream_jax.recipe --config experiments/recipes/demo.py --workdir out/demo
"""

from ml_collections import config_dict

from experiments.common import step

W = "{workdir}"
POSTERS = "data_pipelines.posters --world nano --size 64x64"


def get_config():
  config = f"experiments/pretrain.py:nano,data={W}/data,init=weights/nano,steps=200"
  steps = (
    step("train_data", f"{POSTERS} --split train --num 6400 --out {W}/data --sheet {W}/data.png"),
    step("val_data", f"{POSTERS} --split val --num 512 --out {W}/data"),
    # A tenth of the pretraining rate: the weights are already at the end of their schedule.
    step(
      "pretrain",
      f"seedream_jax.train --config {config} --workdir {W}/pretrain --config.optim.lr=1e-4 "
      "--config.eval.every_steps=100 --config.eval.evaluators.val.batches=2",
    ),
    step(
      "samples",
      f"seedream_jax.sample --workdir {W}/pretrain --prompts benchmarks/prompts/demo.txt "
      f"--out {W}/samples.png",
    ),
    step(
      "report",
      f"seedream_jax.evaluate --workdir {W}/pretrain --suite heldout --num 128 --out {W}/report.json",
    ),
  )
  return config_dict.create(steps=steps)
