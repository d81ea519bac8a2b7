"""Solvers on flows whose end is known, and guidance."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.flow import path, solvers, timesteps

DATA_STD = 0.5


def std(t):
  """Of x_t when data are N(0, DATA_STD^2)."""
  return np.sqrt((1 - t) ** 2 * DATA_STD**2 + t**2)


def gaussian_velocity(x, t_B):
  """The marginal velocity of that flow, which scales x by std(t) / std(1)."""
  t = path.expand(t_B, x)
  return x * (t - (1 - t) * DATA_STD**2) / ((1 - t) ** 2 * DATA_STD**2 + t**2)


class SolverTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.noise = rng.standard_normal((2, 3, 5, 1)).astype(np.float32)
    self.x0 = rng.standard_normal((2, 3, 5, 1)).astype(np.float32)

  @parameterized.product(solver=list(solvers.SOLVERS), num_steps=[1, 2, 5], shift=[1.0, 3.0])
  def test_exact_on_a_straight_path(self, solver, num_steps, shift):
    v = path.velocity(self.x0, self.noise)
    got = solvers.sample(
      lambda x, t_B: v, self.noise, timesteps.grid(num_steps, shift), solver=solver
    )
    np.testing.assert_allclose(got, self.x0, atol=2e-5)

  def _error(self, solver, grid):
    got = jax.jit(lambda x: solvers.sample(gaussian_velocity, x, grid, solver=solver))(self.noise)
    return float(np.abs(got - std(grid[-1]) / std(grid[0]) * self.noise).max())

  @parameterized.parameters(("euler", 1), ("heun", 2), ("dpmpp2m", 2))
  def test_order_of_convergence(self, solver, order):
    # Away from the ends, where a step in log-SNR is infinite and dpmpp2m is of first order.
    errors = [self._error(solver, jnp.linspace(0.9, 0.1, m + 1)) for m in (16, 32, 64)]
    measured = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(measured, order, atol=0.2)

  def test_dpmpp2m_beats_euler_at_equal_evaluations(self):
    grid = timesteps.grid(16)
    self.assertLess(self._error("dpmpp2m", grid), 0.3 * self._error("euler", grid))

  def test_times_seen_are_the_grid(self):
    seen = []

    def velocity(x, t_B):
      jax.debug.callback(lambda t_B: seen.append(np.asarray(t_B)), t_B, ordered=True)
      return x

    grid = timesteps.grid(3, 2.0)
    jax.block_until_ready(solvers.sample(velocity, self.noise, grid))
    np.testing.assert_allclose(np.stack(seen), np.repeat(grid[:-1, None], 2, axis=1))

  @parameterized.product(solver=list(solvers.SOLVERS), steps=[0, 1, 3, 4])
  def test_stopped_early_is_the_solver_on_the_grid_so_far(self, solver, steps):
    """And what is not taken is not computed: the velocity is asked for in the steps taken alone."""
    seen, grid = [], timesteps.grid(5)[:5]

    def velocity(x, t_B):
      jax.debug.callback(lambda t: seen.append(float(t)), t_B[0])
      return gaussian_velocity(x, t_B)

    part = jax.jit(lambda n: solvers.sample(velocity, self.noise, grid, solver=solver, steps=n))
    got = jax.block_until_ready(part(steps))
    jax.effects_barrier()
    self.assertLen(seen, steps * (2 if solver == "heun" else 1))
    want = self.noise
    if steps:
      want = solvers.sample(gaussian_velocity, want, grid[: steps + 1], solver=solver)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)

  def test_unknown_solver_is_named(self):
    with self.assertRaisesRegex(types.UserError, "ddim.*euler, heun, dpmpp2m"):
      solvers.sample(gaussian_velocity, self.noise, timesteps.grid(2), solver="ddim")


class GuidanceTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    self.calls = 0
    self.x_BHWC = np.random.default_rng(0).standard_normal((3, 2, 5, 1)).astype(np.float32)
    self.cond, self.uncond = {"c": jnp.array([1.0, 2.0, 3.0])}, {"c": jnp.array([7.0, 8.0, 9.0])}

  def velocity(self, x, t_B, cond):
    self.calls += 1
    return x * path.expand(cond["c"] * t_B, x)

  def test_extrapolates_in_one_call(self):
    t_B = jnp.array([0.2, 0.5, 0.9])
    v_c, v_u = (self.velocity(self.x_BHWC, t_B, c) for c in (self.cond, self.uncond))
    self.calls = 0
    got = solvers.guided(self.velocity, self.cond, self.uncond, 3.0)(self.x_BHWC, t_B)
    np.testing.assert_allclose(got, v_u + 3.0 * (v_c - v_u), rtol=1e-5)
    self.assertEqual(self.calls, 1)

  def test_scale_one_is_the_condition_and_zero_is_not(self):
    t_B = jnp.array([0.2, 0.5, 0.9])
    for scale, cond in ((1.0, self.cond), (0.0, self.uncond)):
      got = solvers.guided(self.velocity, self.cond, self.uncond, scale)(self.x_BHWC, t_B)
      np.testing.assert_allclose(got, self.velocity(self.x_BHWC, t_B, cond), rtol=1e-5)

  def test_outside_the_interval_there_is_no_guidance(self):
    t_B = jnp.array([0.2, 0.5, 0.9])
    plain = self.velocity(self.x_BHWC, t_B, self.cond)
    full = solvers.guided(self.velocity, self.cond, self.uncond, 3.0)(self.x_BHWC, t_B)
    part = solvers.guided(self.velocity, self.cond, self.uncond, 3.0, (0.3, 0.8))(self.x_BHWC, t_B)
    np.testing.assert_allclose(part[1], full[1])
    np.testing.assert_allclose(part[::2], plain[::2], rtol=1e-5)

  def test_scale_of_each_example(self):
    t_B = jnp.array([0.2, 0.5, 0.9])
    got = solvers.guided(self.velocity, self.cond, self.uncond, jnp.array([1.0, 2.0, 5.0]))(
      self.x_BHWC, t_B
    )
    for b, scale in enumerate((1.0, 2.0, 5.0)):
      want = solvers.guided(self.velocity, self.cond, self.uncond, scale)(self.x_BHWC, t_B)
      np.testing.assert_allclose(got[b], want[b], rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
