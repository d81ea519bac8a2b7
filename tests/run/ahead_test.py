"""What is read of a compilation that was not waited for to its end."""

import os

import pytest
from absl.testing import absltest

from seedream_jax import types
from seedream_jax.engine import hardware, hlo, traffic
from seedream_jax.run import ahead, programs

_BUFFERS = """
allocation 0: size 1024, page 0, thread-local:
allocation 1: size 300, page 0, parameter 2, shape |f32[75]| at ShapeIndex {}:
 value: <1 param.8 @0> (size=300,offset=0): f32[75]{0}
allocation 2: size 40, page 0, parameter 0, shape |f32[10]| at ShapeIndex {}, maybe-live-out:
allocation 3: size 8, page 0, maybe-live-out:
allocation 4: size 16, page 0, constant:
allocation 5: size 204, color 2, page 0, preallocated-temp:
allocation 6: size 5000, page 0, preallocated-temp:
"""


def _refuse():
  raise types.UserError("of its own kind")


def _die():
  os.write(2, b"last words")
  os._exit(1)


def _task():
  from experiments import pretrain

  config = pretrain.get_config("nano,content=latent,text=features")
  config.sharding.mesh = dict(data=1, fsdp=4, tensor=1, context=1)
  config.model.dit.depth, config.data.streams.train.text_buckets = 3, (16,)
  return programs.make("step", config, hardware.parse("v5e:2x2"), (64, 64))


def _make():
  return {}, _task().lower()


class AheadTest(absltest.TestCase):
  def test_memory(self):
    want = dict(arguments=340, donated=40, temporaries=5000, outputs=48)
    self.assertEqual(ahead.memory(_BUFFERS), want)

  def test_a_user_s_mistake_in_the_process_is_told(self):
    with self.assertRaisesRegex(types.UserError, "of its own kind"):
      ahead.compile_apart(_refuse)

  def test_a_process_that_dies_is_told_with_its_last_words(self):
    with self.assertRaisesRegex(RuntimeError, "ended: last words"):
      ahead.compile_apart(_die)


@pytest.mark.heavy
class WholeCompilationTest(absltest.TestCase):
  def test_the_outcome_is_what_a_whole_compilation_has(self):
    found, whole = ahead.compile_apart(_make), _task().lower().compile()
    text, stats = whole.as_text(), whole.memory_analysis()
    self.assertEqual(hlo.collectives(found.text), hlo.collectives(text))
    self.assertEqual(traffic.moved(found.text), traffic.moved(text))
    self.assertEqual(found.memory["arguments"], stats.argument_size_in_bytes)
    self.assertEqual(found.memory["donated"], stats.alias_size_in_bytes)
    self.assertEqual(found.memory["outputs"], stats.output_size_in_bytes)
    temporaries = stats.temp_size_in_bytes
    self.assertBetween(found.memory["temporaries"], 0.99 * temporaries, temporaries)


if __name__ == "__main__":
  absltest.main()
