"""The straight path and its parameterisations."""

import jax
import numpy as np
from absl.testing import absltest

from seedream_jax.flow import path


class PathTest(absltest.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.x0, self.eps = rng.standard_normal((2, 3, 5, 7, 2)).astype(np.float32)
    self.t_B = np.array([0.2, 0.5, 0.9], np.float32)
    self.xt = path.interpolate(self.x0, self.eps, self.t_B)
    self.v = path.velocity(self.x0, self.eps)

  def test_ends(self):
    np.testing.assert_array_equal(
      path.interpolate(self.x0, self.eps, np.zeros(3, np.float32)), self.x0
    )
    np.testing.assert_array_equal(
      path.interpolate(self.x0, self.eps, np.ones(3, np.float32)), self.eps
    )

  def test_velocity_is_the_derivative(self):
    _, dx = jax.jvp(
      lambda t_B: path.interpolate(self.x0, self.eps, t_B), (self.t_B,), (np.ones(3, np.float32),)
    )
    np.testing.assert_allclose(dx, self.v, atol=1e-6)

  def test_v_x0_eps_round_trips(self):
    np.testing.assert_allclose(path.v_to_x0(self.xt, self.v, self.t_B), self.x0, atol=1e-6)
    np.testing.assert_allclose(path.v_to_eps(self.xt, self.v, self.t_B), self.eps, atol=1e-6)
    np.testing.assert_allclose(path.x0_to_v(self.xt, self.x0, self.t_B), self.v, atol=1e-5)
    np.testing.assert_allclose(path.eps_to_v(self.xt, self.eps, self.t_B), self.v, atol=1e-5)


if __name__ == "__main__":
  absltest.main()
