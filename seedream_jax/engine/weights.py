"""Weights as one safetensors file, flat "a/b/c" names, never pickle."""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  registers bfloat16 with numpy, which safetensors asks for by name
import numpy as np
import safetensors
from jax.experimental import multihost_utils

from seedream_jax import types
from seedream_jax.engine import trees

# In the order in which the safetensors library lays out data.
DTYPES = {
  "U64": "uint64", "I64": "int64", "F64": "float64", "F32": "float32", "U32": "uint32", "I32": "int32",
  "BF16": "bfloat16", "F16": "float16", "U16": "uint16", "I16": "int16",
  "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
_MAX_HEADER_BYTES = 100_000_000  # the format's own bound


def save_weights(
  path: str | os.PathLike,
  tree: Any,
  *,
  dtype: Any = None,
  metadata: Mapping[str, Any] | None = None,
) -> None:
  """Writes `tree` atomically; the same input gives the same bytes. Process 0 writes, all must call.

  Args:
    path: of the .safetensors file; its folder is made.
    tree: of arrays.
    dtype: cast for floating leaves, None keeps them.
    metadata: values other than strings are stored as JSON.
  """
  path, arrays = os.fspath(path), {}
  for name, x in trees.flatten(tree).items():
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      x = multihost_utils.process_allgather(x, tiled=True)
    x = np.asarray(x)
    if dtype is not None and jnp.issubdtype(x.dtype, jnp.floating):
      x = x.astype(jnp.dtype(dtype))
    arrays[name] = np.ascontiguousarray(x).reshape(x.shape)
  if jax.process_index() != 0:
    return
  stream_weights(path, arrays, lambda name: (arrays[name],), metadata=metadata)


def stream_weights(
  path: str | os.PathLike,
  leaves: Mapping[str, Any],
  read: Callable[[str], Iterable[np.ndarray]],
  *,
  metadata: Mapping[str, Any] | None = None,
) -> None:
  """`save_weights` of leaves that are read one after the other, a piece at a time.

  Args:
    path: of the .safetensors file; its folder is made.
    leaves: {name: anything with the leaf's shape and dtype}.
    read: fn(name) -> its values in C order, in pieces whose bytes together are the leaf's.
    metadata: values other than strings are stored as JSON.

  Raises:
    types.UserError: the file cannot be written.
  """
  path = os.fspath(path)
  temporary = f"{path}.tmp"
  header, order = _header(leaves, metadata or {})
  try:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with open(temporary, "wb") as f:
      f.write(header)
      for name in order:
        begin, dtype = f.tell(), leaves[name].dtype
        for x in read(name):
          assert x.dtype == dtype, (name, x.dtype, dtype)
          f.write(np.ascontiguousarray(x).reshape(-1).view(np.uint8))
        size = int(np.prod(leaves[name].shape, dtype=np.int64)) * dtype.itemsize
        assert f.tell() - begin == size, (name, f.tell() - begin, size)
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except OSError as error:
    raise types.UserError(f"{path}: cannot write ({error.strerror or error})") from None


def _header(leaves: Mapping[str, Any], metadata: Mapping[str, Any]) -> tuple[bytes, list[str]]:
  """(what stands before the data, leaves in the order of their data), as the library has them but for sorted keys."""
  kinds = {np.dtype(dtype): kind for kind, dtype in DTYPES.items()}
  ranks = {kind: rank for rank, kind in enumerate(DTYPES)}
  order = sorted(leaves, key=lambda name: (ranks[kinds[leaves[name].dtype]], name))
  entries: dict[str, Any] = {}
  end = 0
  for name in order:
    begin, dtype = end, leaves[name].dtype
    end += int(np.prod(leaves[name].shape, dtype=np.int64)) * dtype.itemsize
    entries[name] = {
      "dtype": kinds[dtype],
      "shape": list(leaves[name].shape),
      "data_offsets": [begin, end],
    }
  entries["__metadata__"] = {
    key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    for key, value in metadata.items()
  }
  text = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
  text = text.ljust(-(-len(text) // 8) * 8)
  return len(text).to_bytes(8, "little") + text, order


def load_weights(
  path: str | os.PathLike,
  abstract: Any = None,
  *,
  allow_missing: Sequence[str] = (),
  allow_extra: Sequence[str] = (),
) -> types.Params:
  """The tree in `path`.

  Args:
    path: of the .safetensors file.
    abstract: ShapeDtypeStructs the file must fit; leaves come in their dtype and, where given,
      their sharding, each process reading only its shards. None returns numpy arrays as stored.
    allow_missing: regexes of leaves the file may lack; they are absent from the result.
    allow_extra: regexes of leaves in the file to ignore.

  Raises:
    types.UserError: no such file, not a whole safetensors file, or a leaf that does not fit.
  """
  path = os.fspath(path)
  stored, _ = read_header(path)
  wanted = dict(stored) if abstract is None else trees.flatten(abstract)
  for name, x in wanted.items():
    if name not in stored and not _any(allow_missing, name):
      raise types.UserError(f"{path}: has no leaf {name!r} {x.shape}{_nearest(name, stored)}")
    if name in stored and tuple(stored[name].shape) != tuple(x.shape):
      raise types.UserError(
        f"{path}: leaf {name!r} has shape {stored[name].shape}, expected {tuple(x.shape)}"
      )
  for name in stored:
    if name not in wanted and not _any(allow_extra, name):
      raise types.UserError(f"{path}: leaf {name!r} has no place here{_nearest(name, wanted)}")
  try:
    with safetensors.safe_open(path, framework="np") as file:
      leaves = {name: _read(file, name, x) for name, x in wanted.items() if name in stored}
  except safetensors.SafetensorError as error:
    raise types.UserError(f"{path}: not a safetensors file ({error})") from None
  if abstract is not None:
    return trees.unflatten(leaves)
  return trees.unflatten({name: np.asarray(x) for name, x in leaves.items()})


def read_header(
  path: str | os.PathLike,
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, str]]:
  """({leaf: shape and dtype}, metadata); checks that the file is as long as its header says."""
  path = os.fspath(path)
  header, data_start = _raw_header(path)
  metadata, leaves, end = header.pop("__metadata__", {}), {}, 0
  try:
    for name, entry in header.items():
      dtype = np.dtype(DTYPES[entry["dtype"]])
      begin, stop = entry["data_offsets"]
      if stop - begin != int(np.prod(entry["shape"], dtype=np.int64)) * dtype.itemsize:
        raise ValueError(f"leaf {name!r}: {stop - begin} bytes for shape {entry['shape']}")
      leaves[name], end = jax.ShapeDtypeStruct(tuple(entry["shape"]), dtype), max(end, stop)
  except (KeyError, TypeError, ValueError) as error:
    raise types.UserError(f"{path}: bad safetensors header ({error})") from None
  size = os.path.getsize(path)
  if size != data_start + end:
    raise types.UserError(
      f"{path}: not whole, {size} bytes where its header says {data_start + end}"
    )
  return leaves, metadata


def sha256(path: str | os.PathLike) -> str:
  """Hex digest of a file."""
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def _read(file: Any, name: str, wanted: jax.ShapeDtypeStruct) -> np.ndarray | jax.Array:
  sharding = getattr(wanted, "sharding", None)
  if sharding is None:
    return file.get_tensor(name).astype(wanted.dtype, copy=False)
  if not wanted.shape:
    value = file.get_tensor(name).astype(wanted.dtype, copy=False)
    return jax.make_array_from_callback((), sharding, lambda _: value)
  part = file.get_slice(name)
  return jax.make_array_from_callback(
    wanted.shape, sharding, lambda index: part[index].astype(wanted.dtype, copy=False)
  )


def _raw_header(path: str) -> tuple[dict[str, Any], int]:
  """(parsed header, offset of the data)."""
  try:
    with open(path, "rb") as f:
      length = int.from_bytes(f.read(8), "little")
      if not 2 <= length <= min(_MAX_HEADER_BYTES, os.path.getsize(path) - 8):
        raise ValueError(f"header length {length}")
      header = json.loads(f.read(length))
    if not isinstance(header, dict):
      raise ValueError("header is not an object")
  except FileNotFoundError:
    raise types.UserError(f"{path}: no such file") from None
  except OSError as error:
    raise types.UserError(f"{path}: cannot read ({error.strerror})") from None
  except ValueError as error:
    raise types.UserError(f"{path}: not a safetensors file ({error})") from None
  return header, 8 + length


def _any(regexes: Sequence[str], name: str) -> bool:
  return any(re.fullmatch(regex, name) for regex in regexes)


def _nearest(name: str, names: Any) -> str:
  near = difflib.get_close_matches(name, list(names), n=1)
  return f" (nearest is {near[0]!r})" if near else ""
