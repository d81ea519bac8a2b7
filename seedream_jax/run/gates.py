"""Gates between the stages of a recipe: is what was trained good enough to train the next part on it?

  vae       characters read by OCR on reconstructions, as a share of what is read on the pictures themselves
  language  accuracy of linear probes on frozen LLM features, the worst of subject, colour, count, place
  glyph     rendered strings that find their own ByT5 embedding among hard negatives, and back

Each is given apart for Chinese and English. Dims: B batch, H W C image, L LLM tokens.
"""

import json
import os
from collections.abc import Callable

import jax
import ml_collections
import numpy as np

from seedream_jax import types
from seedream_jax.data import records, tokenizers, transforms
from seedream_jax.engine import checkpoint
from seedream_jax.eval import judges as judges_lib
from seedream_jax.eval import ocr, probes, suites
from seedream_jax.models import llm
from seedream_jax.run import open as open_lib


def open_players(
  folder: str,
) -> tuple[ml_collections.ConfigDict, types.Stage, dict[str, types.Params]]:
  """Config, stage and parameters of a weights folder that `train` wrote."""
  config = open_lib.read_config(folder)
  stage = open_lib.make_stage(config)
  params = {
    p: checkpoint.load_weights(os.path.join(folder, f"{p}.safetensors"), stage.parts()[p].abstract)
    for p in stage.players
  }
  return config, stage, params


def vae(folder: str, data: str, world: str, num: int) -> dict[str, float]:
  """{zh, en, psnr, ...} over the first `num` pictures of `data` that carry text."""
  _, stage, params = open_players(folder)
  reconstruct = jax.jit(_predict_fn(folder, stage, "reconstruct"))
  images, prompts = _text_pictures(data, num)
  batch = 64
  recons = []
  for start in range(0, len(images), batch):
    chunk = images[start : start + batch]
    padded = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), axis=0)])
    out = np.asarray(reconstruct(params, {}, {"train": {"image_BHWC": padded}}, None))[: len(chunk)]
    recons.append(transforms.to_uint8(out))
  recon = np.concatenate(recons)
  judges = suites.make_judges(suites.load_world(world))
  scores = {}
  for name, pictures in (("truth", images), ("recon", recon)):
    readings = judges.read(list(pictures), prompts)
    for lang in ("zh", "en"):
      counts = [
        judges_lib.score_text(ocr.fold(p["scene"]["text"]["content"]), r)
        for p, r in zip(prompts, readings)
        if p["scene"]["text"]["lang"] == lang
      ]
      scores[f"{name}_{lang}"] = 1 - sum(c.errors for c in counts) / sum(c.target for c in counts)
  error = np.square(recon.astype(np.float64) - images).mean(axis=(1, 2, 3))
  ratios = {lang: scores[f"recon_{lang}"] / scores[f"truth_{lang}"] for lang in ("zh", "en")}
  return ratios | scores | {"psnr": float(np.mean(10 * np.log10(255**2 / error))), "n": len(images)}


def language(folder: str, data: str, tokenizer_path: str, num: int) -> dict[str, float]:
  """{zh, en: worst of the gated probes, "subject/zh": ...}; fitted on `data`:train, judged on `data`:val."""
  config, stage, params = open_players(folder)
  features = _predict_fn(folder, stage, "features")
  fn = jax.jit(lambda ids_BL: features(params, {}, {"train": {"llm_ids_BL": ids_BL}}, None))
  tokenizer = tokenizers.open_tokenizer(tokenizer_path)
  open_lib.check_tokenizer(tokenizer, llm.make_config(**config.model.llm))
  fit = probes.examples(f"{data}:train", tokenizer, limit=num)
  test = probes.examples(f"{data}:val", tokenizer, limit=num // 4)
  found = {
    k: p.accuracy for k, p in probes.language(fn, fit, test, pad_id=tokenizer.pad_id).items()
  }
  worst = {lang: min(found[f"{name}/{lang}"] for name in probes.GATED) for lang in ("zh", "en")}
  return worst | found


def glyph(folder: str, data: str, num: int) -> dict[str, float]:
  """{zh, en, box_to_text, text_to_box, ...} over `num` sheets of `data`."""
  config, stage, params = open_players(folder)
  predict = _predict_fn(folder, stage, "embed")
  embed = jax.jit(lambda batch: predict(params, {}, {"train": batch}, None))
  config.data.streams.val.source = data
  loader = open_lib.open_loaders(config, ["val"])["val"]
  return probes.retrieval(embed, (loader.batch(i) for i in range(max(num // loader.batch_size, 1))))


def _predict_fn(folder: str, stage: types.Stage, name: str) -> Callable:
  """The stage's function of that name; UserError when what `folder` holds is of another stage."""
  known = stage.predict_fns()
  if name not in known:
    raise types.UserError(
      f"--workdir {folder}: this gate reads {name!r}, its stage gives {', '.join(known)}"
    )
  return known[name]


def _text_pictures(data: str, num: int) -> tuple[np.ndarray, list[dict]]:
  split = records.open_split(data)
  images, prompts = [], []
  for record in records.iterate(split, "id", "image", "scene"):
    scene = json.loads(record["scene"])
    if scene["text"] is None or scene["style"] != "plain":
      continue
    images.append(record["image"])
    prompts.append(
      {"id": str(record["id"]), "prompt": "", "lang": scene["text"]["lang"], "scene": scene}
    )
    if len(images) == num:
      break
  if not images:
    raise types.UserError(f"{data}: no picture there carries text, so nothing can be read")
  return np.stack(images), prompts
