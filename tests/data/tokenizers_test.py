"""Quotes are found, texts come back, training is a function of the texts alone."""

import hashlib
import os
import pathlib
import pickle
import random
import tempfile

import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.data import tokenizers

_ZH = ("熊猫", "灯笼", "红色", "背景", "海报", "写着", "左上角")
_EN = ("panda", "lantern", "red", "background", "poster", "with", "on", "left")


def corpus(seed: int = 0, num: int = 300) -> list[str]:
  rng = random.Random(seed)
  return [f"{' '.join(rng.choices(_ZH + _EN, k=5))}“{rng.choice('春福龙')}”" for _ in range(num)]


class FindQuotedTest(parameterized.TestCase):
  @parameterized.parameters(
    ("写着“春”的海报", ["春"]),
    ('a poster that says "HI" in red', ["HI"]),
    ("字样「福」与『囍』", ["福", "囍"]),
    ("the sign reads ‘stop’ here", ["stop"]),
    ("‘春’福", ["春"]),  # a closing quote between two ideographs is no apostrophe
    ("it’s the panda’s ‘don’t stop’ sign", ["don’t stop"]),
    ("it's 'plain' ASCII apostrophes", []),
    ("“他说‘好’”", ["他说‘好’"]),
    ("「外「内」外」", ["外「内」外"]),
    ("“A” and “B”\nand “C”", ["A", "B", "C"]),
    ('a 5" phone that says "OK"', ["OK"]),
    ('"2024"新年"好"', ["2024", "好"]),
    ("“never closed", []),
    ("”春“ turned round", []),
    ("“” and “  ” are empty", []),
    ("", []),
  )
  def test_spans(self, prompt, spans):
    self.assertEqual(tokenizers.find_quoted(prompt), spans)

  def test_never_fails_and_returns_parts_of_the_prompt(self):
    rng = random.Random(0)
    for _ in range(500):
      prompt = "".join(rng.choices("\"'“”‘’「」『』a春 5\n", k=rng.randrange(12)))
      for span in tokenizers.find_quoted(prompt):
        self.assertIn(span, prompt)
        self.assertNotEmpty(span.strip())


class ByT5IdsTest(parameterized.TestCase):
  def test_bytes_plus_three_then_end_then_padding(self):
    ids = tokenizers.byt5_ids(["春"], 7)
    want = [b + 3 for b in "春".encode()] + [1, 0, 0, 0]
    np.testing.assert_array_equal(ids, np.array(want, np.int32))
    self.assertEqual(ids.dtype, np.int32)

  def test_spans_are_joined_by_a_space(self):
    ids = tokenizers.byt5_ids(["A", "B"], 5)
    np.testing.assert_array_equal(ids, [68, 35, 69, 1, 0])

  def test_nothing_quoted_is_all_padding(self):
    np.testing.assert_array_equal(tokenizers.byt5_ids([], 3), [0, 0, 0])

  def test_too_long_is_refused_or_cut_at_a_character(self):
    with self.assertRaisesRegex(types.UserError, "'春福龙' has 9 bytes: the model reads at most 7"):
      tokenizers.byt5_ids(["春福龙"], 8)
    cut = tokenizers.byt5_ids(["春福龙"], 9, cut=True)
    np.testing.assert_array_equal(cut, tokenizers.byt5_ids(["春福"], 9))
    np.testing.assert_array_equal(tokenizers.byt5_ids(["春福"], 7)[-1], 1)


class LLMTokenizerTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.dir = cls.enterClassContext(tempfile.TemporaryDirectory())
    cls.path = os.path.join(cls.dir, "tokenizer.model")
    cls.tokenizer = tokenizers.train_sentencepiece(corpus(), cls.path, 500)

  @parameterized.parameters(
    "a red panda",
    "写着“春”的海报",
    "龘 was never seen",
    "🐼 和 👩‍🦰，mixed “龙”",
    "  two  spaces and a trailing one ",
    "ＡＢ：全角 stays full-width",
    "tab\tand\nnewline",
    "",
  )
  def test_round_trip(self, text):
    ids = self.tokenizer.encode(text)
    self.assertEqual(ids[-1], tokenizers.EOS)
    self.assertNotIn(tokenizers.UNK, ids)
    self.assertNotIn(tokenizers.BOS, ids)
    self.assertEqual(self.tokenizer.decode(ids), text)
    padded = self.tokenizer.pad(ids, len(ids) + 3)
    self.assertEqual(self.tokenizer.decode(padded), text)
    self.assertEqual(padded.tolist(), ids + [tokenizers.PAD] * 3)

  def test_batch_is_one_by_one(self):
    texts = ["a red panda", "", "春"]
    self.assertEqual(self.tokenizer.encode_batch(texts), [self.tokenizer.encode(t) for t in texts])

  def test_frequent_words_are_one_piece(self):
    self.assertEqual(self.tokenizer.pieces("panda lantern"), ["▁panda", "▁lantern"])

  def test_a_chinese_character_is_a_piece_of_its_own(self):
    rng = random.Random(0)
    texts = [
      f"{a}有一个小小的{b}，{rng.choice(_EN)}"
      for a in ("左上方", "右边", "下方")
      for b in rng.choices(_ZH, k=60)
    ]
    cut = tokenizers.train_sentencepiece(texts, f"{self.dir}/han.model", 600)
    self.assertEqual(
      cut.pieces("左上方有一个小小的熊猫，red")[1:12], list("左上方有一个小小的熊猫")
    )

  def test_too_long_for_the_bucket(self):
    with self.assertRaisesRegex(types.UserError, "prompt of 5 tokens: the model reads at most 3"):
      self.tokenizer.pad([9, 9, 9, 9, 3], 3)

  def test_training_depends_on_the_texts_only(self):
    texts = corpus()
    random.Random(1).shuffle(texts)
    again = tokenizers.train_sentencepiece(texts, f"{self.dir}/again.model", 500)
    self.assertEqual(again.sha256, self.tokenizer.sha256)
    data = pathlib.Path(self.path).read_bytes()
    self.assertEqual(hashlib.sha256(data).hexdigest(), again.sha256)
    other = tokenizers.train_sentencepiece(corpus(seed=2), f"{self.dir}/other.model", 500)
    self.assertNotEqual(other.sha256, self.tokenizer.sha256)

  def test_survives_pickling(self):
    copy = pickle.loads(pickle.dumps(self.tokenizer))
    self.assertEqual(copy.encode("红色 panda"), self.tokenizer.encode("红色 panda"))

  def test_errors(self):
    with self.assertRaisesRegex(types.UserError, "absent.model: no such file"):
      tokenizers.LLMTokenizer(f"{self.dir}/absent.model")
    bad = pathlib.Path(self.dir, "bad.model")
    bad.write_bytes(b"not a model")
    with self.assertRaisesRegex(types.UserError, "bad.model: not a SentencePiece model"):
      tokenizers.LLMTokenizer(bad)
    with self.assertRaisesRegex(types.UserError, "no text to train on"):
      tokenizers.train_sentencepiece(["", " \n"], f"{self.dir}/x.model", 500)
    with self.assertRaisesRegex(types.UserError, "vocab_size 3 is refused"):
      tokenizers.train_sentencepiece(corpus(), f"{self.dir}/x.model", 3)


if __name__ == "__main__":
  absltest.main()
