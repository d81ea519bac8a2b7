"""Reading the JSON of a published folder: what is missing, unusable or out of range is named."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from seedream_jax import types

_MAX_BYTES = 64 << 20


def read_json(path: str) -> dict[str, Any]:
  """The object in a JSON file."""
  try:
    if os.path.getsize(path) > _MAX_BYTES:
      raise ValueError("implausibly large")
    with open(path, encoding="utf-8") as f:
      found = json.load(f)
  except OSError as e:
    raise types.UserError(f"{path}: cannot read ({e.strerror})") from e
  except ValueError as e:
    raise types.UserError(f"{path}: not JSON ({e})") from e
  if not isinstance(found, dict):
    raise types.UserError(f"{path}: holds a {type(found).__name__}, expected an object")
  return found


@dataclasses.dataclass(frozen=True)
class Reader:
  """config.json, key by key: what is not taken is not looked at, what is checked is named.

  Attributes:
    path: of the file.
    raw: the object read.
    prefix: of the keys in messages, where `raw` is an object within the file.
  """

  path: str
  raw: Mapping[str, Any]
  prefix: str = ""

  @classmethod
  def open(cls, folder: str, name: str = "config.json") -> "Reader":
    """Of a folder's file."""
    path = os.path.join(folder, name)
    return cls(path, read_json(path))

  def within(self, key: str) -> "Reader":
    """Of the object under a key; an empty one where the key is absent or null."""
    value = self.raw.get(key)
    value = {} if value is None else value
    if not isinstance(value, dict):
      raise self.error(key, "an object")
    return Reader(self.path, value, f"{self.prefix}{key}.")

  def number(self, key: str, default: Any = None, kind: type = int) -> Any:
    """A positive number, or `default` where the key is absent or null."""
    value = self.raw.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
      raise types.UserError(f"{self.path}: {self.prefix}{key}={value!r}, expected a number above 0")
    return kind(value)

  def choice(self, key: str, default: str, allowed: Sequence[str]) -> str:
    """One of `allowed`, or `default` where the key is absent."""
    value = self.raw.get(key, default)
    if value not in allowed:
      raise self.error(key, f"one of {', '.join(allowed)}")
    return value

  def expect(self, key: str, allowed: Sequence[Any]) -> None:
    """UserError unless the key is absent or one of `allowed`."""
    if key in self.raw and self.raw[key] not in allowed:
      raise types.UserError(
        f"{self.path}: {self.prefix}{key}={self.raw[key]!r}, this model can only {allowed[0]!r}"
      )

  def error(self, key: str, expected: str) -> types.UserError:
    """What to raise for a key's value."""
    return types.UserError(
      f"{self.path}: {self.prefix}{key}={self.raw.get(key)!r}, expected {expected}"
    )
