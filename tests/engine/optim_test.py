"""The optimiser against numpy and optax, its rules, Muon on shards, EMA."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.engine import mesh, optim, sharding, trees

PARAMS = {
  "blocks": {"layers": {"mlp": {"kernel": (3, 8, 16), "bias": (3, 16)}}},
  "head": {"kernel": (7, 5)},
}


def make_params(seed=0):
  shapes = trees.flatten(jax.tree.map(lambda s: np.zeros(s), PARAMS, is_leaf=_is_shape))
  rng = np.random.default_rng(seed)
  return trees.unflatten(
    {path: jnp.asarray(rng.normal(size=x.shape), jnp.float32) for path, x in shapes.items()}
  )


def _is_shape(x):
  return isinstance(x, tuple)


def make(total_steps=10, **config):
  return optim.make({"lr": 0.01, **config}, make_params(), total_steps)


def grads_like(trained, step):
  return {path: (step + 1.0) * jnp.sin(x * (step + 1.0)) for path, x in trained.items()}


def run(optimizer, params, steps=3):
  """Params after a few updates with made-up gradients."""
  trained, frozen = optimizer.split(params)
  state = optimizer.init(trained)
  for step in range(steps):
    grads = grads_like(trained, step)
    trained, state, metrics = optimizer.update(grads, state, trained, step)
  return optimizer.merge(trained, frozen), state, metrics


class OptimTest(parameterized.TestCase):
  @parameterized.parameters(0.5, 1e3)
  def test_equals_optax_adamw(self, clip_norm):
    optimizer = make(weight_decay=0.1, decay_mask=(".*",), clip_norm=clip_norm, schedule="constant")
    params, _, _ = run(optimizer, make_params())
    chain = optax.chain(
      optax.clip_by_global_norm(clip_norm), optax.adamw(0.01, 0.9, 0.99, 1e-8, weight_decay=0.1)
    )
    expected = trees.flatten(make_params())
    state = chain.init(expected)
    for step in range(3):
      updates, state = chain.update(grads_like(expected, step), state, expected)
      expected = optax.apply_updates(expected, updates)
    for path, x in trees.flatten(params).items():
      np.testing.assert_allclose(x, expected[path], atol=1e-6)

  @parameterized.parameters(
    # (schedule, step, expected fraction): 4 warm-up steps from step 2, then to 0.1 at step 12.
    ("cosine", 0, 0.25),
    ("cosine", 2, 0.25),
    ("cosine", 5, 1.0),
    ("cosine", 6, 1.0),
    ("cosine", 9, 0.1 + 0.9 * 0.5),
    ("cosine", 12, 0.1),
    ("cosine", 99, 0.1),
    ("linear", 9, 0.55),
    ("constant", 12, 1.0),
  )
  def test_schedule(self, schedule, step, expected):
    optimizer = make(
      12, schedule=schedule, start_steps=2, warmup_steps=4, final_lr_fraction=0.1, lr=3.0
    )
    np.testing.assert_allclose(optimizer.lr(step), 3.0 * expected, rtol=1e-6)

  def test_moves(self):
    optimizer = make(every=3, start_steps=2)
    self.assertEqual([s for s in range(10) if optimizer.moves(s)], [2, 5, 8])

  def test_multipliers_scale_the_update(self):
    params = make_params()
    plain, _, _ = run(make(), params, steps=1)
    scaled, _, _ = run(make(lr_mults=(("head/.*", 10.0), (".*", 1.0))), params, steps=1)
    moved = lambda tree, path: trees.flatten(tree)[path] - trees.flatten(params)[path]  # noqa: E731
    for path, factor in (("head/kernel", 10.0), ("blocks/layers/mlp/kernel", 1.0)):
      np.testing.assert_allclose(moved(scaled, path), factor * moved(plain, path), rtol=1e-3)

  def test_decay_only_where_the_mask_says(self):
    optimizer = make(weight_decay=0.5, clip_norm=None)
    trained, _ = optimizer.split(make_params())
    zeros = jax.tree.map(jnp.zeros_like, trained)
    new, _, _ = optimizer.update(zeros, optimizer.init(trained), trained, 0)
    np.testing.assert_allclose(new["head/kernel"], trained["head/kernel"] * (1 - 0.01 * 0.5), 1e-6)
    np.testing.assert_array_equal(new["blocks/layers/mlp/bias"], trained["blocks/layers/mlp/bias"])

  def test_frozen_leaves_are_apart(self):
    optimizer = make(trainable=(("blocks/.*kernel", True), (".*", False)))
    trained, frozen = optimizer.split(make_params())
    self.assertEqual(list(trained), ["blocks/layers/mlp/kernel"])
    self.assertEqual(optimizer.trained_paths, ("blocks/layers/mlp/kernel",))
    moments = trees.flatten(optimizer.init(trained))
    self.assertFalse([path for path in moments if "head" in path or "bias" in path])
    params, _, _ = run(optimizer, make_params())
    self.assertEqual(jax.tree.structure(params), jax.tree.structure(make_params()))
    for path, x in frozen.items():
      np.testing.assert_array_equal(trees.flatten(params)[path], x)

  def test_metrics(self):
    optimizer = make(clip_norm=1e-3)
    trained, _ = optimizer.split(make_params())
    grads = grads_like(trained, 0)
    new, _, metrics = optimizer.update(grads, optimizer.init(trained), trained, 0)
    flat = np.concatenate([np.ravel(g) for g in grads.values()])
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(flat), rtol=1e-6)
    moved = np.concatenate([np.ravel(new[p] - trained[p]) for p in trained])
    np.testing.assert_allclose(metrics["update_rms"], np.sqrt(np.mean(moved**2)), rtol=1e-3)
    np.testing.assert_allclose(metrics["lr"], 0.01, rtol=1e-6)

  @parameterized.parameters(
    (dict(weight_decy=0.1), "unknown field 'weight_decy', did you mean 'weight_decay'"),
    (dict(optimizer="adam"), "optimizer='adam', .* did you mean 'adamw'"),
    (dict(schedule="cosin"), "schedule='cosin', .* did you mean 'cosine'"),
    (dict(every=0), "every=0, expected >= 1"),
    (dict(trainable=((".*kernal", True), (".*", False))), "'.\\*kernal' matches no parameter"),
    (dict(trainable=(("head/.*", True),)), "no optim.trainable rule covers .*'blocks/"),
    (dict(trainable=((".*", False),)), "freezes every parameter"),
    (dict(lr_mults=(("head/.*", 2.0),)), "no optim.lr_mults rule covers .*'blocks/"),
    (dict(ema={"eval": ("dit/.*", 0.9)}), "optim.ema regex 'dit/.*' matches no parameter"),
    (dict(ema={"eval": (".*", 1.0)}), "ema.eval: decay=1.0"),
    (dict(optimizer="muon", muon=(("x", (1, 1)),)), "selects no trained parameter"),
    (dict(optimizer="muon", muon=((".*bias", (2, 1)),)), "too few dims"),
  )
  def test_errors(self, config, message):
    with self.assertRaisesRegex(types.UserError, message):
      make(**config)

  def test_lr_is_required(self):
    with self.assertRaisesRegex(types.UserError, "'lr' is required"):
      optim.make({}, make_params(), 1)


class MuonTest(parameterized.TestCase):
  def test_only_stacked_matrices(self):
    optimizer = make(optimizer="muon")
    self.assertEqual(optimizer.muon_dims, {"blocks/layers/mlp/kernel": (1, 1)})
    state = optimizer.init(optimizer.split(make_params())[0])
    self.assertSetEqual({path.split("/", 1)[0] for path in trees.flatten(state)}, {"adamw", "muon"})

  def test_update_is_orthogonal_per_layer_with_adams_rms(self):
    optimizer = make(optimizer="muon", lr=1.0, schedule="constant")
    trained, _ = optimizer.split(make_params())
    new, _, _ = optimizer.update(grads_like(trained, 0), optimizer.init(trained), trained, 0)
    path = "blocks/layers/mlp/kernel"
    update = np.asarray(trained[path] - new[path])
    for layer in update:
      singular = np.linalg.svd(layer, compute_uv=False) / (0.2 * np.sqrt(16))
      # Newton-Schulz lands in about [0.7, 1.2]; without it the spread is 5x and more.
      self.assertBetween(singular.min(), 0.6, 1.0)
      self.assertBetween(singular.max(), 1.0, 1.3)

  def test_attention_shaped_kernel(self):
    # [D, N, K] as one D x (N K) matrix: the same as its flattened twin.
    x = np.random.default_rng(0).normal(size=(6, 2, 4)).astype(np.float32)
    tall = optim._orthogonalize(jnp.asarray(x), 1, 2, 5)
    flat = optim._orthogonalize(jnp.asarray(x.reshape(6, 8)), 1, 1, 5)
    np.testing.assert_allclose(tall.reshape(6, 8), flat, atol=1e-6)

  @parameterized.parameters(({"fsdp": 4, "data": 2},), ({"fsdp": 4, "tensor": 2},))
  def test_sharded_equals_single_device(self, shape):
    optimizer = make(optimizer="muon", weight_decay=0.1)
    step = jax.jit(lambda params: run(optimizer, params)[0])
    expected = step(make_params())
    device_mesh = mesh.make(shape)
    rules = ((".*layers.*kernel", ("fsdp", "tensor")), (".*", ()))
    shardings = sharding.infer(make_params(), rules, device_mesh)
    with jax.set_mesh(device_mesh):
      got = step(jax.device_put(make_params(), shardings))
    for path, x in trees.flatten(expected).items():
      np.testing.assert_allclose(trees.flatten(got)[path], x, atol=2e-6)

  def test_sharded_matrices_move_once(self):
    device_mesh = mesh.make({"fsdp": 4, "tensor": 2})
    place = sharding.infer({"x": jnp.zeros((3, 8, 16))}, ((".*", ("fsdp", "tensor")),), device_mesh)
    with jax.set_mesh(device_mesh):
      fn = jax.jit(
        lambda x: optim._orthogonalize(x, 1, 1, 5),
        in_shardings=place["x"],
        out_shardings=place["x"],
      )
      text = fn.lower(jax.ShapeDtypeStruct((3, 8, 16), jnp.float32)).compile().as_text()
    # One all-to-all an axis, in and out; the partitioner's own way is 15 all-gathers.
    self.assertLen(re.findall(r" all-to-all(?:-start)?\(", text), 4)
    self.assertEmpty(re.findall(r" all-(?:gather|reduce)(?:-start)?\(", text))


class EmaTest(parameterized.TestCase):
  def test_warm_up_then_decay(self):
    rules = {"eval": ("head/.*", 0.5)}
    params = make_params()
    ema = optim.ema_init(rules, params)
    self.assertEqual(list(ema["eval"]), ["head/kernel"])
    expected = np.asarray(params["head"]["kernel"], np.float64)
    for n in range(12):
      params = jax.tree.map(lambda x: x * 1.1 - 0.2, params)
      ema = optim.ema_update(rules, ema, params, n)
      decay = min(0.5, (1 + n) / (10 + n))
      expected = decay * expected + (1 - decay) * np.asarray(params["head"]["kernel"], np.float64)
    np.testing.assert_allclose(ema["eval"]["head/kernel"], expected, rtol=1e-5)

  def test_copies_do_not_alias_parameters(self):
    params = make_params()
    ema = optim.ema_init({"eval": (".*", 0.9)}, params)
    jax.jit(lambda p: jax.tree.map(jnp.sin, p), donate_argnums=0)(params)
    self.assertGreater(float(jnp.abs(ema["eval"]["head/kernel"]).sum()), 0)

  def test_optimizer_keeps_trained_leaves_only(self):
    optimizer = make(ema={"eval": (".*", 0.9)}, trainable=((".*kernel", True), (".*", False)))
    ema = optimizer.ema_init(make_params())
    self.assertSetEqual(set(ema["eval"]), set(optimizer.trained_paths))
    new = optimizer.ema_update(ema, jax.tree.map(jnp.zeros_like, make_params()), 0)
    np.testing.assert_allclose(
      new["eval"]["head/kernel"], 0.1 * ema["eval"]["head/kernel"], rtol=1e-5
    )


if __name__ == "__main__":
  absltest.main()
