"""The Frechet distance against the closed form of Gaussians."""

import numpy as np
from absl.testing import absltest

from seedream_jax.eval import frechet


class FrechetTest(absltest.TestCase):
  def test_identical_sets_are_at_zero(self):
    x = np.random.default_rng(0).normal(size=(211, 7))
    self.assertAlmostEqual(frechet.distance(frechet.moments(x), frechet.moments(x)), 0.0, places=9)

  def test_closed_form_of_commuting_gaussians(self):
    # Same eigenvectors: |m|^2 + sum (sqrt(a_i) - sqrt(b_i))^2.
    rng = np.random.default_rng(1)
    q, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    a, b, shift = np.array([1.0, 4, 9, 2, 0]), np.array([4.0, 1, 0.25, 2, 3]), rng.normal(size=5)
    got = frechet.distance(
      frechet.Moments(np.zeros(5), q @ np.diag(a) @ q.T, 99),
      frechet.Moments(shift, q @ np.diag(b) @ q.T, 99),
    )
    want = np.square(shift).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    self.assertAlmostEqual(got, want, places=6)  # sqrt(eps) where an eigenvalue is 0

  def test_general_covariances_agree_with_the_product_form(self):
    # tr (C_a C_b)^1/2 is the sum of the roots of the product's eigenvalues.
    rng = np.random.default_rng(2)
    a, b = (
      np.cov(rng.normal(size=(97, 7)) @ rng.normal(size=(7, 7)), rowvar=False) for _ in range(2)
    )
    got = frechet.distance(frechet.Moments(np.zeros(7), a, 97), frechet.Moments(np.zeros(7), b, 97))
    cross = np.sqrt(np.linalg.eigvals(a @ b).real.clip(0)).sum()
    self.assertAlmostEqual(got, np.trace(a) + np.trace(b) - 2 * cross, places=6)

  def test_grows_with_a_shift_by_its_square(self):
    x = np.random.default_rng(3).normal(size=(211, 3))
    base = frechet.moments(x)
    got = [frechet.distance(base, frechet.moments(x + s)) for s in (0.0, 0.5, 1.0, 2.0)]
    np.testing.assert_allclose(got, [0.0, 0.75, 3.0, 12.0], atol=1e-9)

  def test_ratio_is_one_for_real_images_and_says_when_it_is_smoke(self):
    rng = np.random.default_rng(4)
    reference = frechet.moments(rng.normal(size=(5_003, 3)))
    real, fake = rng.normal(size=(1_009, 3)), rng.normal(size=(701, 3)) + 1.0
    self.assertAlmostEqual(frechet.fd_judge(real, reference, floor_NF=real)["value"], 1.0)
    got = frechet.fd_judge(fake, reference, floor_NF=real)
    self.assertGreater(got["value"], 10.0)
    self.assertEqual((got["n"], got["reference_n"], got["smoke"]), (701, 5_003, True))

  def test_wrong_shapes_are_named(self):
    with self.assertRaisesRegex(ValueError, r"\(1, 3\)"):
      frechet.moments(np.zeros((1, 3)))
    with self.assertRaisesRegex(ValueError, "differ"):
      frechet.distance(frechet.moments(np.eye(3)), frechet.moments(np.eye(4)))


if __name__ == "__main__":
  absltest.main()
