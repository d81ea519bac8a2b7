"""Checkpoints that are whole or not there: Orbax writes, a manifest commits.

  DIRECTORY/step_00000100/state/...      Orbax, asynchronous, sharded
                          meta.json      what the caller wants to find again
                          manifest.json  size and sha256 of the files, shapes of the leaves; renamed
                                         into place last: a step without it was never finished

Restore takes the newest step whose manifest verifies and says why it refused the others: Orbax
alone names a truncated step as the latest, and restores a flipped byte without a word.
"""

import concurrent.futures
import hashlib
import json
import os
import shutil
import threading
import time
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from seedream_jax import types
from seedream_jax.engine import trees
from seedream_jax.engine.weights import load_weights, read_header, save_weights, sha256

__all__ = ["Checkpointer", "load_weights", "read_header", "save_weights", "sha256"]

FORMAT = 1
_PREFIX, _STATE, _META, _MANIFEST = "step_", "state", "meta.json", "manifest.json"
_MAX_MANIFEST_BYTES = 256 << 20
_HASH_THREADS = 8  # hashlib releases the GIL


class Checkpointer:
  """The checkpoints of one run; every process calls every method, process 0 does the book-keeping.

  Args:
    directory: made if missing.
    keep: how many of the newest whole steps stay.
    keep_every: steps that are multiples of this stay for ever.
    read_only: never writes, for verbs that only restore.

  Raises:
    types.UserError: `directory` cannot be written.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    *,
    keep: int = 3,
    keep_every: int | None = None,
    read_only: bool = False,
  ):
    if keep < 1:
      raise types.UserError(f"ckpt.keep={keep}, expected at least 1")
    self.directory = os.path.abspath(directory)
    self._keep, self._keep_every, self._read_only = keep, keep_every, read_only
    self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
    self._thread: threading.Thread | None = None
    self._error: BaseException | None = None
    if not read_only and jax.process_index() == 0:
      _check_writable(self.directory)

  def save(self, step: int, state: Any, meta: dict[str, Any], *, wait: bool = False) -> None:
    """Starts saving; returns once the last save is done and the arrays are copied off the devices.

    Args:
      step: names the checkpoint; an existing one of that name is replaced.
      state: a tree of arrays; it may be donated as soon as this returns.
      meta: JSON values.
      wait: block until the manifest is in place.
    """
    if self._read_only:
      raise ValueError(f"{self.directory} was opened read-only")
    start = time.perf_counter()
    self.wait()
    folder, flat = self._folder(step), trees.flatten(state)
    meta_bytes = json.dumps(meta, indent=1, sort_keys=True).encode()
    if jax.process_index() == 0:  # the others wait at Orbax's barrier
      _remove(folder)
      os.makedirs(folder)
    self._orbax.save(os.path.join(folder, _STATE), args=ocp.args.PyTreeSave(trees.unflatten(flat)))
    leaves = {path: _describe(x) for path, x in flat.items()}
    self._thread = threading.Thread(
      target=self._commit, args=(step, leaves, meta_bytes, start), name=f"commit-{step}"
    )
    self._thread.start()
    logging.info("checkpoint %d: copied in %.2f s", step, time.perf_counter() - start)
    if wait:
      self.wait()

  def restore(self, abstract_state: Any) -> tuple[Any, int, dict[str, Any]] | None:
    """(state, step, meta) of the newest whole step, placed as `abstract_state`'s shardings say.

    Returns:
      None when no step was ever finished.

    Raises:
      types.UserError: the step holds other leaves than `abstract_state`, or steps were finished but
        not one of them is whole any more: starting from scratch over them would hide the loss.
    """
    self.wait()
    step = self._newest_whole() if jax.process_index() == 0 else None
    if jax.process_count() > 1:
      step = multihost_utils.broadcast_one_to_all(np.int64(-1 if step is None else step))
      step = None if step < 0 else int(step)
    if step is None:
      return None
    folder = self._folder(step)
    wanted = trees.flatten(abstract_state)
    _check_leaves(step, _read_manifest(folder)["leaves"], wanted)
    item = trees.unflatten(wanted)
    restored = self._orbax.restore(
      os.path.join(folder, _STATE),
      args=ocp.args.PyTreeRestore(
        item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
      ),
    )
    restored = trees.flatten(restored)
    state = jax.tree.unflatten(jax.tree.structure(abstract_state), [restored[p] for p in wanted])
    with open(os.path.join(folder, _META), encoding="utf-8") as f:
      return state, step, json.load(f)

  def drop_after(self, step: int) -> None:
    """Removes every later step, finished or not: a run goes back to `step`, or to the last whole one before it."""
    self.wait()
    if jax.process_index() == 0:
      for later in self._all_steps():
        if later > step:
          _remove(self._folder(later))
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("drop_after")

  def wait(self) -> None:
    """Blocks until the save in flight is committed; raises what went wrong with it."""
    if self._thread is not None:
      self._thread.join()
      self._thread = None
    if self._error is not None:
      error, self._error = self._error, None
      raise error

  def steps(self) -> list[int]:
    """Finished steps in order, by their manifests alone; `restore` looks closer."""
    return [s for s in self._all_steps() if os.path.exists(self._path(s, _MANIFEST))]

  def latest(self) -> int | None:
    """The newest of `steps`."""
    return max(self.steps(), default=None)

  def close(self) -> None:
    """Waits and lets go of Orbax's threads."""
    self.wait()
    self._orbax.close()

  def _folder(self, step: int) -> str:
    return os.path.join(self.directory, f"{_PREFIX}{step:08d}")

  def _path(self, step: int, name: str) -> str:
    return os.path.join(self._folder(step), name)

  def _all_steps(self) -> list[int]:
    if not os.path.isdir(self.directory):
      return []
    names = [n.removeprefix(_PREFIX) for n in os.listdir(self.directory) if n.startswith(_PREFIX)]
    return sorted(int(name) for name in names if name.isdigit())

  def _commit(self, step: int, leaves: dict[str, str], meta: bytes, start: float) -> None:
    """Waits for every process's files, then writes the manifest and drops old steps; own thread."""
    try:
      self._orbax.wait_until_finished()  # returns after all processes have written
      if jax.process_index() == 0:
        folder = self._folder(step)
        _write_atomic(os.path.join(folder, _META), meta)
        body = {"format": FORMAT, "step": step, "leaves": leaves, "files": _hash_files(folder)}
        text = json.dumps({"body": body, "sha256": _digest(body)}, indent=1, sort_keys=True)
        _write_atomic(os.path.join(folder, _MANIFEST), text.encode())
        logging.info("checkpoint %d: committed in %.2f s", step, time.perf_counter() - start)
        self._prune()
    except BaseException as error:
      self._error = error  # raised by the next save or wait

  def _prune(self) -> None:
    """Drops steps beyond `keep`, and unfinished ones older than the newest."""
    whole = self.steps()
    kept = set(whole[-self._keep :])
    if self._keep_every:
      kept |= {step for step in whole if step % self._keep_every == 0}
    for step in self._all_steps():
      if step not in kept and step < whole[-1]:
        _remove(self._folder(step))

  def _newest_whole(self) -> int | None:
    """The newest step that verifies; logs why each newer one was refused."""
    reasons = {}
    for step in reversed(self._all_steps()):
      reason = _why_refused(self._folder(step))
      if reason is None:
        return step
      reasons[step] = reason
      logging.warning("checkpoint %d refused: %s", step, reason)
    finished = self.steps()
    if finished:
      raise types.UserError(
        f"{self.directory}: none of the finished checkpoints {finished} is whole "
        f"(step {finished[-1]}: {reasons[finished[-1]]}); move them away to start from scratch"
      )
    return None


def _why_refused(folder: str) -> str | None:
  """None for a whole step, else what is wrong with it."""
  try:
    manifest = _read_manifest(folder)
  except FileNotFoundError:
    return f"{_MANIFEST} is missing, the save was not finished"
  except (OSError, ValueError, KeyError, TypeError) as error:
    return f"{_MANIFEST}: {error}"
  for name, entry in manifest["files"].items():
    path = os.path.join(folder, name)
    size = os.path.getsize(path) if os.path.exists(path) else None
    if size is None:
      return f"{name} is missing"
    if size != entry["size"]:
      return f"{name} is truncated: {size} bytes, manifest says {entry['size']}"
  with concurrent.futures.ThreadPoolExecutor(_HASH_THREADS) as pool:
    names = list(manifest["files"])
    digests = pool.map(sha256, [os.path.join(folder, name) for name in names])
    for name, digest in zip(names, digests):
      if digest != manifest["files"][name]["sha256"]:
        return f"{name} is corrupt: its sha256 is not the manifest's"
  return None


def _read_manifest(folder: str) -> dict[str, Any]:
  """The manifest's body, its own digest checked."""
  path = os.path.join(folder, _MANIFEST)
  if os.path.getsize(path) > _MAX_MANIFEST_BYTES:
    raise ValueError("implausibly large")
  with open(path, encoding="utf-8") as f:
    document = json.load(f)
  body = document["body"]
  if _digest(body) != document["sha256"]:
    raise ValueError("corrupt, its own sha256 does not match")
  if body["format"] != FORMAT:
    raise ValueError(f"format {body['format']}, this version reads {FORMAT}")
  return body


def _hash_files(folder: str) -> dict[str, dict[str, Any]]:
  """{relative path: {size, sha256}} of all files but the manifest."""
  paths = sorted(os.path.join(root, name) for root, _, names in os.walk(folder) for name in names)
  paths = [path for path in paths if os.path.basename(path) != _MANIFEST]
  with concurrent.futures.ThreadPoolExecutor(_HASH_THREADS) as pool:
    digests = list(pool.map(sha256, paths))
  return {
    os.path.relpath(path, folder): {"size": os.path.getsize(path), "sha256": digest}
    for path, digest in zip(paths, digests)
  }


def _check_leaves(step: int, saved: dict[str, str], wanted: dict[str, Any]) -> None:
  """Raises a `types.UserError` naming the first leaf on which checkpoint and run disagree."""
  for path, x in wanted.items():
    if path not in saved:
      raise types.UserError(
        f"checkpoint {step} has no leaf {path!r} ({_describe(x)}): it is of another config"
      )
    if saved[path] != _describe(x):
      raise types.UserError(
        f"checkpoint {step}: leaf {path!r} is {saved[path]}, this config wants {_describe(x)}"
      )
  for path in saved:
    if path not in wanted:
      raise types.UserError(f"checkpoint {step}: leaf {path!r} has no place in this config")


def _describe(x: Any) -> str:
  return f"{np.dtype(x.dtype).name}[{','.join(map(str, x.shape))}]"


def _digest(body: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write_atomic(path: str, data: bytes) -> None:
  """All of `data` at `path`, or nothing."""
  temporary = f"{path}.tmp"
  with open(temporary, "wb") as f:
    f.write(data)
    f.flush()
    os.fsync(f.fileno())
  os.replace(temporary, path)


def _remove(folder: str) -> None:
  """Removes a step, manifest first, so that half of it is never taken for a whole one."""
  manifest = os.path.join(folder, _MANIFEST)
  if os.path.exists(manifest):
    os.remove(manifest)
  shutil.rmtree(folder, ignore_errors=True)


def _check_writable(directory: str) -> None:
  probe = os.path.join(directory, f".write_probe_{os.getpid()}")
  try:
    os.makedirs(directory, exist_ok=True)
    with open(probe, "wb"):
      pass
    os.remove(probe)
  except OSError as error:
    raise types.UserError(
      f"checkpoint directory {directory}: cannot write there ({error.strerror})"
    ) from None
