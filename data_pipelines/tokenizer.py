r"""Trains the LLM's SentencePiece model (unigram, byte fallback) on a data set's captions.

  python -m data_pipelines.tokenizer --data OUT/train --out OUT/tokenizer.model --vocab_size 2048

The same data and size give the same bytes. The model is not written when one with the same provenance is there.
"""

import json
import os
from collections.abc import Sequence

from absl import flags, logging

from seedream_jax import types
from seedream_jax.data import records, tokenizers
from seedream_jax.run import cli

_DATA = flags.DEFINE_string("data", None, "Data set folder whose captions are read.")
_OUT = flags.DEFINE_string("out", None, "The .model file to write.")
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 2048, "Pieces, byte fallback included.")
_MAX_RECORDS = flags.DEFINE_integer("max_records", 50_000, "Records read, from the first.")
flags.mark_flags_as_required(["data", "out"])


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  if _VOCAB_SIZE.value < 512:
    raise types.UserError(
      f"--vocab_size {_VOCAB_SIZE.value}: 256 byte pieces need room; use at least 512"
    )
  cli.check_out("--out", _OUT.value)
  texts = []
  for captions in records.iterate_captions(_DATA.value, _MAX_RECORDS.value):
    texts.extend(captions)
  tokenizers.train_sentencepiece(sorted(set(texts)), _OUT.value, _VOCAB_SIZE.value)
  logging.info("%d distinct captions -> %s", len(set(texts)), _OUT.value)
  print(json.dumps({"captions": len(set(texts)), "bytes": os.path.getsize(_OUT.value)}))
  return 0


if __name__ == "__main__":
  cli.run(main)
