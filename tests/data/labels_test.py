"""Labels: what a scene says as columns, read back, and the shipped vocabulary."""

import string

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from data_pipelines.posters import scene as scene_lib
from data_pipelines.posters import worlds
from experiments import judge
from seedream_jax import types
from seedream_jax.data import labels, reader

COLUMNS = judge.get_config("nano").data.streams.train.labels


def _row(scene: dict) -> list[int]:
  return [reader._label(scene, path, words) for path, words in COLUMNS]


class LabelsTest(parameterized.TestCase):
  def test_decode_by_hand(self):
    # Slots of 5 subjects, colour, count, language; -1 is absent.
    label_BA = jnp.array([[4, -1, -1, 2, 1, -1], [0, 3, 0, -1, 3, 1], [-1, -1, -1, 7, -1, 0]])
    got = labels.decode(label_BA, 5)
    np.testing.assert_array_equal(
      got.subject_BV, [[0, 0, 0, 0, 1], [1, 0, 0, 1, 0], [0, 0, 0, 0, 0]]
    )
    np.testing.assert_array_equal(got.color_B, [2, -1, 7])
    np.testing.assert_array_equal(got.count_B, [1, 3, -1])
    np.testing.assert_array_equal(got.text_B, [0.0, 1.0, 1.0])

  def test_too_few_columns(self):
    with self.assertRaisesRegex(ValueError, r"\(2, 3\)"):
      labels.decode(jnp.zeros((2, 3), jnp.int32), 5)

  def test_what_the_loader_looks_up_is_what_the_scene_says(self):
    words, seen = labels.vocabulary(COLUMNS), set()
    for i in range(60):
      scene = scene_lib.sample(scene_lib.Dice(5, i), worlds.make_world("nano"), (64, 64))
      got = labels.decode(jnp.array([_row(scene)]), len(words.subjects))
      kinds = {words.subjects[v] for v in np.flatnonzero(got.subject_BV[0])}
      self.assertEqual(kinds, {s["emoji"] for s in scene["subjects"]})
      self.assertEqual(words.colors[int(got.color_B[0])], scene["background"]["color"])
      self.assertEqual(words.counts[int(got.count_B[0])], scene["count"])
      self.assertEqual(bool(got.text_B[0]), scene["text"] is not None)
      seen.add((scene["count"], scene["text"] is not None))
    self.assertGreaterEqual(len(seen), 4)

  def test_what_no_vocabulary_holds_is_absent(self):
    scene = {"background": {"color": "mauve"}, "subjects": [{"emoji": "?"}], "count": 9}
    self.assertEqual(_row(scene), [-1] * len(COLUMNS))

  @parameterized.parameters(*judge.PRESETS)
  def test_vocabulary_is_the_worlds_own(self, preset):
    config = judge.get_config(preset)
    world = worlds.make_world(preset)
    words = labels.vocabulary(config.data.streams.train.labels)
    self.assertEqual((words.subjects, words.colors), (world.subjects, world.colors))
    if preset == "nano":
      letters = judge.VOCABULARY[preset]["characters"]
      self.assertEqual(letters, worlds.vocabulary(world) + string.ascii_uppercase)
    self.assertGreaterEqual(words.slots, len(world.counts))
    self.assertEqual(words.counts, tuple(range(words.slots + 1)))
    sizes = dict(config.model.classifier.heads)
    want = dict(subject=len(words.subjects), color=len(words.colors), count=len(words.counts))
    self.assertEqual(sizes, {**want, "text": 1})

  def test_a_number_steps_into_a_string(self):
    scene = {"text": {"content": "春A"}}
    got = [reader._label(scene, f"text.content.{i}", "A春") for i in range(3)]
    self.assertEqual(got, [1, 0, -1])

  @parameterized.parameters(
    (COLUMNS[1:],),  # the first slot is missing
    (COLUMNS[:-1],),
    ((COLUMNS[0], *COLUMNS[:1], *COLUMNS[2:]),),
    ((COLUMNS[0], (COLUMNS[1][0], ("🐼",)), *COLUMNS[2:]),),
    (COLUMNS[3:],),  # no slot at all
    ((),),
  )
  def test_other_columns_are_refused(self, columns):
    with self.assertRaisesRegex(types.UserError, r"expected subjects.0.emoji"):
      labels.vocabulary(columns)


if __name__ == "__main__":
  absltest.main()
