r"""Draws candidate sets: a few pictures of each prompt, by each of several models.

  python -m data_pipelines.posters --world nano --prompts preference --out P
  python -m data_pipelines.preferences sample --prompts P/nano_preference.jsonl --model base=weights/nano \
    --model rough=weights/nano,steps=4,guidance=1 --render truth,damaged --out out/candidates
  python -m data_pipelines.preferences sample --split preference --num 2000 --model base=W --out out/candidates

A model is a weights folder or a training workdir, under the name its pictures will carry; its steps, guidance and
strength of aesthetic labels may differ from the flags' and from 1. --render adds renders of the prompt's own scene,
true, damaged, or with one thing wrong (a slip), so that not every picture is a model's. Picture j of a prompt starts
from one noise in every model. An interrupted run resumes where it stopped, shard by shard. Prompts of scenes kept for
judging are refused.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import flags

from data_pipelines.posters import builder, damage, poster, render, slips, worlds
from data_pipelines.posters import fonts as fonts_lib
from data_pipelines.posters import scene as scene_lib
from data_pipelines.preferences import asked, candidates
from seedream_jax import types
from seedream_jax.flow import solvers
from seedream_jax.run import cli, pipeline

_AXIS_RATE = 0.5  # of each aesthetic axis in a render: most for telling good from plain
_DAMAGES = (*damage.PIXEL_KINDS, *damage.STAMP_KINDS)
_OPTIONS = {  # of --model: field of pipeline.Options, kind, least
  "steps": ("num_steps", int, 1),
  "guidance": ("guidance", float, 0),
  "aesthetics": ("aesthetics", float, 0),
}
_ASKED = "NAME=PATH[,steps=N][,guidance=G][,aesthetics=S]"
_MODEL = re.compile(r"(?P<name>[A-Za-z_][\w.-]*)=(?P<path>[^,]+)(?P<options>(,\w+=[^,]+)*)")


class Drawer(Protocol):
  """Who draws; its pictures depend on nothing but what `describe` says, the prompt and the seed."""

  name: str

  def describe(self) -> dict[str, Any]:
    """Everything the pictures depend on, as JSON."""

  def check(self, prompts: Sequence[asked.Prompt]) -> None:
    """UserError for a prompt that it does not take."""

  def __call__(self, prompts: Sequence[asked.Prompt], seeds: Sequence[int]) -> list[np.ndarray]:
    """One uint8 picture a prompt; all prompts of a call are of one size."""

  def damage_of(self, prompt: asked.Prompt, seed: int) -> str:
    """What is wrong with the picture on purpose, or ""."""


class ModelDrawer:
  """A model version."""

  def __init__(self, name: str, model: pipeline.Pipeline, options: pipeline.Options):
    self.name, self._model, self._options = name, model, options

  def describe(self) -> dict[str, Any]:
    """Hash of the parameters, and how they are sampled; the batch size changes nothing."""
    options = dataclasses.asdict(self._options)
    del options["batch_size"]
    return {"params_sha256": _digest(self._model.params), **options}

  def check(self, prompts: Sequence[asked.Prompt]) -> None:
    """UserError for a prompt or size that the model does not take."""
    for size in {p.size for p in prompts}:
      self._model.check_size(size)
    self._model.tokens([p.text for p in prompts])

  def __call__(self, prompts: Sequence[asked.Prompt], seeds: Sequence[int]) -> list[np.ndarray]:
    """One picture a prompt, from the noise of its seed."""
    texts = [p.text for p in prompts]
    noise = np.concatenate([self._model.noise([0], prompts[0].size, seed) for seed in seeds])
    # A last, smaller call would compile anew, which takes longer than to draw its padding.
    room = max(0, self._options.batch_size - len(texts))
    noise = np.concatenate([noise, np.repeat(noise[-1:], room, axis=0)])
    images = self._model.sample(texts + texts[-1:] * room, noise, self._options)[0]
    return list(images[: len(texts)])

  def damage_of(self, prompt: asked.Prompt, seed: int) -> str:
    """None is known."""
    return ""


class RenderDrawer:
  """Ground truth: the prompt's scene with light, grain and frame drawn anew; damaged, or one thing wrong, if asked."""

  def __init__(self, name: str, fonts: fonts_lib.FontSet):
    self.name, self._fonts = name, fonts
    self._world = worlds.make_world("nano")
    self._damaged = damage.Damaged(poster.Posters("nano", "preference", ((64, 64),), 0, fonts), 1.0)

  def describe(self) -> dict[str, Any]:
    """The grammar, the rates and the fonts."""
    rates = {
      "grammar": scene_lib.GRAMMAR,
      "axis_rate": _AXIS_RATE,
      "kinds": [*_DAMAGES, *slips.KINDS],
    }
    return {**rates, "provenance": self._fonts.provenance()}

  def check(self, prompts: Sequence[asked.Prompt]) -> None:
    """UserError for a prompt without a scene."""
    for prompt in prompts:
      if prompt.scene is None:
        raise types.UserError(
          f"--render {self.name}: prompt {prompt.id} has no scene; leave --render out"
        )

  def __call__(self, prompts: Sequence[asked.Prompt], seeds: Sequence[int]) -> list[np.ndarray]:
    """One render a prompt."""
    return [self._draw(prompt, seed) for prompt, seed in zip(prompts, seeds)]

  def damage_of(self, prompt: asked.Prompt, seed: int) -> str:
    """The kind of damage or slip; "" for ground truth."""
    kinds = {candidates.DAMAGED: _DAMAGES, candidates.SLIP: slips.kinds(prompt.scene)}
    if self.name not in kinds:
      return ""
    return scene_lib.Dice("candidate damage", prompt.id, seed).pick(kinds[self.name])

  def _draw(self, prompt: asked.Prompt, seed: int) -> np.ndarray:
    dice = scene_lib.Dice("candidate", self.name, prompt.id, seed)
    axes = {axis: int(dice.chance(_AXIS_RATE)) for axis in worlds.AXES}
    scene = {**prompt.scene, "seed": dice.integer(0, 2**31 - 1), "aesthetics": axes}
    kind = self.damage_of(prompt, seed)
    if self.name == candidates.SLIP:
      scene = slips.slip(scene, kind, self._world, dice)
    image_HWC, _ = render.shared(self._fonts).render(scene)
    if self.name == candidates.DAMAGED:
      image_HWC, _ = self._damaged.damage(image_HWC, kind, dice)
    return image_HWC


@dataclasses.dataclass(frozen=True)
class Candidates:
  """Candidate sets, one a prompt: a source for `builder.build`.

  Attributes:
    prompts: in the order of the records.
    drawers: who draws, in the order of a record's pictures.
    num_images: pictures by each.
    seed: another seed gives other noise and renders.
    chunk: prompts drawn at once; changes nothing but the speed.
  """

  prompts: tuple[asked.Prompt, ...]
  drawers: tuple[Drawer, ...]
  num_images: int = 2
  seed: int = 0
  chunk: int = 8
  told: Callable[[int], None] = dataclasses.field(default=lambda sets: None, compare=False)

  dataset = candidates.DATASET
  description = "Candidate pictures of each prompt, by several models; see manifest.json."
  split = candidates.SPLIT

  def describe(self) -> dict[str, Any]:
    """Everything the records depend on, as JSON."""
    return self._described

  @functools.cached_property
  def _described(self) -> dict[str, Any]:
    said = [[p.id, p.text, p.size, p.scene] for p in self.prompts]
    return {
      "content": candidates.DATASET,
      "prompts_sha256": hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(),
      "models": {drawer.name: drawer.describe() for drawer in self.drawers},
      "num_images": self.num_images,
      "seed": self.seed,
    }

  def schema(self) -> tfds.features.FeaturesDict:
    """The TFDS schema of `example`."""
    return candidates.schema()

  def example(self, index: int) -> dict[str, Any]:
    """Record `index`; its chunk is drawn when the first of it is asked for."""
    number = index // self.chunk
    if number not in self._cache:
      self._cache.clear()
      self._cache[number] = self._draw(number)
    self.told(1)
    return self._cache[number][index % self.chunk]

  @functools.cached_property
  def _cache(self) -> dict[int, list[dict[str, Any]]]:
    return {}

  def _draw(self, number: int) -> list[dict[str, Any]]:
    prompts = self.prompts[number * self.chunk : (number + 1) * self.chunk]
    images: list[list[np.ndarray]] = [[] for _ in prompts]
    origins: list[list[dict[str, Any]]] = [[] for _ in prompts]
    for drawer in self.drawers:
      for size in sorted({p.size for p in prompts}):
        jobs = [
          (i, j) for i, p in enumerate(prompts) if p.size == size for j in range(self.num_images)
        ]
        seeds = [noise_seed(prompts[i].id, j, self.seed) for i, j in jobs]
        drawn = drawer([prompts[i] for i, _ in jobs], seeds)
        for (i, _), seed, image_HWC in zip(jobs, seeds, drawn, strict=True):
          images[i].append(image_HWC)
          damaged = drawer.damage_of(prompts[i], seed)
          origins[i].append({"model": drawer.name, "seed": seed, "damage": damaged})
    return [candidates.record(*parts) for parts in zip(prompts, images, origins)]


def noise_seed(prompt_id: str, sample: int, seed: int) -> int:
  """Of a prompt's picture: the same in every model, whatever the batch; below 2**31."""
  text = f"candidate/{prompt_id}/{sample}/{seed}"
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def build(
  source: Candidates,
  directory: str,
  *,
  shard_size: int = 64,
  progress: Callable[[int], None] = lambda sets: None,
) -> builder.Report:
  """Writes the sets that are not done yet; `progress` is told of sets as they are drawn or found.

  Raises:
    types.UserError: when `directory` holds other candidates, or a drawer does not take a prompt.
  """
  for drawer in source.drawers:
    drawer.check(source.prompts)
  ahead = 0  # sets told of before their shard was done

  def drawn(sets: int) -> None:
    nonlocal ahead
    ahead += sets
    progress(sets)

  def done(sets: int) -> None:  # of a shard just drawn, or of all that were found done
    nonlocal ahead
    progress(sets - ahead)
    ahead = 0

  plan = builder.Plan(dataclasses.replace(source, told=drawn), len(source.prompts), shard_size)
  return builder.build(plan, directory, progress=done)


def parse_models(
  given: Sequence[str], options: pipeline.Options
) -> list[tuple[str, str, pipeline.Options]]:
  """(name, path, options) of each NAME=PATH[,steps=N][,guidance=G][,aesthetics=S].

  Raises:
    types.UserError: on anything else, or a name given twice.
  """
  out = []
  for text in given:
    match = _MODEL.fullmatch(text)
    if not match:
      raise types.UserError(f"--model {text!r}: expected {_ASKED}")
    changes: dict[str, Any] = {}
    for item in filter(None, match["options"].split(",")):
      key, _, value = item.partition("=")
      try:
        field, kind, least = _OPTIONS[key]
        changes[field] = kind(value)
      except (KeyError, ValueError):
        raise types.UserError(
          f"--model {text!r}: {item}; expected steps=N, guidance=G or aesthetics=S with a number"
        ) from None
      if changes[field] < least:
        raise types.UserError(f"--model {text!r}: {item}; expected at least {least}")
    taken = [*(name for name, _, _ in out), *candidates.RENDERS]
    if match["name"] in taken:
      raise types.UserError(f"--model {text!r}: the name {match['name']!r} is taken")
    out.append((match["name"], match["path"], dataclasses.replace(options, **changes)))
  return out


def _digest(params: types.Params) -> str:
  digest = hashlib.sha256()
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(leaf)
    digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()


def define_flags() -> None:
  """Called once, by the program."""
  flags.DEFINE_string("prompts", "", "JSON lines of prompts, with scenes or without.")
  flags.DEFINE_string("split", "", f"Captions of a posters split: {', '.join(asked.ALLOWED)}.")
  flags.DEFINE_string("world", "nano", f"Of --split: {', '.join(worlds.NAMES)}.")
  flags.DEFINE_integer("num", 0, "Prompts; 0 = all of --prompts.", lower_bound=0)
  flags.DEFINE_string("size", "64x64", "HxW of pictures whose prompt names none.")
  flags.DEFINE_multi_string("model", [], f"{_ASKED}; several times.")
  flags.DEFINE_list("render", [], "Also: truth, damaged, slip; renders of the prompt's scene.")
  flags.DEFINE_integer("num_images", 2, "Pictures of a prompt by each model.", lower_bound=1)
  flags.DEFINE_integer("steps", 25, "Solver steps.", lower_bound=1, upper_bound=1000)
  flags.DEFINE_float("guidance", 4.0, "Guidance scale; 1 = none.", lower_bound=0.0)
  flags.DEFINE_enum("solver", "euler", sorted(solvers.SOLVERS), "ODE solver.")
  flags.DEFINE_integer("seed", 0, "Of noise, renders and captions.", lower_bound=0)
  flags.DEFINE_integer("batch_size", 32, "Pictures a batch.", lower_bound=1)
  flags.DEFINE_integer("shard_size", 64, "Prompts a shard: what a kill may cost.", lower_bound=1)
  flags.DEFINE_string("fonts", "", "Folder of fonts; default: fontconfig.")
  flags.DEFINE_string("out", None, "Folder of the data set of candidates.", required=True)


def read_prompts(values: flags.FlagValues) -> list[asked.Prompt]:
  """The prompts that the flags name; UserError unless exactly one source is given."""
  size = cli.parse_size(values.size)
  if bool(values.prompts) == bool(values.split):
    raise types.UserError("--prompts and --split: expected one of them")
  if values.prompts:
    return asked.read(values.prompts, size, values.num)
  if not values.num:
    raise types.UserError("--num 0: expected how many prompts to draw of --split")
  worlds.make_world(values.world)
  fonts = fonts_lib.find(values.fonts)
  return asked.draw(values.world, values.split, values.num, size, values.seed, fonts)


def main(argv: list[str]) -> int:
  """Entry point; the last line printed is a JSON object of counts."""
  del argv
  values = flags.FLAGS
  cli.check_out("--out", values.out, folder=True)
  # A shard at once: its prompts fall into text buckets, and the last batch of each bucket is mostly padding.
  chunk = values.shard_size
  batch = min(values.batch_size, values.num_images * (values.num or chunk))
  options = pipeline.Options(
    num_steps=values.steps, guidance=values.guidance, solver=values.solver, batch_size=batch
  )
  models = parse_models(values.model, options)
  if unknown := [name for name in values.render if name not in candidates.RENDERS]:
    raise types.UserError(f"--render {unknown[0]!r}: expected of {', '.join(candidates.RENDERS)}")
  if not models and not values.render:
    raise types.UserError("--model: not given, nor --render; expected NAME=PATH")
  prompts = read_prompts(values)
  cli.prepare_jax()
  drawers: list[Drawer] = [
    ModelDrawer(name, pipeline.open_pipeline(path), own) for name, path, own in models
  ]
  drawers += [RenderDrawer(name, fonts_lib.find(values.fonts)) for name in values.render]
  source = Candidates(tuple(prompts), tuple(drawers), values.num_images, values.seed, chunk)
  with tqdm.tqdm(
    total=len(prompts), desc="sample", unit="prompt", dynamic_ncols=True, delay=1
  ) as bar:
    report = build(source, values.out, shard_size=values.shard_size, progress=bar.update)
  pictures = len(drawers) * values.num_images
  counts = {"prompts": report.records, "drawn": report.rendered, "kept": report.kept}
  print(json.dumps({**counts, "pictures_each": pictures, "out": values.out}))
  return 0
