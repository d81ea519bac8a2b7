"""Paths, rules and counts."""

import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.engine import trees

TREE = {"b": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros((3,))}, "a": {"x": {"y": jnp.ones(5)}}}


class TreesTest(parameterized.TestCase):
  def test_flatten_and_back(self):
    flat = trees.flatten(TREE)
    self.assertEqual(list(flat), ["a/x/y", "b/bias", "b/kernel"])
    self.assertEqual(jax.tree.structure(trees.unflatten(flat)), jax.tree.structure(TREE))
    self.assertIs(trees.unflatten(flat)["b"]["kernel"], TREE["b"]["kernel"])

  def test_flat_tree_comes_back_as_it_is(self):
    flat = trees.flatten(TREE)
    self.assertEqual(list(trees.flatten(flat)), list(flat))

  def test_train_state_paths(self):
    zero = jnp.int32(0)
    state = types.TrainState(zero, {"dit": TREE}, {}, {"dit": {"eval": {"b/bias": zero}}}, zero)
    self.assertContainsSubset(
      {"step", "params/dit/b/kernel", "ema/dit/eval/b/bias"}, trees.flatten(state)
    )

  def test_leaf_and_subtree_of_one_name(self):
    for flat in ({"a": 1, "a/b": 2}, {"a/b": 2, "a": 1}):
      with self.assertRaisesRegex(ValueError, "both a leaf and a subtree"):
        trees.unflatten(flat)

  def test_colliding_keys(self):
    with self.assertRaisesRegex(ValueError, "must not contain"):
      trees.flatten({"a/b": 1, "a": {"b": 2}})

  def test_first_match_wins_and_is_whole(self):
    rules = (("b/.*", 1), (".*bias", 2), (".*", 3))
    self.assertEqual(trees.match(rules, "b/bias"), 1)
    self.assertEqual(trees.match(rules, "c/b/bias"), 2)
    self.assertEqual(trees.match(rules, "c/b/bias2"), 3)

  def test_uncovered_names_path_and_nearest_rule(self):
    rules = (("b/kernal", 1), ("zzz", 2), ("a/.*", 3), ("b/bias", 4))
    with self.assertRaisesRegex(
      types.UserError, "lr rule covers .*'b/kernel'.*nearest is 'b/kernal'"
    ):
      trees.match_all(rules, trees.flatten(TREE), "lr rule")

  def test_bad_regex(self):
    with self.assertRaisesRegex(types.UserError, "bad regular expression '\\('"):
      trees.match((("(", 1),), "a")

  def test_unused_rule(self):
    trees.check_used(((".*kernel", 1),), ["b/kernel"])
    with self.assertRaisesRegex(types.UserError, "'b/kernal' matches no parameter.*'b/kernel'"):
      trees.check_used((("b/kernal", 1),), ["b/kernel", "a"])

  def test_sizes(self):
    tree = {"x": jnp.ones((2, 3), jnp.bfloat16), "y": jax.ShapeDtypeStruct((5,), jnp.float32)}
    self.assertEqual(trees.count(tree), 11)
    self.assertEqual(trees.nbytes(tree), 2 * 6 + 4 * 5)


if __name__ == "__main__":
  absltest.main()
