"""Tokenizers: what the two text encoders read.

The LLM sees the whole prompt, ByT5 the bytes of the quoted spans only, joined by one space (# ours;
undisclosed). An LLM trained here reads SentencePiece unigram pieces with byte fallback: pad 0, unk 1,
bos 2, eos 3. A published one brings its own tokenizer.json and ids. Either way a text is its pieces
and the end token. ByT5 ids: pad 0, eos 1, byte + 3.
G glyph bytes, L LLM tokens.
"""

import collections
import functools
import hashlib
import io
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import sentencepiece
import tokenizers as fast
from sentencepiece import sentencepiece_model_pb2

from seedream_jax import types

PAD, UNK, BOS, EOS = 0, 1, 2, 3
BYT5_PAD, BYT5_EOS, BYT5_OFFSET = 0, 1, 3
# A word of letters below the CJK blocks, and what it follows within its space-delimited token.
_WORD = re.compile(r"([^\s\w]?)([^\W\d_\u2e80-\U0010ffff]+)")
_HAN = re.compile(r"[\u3400-\u9fff]")
_CLOSERS = {'"': '"', "“": "”", "‘": "’", "「": "」", "『": "』"}


def find_quoted(prompt: str) -> list[str]:
  """The outermost quoted spans of a prompt, in order, without their quotes.

  Quotes are ASCII ", “”, ‘’, 「」 and 『』. An ASCII ' is always an apostrophe, and so is a ’
  between two Latin letters. A " right after a digit, outside any quote, is an inch mark. A quote
  that never closes quotes nothing.
  """
  spans, i = [], 0
  while i < len(prompt):
    closer = _CLOSERS.get(prompt[i])
    inch = prompt[i] == '"' and i > 0 and prompt[i - 1] in "0123456789"
    end = -1 if closer is None or inch else _closing(prompt, i, closer)
    if end < 0:
      i += 1
      continue
    if span := prompt[i + 1 : end].strip():
      spans.append(span)
    i = end + 1
  return spans


def _closing(prompt: str, start: int, closer: str) -> int:
  """Where the quote opened at `start` closes, or -1; quotes of the same kind may nest."""
  opener, depth = prompt[start], 0
  for i in range(start + 1, len(prompt)):
    if prompt[i] == closer and not (closer == "’" and _apostrophe(prompt, i)):
      if depth == 0:
        return i
      depth -= 1
    elif prompt[i] == opener:
      depth += 1
  return -1


def _apostrophe(prompt: str, i: int) -> bool:
  around = prompt[i - 1 : i] + prompt[i + 1 : i + 2]
  return len(around) == 2 and all(c.isalpha() and ord(c) < 0x250 for c in around)  # Latin


def glyph_bytes(spans: Sequence[str]) -> bytes:
  """The bytes ByT5 reads for these quoted spans."""
  return " ".join(spans).encode()


def byt5_ids(spans: Sequence[str], length: int, *, cut: bool = False) -> np.ndarray:
  """int32 ids_G for ByT5, padded; all padding, so nothing to attend to, when nothing is quoted.

  Args:
    spans: quoted spans, as from `find_quoted`.
    length: G, the end token included.
    cut: whether text beyond G is cut, at a character's edge, rather than refused.

  Raises:
    types.UserError: when the text does not fit and `cut` is off.
  """
  data = glyph_bytes(spans)
  if len(data) > length - 1 and not cut:
    raise types.UserError(
      f"quoted text {' '.join(spans)!r} has {len(data)} bytes: the model reads at most {length - 1}"
    )
  return byt5_from_bytes(data, length)


def byt5_from_bytes(data: bytes, length: int) -> np.ndarray:
  """int32 ids_G of UTF-8 bytes; what is beyond `length` is cut at a character's edge."""
  ids = np.full(length, BYT5_PAD, np.int32)
  if data:
    if len(data) > length - 1:
      data = data[: length - 1].decode(errors="ignore").encode()
    ids[: len(data)] = np.frombuffer(data, np.uint8).astype(np.int32) + BYT5_OFFSET
    ids[len(data)] = BYT5_EOS
  return ids


class Tokenizer:
  """What a text encoder reads a prompt with; picklable.

  Attributes:
    path: of the model file.
    sha256: of all that decides the ids.
    vocab_size: above every id.
    pad_id: what texts are padded with.
    eos_id: what every text ends with; a published model may pad with it too.
  """

  path: str
  sha256: str
  vocab_size: int
  pad_id: int
  eos_id: int

  def encode(self, text: str) -> list[int]:
    """Piece ids and the end token; the empty prompt is the end token alone."""
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts."""
    raise NotImplementedError

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids; special tokens vanish."""
    raise NotImplementedError

  def pieces(self, text: str) -> list[str]:
    """How the text is cut; shows which words are merged into one piece."""
    raise NotImplementedError

  def files(self) -> dict[str, str]:
    """{name in a weights folder: path here} of what it is opened from."""
    raise NotImplementedError

  def pad(self, ids: Sequence[int], length: int, *, cut: bool = False) -> np.ndarray:
    """int32 ids_L padded at the right; more ids than `length` are a `types.UserError`, or cut before the end token."""
    if len(ids) > length:
      if not cut:
        raise types.UserError(f"prompt of {len(ids)} tokens: the model reads at most {length}")
      ids = [*ids[: length - 1], self.eos_id]
    out = np.full(length, self.pad_id, np.int32)
    out[: len(ids)] = ids
    return out


def open_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
  """A folder with a tokenizer.json, that file, or else a SentencePiece model."""
  if str(path).endswith(".json") or os.path.isdir(path):
    return FastTokenizer(path)
  return LLMTokenizer(path)


class LLMTokenizer(Tokenizer):
  """SentencePiece with this project's special ids."""

  def __init__(self, path: str | os.PathLike[str]):
    self.path = str(path)
    if not os.path.exists(self.path):
      raise types.UserError(f"tokenizer {self.path}: no such file; expected a SentencePiece model")
    self._model = pathlib.Path(self.path).read_bytes()
    self.sha256 = hashlib.sha256(self._model).hexdigest()
    try:
      p = self._processor
      ids = (p.pad_id(), p.unk_id(), p.bos_id(), p.eos_id())
    except RuntimeError as e:
      raise types.UserError(f"tokenizer {self.path}: not a SentencePiece model") from e
    if ids != (PAD, UNK, BOS, EOS):
      raise types.UserError(
        f"tokenizer {self.path}: pad, unk, bos, eos are {ids}, expected {(PAD, UNK, BOS, EOS)}"
      )
    self.vocab_size = self._processor.vocab_size()
    self.pad_id, self.eos_id = PAD, EOS

  def __getstate__(self) -> dict:
    return {k: v for k, v in self.__dict__.items() if k != "_processor"}

  @functools.cached_property
  def _processor(self) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=self._model)

  def encode(self, text: str) -> list[int]:
    """Piece ids and the end token; the empty prompt is the end token alone."""
    return [*self._processor.encode(text), EOS]

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts, on one thread."""
    return [[*ids, EOS] for ids in self._processor.encode(list(texts), num_threads=1)]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids; special tokens vanish."""
    return self._processor.decode([int(i) for i in ids if int(i) not in (PAD, BOS, EOS)])

  def pieces(self, text: str) -> list[str]:
    """How the text is cut; shows which words are merged into one piece."""
    return self._processor.encode(text, out_type=str)

  def files(self) -> dict[str, str]:
    """The model."""
    return {"tokenizer.model": self.path}


class FastTokenizer(Tokenizer):
  """tokenizer.json of a published model; pad and end tokens are those of the tokenizer_config.json beside it.

  What the file's own template puts around a text stays (Llama's begin token), and the end token is added
  where the template has none (Qwen's). BERT's end token is its [SEP]. A config that names no pad token pads
  with the end token: a model never sees what follows the first end. A text that spells out a special token
  is text.

  Args:
    path: the folder, or its tokenizer.json.

  Raises:
    types.UserError: a file that is missing or no such tokenizer, or an end or pad token that it lacks.
  """

  def __init__(self, path: str | os.PathLike[str]):
    folder = str(path) if os.path.isdir(path) else os.path.dirname(path)
    self.path = os.path.join(folder, "tokenizer.json") if os.path.isdir(path) else str(path)
    if not os.path.exists(self.path):
      raise types.UserError(f"tokenizer {self.path}: no such file")
    self._model = pathlib.Path(self.path).read_bytes()
    try:
      vocabulary = self._fast.get_vocab(with_added_tokens=True)
    except Exception as e:  # the library raises nothing narrower
      reason = " ".join(str(e).split())[:120]
      raise types.UserError(f"tokenizer {self.path}: not a tokenizer.json ({reason})") from e
    self.vocab_size = max(vocabulary.values(), default=-1) + 1
    self._config = os.path.join(folder, "tokenizer_config.json")
    special = _special_tokens(self._config)
    for key, token in special.items():
      if token not in vocabulary:
        raise types.UserError(f"{self._config}: {key}={token!r} is no token of {self.path}")
    self.eos_id, self.pad_id = (vocabulary[special[key]] for key in ("eos_token", "pad_token"))
    about = b"%d %d " % (self.pad_id, self.eos_id) + self._model
    self.sha256 = hashlib.sha256(about).hexdigest()

  def __getstate__(self) -> dict:
    return {k: v for k, v in self.__dict__.items() if k != "_fast"}

  @functools.cached_property
  def _fast(self) -> fast.Tokenizer:
    tokenizer = fast.Tokenizer.from_str(self._model.decode())
    # Published files may cut and pad, as their trainer last set it.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # as text
    return tokenizer

  def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
    """`encode` of many texts."""
    rows = [encoding.ids for encoding in self._fast.encode_batch(list(texts))]
    return [ids if ids[-1:] == [self.eos_id] else [*ids, self.eos_id] for ids in rows]

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids; special tokens vanish."""
    kept = [int(i) for i in ids if int(i) not in (self.pad_id, self.eos_id)]
    return self._fast.decode(kept, skip_special_tokens=True)

  def pieces(self, text: str) -> list[str]:
    """How the text is cut, in the tokenizer's own spelling of bytes."""
    return self._fast.encode(text, add_special_tokens=False).tokens

  def files(self) -> dict[str, str]:
    """The tokenizer and the config that names its special tokens."""
    return {"tokenizer.json": self.path, "tokenizer_config.json": self._config}


def _special_tokens(path: str) -> dict[str, str]:
  """eos_token, or sep_token where there is none, and pad_token, or that one, of a tokenizer_config.json."""
  try:
    config = json.loads(pathlib.Path(path).read_text("utf-8"))
  except OSError as e:
    raise types.UserError(f"{path}: cannot read ({e.strerror}); it names the end token") from e
  except ValueError as e:
    raise types.UserError(f"{path}: not JSON ({e})") from e
  found = {}
  config = config if isinstance(config, dict) else {}
  for key, instead in (("eos_token", config.get("sep_token")), ("pad_token", None)):
    token = config.get(key)
    token = instead if token is None else token
    token = token.get("content") if isinstance(token, dict) else token
    token = found.get("eos_token") if token is None else token
    if not isinstance(token, str):
      raise types.UserError(f"{path}: {key}={token!r}, expected a token")
    found[key] = token
  return found


def to_fast(path: str | os.PathLike[str]) -> str:
  """tokenizer.json, of the `tokenizers` library, that encodes as `LLMTokenizer(path)` does.

  Raises:
    types.UserError: a SentencePiece model of another kind than `train_sentencepiece` makes.
  """
  proto = sentencepiece_model_pb2.ModelProto.FromString(pathlib.Path(path).read_bytes())
  _check_convertible(path, proto)
  normal = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
  # What no piece spells costs 10 more than the rarest piece, in both libraries, if special pieces are no rarer.
  rarest = min(p.score for p in proto.pieces if p.type == normal)
  vocab = [(p.piece, p.score if p.type == normal else rarest) for p in proto.pieces]
  tokenizer = fast.Tokenizer(fast.models.Unigram(vocab, unk_id=UNK, byte_fallback=True))
  # Not the Metaspace pre-tokenizer, which adds no leading space to a text that has one.
  spaces = [fast.normalizers.Prepend("▁"), fast.normalizers.Replace(" ", "▁")]
  tokenizer.normalizer = fast.normalizers.Sequence(spaces)
  # A text that spells out <pad> or <0x41> is text: cut off its "<", it matches no special piece.
  tokenizer.pre_tokenizer = fast.pre_tokenizers.Split("<", "isolated")
  tokenizer.decoder = fast.decoders.Sequence([
    fast.decoders.Replace("▁", " "),
    fast.decoders.ByteFallback(),
    fast.decoders.Fuse(),
    fast.decoders.Strip(" ", 1, 0),
  ])  # fmt: skip
  eos = proto.pieces[EOS].piece
  tokenizer.post_processor = fast.processors.TemplateProcessing(
    single=f"$A {eos}", special_tokens=[(eos, EOS)]
  )
  return tokenizer.to_str(pretty=True)


def _check_convertible(path: str | os.PathLike[str], proto: Any) -> None:
  """UserError for what `to_fast` would turn into a tokenizer that cuts texts otherwise."""
  kinds, trained, norm = type(proto.pieces[0]), proto.trainer_spec, proto.normalizer_spec
  normal = [p.piece for p in proto.pieces if p.type == kinds.NORMAL]
  special = [p.piece for p in proto.pieces if p.type != kinds.NORMAL]
  must = {
    "model_type unigram": trained.model_type == trained.UNIGRAM,
    "identity normalization": not norm.precompiled_charsmap,
    "add_dummy_prefix": norm.add_dummy_prefix,
    "spaces kept and escaped": norm.escape_whitespaces and not norm.remove_extra_whitespaces,
    "spaces before words": not trained.treat_whitespace_as_suffix,
    "byte_fallback": trained.byte_fallback,
    "no user-defined or unused pieces": not any(
      p.type in (kinds.USER_DEFINED, kinds.UNUSED) for p in proto.pieces
    ),
    "special pieces, and no others, that begin with <": all(p[0] == "<" for p in special)
    and not any("<" in p and p != "<" for p in normal),
  }
  for what, holds in must.items():
    if not holds:
      raise types.UserError(
        f"tokenizer {path}: cannot be written as tokenizer.json; expected {what}"
      )


def _seeds(corpus: Sequence[str]) -> list[str]:
  """Lines that make every repeated word of an alphabetic script a candidate piece.

  SentencePiece takes its candidates from substrings that occur in two *distinct* words, so that a
  word of a small grammar, always written alike, is no candidate however frequent, and is spelled
  out (tried on 111,058 poster captions, 2,048 pieces: 17 tokens a caption at the median and 30 at
  the third quartile, against 12 and 19 with these lines).
  """
  words = collections.Counter(match for line in corpus for match in _WORD.findall(line))
  seeds = {f"{',' if before else ''}{word}," for (before, word), n in words.items() if n > 1}
  return sorted(seeds)


def encode_prompts(
  tokenizer: Tokenizer, prompts: Sequence[str], max_tokens: int, glyph_bytes: int
) -> tuple[list[list[int]], np.ndarray]:
  """LLM ids of each prompt, not padded, and byt5_ids_BG of what they quote.

  Raises:
    types.UserError: a prompt of more than `max_tokens` ids, or quoted text that does not fit.
  """
  ids = [tokenizer.encode(prompt) for prompt in prompts]
  for prompt, row in zip(prompts, ids):
    if len(row) > max_tokens:
      raise types.UserError(
        f"prompt {prompt[:40]!r}... has {len(row)} tokens: the model reads at most {max_tokens}"
      )
  return ids, np.stack([byt5_ids(find_quoted(prompt), glyph_bytes) for prompt in prompts])


def _keep_han_single(model: bytes, vocab_size: int) -> bytes:
  """The model without pieces that join a Chinese character to anything, cut to its likeliest pieces.

  Single characters, byte and special pieces all stay; scores of unigram pieces need no change.
  """
  proto = sentencepiece_model_pb2.ModelProto.FromString(model)
  kinds = sentencepiece_model_pb2.ModelProto.SentencePiece

  def merged(piece) -> bool:
    return piece.type == kinds.NORMAL and len(piece.piece) > 1

  merges = [p for p in proto.pieces if merged(p) and not _HAN.search(p.piece)]
  room = max(vocab_size - sum(not merged(p) for p in proto.pieces), 0)
  kept = {p.piece for p in sorted(merges, key=lambda p: (-p.score, p.piece))[:room]}
  pieces = [p for p in proto.pieces if not merged(p) or p.piece in kept]
  del proto.pieces[:]
  proto.pieces.extend(pieces)
  proto.trainer_spec.vocab_size = len(pieces)
  return proto.SerializeToString(deterministic=True)


def train_sentencepiece(
  texts: Iterable[str], path: str | os.PathLike[str], vocab_size: int
) -> LLMTokenizer:
  """Trains the tokenizer and writes it atomically; texts in any order give the same bytes.

  Text is kept as it is (no NFKC, no space folding), so decoding returns it; characters never seen
  fall to bytes. No piece joins a Chinese character to anything, as in BERT's Chinese vocabulary:
  without spaces the merges run across words, 风铃 alone became 一个小小的风铃, 有一个风铃 and more pieces, and
  a linear probe on the LLM found 0.74 of Chinese subjects against 0.97 of English ones. The vocabulary
  comes out smaller than asked when too few pieces are left.

  Args:
    texts: captions.
    path: where the model goes.
    vocab_size: pieces wanted, the 4 special and 256 byte pieces included.
  """
  corpus = sorted(line for text in texts for line in text.splitlines() if line.strip())
  if not corpus:
    raise types.UserError("tokenizer: no text to train on")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(corpus + _seeds(corpus)),
      model_writer=model,
      model_type="unigram",
      vocab_size=2 * vocab_size,  # some are dropped below
      hard_vocab_limit=False,
      byte_fallback=True,
      character_coverage=0.9999,
      normalization_rule_name="identity",
      remove_extra_whitespaces=False,
      max_sentence_length=1 << 16,
      num_threads=1,  # EM sums in one order
      pad_id=PAD,
      unk_id=UNK,
      bos_id=BOS,
      eos_id=EOS,
      minloglevel=2,
    )
  except RuntimeError as e:
    reason = str(e).splitlines()[-1]
    raise types.UserError(f"tokenizer: vocab_size {vocab_size} is refused: {reason}") from e
  partial = pathlib.Path(f"{path}.partial")
  partial.parent.mkdir(parents=True, exist_ok=True)
  partial.write_bytes(_keep_han_single(model.getvalue(), vocab_size))
  os.replace(partial, path)
  return LLMTokenizer(path)
