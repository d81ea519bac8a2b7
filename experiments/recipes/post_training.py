r"""From preferences to a better model, twice: candidates, their choice, three rewards, ReFL; then bad cases, and again.

  python -m seedream_jax.recipe --config experiments/recipes/post_training.py --workdir out/post

Round 2 draws candidates from round 1's model for the prompts that its rewards like least, adds their choices to the
old ones, trains the rewards anew and goes on with ReFL. What it has to beat is `longer`: round 1 continued for the same
steps with the old rewards. A guard watches every ReFL: the CLIP that the rewards started from, which has seen no
choices. `plain` is round 1 without the rewards, `bare` without pre-training's loss, and `hot` at five times the rate,
where the guard should end it. `dpo` has no rewards: it learns from the alignment rater's choices themselves. All are
judged on hard, base and round 1 on heldout too; round 1 and `plain` on two seeds.
`post_training.py:smoke` does all of it on less data, with fewer steps and pictures.
Run so far: up to round 1, `plain` and `hot` of seed 0, its commands one by one (docs/evidence.md, 2026-12-01, evening
and last: round 1's rewards cost text); at smoke's size `mined` and the packing.
"""

from ml_collections import config_dict

from experiments import rlhf
from experiments.common import step

W = "{workdir}"
BASE = "weights/nano"
POSTERS = "data_pipelines.posters --world nano --size 64x64"
RATERS = "weights/raters"  # recipes/raters.py made them
CLIP = "weights/clip"  # recipes/clip.py made it
NOISE = "alignment=0.05,text=0.05,aesthetic=0.05"  # of the raters' scores, of 0 to 1
HELD_OUT = 25  # percent of preference prompts
PAIRS = 28  # of each set of candidates: of three models' two pictures and two slips, all there are
RENDER_PAIRS = 8  # of each set of renders, of 15

SCALES = {  # of "smoke": the least that runs through
  "": dict(latents=16_000, prompts=8_192, short=200, ct=600,
           sets=1_500, renders=6_000, bad=750, refl=240, dpo=300, pictures=5,
           reward=dict(alignment=600, aesthetic=1_000, text=600), seeds=(0, 1)),
  "smoke": dict(latents=2_048, prompts=512, short=20, ct=40,
                sets=64, renders=64, bad=32, refl=8, dpo=8, pictures=1,
                reward=dict(alignment=40, aesthetic=40, text=40), seeds=(0,)),
}  # fmt: skip


def data(size):
  """Latents that pre-training's loss goes on with, and the prompts of ReFL."""
  for name, split, num in (
    ("latents", "train", size.latents),
    ("latents", "val", 512),
    ("refl", "refl", size.prompts),
  ):
    yield step(f"{name}_{split}", f"{POSTERS} --split {split} --num {num} --out {W}/{name}-png")
    encode = f"data_pipelines.encode --data {W}/{name}-png:{split} --vae {BASE} --out {W}/{name}"
    yield step(f"{name}_{split}_encoded", encode)


def checkpoints(size):
  """Two more versions of the model, so that no reward learns one model's habits: the base tuned for a while."""
  for name, steps in (("short", size.short), ("ct", size.ct)):
    options = f"content=latent,data={W}/latents,init={BASE},steps={steps}"
    config = (
      f"experiments/pretrain.py:nano,{options} --config.optim.lr=2.4e-4 --config.seed={steps}"
    )
    yield step(name, f"seedream_jax.train --config {config} --workdir {W}/{name}")


def candidates(name, prompts, models, num_images=2, renders="slip"):
  """Pictures of each prompt by the models given and by the renderer."""
  return step(
    f"{name}_candidates",
    f"data_pipelines.preferences sample {prompts} {models} --render {renders} --num_images {num_images} "
    f"--solver dpmpp2m --steps 10 --shard_size 128 --out {W}/{name}-candidates",
  )


def rated(name, num=PAIRS):
  """The raters' choices among candidates."""
  return step(
    f"{name}_rated",
    f"data_pipelines.preferences rate --data {W}/{name}-candidates --alignment {RATERS}/objects "
    f"--text {RATERS}/glyphs --noise {NOISE} --pairs_per_set {num} --out {W}/{name}.jsonl",
  )


def pairs(name, sets):
  """Pairs of each kind to train on, of renders and `sets`; and of `sets` alone, to score on what is held out."""
  for kind in rlhf.KINDS:
    for folder, of in ((name, ("renders", *sets)), (f"{name}_own", sets)):
      given = " ".join(f"--pairs {W}/{one}.jsonl" for one in of)
      yield step(
        f"{folder}_pairs_{kind}",
        f"data_pipelines.preferences import {given} --dimension {kind} --heldout {HELD_OUT} "
        f"--out {W}/pairs/{folder}_{kind}",
      )


def reward_models(name, size):
  """A reward model of each kind, and how it agrees with choices among models' pictures and slips, held out."""
  for kind in rlhf.KINDS:
    data, folder = f"{W}/pairs/{name}_{kind}", f"{W}/rm/{name}_{kind}"
    # A CLIP that is to find captions forgets light and grain: looks are learned better from scratch.
    start = "" if kind == "aesthetic" else f",tower={CLIP}"
    yield step(
      f"rm_{name}_{kind}",
      f"seedream_jax.train --config experiments/rlhf.py:nano,mode=reward,kind={kind},data={data}{start},"
      f"steps={size.reward[kind]} --workdir {folder}",
    )
    yield step(
      f"score_{name}_{kind}",
      f"data_pipelines.preferences score --reward {folder}/weights --data {W}/pairs/{name}_own_{kind}:heldout "
      f"--dimension {kind} --out {W}/score_{name}_{kind}.json",
    )


def get_config(arg=None):
  if (arg or "") not in SCALES:
    raise ValueError(f"{arg!r}: expected nothing or smoke")
  size = config_dict.ConfigDict(SCALES[arg or ""])
  versions = f"--model base={BASE} --model short={W}/short --model ct={W}/ct"
  drawn = candidates("first", f"--split preference --num {size.sets}", versions)
  # Renders cost next to nothing, and teach what the world's things and characters look like.
  many = f"--split preference --num {size.renders} --seed 2"
  plain = candidates("renders", many, "", renders="truth,damaged,slip")
  steps = [*data(size), *checkpoints(size), plain, drawn]
  steps += [rated("renders", num=RENDER_PAIRS), rated("first"), *pairs("first", ("first",))]
  steps += reward_models("first", size)

  def refl(name, init, rewards, rest="", seed=0):
    rms = ",".join(f"rm_{kind}={W}/rm/{rewards}_{kind}/weights" for kind in rlhf.KINDS)
    options = (
      f"content=latent,data={W}/latents,prompts={W}/refl,init={init},steps={size.refl},{rms}"
    )
    drawn = " ".join(f"--config.data.streams.{name}.seed={seed}" for name in ("train", "prompts"))
    command = f"seedream_jax.train --config experiments/rlhf.py:nano,{options},rm_guard={CLIP}"
    return step(name, f"{command}{rest} --config.seed={seed} {drawn} --workdir {W}/{name}")

  def judge(name, workdir, suite="hard"):
    return step(
      f"judge_{name}_{suite}",
      f"seedream_jax.evaluate --workdir {workdir} --suite {suite} --images_per_prompt {size.pictures} "
      f"--solver dpmpp2m --steps 10 --classifier '' --out {W}/{name}_{suite}.json",
    )

  hotter = f" --config.optim.lr={5 * rlhf.PRESETS['nano']['refl']['lr']}"
  steps += [judge("base", BASE), judge("base", BASE, "heldout")]
  for seed in size.seeds:
    for arm, rest in (("round1", ""), ("plain", ",reward_weight=0,rm_guard=none")):
      name = f"{arm}-{seed}"
      steps += [refl(name, BASE, "first", rest, seed), judge(name, f"{W}/{name}")]
  for name, rest in (("hot", hotter), ("bare", ",pretrain_weight=0")):
    steps += [refl(name, BASE, "first", rest), judge(name, f"{W}/{name}")]
  steps += [*dpo(size), judge("dpo", f"{W}/dpo")]
  steps += [judge("round1-0", f"{W}/round1-0", "heldout"), *second_round(size)]
  for name, rewards in (("round2", "second"), ("longer", "first")):
    steps += [refl(name, f"{W}/round1-packed", rewards), judge(name, f"{W}/{name}")]
  return config_dict.create(steps=(*steps, *compared(size)))


def compared(size):
  """What the rewards changed, seed by seed; and what the other arms did."""
  metrics = "aes,aes/color,aes/lighting,aes/composition,subject,count,place,R_a"
  for name, seeds, compare in (
    ("round1", size.seeds, ("base:round1-@", "plain-@:round1-@")),
    (
      "arms",
      (0,),
      ("base:dpo", "round1-@:hot", "round1-@:bare", "round1-@:round2", "longer:round2"),
    ),
  ):
    pairs = " ".join(f"--compare {'_hard:'.join(c.split(':'))}_hard" for c in compare)
    numbers = ",".join(map(str, seeds))
    yield step(
      f"compared_{name}",
      f"benchmarks.arms --folder {W} --seeds {numbers} --metrics {metrics} {pairs} --out {W}/compared_{name}.json",
    )


def dpo(size):
  """The DiT on what the alignment rater chose among models' pictures and slips."""
  pairs = f"{W}/pairs/first_own_alignment"
  for split in ("train", "heldout"):
    encode = f"data_pipelines.encode --data {pairs}:{split} --vae {BASE} --out {W}/pairs/latents"
    yield step(f"dpo_{split}_encoded", encode)
  config = f"experiments/rlhf.py:nano,mode=dpo,content=latent,data={W}/pairs/latents,init={BASE},steps={size.dpo}"
  yield step("dpo", f"seedream_jax.train --config {config} --workdir {W}/dpo")


def second_round(size):
  """Round 1's model draws anew for the prompts where it is worst; the rewards learn from old and new choices."""
  tuned = f"--part dit={W}/round1-0/weights --part llm={W}/round1-0/weights"
  rest = f"--part byt5={BASE} --part vae={BASE} --tokenizer {BASE}/tokenizer.model"
  yield step("round1_packed", f"data_pipelines.pack {tuned} {rest} --out {W}/round1-packed")
  model = f"--model round1={W}/round1-packed"
  yield candidates("look", f"--split preference --num {2 * size.bad} --seed 1", model, 1)
  rewards = " ".join(f"--reward {W}/rm/first_{kind}/weights" for kind in ("alignment", "aesthetic"))
  yield step(
    "mined",
    f"data_pipelines.preferences mine --data {W}/look-candidates {rewards} --text_reward {W}/rm/first_text/weights "
    f"--num {size.bad} --out {W}/bad.jsonl",
  )
  yield candidates("bad", f"--prompts {W}/bad.jsonl", f"{model} --model base={BASE}", 3)
  yield rated("bad")
  yield from pairs("second", ("first", "bad"))
  yield from reward_models("second", size)
