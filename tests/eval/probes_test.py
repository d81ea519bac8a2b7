"""Gates: a probe passes exactly when what it asks for is in the features."""

import io
import json
import os
import tempfile

import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from seedream_jax import types
from seedream_jax.data import records
from seedream_jax.eval import probes

SUBJECTS, COLORS, PLACES = ("🐼", "🐉", "🌙"), ("red", "blue"), ("top", "left", "center")


def _example(rng, lang: str = "zh") -> probes.Example:
  """A caption of three words: ids 10.. name the subject, 20.. the colour, 30.. the place."""
  s, c, p = (int(rng.integers(len(x))) for x in (SUBJECTS, COLORS, PLACES))
  labels = {"subject": SUBJECTS[s], "colour": COLORS[c], "place": PLACES[p], "count": None}
  return probes.Example((10 + s, 20 + c, 30 + p, 3), lang, labels)


def _bag(ids_BL: np.ndarray, hidden: tuple[int, ...] = ()) -> np.ndarray:
  bag_BE = np.zeros((len(ids_BL), 40), np.float32)
  for row, ids in zip(bag_BE, ids_BL):
    row[[i for i in ids if i not in hidden]] = 1
  return bag_BE


class LanguageTest(parameterized.TestCase):
  def test_reads_exactly_what_the_features_hold(self):
    rng = np.random.default_rng(0)
    train, test = ([_example(rng, lang) for lang in ("zh", "en") * 60] for _ in range(2))
    names, shapes = ("subject", "colour", "place"), set()

    def features(ids_BL):
      shapes.add(ids_BL.shape)
      return _bag(ids_BL, hidden=(20, 21))  # blind to colour words

    got = probes.language(features, train, test, names=names, batch_size=7)
    self.assertEqual(set(got), {f"{n}/{lang}" for n in names for lang in ("zh", "en")})
    self.assertEqual(shapes, {(7, 4)})
    for lang in ("zh", "en"):
      self.assertEqual(got[f"subject/{lang}"].accuracy, 1.0)
      self.assertEqual(got[f"place/{lang}"].accuracy, 1.0)
      self.assertLess(got[f"colour/{lang}"].accuracy, 0.75)
      self.assertEqual((got[f"subject/{lang}"].examples, got[f"subject/{lang}"].classes), (60, 3))
    accuracy = {k: v.accuracy for k, v in got.items()}
    failing = probes.failing(accuracy, probes.LANGUAGE_GATE)
    self.assertEqual(set(failing), {"colour/zh", "colour/en"})

  def test_padding_is_the_tokenizers_and_the_last_batch_is_full_of_texts(self):
    seen, side = [], [probes.Example(ids, "en", {}) for ids in ((5, 6, 1), (5, 1), (7, 1))]

    def features(ids_BL):
      seen.append(ids_BL.copy())
      return ids_BL[:, :2]

    got = probes._features(features, side, 4, 2, pad_id=30)
    want = [[[5, 6, 1, 30], [5, 1, 30, 30]], [[7, 1, 30, 30], [7, 1, 30, 30]]]
    np.testing.assert_array_equal(seen, want)
    np.testing.assert_array_equal(got, [[5, 6], [5, 1], [7, 1]])

  def test_needs_to_generalise(self):
    """Noise separates the training examples; it must not count."""
    rng = np.random.default_rng(0)
    features_BE = rng.standard_normal((40, 60)).astype(np.float32)
    labels = ["a", "b"] * 20
    got = probes.linear_probe(features_BE[:20], labels[:20], features_BE[20:], labels[20:])
    self.assertEqual(got.train_accuracy, 1.0)
    self.assertLess(got.accuracy, 0.9)

  def test_none_is_left_out_and_an_unseen_class_is_wrong(self):
    x_BE = np.eye(2, dtype=np.float32)[[0, 1, 0, 1]]
    got = probes.linear_probe(x_BE, ["a", "b", "a", None], x_BE, ["a", "b", "c", None])
    self.assertEqual(got.examples, 3)
    self.assertAlmostEqual(got.accuracy, 2 / 3)
    with self.assertRaisesRegex(ValueError, "over 1 classes"):
      probes.linear_probe(x_BE, ["a"] * 4, x_BE, ["a"] * 4)

  def test_labels_of_scenes(self):
    def read(scene):
      return {name: label(scene) for name, label in probes.LABELS.items()}

    panda, moon = ({"emoji": e, "place": p} for e, p in (("🐼", "left"), ("🌙", "top")))
    ground = {"color": "red"}
    one = read({"background": ground, "subjects": [panda], "count": 1, "text": None})
    self.assertEqual(
      one,
      dict(subject="🐼", colour="red", count=1, place="left", text_colour=None, text_place=None),
    )
    two = read({"background": ground, "subjects": [panda, moon], "count": 2, "text": None})
    self.assertEqual((two["subject"], two["count"], two["place"]), (None, 2, None))
    text = {"color": "blue", "place": "top"}
    bare = read({"background": ground, "subjects": [], "count": 0, "text": text})
    self.assertEqual((bare["subject"], bare["count"]), (None, None))
    self.assertEqual((bare["text_colour"], bare["text_place"]), ("blue", "top"))

  def test_examples_are_read_from_records(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    scene = {"background": {"color": "red"}, "subjects": [], "count": 0, "text": None}

    def record(i, scene):
      png = io.BytesIO()
      Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(png, "png")
      png.seek(0)
      texts = (("红色背景", "zh", "long"), ("red", "en", "short"), ("red background", "en", "long"))
      captions = [dict(text=t, lang=la, kind=k, weight=1.0) for t, la, k in texts]
      fields = dict(image=png, height=4, width=4, bucket="4x4", captions=captions)
      return dict(fields, id=i, scene=json.dumps(scene) if scene else "")

    class Tokenizer:
      def encode_batch(self, texts):
        return [[len(t), 3] for t in texts]

    for split, scenes in (("train", [scene] * 5), ("blind", [None])):
      path = os.path.join(folder, records.shard_name("p", split, 0, 1))
      records.write_shard(path, records.features(), [record(i, s) for i, s in enumerate(scenes)])
    splits = {
      s: [(n, os.path.getsize(os.path.join(folder, records.shard_name("p", s, 0, 1))))]
      for s, n in (("train", 5), ("blind", 1))
    }
    records.write_metadata(folder, "p", records.features(), splits, "test")
    got = probes.examples(folder, Tokenizer(), limit=2)
    self.assertEqual([(e.ids, e.lang) for e in got], [((4, 3), "zh"), ((14, 3), "en")] * 2)
    self.assertEqual(got[0].labels["colour"], "red")
    with self.assertRaisesRegex(types.UserError, "records hold no scene"):
      probes.examples(f"{folder}:blind", Tokenizer(), limit=2)


class RetrievalTest(absltest.TestCase):
  def _batch(self, langs: str) -> dict[str, np.ndarray]:
    ids_BJNG = np.full((1, len(langs), 4, 3), 80, np.int32)
    for j, lang in enumerate(langs):
      ids_BJNG[0, j, :, 0] = 200 if lang == "z" else 70
    return {"byt5_ids_BJNG": ids_BJNG}

  def test_counts_both_directions_and_languages(self):
    x_MNP = np.tile(np.eye(4)[None], (3, 1, 1))  # each cell its own axis
    y_MNP = x_MNP.copy()
    y_MNP[1, 0], y_MNP[1, 2] = x_MNP[1, 2], x_MNP[1, 0]  # string 1's text is taken for cell 2
    got = probes.retrieval(lambda batch: (x_MNP, y_MNP), [self._batch("zee")])
    self.assertEqual(got["strings"], 3)
    self.assertEqual(got["chance"], 0.25)
    self.assertAlmostEqual(got["box_to_text"], 2 / 3)
    self.assertAlmostEqual(got["text_to_box"], 2 / 3)
    self.assertEqual(got["zh"], 1.0)
    self.assertEqual(got["en"], 0.5)

  def test_one_direction_alone(self):
    x_MNP, y_MNP = (np.tile(np.eye(4)[None], (1, 1, 1)) for _ in range(2))
    y_MNP[0, 3] = 2 * x_MNP[0, 0]  # a wrong string shouts louder than the true one
    got = probes.retrieval(lambda batch: (x_MNP, y_MNP), [self._batch("z")])
    self.assertEqual((got["box_to_text"], got["text_to_box"], got["zh"]), (0.0, 1.0, 0.5))

  def test_a_tie_is_a_loss(self):
    same_MNP = np.ones((2, 4, 3)) / 3**0.5
    got = probes.retrieval(lambda batch: (same_MNP, same_MNP), [self._batch("ze")])
    self.assertEqual((got["zh"], got["en"]), (0.0, 0.0))
    self.assertEqual(set(probes.failing({"zh": got["zh"], "en": float("nan")}, 0.95)), {"zh", "en"})


if __name__ == "__main__":
  absltest.main()
