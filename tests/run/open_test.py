"""A tokenizer and a model that do not belong together are told apart before a batch is made."""

import tempfile

from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.data import tokenizers
from seedream_jax.models import llm
from seedream_jax.run import open as open_lib
from tests.data import datasets


class CheckTokenizerTest(parameterized.TestCase):
  @parameterized.parameters(
    (dict(pad_id=0), "model.llm.pad_id: 0, but the tokenizer .*tokenizer.json has 30"),
    (dict(eos_id=3), "model.llm.eos_id: 3, but the tokenizer .*tokenizer.json has 30"),
    (
      dict(vocab_size=-1),
      "model.llm.vocab_size: .*, but the tokenizer .*tokenizer.json has .* ids",
    ),
  )
  def test_refused(self, change, message):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    made = tokenizers.open_tokenizer(datasets.fast_tokenizer(folder))
    right = dict(pad_id=made.pad_id, eos_id=made.eos_id, vocab_size=made.vocab_size)
    open_lib.check_tokenizer(made, llm.make_config(**right))
    if "vocab_size" in change:
      change = dict(vocab_size=made.vocab_size + change["vocab_size"])
    with self.assertRaisesRegex(types.UserError, message):
      open_lib.check_tokenizer(made, llm.make_config(**right | change))


if __name__ == "__main__":
  absltest.main()
