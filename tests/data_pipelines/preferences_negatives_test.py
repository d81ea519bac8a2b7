"""Negatives: what models drew and nothing else, with a label that the loader finds."""

import tempfile

import numpy as np
from absl.testing import absltest

from data_pipelines.posters import builder
from data_pipelines.preferences import candidates, negatives, sample
from experiments import ct, sft
from seedream_jax.data import loader, records
from tests.data_pipelines import preferences_sample_test


class NegativesTest(absltest.TestCase):
  def test_generated_pictures_become_labelled_records(self):
    root = self.enter_context(tempfile.TemporaryDirectory())
    names = ("a", candidates.TRUTH, "b", candidates.DAMAGED)
    drawers = tuple(preferences_sample_test.FakeDrawer(name) for name in names)
    asked = tuple(preferences_sample_test.drawn(5))
    sample.build(sample.Candidates(asked, drawers, num_images=2, seed=3, chunk=2), f"{root}/sets")
    source = negatives.Negatives(candidates.open_sets(f"{root}/sets"))
    self.assertLen(source.places, 5 * 2 * 2)
    report = builder.build(builder.Plan(source, len(source.places)), f"{root}/out")
    self.assertEqual(report.records, 20)
    rows = list(records.iterate(records.open_split(f"{root}/out:train"), "image", "captions"))
    sets = list(candidates.Reader(candidates.open_sets(f"{root}/sets")))
    np.testing.assert_array_equal(rows[2]["image"], sets[0].decode(4))  # a, a, then b's first
    self.assertEqual(rows[4]["captions"]["text"][0].decode(), asked[1].text)
    columns = tuple((f"aesthetics.{axis}", (0, 1)) for axis in ct.AXES) + (sft.ORIGIN,)
    made = loader.Loader(
      dict(
        sources=((f"{root}/out", 1.0),),
        features=("id_B", "label_BA"),
        batch_size=20,
        labels=columns,
      )
    )
    batch = made.batch(0)
    np.testing.assert_array_equal(batch["label_BA"], np.tile([-1, -1, -1, -1, 1], (20, 1)))
    self.assertLen(set(batch["id_B"].tolist()), 20)


if __name__ == "__main__":
  absltest.main()
