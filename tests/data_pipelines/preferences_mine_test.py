"""Bad cases: the sets that rewards like least, by each reward's own scale."""

import tempfile
from unittest import mock

import numpy as np
from absl.testing import absltest

from data_pipelines.preferences import asked, candidates, mine, sample, scorer
from seedream_jax import types
from tests.data_pipelines import preferences_sample_test


class FakeScorer:
  """Likes pictures by their first pixel; the prompts it saw stand in `asked`."""

  asked: dict[str, list[str]] = {}

  def __init__(self, workdir: str):
    self._sign = -1.0 if workdir == "contrary" else 1.0
    self._seen = self.asked.setdefault(workdir, [])

  def __call__(self, rows):
    for prompt, image_RHWC in rows:
      self._seen.append(prompt)
      yield self._sign * image_RHWC[:, 0, 0, 0].astype(np.float32)


class MineTest(absltest.TestCase):
  def test_worst_first_and_no_reward_rules_by_its_scale(self):
    rows = np.arange(4)
    small, large = np.array([0.0, 1.0, 2.0, 3.0]), np.array([3e3, 1e3, 0.0, 3e3])
    self.assertEqual(mine.worst(4, [(rows, small)], 2).tolist(), [0, 1])
    # Standard scores: -1.34 -0.45 0.45 1.34 and 0.98 -0.59 -1.37 0.98.
    self.assertEqual(mine.worst(4, [(rows, small), (rows, large)], 4).tolist(), [1, 2, 0, 3])

  def test_a_set_is_averaged_over_the_rewards_that_were_asked_about_it(self):
    every, some = (np.arange(3), np.array([0.0, 1.0, 2.0])), (np.array([1]), np.array([5.0]))
    self.assertEqual(
      mine.worst(3, [every, some], 3).tolist(), [0, 1, 2]
    )  # one alone is at its mean
    self.assertEqual(mine.worst(3, [some], 3).tolist(), [1])  # what nobody scored is not bad

  def test_what_is_written_that_can_be_drawn_again(self):
    root = self.enter_context(tempfile.TemporaryDirectory())
    names = (candidates.TRUTH, "a", candidates.DAMAGED)
    drawers = tuple(preferences_sample_test.FakeDrawer(name) for name in names)
    prompts = tuple(preferences_sample_test.drawn(8))
    sample.build(sample.Candidates(prompts, drawers, num_images=2, seed=3), f"{root}/sets")
    reader = candidates.Reader(candidates.open_sets(f"{root}/sets"))
    likes = {
      found.prompt.id: np.mean([float(found.decode(k)[0, 0, 0]) for k in (2, 3)])
      for found in reader
    }
    self.enter_context(mock.patch.object(scorer, "Scorer", FakeScorer))
    want = sorted(likes, key=lambda ident: likes[ident])[:5]
    found = mine.mine(f"{root}/sets", ["plain"], "", 5)
    self.assertEqual([p.id for p in found], want)
    with open(f"{root}/bad.jsonl", "w", encoding="utf-8") as f:
      f.writelines(f"{mine.line(prompt)}\n" for prompt in found)
    again = asked.read(f"{root}/bad.jsonl", (8, 8))
    self.assertEqual(
      [(p.id, p.text, p.lang, p.size, p.scene) for p in again],
      [(p.id, p.text, p.lang, p.size, p.scene) for p in found],
    )
    mine.mine(f"{root}/sets", ["plain"], "text", 5)
    self.assertEqual(FakeScorer.asked["text"], [p.text for p in prompts if p.tags])
    with self.assertRaisesRegex(types.UserError, "--reward: none"):
      mine.mine(f"{root}/sets", [], "", 5)


if __name__ == "__main__":
  absltest.main()
