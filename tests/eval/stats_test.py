"""Cluster bootstrap: coverage, exact bounds at the ends, pairing, and verdicts."""

import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax.eval import stats


def _clustered(rng: np.random.Generator, num_clusters: int, size: int, mean: float) -> tuple:
  """Shares that vary by prompt: Beta-distributed success rates, intra-prompt correlation 1/3."""
  rate = rng.beta(2.0 * mean, 2.0 * (1.0 - mean), num_clusters)
  hits = rng.random((num_clusters, size)) < rate[:, None]
  return hits.reshape(-1).astype(float), np.repeat(np.arange(num_clusters), size)


class StatsTest(parameterized.TestCase):
  def test_coverage_is_nominal_only_when_clustered(self):
    rng = np.random.default_rng(0)
    inside = {"prompt": 0, "image": 0}
    for trial in range(200):
      hits, prompt = _clustered(rng, 41, 11, 0.6)
      ones = np.ones_like(hits)
      for name, clusters in (("prompt", prompt), ("image", np.arange(len(hits)))):
        got = stats.bootstrap(hits, ones, clusters, resamples=300, seed=trial)
        inside[name] += got.lo <= 0.6 <= got.hi
    self.assertBetween(inside["prompt"] / 200, 0.90, 0.99)
    self.assertLess(inside["image"] / 200, 0.80)

  def test_ratio_of_sums_weights_long_strings(self):
    got = stats.bootstrap(np.array([5.0, 0.0]), np.array([5.0, 1.0]), ["a", "b"])
    self.assertAlmostEqual(got.value, 5 / 6)

  def test_ratio_may_be_negative(self):
    got = stats.bootstrap(np.array([-3.0, -1.0, 1.0]), np.ones(3), [0, 1, 2])
    self.assertAlmostEqual(got.value, -1.0)
    self.assertLess(got.lo, -1.0)

  def test_unanimous_results_keep_an_honest_bound(self):
    ones = np.ones(40)
    got = stats.bootstrap(ones, ones, np.repeat(np.arange(20), 2))
    # Clopper-Pearson for 20 of 20 at 95%: 0.025 ** (1 / 20) = 0.8316 (R: binom.test(20, 20)).
    self.assertAlmostEqual(got.lo, 0.8316, places=4)
    self.assertEqual((got.value, got.hi, got.n, got.clusters), (1.0, 1.0, 40, 20))
    got = stats.bootstrap(0 * ones, ones, np.repeat(np.arange(20), 2))
    self.assertAlmostEqual(got.hi, 0.1684, places=4)

  def test_pairing_cancels_the_prompts_difficulty(self):
    rng = np.random.default_rng(1)
    rate = rng.beta(0.5, 0.5, 101)
    a = (rng.random((101, 7)) < rate[:, None]).astype(float).reshape(-1)
    b = np.maximum(a, rng.random(a.shape) < 0.05)
    prompt, ones = np.repeat(np.arange(101), 7), np.ones_like(a)
    paired = stats.paired_difference(a, b, ones, ones, prompt)
    alone = [stats.bootstrap(x, ones, prompt) for x in (a, b)]
    self.assertAlmostEqual(paired.value, alone[1].value - alone[0].value)
    self.assertEqual(stats.verdict(paired), "better")
    self.assertLess(alone[1].lo, alone[0].hi)  # the unpaired intervals overlap: they could not tell

  def test_identical_arms_are_equal(self):
    x = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    got = stats.paired_difference(x, x, np.ones(5), np.ones(5), list("abcde"))
    self.assertEqual((got.value, got.lo, got.hi), (0.0, 0.0, 0.0))
    self.assertEqual(stats.verdict(got), "equal")

  @parameterized.parameters(
    (0.01, 0.09, "better"),
    (-0.2, -0.1, "worse"),
    (-0.02, 0.02, "equal"),
    (-0.02, 0.05, "undecided"),
  )
  def test_verdict(self, lo, hi, want):
    self.assertEqual(stats.verdict(stats.Interval((lo + hi) / 2, lo, hi, 9, 9)), want)

  @parameterized.parameters((239, "smoke"), (240, "hint"), (2_047, "hint"), (2_048, "evidence"))
  def test_strength(self, n, want):
    self.assertEqual(stats.strength(n), want)

  def test_empty_and_mismatched(self):
    self.assertTrue(np.isnan(stats.bootstrap(np.zeros(0), np.zeros(0), []).value))
    with self.assertRaisesRegex(ValueError, "num 2, den 2, clusters 1"):
      stats.bootstrap(np.ones(2), np.ones(2), ["a"])


if __name__ == "__main__":
  absltest.main()
