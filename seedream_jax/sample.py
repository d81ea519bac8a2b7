r"""Draws pictures of prompts.

  python -m seedream_jax.sample --workdir weights/nano --prompt '写着“春”的海报' --prompt 'a panda' --out out.png
  python -m seedream_jax.sample --workdir W --prompts FILE --out DIR --size 64x96 --steps 25 --guidance 4 --seed 0

`--out` ending in .png writes one sheet (or the single picture), otherwise a folder with one PNG a prompt and
prompts.json. `--prompts` is a text file, one prompt a line. `--noise FILE.npy` starts from that noise, `--latents-out`
keeps the final latents.
"""

import json
import os
from collections.abc import Sequence

import numpy as np
from absl import flags
from PIL import Image

from seedream_jax import types
from seedream_jax.eval import report
from seedream_jax.run import cli, pipeline

_WORKDIR = flags.DEFINE_string("workdir", None, "Training workdir or weights folder.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "A prompt; may be given several times.")
_PROMPTS = flags.DEFINE_string("prompts", "", "Text file, one prompt a line.")
_OUT = flags.DEFINE_string("out", None, "A .png, or a folder.")
_SIZE = flags.DEFINE_string("size", "64x64", "HxW in pixels.")
pipeline.define_flags()
flags.adopt_module_key_flags(pipeline)  # --help shows them
_SEED = flags.DEFINE_integer(
  "seed", 0, "Of the starting noise.", lower_bound=0, upper_bound=2**31 - 1
)
_NOISE = flags.DEFINE_string("noise", "", ".npy of starting noise [B, H, W, C], floats.")
_LATENTS_OUT = flags.DEFINE_string("latents-out", "", "Where to keep the final latents, .npy.")
flags.mark_flags_as_required(["workdir", "out"])


def read_prompts(given: Sequence[str], path: str) -> list[str]:
  """Prompts of the flags and of the file."""
  prompts = list(given)
  if path:
    try:
      with open(path, encoding="utf-8") as f:
        prompts += [line.strip() for line in f if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
      raise types.UserError(f"--prompts {path}: cannot read ({e})") from e
  if not prompts:
    raise types.UserError("no prompt: give --prompt TEXT or --prompts FILE")
  return prompts


def load_noise(path: str) -> np.ndarray:
  """The floats of a .npy file, mapped."""
  try:
    noise = np.lib.format.open_memmap(path, mode="r")  # np.load opens zip files and pickles too
  except Exception as e:  # whatever numpy makes of damaged bytes
    raise types.UserError(f"--noise {path}: not a readable .npy file ({e})") from e
  if noise.dtype.kind != "f":
    raise types.UserError(f"--noise {path}: holds {noise.dtype}, expected float32")
  if not np.isfinite(noise).all():
    raise types.UserError(f"--noise {path}: holds values that are not finite")
  return noise


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  cli.prepare_jax()
  size, prompts = cli.parse_size(_SIZE.value), read_prompts(_PROMPT.value, _PROMPTS.value)
  options = pipeline.options_of_flags()
  cli.check_out("--out", _OUT.value, folder=not _OUT.value.endswith(".png"))
  if _LATENTS_OUT.value:
    cli.check_out("--latents-out", _LATENTS_OUT.value)
  given = load_noise(_NOISE.value) if _NOISE.value else None
  model = pipeline.open_pipeline(_WORKDIR.value)
  model.check_size(size)
  model.tokens(prompts)  # fail before drawing
  noise = model.noise(range(len(prompts)), size, _SEED.value)
  if given is not None:
    if given.shape != noise.shape:
      raise types.UserError(
        f"--noise {_NOISE.value}: shape {given.shape}, expected {noise.shape} for these prompts "
        "and this size"
      )
    noise = np.array(given, np.float32)
  images, latents = model.sample(prompts, noise, options, progress=True)
  for path in filter(None, (_OUT.value, _LATENTS_OUT.value)):
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  if _LATENTS_OUT.value:
    np.save(_LATENTS_OUT.value, latents)
  if not _OUT.value.endswith(".png"):
    os.makedirs(_OUT.value, exist_ok=True)
    for i, image in enumerate(images):
      Image.fromarray(image).save(os.path.join(_OUT.value, f"{i:05d}.png"))
    with open(os.path.join(_OUT.value, "prompts.json"), "w", encoding="utf-8") as f:
      json.dump(prompts, f, ensure_ascii=False, indent=1)
  elif len(images) == 1:
    Image.fromarray(images[0]).save(_OUT.value)
  else:
    report.sample_sheet(report.Sheet("", list(images), prompts)).save(_OUT.value)
  print(json.dumps({"images": len(images), "out": _OUT.value}))
  return 0


if __name__ == "__main__":
  cli.run(main)
