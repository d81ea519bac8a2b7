"""Shardings of trees by (regex, spec) rules; first match wins, an uncovered leaf is an error.

A spec is a tuple of mesh axes aligned to the *trailing* dims, so one rule serves a matrix and its
stacked [depth, in, out] twin; () is replicated. Each entry is None, an axis, or a tuple of axes:
  "fsdp"   must divide the dim, else a `types.UserError`
  "fsdp?"  shards the dim where it divides, else leaves it whole
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from seedream_jax import types
from seedream_jax.engine import trees


def infer(abstract_tree: Any, rules: trees.Rules, mesh: jax.sharding.Mesh) -> Any:
  """A tree of NamedSharding in the structure of `abstract_tree`."""
  flat = trees.flatten(abstract_tree)
  specs = trees.match_all(rules, flat, "sharding rule")
  shardings = [
    NamedSharding(mesh, _partition(path, x.shape, specs[path], mesh)) for path, x in flat.items()
  ]
  return jax.tree.unflatten(jax.tree.structure(abstract_tree), shardings)


def follow(abstract_tree: Any, param_shardings: Any, mesh: jax.sharding.Mesh) -> Any:
  """Shardings for what is kept per parameter: optimiser moments, EMA copies, accumulators.

  A leaf whose path ends in a parameter's path takes its sharding, if it has the dims for it;
  scalars and the rest are replicated.
  """
  by_path = trees.flatten(param_shardings)

  def pick(path: str, x: Any) -> NamedSharding:
    keys = path.split("/")
    for start in range(len(keys)):
      sharding = by_path.get("/".join(keys[start:]))
      if sharding is not None and len(sharding.spec) <= len(x.shape):
        return sharding
    return replicated(mesh)

  flat = trees.flatten(abstract_tree)
  return jax.tree.unflatten(
    jax.tree.structure(abstract_tree), [pick(path, x) for path, x in flat.items()]
  )


def batch(mesh: jax.sharding.Mesh, num_steps: int = 1) -> NamedSharding:
  """Examples over (data, fsdp); several steps stacked in one array lead with a whole dim."""
  return NamedSharding(mesh, P(types.BATCH_AXES) if num_steps == 1 else P(None, types.BATCH_AXES))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, P())


def abstract(abstract_tree: Any, shardings: Any) -> Any:
  """The tree's ShapeDtypeStructs with the shardings attached, as restore and AOT want them."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract_tree, shardings
  )


def table(abstract_tree: Any, shardings: Any) -> list[str]:
  """One line per leaf, "path dtype[shape] (spec)", for golden files and `plan`."""
  by_path = trees.flatten(shardings)
  lines = []
  for path, x in trees.flatten(abstract_tree).items():
    shape = ",".join(map(str, x.shape))
    entries = (f"({'+'.join(e)})" if isinstance(e, tuple) else str(e) for e in by_path[path].spec)
    lines.append(f"{path} {np.dtype(x.dtype).name}[{shape}] ({', '.join(entries)})")
  return lines


def _partition(path: str, shape: tuple[int, ...], spec: tuple, mesh: jax.sharding.Mesh) -> P:
  """The PartitionSpec of one leaf."""
  if isinstance(spec, str):
    raise types.UserError(f"sharding rule for {path!r}: {spec!r} must be a tuple, as ({spec!r},)")
  if len(spec) > len(shape):
    raise types.UserError(
      f"sharding rule for {path!r}: {tuple(spec)} has more entries than shape {shape}"
    )
  entries: list[Any] = [None] * (len(shape) - len(spec))
  seen: set[str] = set()
  for dim, entry in zip(shape[len(shape) - len(spec) :], spec):
    names = (entry,) if isinstance(entry, str) else tuple(entry or ())
    kept: list[str] = []
    for name in names:
      axis, optional = name.removesuffix("?"), name.endswith("?")
      if axis not in mesh.shape:
        raise types.UserError(
          f"sharding rule for {path!r}: unknown mesh axis {axis!r}, one of {types.AXES}"
        )
      if axis in seen:
        raise types.UserError(
          f"sharding rule for {path!r}: axis {axis!r} used twice in {tuple(spec)}"
        )
      parts = math.prod(mesh.shape[a] for a in kept) * mesh.shape[axis]
      if dim % parts == 0:
        kept.append(axis)
        seen.add(axis)
      elif not optional:
        raise types.UserError(
          f"{path!r} has shape {shape}: {axis}={mesh.shape[axis]} does not divide dim {dim}; "
          f"write {axis + '?'!r} in its rule to leave such dims whole"
        )
    entries.append(kept[0] if len(kept) == 1 else tuple(kept) or None)
  if not any(entries):
    return P()
  return P(*entries)
