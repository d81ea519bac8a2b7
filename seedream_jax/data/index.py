"""The index: all that the order of a run needs to know of a data set, read once and kept beside it.

For every record its id, size and bucket; for every caption its weight, kind, language, LLM token
ids and quoted bytes. Texts are ragged, so they lie flat with offsets: caption j of record r is row
`caption_start[r] + j` of the caption arrays, and the token ids of caption c are
`tokens[token_start[c] : token_start[c + 1]]`. Nothing is tokenized after this.
"""

import array
import dataclasses
import hashlib
import os
import zipfile

import numpy as np
import tqdm
from absl import logging

from seedream_jax import types
from seedream_jax.data import records, tokenizers

_VERSION = "1"  # part of the cache key: raise when the meaning of an array changes
_CHUNK = 512  # records read and tokenized at once


@dataclasses.dataclass(frozen=True)
class Index:
  """Arrays over the readable records of one split, and over their captions."""

  row: np.ndarray  # int64, position in the split; unreadable rows are absent
  id: np.ndarray  # int64
  size: np.ndarray  # int32 [records, 2], height and width of the stored picture
  bucket: np.ndarray  # int32, into bucket_names
  bucket_names: np.ndarray  # str
  caption_start: np.ndarray  # int64 [records + 1]
  weight: np.ndarray  # float32 per caption
  kind: np.ndarray  # int16, into kind_names
  kind_names: np.ndarray  # str
  lang: np.ndarray  # int16, into lang_names
  lang_names: np.ndarray  # str
  token_start: np.ndarray  # int64 [captions + 1]; all zero without a tokenizer
  tokens: np.ndarray  # uint16, or int32 for vocabularies beyond it
  glyph_start: np.ndarray  # int64 [captions + 1]
  glyphs: np.ndarray  # uint8, the quoted bytes that ByT5 reads
  unreadable: np.ndarray  # int64, rows whose record could not be read at all

  def __len__(self) -> int:
    return len(self.row)

  def token_ids(self, caption: int) -> np.ndarray:
    """LLM ids of a caption, the end token included."""
    return self.tokens[self.token_start[caption] : self.token_start[caption + 1]]

  def quoted(self, caption: int) -> bytes:
    """The bytes ByT5 reads of a caption."""
    return self.glyphs[self.glyph_start[caption] : self.glyph_start[caption + 1]].tobytes()


def open_index(split: records.Split, tokenizer: tokenizers.Tokenizer | None) -> Index:
  """The index of `split`: the one cached beside the data set if it is current, else a new one."""
  key = f"{_VERSION} {split.fingerprint()} {tokenizer.sha256 if tokenizer else 'no tokenizer'}"
  name = f"{split.name.split('[')[0]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
  path = os.path.join(split.directory, "index", name)
  if os.path.exists(path):
    try:
      with np.load(path) as data:
        return Index(**{k: data[k] for k in data.files})
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as e:
      logging.warning("index %s is damaged (%s): building it anew", path, e)
  index = build(split, tokenizer)
  partial = f"{path}.{os.getpid()}.partial.npz"
  try:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    np.savez(partial, **{f.name: getattr(index, f.name) for f in dataclasses.fields(Index)})
    os.replace(partial, path)
  except OSError as e:
    logging.warning("index of %s is not cached: %s", split.directory, e)
  return index


class _Names:
  """Strings to small integers, in order of appearance."""

  def __init__(self) -> None:
    self.codes: dict[str, int] = {}

  def code(self, name: bytes) -> int:
    return self.codes.setdefault(name.decode(), len(self.codes))

  def array(self) -> np.ndarray:
    return np.array(list(self.codes), dtype=np.str_)


class _Captions:
  """Grows the caption arrays."""

  def __init__(self, tokenizer: tokenizers.Tokenizer | None):
    self.tokenizer = tokenizer
    self.weight, self.kind, self.lang = array.array("f"), array.array("h"), array.array("h")
    self.tokens, self.token_start = array.array("i"), array.array("q", [0])
    self.glyphs, self.glyph_start = bytearray(), array.array("q", [0])
    self.kinds, self.langs = _Names(), _Names()

  def extend(self, many: list[dict]) -> None:
    texts = []
    for captions in many:
      texts += [text.decode() for text in captions["text"]]
      self.weight.extend(float(w) for w in captions["weight"])
      self.kind.extend(self.kinds.code(k) for k in captions["kind"])
      self.lang.extend(self.langs.code(k) for k in captions["lang"])
    for text in texts:
      self.glyphs += tokenizers.glyph_bytes(tokenizers.find_quoted(text))
      self.glyph_start.append(len(self.glyphs))
    for ids in self.tokenizer.encode_batch(texts) if self.tokenizer else ([] for _ in texts):
      self.tokens.extend(ids)
      self.token_start.append(len(self.tokens))


def build(split: records.Split, tokenizer: tokenizers.Tokenizer | None) -> Index:
  """Reads every record of `split` once, its picture left alone.

  Raises:
    types.UserError: when two records share an id, or none can be read.
  """
  source, parse = split.source(), split.parser("id", "height", "width", "bucket", "captions")
  ids, rows, sizes, bucket = array.array("q"), array.array("q"), array.array("i"), array.array("i")
  caption_start, names, texts = array.array("q", [0]), _Names(), _Captions(tokenizer)
  unreadable = array.array("q")
  progress = tqdm.tqdm(total=len(split), desc=f"index {split.spec}", unit="rec", delay=2)
  for first in range(0, len(split), _CHUNK):
    pending = []
    for row in range(first, min(first + _CHUNK, len(split))):
      try:
        record = parse(source[row])
        _check_utf8(record["captions"]["text"])
      except Exception as e:  # whatever the reader or the parser makes of damaged bytes
        logging.warning("%s: record %d is unreadable: %s", split.spec, row, _one_line(e))
        unreadable.append(row)
        continue
      rows.append(row)
      ids.append(int(record["id"]))
      sizes.extend((int(record["height"]), int(record["width"])))
      bucket.append(names.code(record["bucket"]))
      pending.append(record["captions"])
      caption_start.append(caption_start[-1] + len(record["captions"]["text"]))
    texts.extend(pending)
    progress.update(min(_CHUNK, len(split) - first))
  progress.close()
  if not rows:
    raise types.UserError(
      f"data set {split.directory}: none of the {len(split)} records of {split.name} is readable"
    )
  _check_unique(split, np.asarray(ids))
  wide = tokenizer is not None and tokenizer.vocab_size > np.iinfo(np.uint16).max
  return Index(
    row=np.asarray(rows, np.int64),
    id=np.asarray(ids, np.int64),
    size=np.asarray(sizes, np.int32).reshape(-1, 2),
    bucket=np.asarray(bucket, np.int32),
    bucket_names=names.array(),
    caption_start=np.asarray(caption_start, np.int64),
    weight=np.asarray(texts.weight, np.float32),
    kind=np.asarray(texts.kind, np.int16),
    kind_names=texts.kinds.array(),
    lang=np.asarray(texts.lang, np.int16),
    lang_names=texts.langs.array(),
    token_start=np.asarray(texts.token_start, np.int64),
    tokens=np.asarray(texts.tokens, np.int32 if wide else np.uint16),
    glyph_start=np.asarray(texts.glyph_start, np.int64),
    glyphs=np.frombuffer(bytes(texts.glyphs), np.uint8),
    unreadable=np.asarray(unreadable, np.int64),
  )


def _check_utf8(texts: list[bytes]) -> None:
  for text in texts:
    text.decode()


def _check_unique(split: records.Split, ids: np.ndarray) -> None:
  unique, counts = np.unique(ids, return_counts=True)
  if len(unique) < len(ids):
    again = unique[counts > 1][0]
    raise types.UserError(
      f"data set {split.directory}: id {again} occurs {counts[unique == again][0]} times; "
      "ids key the noise and must be unique"
    )


def _one_line(error: Exception) -> str:
  return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
