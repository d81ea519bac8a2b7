r"""Fine-tuning on a curated set that shows few things: what it costs, and what resampling and negatives mend.

  python -m seedream_jax.recipe --config experiments/recipes/sft.py --workdir out/sft

Continued training with labels (recipes/ct.py) comes first. The curated set is skewed on purpose: 8 of the world's 64
subjects, every axis positive in 19 of 20 pictures, half of them in a style. Arms, all of the same steps from the same
weights:

  curated       the curated set alone
  negatives     and what data_pipelines.resample draws from it and from continued training's data, every subject alike;
                and the model's own pictures, labelled as generated
  hot_curated   as curated, at three times the rate: enough to forget what the set does not show
  hot_balanced  and what resample draws

`negatives` is drawn with an empty branch in the guidance, with the generated label there, and with both, each at three
scales on the prompts of split val; each branch at its own best then goes to `hard`, as do the other arms. Labels are at
strength 1 throughout. `sft.py:smoke` does it all on little. Run so far: seed 0, its commands one by one, without the
trials of `generated` (docs/evidence.md, 2026-12-01); smoke up to its trials.
"""

from ml_collections import config_dict

from experiments.common import step
from experiments.recipes import ct

W = "{workdir}"
POSTERS = ct.POSTERS
HOT = "--config.optim.lr=3e-4"  # thrice experiments/sft.py's
ARMS = {  # options of the config, and of the command
  "curated": ("balanced=none,negatives=none", ""),
  "negatives": ("", ""),
  "hot_curated": ("balanced=none,negatives=none", HOT),
  "hot_balanced": ("negatives=none", HOT),
}
GUIDANCE = (2, 4, 6)
BEST = dict(empty=4, generated=4, empty_generated=4)  # of GUIDANCE, on val: tried for empty alone

SCALES = {  # of "smoke": the least that runs through; asked: prompts of a suite, 0 = all
  "": dict(auto=24_000, hand=8_000, curated=4_000, balanced=8_000, sets=1_000, ct=ct.STEPS, sft=1_000, pictures=5,
           asked=0, seeds=(0, 1)),
  "smoke": dict(auto=2_048, hand=1_024, curated=512, balanced=512, sets=32, ct=20, sft=20, pictures=1,
                asked=24, seeds=(0,)),
}  # fmt: skip


def data(size):
  """Latents of continued training's two sets, of the curated one, and of what is drawn from them."""
  rates = {name: (rate, seed) for name, _, rate, seed in ct.SETS}
  for name, split, num in (
    ("auto", "train", size.auto),
    ("auto", "val", 512),
    ("hand", "train", size.hand),
  ):
    rate, seed = rates[name]
    yield from posters(name, split, num, f"--axis_rate {rate} --seed {seed}")
  few = "--num_subjects 8 --axis_rate 0.95 --style_rate 0.5 --seed 13"
  yield from posters("curated", "train", size.curated, few)
  yield step(
    "balanced",
    f"data_pipelines.resample --data {W}/curated:train --data {W}/auto:train --by subjects.0.emoji "
    f"--num {size.balanced} --out {W}/balanced",
  )


def posters(name, split, num, rest):
  png = f"{W}/{name}-png"
  yield step(f"{name}_{split}", f"{POSTERS} --split {split} --num {num} --out {png} {rest}")
  encode = f"data_pipelines.encode --data {png}:{split} --vae weights/nano --out {W}/{name}"
  yield step(f"{name}_{split}_latents", encode)


def negatives(size):
  """Pictures by the model that is about to be tuned, labels off: away from them is not to be away from light."""
  sample = "data_pipelines.preferences sample --split preference --solver dpmpp2m --steps 10"
  drawn = f"--num {size.sets} --model ct={W}/ct,aesthetics=0 --out {W}/candidates"
  yield step("candidates", f"{sample} {drawn}")
  made = f"data_pipelines.preferences negatives --data {W}/candidates --out {W}/negatives-png"
  yield step("negatives_png", made)
  encode = f"data_pipelines.encode --data {W}/negatives-png:train --vae weights/nano"
  yield step("negatives", f"{encode} --out {W}/negatives")


def get_config(arg=None):
  if (arg or "") not in SCALES:
    raise ValueError(f"{arg!r}: expected nothing or smoke")
  size = config_dict.ConfigDict(SCALES[arg or ""])

  def judge(name, workdir, rest="", suite="hard", pictures=size.pictures):
    return step(
      f"judge_{name}",
      f"seedream_jax.evaluate --workdir {workdir} --suite {suite} --images_per_prompt {pictures} --num {size.asked} "
      f"--solver dpmpp2m --steps 10 --classifier '' --aesthetics 1 --out {W}/{name}.json {rest}",
    )

  def tune(arm, seed):
    sets = ",".join(f"{name}={W}/{name}" for name in ("curated", "balanced", "negatives"))
    options, rest = ARMS[arm]
    options = ",".join(filter(None, (sets, options)))  # of one given twice the last counts
    return step(
      f"{arm}_{seed}",
      f"seedream_jax.train --config experiments/sft.py:nano,content=latent,{options},val={W}/auto,"
      f"init={W}/ct/weights,steps={size.sft} --config.seed={seed} --config.data.streams.train.seed={seed} "
      f"--workdir {W}/{arm}-{seed} {rest}",
    )

  train_ct = (
    f"seedream_jax.train --config experiments/ct.py:nano,content=latent,auto={W}/auto,val={W}/auto,"
    f"hand={W}/hand,steps={size.ct} --workdir {W}/ct"
  )

  def trials():
    """Each branch at each scale, on prompts that nothing else is judged on."""
    yield step("prompts", f"{POSTERS} --prompts val --out {W}/prompts")
    for branch in BEST:
      for guidance in GUIDANCE:
        rest = f"--prompts {W}/prompts --negative {branch} --guidance {guidance}"
        name, arm = f"val-{branch}-{guidance}", f"{W}/negatives-{size.seeds[0]}"
        yield judge(name, arm, rest, suite="val", pictures=1)

  steps = [*data(size), step("ct", train_ct), *negatives(size), judge("ct", f"{W}/ct")]
  for seed in size.seeds:
    for arm in ARMS:
      steps.append(tune(arm, seed))
      if arm != "negatives":
        steps.append(judge(f"{arm}-{seed}", f"{W}/{arm}-{seed}"))
    if seed == size.seeds[0]:
      steps += trials()
    for branch, guidance in BEST.items():
      rest = f"--negative {branch} --guidance {guidance}"
      steps.append(judge(f"{branch}-{seed}", f"{W}/negatives-{seed}", rest))
  return config_dict.create(steps=(*steps, compared(size)))


def compared(size):
  """The table: what each arm changes, seed by seed."""
  compare = (
    "ct:curated-@",
    "ct:empty-@",
    "ct:hot_curated-@",
    "ct:hot_balanced-@",
    "hot_curated-@:hot_balanced-@",
    "empty-@:generated-@",
    "empty-@:empty_generated-@",
  )
  return step(
    "compared",
    f"benchmarks.arms --folder {W} --seeds {','.join(map(str, size.seeds))} "
    f"--metrics aes,subject,count,place,R_a {' '.join(f'--compare {c}' for c in compare)} --out {W}/arms.json",
  )
