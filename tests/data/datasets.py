"""Tiny data sets for tests: random PNGs or latents, written with the library's own writer."""

import io
import json
import os
from collections.abc import Callable, Sequence

import numpy as np
import tokenizers as fast

from seedream_jax.data import records, tokenizers, transforms

SIZES = ((32, 48), (48, 32), (32, 32))
WORDS = ("panda", "lantern", "red", "blue", "a", "the", "big", "熊猫", "灯笼", "红色")


def captions_of(row: int) -> list[dict]:
  """Two captions of unlike length; the second quotes."""
  rng = np.random.default_rng(row)
  words = [WORDS[i] for i in rng.integers(0, len(WORDS), 3 + 2 * (row % 5))]
  return [
    dict(text=" ".join(words), lang="en", kind="short", weight=1.0),
    dict(text=f"写着“{'春福'[row % 2]}”的海报", lang="zh", kind="textual", weight=3.0),
  ]


def example(
  row: int,
  *,
  content: str = "image",
  sizes: Sequence[tuple[int, int]] = SIZES,
  captions: Callable[[int], list[dict]] = captions_of,
  broken: Sequence[int] = (),
  first_id: int = 1000,
) -> dict:
  """Record `row`; a row in `broken` holds bytes that are no picture, or too few for its shape."""
  size, rng = sizes[row % len(sizes)], np.random.default_rng(row)
  record = {
    "id": first_id + row,
    "height": size[0],
    "width": size[1],
    "captions": captions(row),
    "scene": json.dumps({"style": ("plain", "neon")[row % 2], "subjects": [{"name": f"s{row}"}]}),
    "bucket": f"{size[0]}x{size[1]}",
  }
  if content == "latent":
    record |= records.encode_latent(rng.standard_normal((size[0] // 8, size[1] // 8, 5)))
    if row in broken:
      record["latent"] = record["latent"][:-2]
  elif content == "images":  # a pair; the rejected picture is of another size
    shapes = [(*size, 3), (*sizes[(row + 1) % len(sizes)], 3)]
    pair = [transforms.encode_png(rng.integers(0, 256, shape, np.uint8)) for shape in shapes]
    record["images"] = [png.getvalue()[: -40 if row in broken else None] for png in pair]
  else:
    image_HWC = rng.integers(0, 256, (*size, 3), np.uint8)
    png = transforms.encode_png(image_HWC)
    record["image"] = io.BytesIO(png.getvalue()[:-40]) if row in broken else png
  return record


def write(directory: str, num: int, *, split: str = "train", shards: int = 2, **kwargs) -> str:
  """Writes `num` records; returns the directory."""
  os.makedirs(directory, exist_ok=True)
  schema = records.features(kwargs.get("content", "image"))
  sizes, ends = [], [num * k // shards for k in range(shards + 1)]
  for k in range(shards):
    path = os.path.join(directory, records.shard_name("tiny", split, k, shards))
    rows = range(ends[k], ends[k + 1])
    count = records.write_shard(path, schema, (example(row, **kwargs) for row in rows))
    sizes.append((count, os.path.getsize(path)))
  records.write_metadata(directory, "tiny", schema, {split: sizes}, "for tests")
  return directory


def fast_tokenizer(directory: str, *, template: str = "", **config) -> str:
  """A folder with a tokenizer.json of Qwen's kind, byte-level BPE, and its tokenizer_config.json.

  Args:
    directory: made; its files are replaced.
    template: what stands around a text, as "<|im_start|> $A"; none by default.
    config: of tokenizer_config.json; the end and pad tokens are Qwen3's.
  """
  os.makedirs(directory, exist_ok=True)
  special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
  made = fast.Tokenizer(fast.models.BPE())
  made.pre_tokenizer = fast.pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = fast.decoders.ByteLevel()
  alphabet = fast.pre_tokenizers.ByteLevel.alphabet()
  trainer = fast.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
  made.train_from_iterator([c["text"] for row in range(40) for c in captions_of(row)], trainer)
  made.add_special_tokens(special)  # after the text's pieces, as published
  if template:
    ids = [(token, made.token_to_id(token)) for token in special]
    made.post_processor = fast.processors.TemplateProcessing(single=template, special_tokens=ids)
  made.save(os.path.join(directory, "tokenizer.json"))
  config = dict(eos_token="<|im_end|>", pad_token="<|endoftext|>") | config
  with open(os.path.join(directory, "tokenizer_config.json"), "w") as f:
    json.dump(config, f)
  return directory


def tokenizer(directory: str, num: int = 40) -> tokenizers.LLMTokenizer:
  """One trained on the captions of `num` records."""
  texts = [caption["text"] for row in range(num) for caption in captions_of(row)]
  return tokenizers.train_sentencepiece(texts, f"{directory}/tokenizer-{num}.model", 330)
