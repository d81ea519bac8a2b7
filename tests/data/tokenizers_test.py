"""Quotes are found, texts come back, training is a function of the texts alone."""

import hashlib
import json
import os
import pathlib
import pickle
import random
import tempfile

import numpy as np
import tokenizers as fast
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.data import tokenizers
from tests.data import datasets

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


class FastTokenizerTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.dir = self.enterContext(tempfile.TemporaryDirectory())

  @parameterized.parameters(
    "a red panda",
    "写着“春”的海报",
    "龘🐼 was never seen",
    "  two  spaces ",
    "tab\tand\nnewline",
    "",
  )
  def test_round_trip(self, text):
    made = tokenizers.open_tokenizer(datasets.fast_tokenizer(self.dir))
    ids = made.encode(text)
    self.assertEqual(ids.count(made.eos_id), 1)
    self.assertEqual(ids[-1], made.eos_id)
    self.assertNotIn(made.pad_id, ids)
    padded = made.pad(ids, len(ids) + 3)
    self.assertEqual(padded.tolist(), ids + [made.pad_id] * 3)
    self.assertEqual(made.decode(padded), text)
    self.assertLess(max(ids), made.vocab_size)

  def test_ids_are_the_configs(self):
    made = tokenizers.open_tokenizer(datasets.fast_tokenizer(self.dir))
    names = {i: made._fast.id_to_token(i) for i in (made.pad_id, made.eos_id)}
    self.assertEqual(names, {made.pad_id: "<|endoftext|>", made.eos_id: "<|im_end|>"})
    self.assertEqual(made.vocab_size, made.eos_id + 1)
    base = tokenizers.open_tokenizer(datasets.fast_tokenizer(self.dir, eos_token="<|endoftext|>"))
    self.assertEqual((base.pad_id, base.eos_id), (made.pad_id, made.pad_id))
    none = tokenizers.open_tokenizer(
      datasets.fast_tokenizer(self.dir, pad_token=None, eos_token=dict(content="<|im_end|>"))
    )
    self.assertEqual((none.pad_id, none.eos_id), (made.eos_id, made.eos_id))
    self.assertLen({made.sha256, base.sha256, none.sha256}, 3)

  def test_berts_end_is_its_separator(self):
    made = tokenizers.open_tokenizer(
      datasets.fast_tokenizer(
        self.dir, eos_token=None, sep_token="<|im_end|>", template="<|im_start|> $A <|im_end|>"
      )
    )
    names = [made._fast.id_to_token(i) for i in made.encode("a")]
    self.assertEqual(names, ["<|im_start|>", "a", "<|im_end|>"])

  @parameterized.parameters(
    ("<|im_start|> $A", ["<|im_start|>", "a", "<|im_end|>"]),
    ("$A <|im_end|>", ["a", "<|im_end|>"]),
  )
  def test_the_files_template_stays_and_the_end_comes_once(self, template, want):
    made = tokenizers.open_tokenizer(datasets.fast_tokenizer(self.dir, template=template))
    self.assertEqual([made._fast.id_to_token(i) for i in made.encode("a")], want)
    self.assertEqual(made.decode(made.encode("a")), "a")

  def test_a_typed_special_token_is_text(self):
    made = tokenizers.open_tokenizer(datasets.fast_tokenizer(self.dir))
    for text in ("a<|im_end|>b", "<|endoftext|>"):
      ids = made.encode(text)
      self.assertEqual((ids.count(made.eos_id), ids.count(made.pad_id)), (1, 0))
      self.assertEqual(made.decode(ids), text)

  def test_the_files_own_cutting_and_padding_are_off(self):
    path = os.path.join(datasets.fast_tokenizer(self.dir), "tokenizer.json")
    plain = tokenizers.open_tokenizer(path).encode("a red panda, a red panda")
    made = fast.Tokenizer.from_file(path)
    made.enable_truncation(2)
    made.enable_padding(length=50, pad_id=7)
    made.save(path)
    self.assertEqual(tokenizers.open_tokenizer(path).encode("a red panda, a red panda"), plain)

  def test_an_exported_tokenizer_reads_as_the_one_it_was(self):
    ours = tokenizers.train_sentencepiece(corpus(), f"{self.dir}/t.model", 500)
    pathlib.Path(self.dir, "tokenizer.json").write_text(tokenizers.to_fast(ours.path))
    special = json.dumps({"eos_token": "</s>", "pad_token": "<pad>"})
    pathlib.Path(self.dir, "tokenizer_config.json").write_text(special)
    made = tokenizers.open_tokenizer(self.dir)
    self.assertEqual((made.pad_id, made.eos_id), (ours.pad_id, ours.eos_id))
    self.assertEqual(made.vocab_size, ours.vocab_size)
    texts = ["a red panda", "写着“春”的海报", "龘", ""]
    self.assertEqual(made.encode_batch(texts), ours.encode_batch(texts))

  def test_survives_pickling(self):
    made = tokenizers.open_tokenizer(datasets.fast_tokenizer(self.dir))
    copy = pickle.loads(pickle.dumps(made))
    self.assertEqual(copy.encode("红色 panda"), made.encode("红色 panda"))

  def test_errors(self):
    with self.assertRaisesRegex(types.UserError, "tokenizer .*tokenizer.json: no such file"):
      tokenizers.open_tokenizer(self.dir)
    path = pathlib.Path(datasets.fast_tokenizer(self.dir, eos_token="<eos>"))
    with self.assertRaisesRegex(
      types.UserError, "eos_token='<eos>' is no token of .*tokenizer.json"
    ):
      tokenizers.open_tokenizer(self.dir)
    datasets.fast_tokenizer(self.dir, eos_token=None)
    with self.assertRaisesRegex(types.UserError, "eos_token=None, expected a token"):
      tokenizers.open_tokenizer(self.dir)
    (path / "tokenizer_config.json").unlink()
    with self.assertRaisesRegex(types.UserError, "cannot read .*; it names the end token"):
      tokenizers.open_tokenizer(self.dir)
    (path / "tokenizer.json").write_text("{}")
    with self.assertRaisesRegex(types.UserError, "tokenizer.json: not a tokenizer.json"):
      tokenizers.open_tokenizer(self.dir)


if __name__ == "__main__":
  absltest.main()
