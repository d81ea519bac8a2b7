"""Parameter trees by path: flatten, match by regex, count.

A path is the keys of a leaf joined by "/", as in "blocks/layers/img/qkv/kernel". Everything that
is said about parameters (sharding, freezing, multipliers, export names) is a sequence of (regex,
value): the first full match wins, and a parameter that no rule covers is an error.
"""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from seedream_jax import types

Rules = Sequence[tuple[str, Any]]


def flatten(tree: Any) -> dict[str, Any]:
  """{path: leaf}, in the order of `jax.tree.leaves`; a flat dict comes back as it is."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  flat = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
  if len(flat) != len(leaves):
    raise ValueError(f"{len(leaves)} leaves share {len(flat)} paths; a key must not contain '/'")
  return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
  """The nested dict whose `flatten` is `flat`; keys are strings."""
  tree: dict[str, Any] = {}
  for path, leaf in flat.items():
    *parents, name = path.split("/")
    node = tree
    for key in parents:
      node = node.setdefault(key, {})
      if not isinstance(node, dict):
        raise ValueError(f"{path}: {key!r} is both a leaf and a subtree")
    if name in node:
      raise ValueError(f"{path}: is both a leaf and a subtree")
    node[name] = leaf
  return tree


def matches(regex: str, path: str) -> bool:
  """Whether `regex` matches the whole of `path`."""
  try:
    return re.fullmatch(regex, path) is not None
  except re.error as error:
    raise types.UserError(f"bad regular expression {regex!r}: {error}") from None


def match(rules: Rules, path: str, what: str = "rule") -> Any:
  """The value of the first rule that matches the whole of `path`.

  Raises:
    types.UserError: when none does, naming the path and the rule nearest to it.
  """
  for regex, value in rules:
    if matches(regex, path):
      return value
  near = difflib.get_close_matches(path, [regex for regex, _ in rules], n=1, cutoff=0.0)
  hint = f"nearest is {near[0]!r}" if near else "there are no rules"
  raise types.UserError(f"no {what} covers parameter {path!r}; {hint}")


def expand(regex: str, template: str, path: str) -> str:
  r"""`template` with `\1`, `\2`, ... of the match of `regex` on the whole of `path`, slashes as dots."""
  return re.fullmatch(regex, path).expand(template).replace("/", ".")


def match_all(rules: Rules, paths: Iterable[str], what: str = "rule") -> dict[str, Any]:
  """{path: value of the first rule that matches it}; an uncovered path is a `types.UserError`."""
  return {path: match(rules, path, what) for path in paths}


def check_used(rules: Rules, paths: Iterable[str], what: str = "rule") -> None:
  """Raises a `types.UserError` for a rule that matches no path, which is a typo, not a choice."""
  paths = list(paths)
  for regex, _ in rules:
    if not any(matches(regex, path) for path in paths):
      near = difflib.get_close_matches(regex, paths, n=1, cutoff=0.0)
      hint = f"nearest is {near[0]!r}" if near else "there are no parameters"
      raise types.UserError(f"{what} {regex!r} matches no parameter; {hint}")


def count(tree: Any) -> int:
  """Number of scalars in the tree."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
  """Bytes of the whole tree, as if on one device."""
  return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))
