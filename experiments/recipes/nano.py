r"""Everything behind weights/nano, from nothing: data, tokenizer, VAE, text encoders, DiT, scores.

  python -m seedream_jax.recipe --config experiments/recipes/nano.py --workdir out/nano

Three gates stop it with their number: OCR on VAE reconstructions, linear probes on the LLM, ByT5 retrieval.
`nano.py:ungated` writes the gates' numbers down and goes on; `nano.py:quick` does so too, on less data and fewer steps.
Wall time of each step stands in WORKDIR/recipe.json; of the shipped weights, in weights/nano/README.md.
"""

from ml_collections import config_dict

from experiments.common import step

W = "{workdir}"
DATA, LATENTS, GLYPHS = f"{W}/data", f"{W}/latents", f"{W}/glyphs"
TOKENIZER = f"{W}/tokenizer.model"
POSTERS = "data_pipelines.posters --world nano"


# (records, {stage: steps}, gates enforced); no steps = the experiment's own
SCALES = {
  "": (160_000, {}, True),
  "ungated": (160_000, {}, False),
  "quick": (40_000, dict(autoencoder=1_200, lm=400, pair=200, glyph=200, pretrain=1_500), False),
}


def get_config(arg=None):
  if (arg or "") not in SCALES:
    raise ValueError(f"{arg!r}: expected nothing, ungated or quick")
  num, steps_of, enforced = SCALES[arg or ""]

  def train(experiment, name, options):
    steps = f",steps={steps_of[name]}" if name in steps_of else ""
    config = f"experiments/{experiment}.py:nano,{options}{steps}"
    return step(name, f"seedream_jax.train --config {config} --workdir {W}/{name}")

  def gate(suite, part, bound, options):
    bound = bound if enforced else 0.0
    command = f"seedream_jax.evaluate --suite {suite} --workdir {W}/{part}/weights {options}"
    return step(f"gate_{suite}", command, (("zh", bound), ("en", bound)))

  aligned = f"tokenizer={TOKENIZER},data={DATA}"
  steps = (
    step("train_data", f"{POSTERS} --size 64x64 --split train --num {num} --out {DATA}"),
    step("val_data", f"{POSTERS} --size 64x64 --split val --num 4096 --out {DATA}"),
    step(
      "tokenizer",
      f"data_pipelines.tokenizer --data {DATA}:train --out {TOKENIZER} --vocab_size 2048",
    ),
    train("autoencoder", "autoencoder", f"data={DATA}"),
    gate("vae", "autoencoder", 0.97, f"--data {DATA}:val"),
    step(
      "train_latents",
      f"data_pipelines.encode --data {DATA}:train --vae {W}/autoencoder/weights --out {LATENTS}",
    ),
    step(
      "val_latents",
      f"data_pipelines.encode --data {DATA}:val --vae {W}/autoencoder/weights --out {LATENTS}",
    ),
    train("align", "lm", f"mode=lm,{aligned}"),
    train("align", "pair", f"mode=pair,{aligned},init={W}/lm/weights"),
    gate("language", "pair", 0.99, f"--data {DATA} --tokenizer {TOKENIZER} --num 20000"),
    step("train_glyphs", f"{POSTERS} --split train --num {num // 20} --glyphs 4,7 --out {GLYPHS}"),
    step("val_glyphs", f"{POSTERS} --split val --num 512 --glyphs 4,7 --out {GLYPHS}"),
    train("align", "glyph", f"mode=glyph,data={GLYPHS}"),
    gate("glyph", "glyph", 0.95, f"--data {GLYPHS}:val --num 512"),
    step(
      "encoders",
      f"data_pipelines.pack --part llm={W}/pair/weights --part byt5={W}/glyph/weights "
      f"--part vae={W}/autoencoder/weights --tokenizer {TOKENIZER} --out {W}/encoders",
    ),
    train("pretrain", "pretrain", f"content=latent,data={LATENTS},weights={W}/encoders"),
    step(
      "weights",
      f"data_pipelines.pack --part llm={W}/encoders --part byt5={W}/encoders --part vae={W}/encoders "
      f"--part dit={W}/pretrain/weights --tokenizer {TOKENIZER} --out {W}/weights --dtype bfloat16",
    ),
    *(
      step(
        name,
        f"seedream_jax.evaluate --workdir {W}/weights --suite {name} --out {W}/{name}.json "
        f"--images_per_prompt {2 if name == 'heldout' else 1}",
      )
      for name in ("heldout", "bench", "text", "hard")
    ),
  )
  return config_dict.create(steps=steps)
