"""Config classes from what an experiment says: sizes by name, and stage groups."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from seedream_jax import types

Config = TypeVar("Config")


def make_config(
  cls: type[Config],
  table: Mapping[str, Mapping[str, Any]],
  variant: str,
  overrides: Mapping[str, Any],
) -> Config:
  """`cls` filled from row `variant` of `table`, with fields replaced by `overrides`.

  Raises:
    UserError: for an unknown variant or field, naming the nearest one.
  """
  _require(variant, table, f"{cls.__name__} variant")
  return fill(cls, {**table[variant], **overrides})


def fill(cls: type[Config], given: Mapping[str, Any], group: str = "") -> Config:
  """`cls(**given)`.

  Args:
    cls: a dataclass.
    given: its fields.
    group: of the experiment's config that they are from, for the message.

  Raises:
    UserError: for a field that `cls` lacks, naming the nearest one.
  """
  fields = [field.name for field in dataclasses.fields(cls)]
  for name in given:
    _require(name, fields, f"{cls.__name__} field", f"{group}.{name}: " if group else "")
  return cls(**given)


def _require(name: str, known: Iterable[str], what: str, where: str = "") -> None:
  if name not in known:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)
    raise types.UserError(
      f"{where}unknown {what} {name!r}; nearest is {near[0]!r}, of {sorted(known)}"
    )
