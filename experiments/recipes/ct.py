r"""Does VMix do what it is for? Continued training with its labels, without them, and with them as words in captions.

  python -m seedream_jax.recipe --config experiments/recipes/ct.py --workdir out/ct

All arms go on from weights/nano for the same steps over the same pictures: half of them picked from a world where an
aesthetic axis is positive in 2 of 5 pictures, half from one where it is in 9 of 10. They are judged on `hard`: the arm
with labels at strengths 0, 0.5, 1 and (one picture a prompt) 1.5, the arm with words with the words of all four axes
after each prompt. `ct.py:smoke` makes one seed and one picture a prompt.
"""

from ml_collections import config_dict

from experiments.common import step

W = "{workdir}"
POSTERS = "data_pipelines.posters --world nano --size 64x64"
SETS = (("auto", 24_000, 0.4, 11), ("hand", 8_000, 0.9, 12))  # name, records, positive share, seed
STEPS = 1_500  # of 16 pictures
STRENGTHS = ("0", "0.5", "1")
TOO_STRONG = "1.5"  # reported from one picture a prompt


def get_config(arg=None):
  if arg not in (None, "", "smoke"):
    raise ValueError(f"{arg!r}: expected nothing or smoke")
  seeds, pictures = ((0,), 1) if arg else ((0, 1), 5)

  def data(name, num, rate, seed, said):
    words, folder = ("--say_axes", f"{W}/said") if said else ("", W)
    render = f"{POSTERS} --axis_rate {rate} --seed {seed} {words}"
    splits = (("train", num), ("val", 512)) if name == "auto" else (("train", num),)
    for split, count in splits:
      yield step(
        f"{name}_{split}{'_said' * said}",
        f"{render} --split {split} --num {count} --out {folder}/{name}-png",
      )
      yield step(
        f"{name}_{split}{'_said' * said}_latents",
        f"data_pipelines.encode --data {folder}/{name}-png:{split} --vae weights/nano --out {folder}/{name}",
      )

  def train(arm, seed):
    folder = f"{W}/said" if arm == "words" else W
    options = (
      f"auto={folder}/auto,val={folder}/auto,hand={folder}/hand,labels={int(arm == 'labels')}"
    )
    return step(
      f"{arm}_{seed}",
      f"seedream_jax.train --config experiments/ct.py:nano,content=latent,{options},steps={STEPS} "
      f"--config.seed={seed} --config.data.streams.train.seed={seed} --workdir {W}/{arm}-{seed}",
    )

  def judge(name, workdir, rest="", pictures=pictures):
    return step(
      f"judge_{name}",
      f"seedream_jax.evaluate --workdir {workdir} --suite hard --images_per_prompt {pictures} "
      f"--solver dpmpp2m --steps 10 --classifier '' --out {W}/{name}.json {rest}",
    )

  def judged(seed):
    for strength in STRENGTHS:
      yield judge(f"labels-{seed}-{strength}", f"{W}/labels-{seed}", f"--aesthetics {strength}")
    yield judge(f"plain-{seed}", f"{W}/plain-{seed}")
    yield judge(f"words-{seed}", f"{W}/words-{seed}", f"--prompts {W}/said/prompts")
    yield judge(
      f"labels-{seed}-{TOO_STRONG}", f"{W}/labels-{seed}", f"--aesthetics {TOO_STRONG}", pictures=1
    )

  steps = [step_ for args in SETS for step_ in data(*args, said=False)]
  steps += [step_ for args in SETS for step_ in data(*args, said=True)]
  steps += [step("prompts", f"{POSTERS} --prompts hard --say_axes --out {W}/said/prompts")]
  steps += [judge("base", "weights/nano", pictures=1)]
  for seed in seeds:
    steps += [train(arm, seed) for arm in ("labels", "plain", "words")]
    steps += judged(seed)
  return config_dict.create(steps=tuple(steps))
