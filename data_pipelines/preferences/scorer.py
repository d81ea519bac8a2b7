"""A trained reward model on pictures of prompts.

Dims: B records, R pictures of each, H W C pixels.
"""

import os
from collections.abc import Callable, Iterable, Iterator

import jax
import ml_collections
import numpy as np

from seedream_jax import types
from seedream_jax.data import tokenizers
from seedream_jax.engine import checkpoint
from seedream_jax.run import open as open_lib

_BATCH = 64  # records a call


def reading(config: ml_collections.ConfigDict) -> Callable[[str], dict[str, np.ndarray]]:
  """fn(prompt) -> one example's text features, as the reward's own run read them."""
  stream = config.data.streams.train
  if "tower_ids_BL" in stream.features:  # it started from a published model
    own = tokenizers.open_tokenizer(stream.tower_tokenizer)
    length = stream.tower_tokens
    return lambda text: {"tower_ids_BL": own.pad(own.encode(text), length, cut=True)}
  tokenizer, length = open_lib.open_tokenizer(config), max(stream.text_buckets)

  def fn(text: str) -> dict[str, np.ndarray]:
    ids, glyphs_BG = tokenizers.encode_prompts(tokenizer, [text], length, stream.glyph_bytes)
    return {"llm_ids_BL": tokenizer.pad(ids[0], length), "byt5_ids_BG": glyphs_BG[0]}

  return fn


class Scorer:
  """A reward model's weights folder: WORKDIR/weights of its run; or a CLIP's, a reward that has seen no choices."""

  def __init__(self, folder: str):
    """Opens it and the encoders that its config names; UserError where it is not of stage reward."""
    config = open_lib.read_config(folder)
    stage = config.get("stage", {}).get("name")
    if stage == "contrast":
      with config.unlocked():
        config.stage = dict(name="reward")
    elif stage != "reward":
      raise types.UserError(f"--reward {folder}: its config is not of stage reward or contrast")
    layout = open_lib.lay_out(config)
    path = os.path.join(folder, "tower.safetensors")
    self._params = {"tower": checkpoint.load_weights(path, layout.state.params["tower"])}
    self._frozen, _ = open_lib.load_frozen(config, layout)
    self._fn = jax.jit(layout.stage.predict_fns()["scores"])
    self._encode = reading(config)
    self._buckets = sorted(config.data.streams.train.text_buckets)
    self._configs = layout.stage.model.configs

  def __call__(self, asked: Iterable[tuple[str, np.ndarray]]) -> Iterator[np.ndarray]:
    """score_R of each (prompt, uint8 image_RHWC), in order; every record has the same R, H and W."""
    chunk: list[tuple[str, np.ndarray]] = []
    for row in asked:
      chunk.append(row)
      if len(chunk) == _BATCH:
        yield from self._scores(chunk)
        chunk = []
    if chunk:
      yield from self._scores(chunk)

  def _scores(self, chunk: list[tuple[str, np.ndarray]]) -> np.ndarray:
    padded = chunk + chunk[-1:] * (_BATCH - len(chunk))  # one program for every batch
    texts = [self._encode(prompt) for prompt, _ in padded]
    batch = {name: np.stack([text[name] for text in texts]) for name in texts[0]}
    if "llm_ids_BL" in batch:  # the longest bucket costs four times what most prompts need
      batch["llm_ids_BL"] = self._cut(batch["llm_ids_BL"])
    batch["image_BRHWC"] = np.stack([image_RHWC for _, image_RHWC in padded])
    return np.asarray(self._fn(self._params, self._frozen, {"train": batch}))[: len(chunk)]

  def _cut(self, ids_BL: np.ndarray) -> np.ndarray:
    """The ids in the smallest text bucket that holds them all."""
    # One more, where the end is the pad token.
    longest = 1 + int(np.max(np.sum(ids_BL != self._configs["llm"].pad_id, axis=1)))
    return ids_BL[:, : next((b for b in self._buckets if b >= longest), self._buckets[-1])]
