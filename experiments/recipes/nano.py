r"""Everything behind weights/nano, from nothing: data, tokenizer, VAE, text encoders, DiT, judge, scores.

  python -m seedream_jax.recipe --config experiments/recipes/nano.py --workdir out/nano

Three gates stop it with their number: OCR on VAE reconstructions, linear probes on the LLM, ByT5 retrieval.
"""

from ml_collections import config_dict

W = "{workdir}"
DATA = f"{W}/data"


def step(name, command, gates=()):
  return dict(name=name, command=command, gates=gates)


def train(experiment, name, options, flags=""):
  return f"seedream_jax.train --config experiments/{experiment}.py:nano,{options} --workdir {W}/{name} {flags}"


def get_config():
  posters = "data_pipelines.posters --world nano --size 64x64"
  return config_dict.create(
    steps=(
      step("train_data", f"{posters} --split train --num 160000 --out {DATA}"),
      step("val_data", f"{posters} --split val --num 4096 --out {DATA}"),
      step("tokenizer", f"data_pipelines.tokenizer --data {DATA}:train --out {W}/tokenizer.model --vocab_size 2048"),
      step("autoencoder", train("autoencoder", "autoencoder", f"data={DATA}")),
    )
  )
