"""Numbers and pictures of a run: JSON lines, TensorBoard, PNG files, and the progress bar.

WORKDIR/metrics.jsonl holds one object a line: step, time, and metrics named group/name. After a
resume from step k the lines beyond k are dropped, so no step is told twice.
"""

import collections
import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tensorboardX
import tqdm
from absl import logging
from PIL import Image

from seedream_jax.engine import flops

_FILE = "metrics.jsonl"
_BURST_SECONDS = 1e-3  # updates closer than this come from one call of several fused steps
_WINDOW = 50  # calls over which speed is averaged


class Writer:
  """Writes a run's metrics; on processes other than 0 it does nothing.

  Args:
    workdir: of the run.
    start_step: steps already done; whatever was written beyond them is dropped.
  """

  def __init__(self, workdir: str | os.PathLike, *, start_step: int = 0):
    self._workdir, self._file = os.fspath(workdir), None
    if jax.process_index() != 0:
      return
    os.makedirs(self._workdir, exist_ok=True)
    path = os.path.join(self._workdir, _FILE)
    _rewind(path, start_step)
    self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115  closed by close()
    self._board = tensorboardX.SummaryWriter(
      os.path.join(self._workdir, "tensorboard"), purge_step=start_step + 1
    )

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """One line; a value that is not finite is written as null."""
    if self._file is None or not values:
      return
    numbers = {name: float(value) for name, value in values.items()}
    row = {"step": step, "time": round(time.time(), 3)}
    row |= {name: x if math.isfinite(x) else None for name, x in numbers.items()}
    self._file.write(json.dumps(row) + "\n")
    self._file.flush()
    for name, x in numbers.items():
      self._board.add_scalar(name, x, step)

  def images(self, step: int, name: str, image: Any) -> None:
    """A picture or a batch, [..., H, W, C]: uint8, or float in [-1, 1]; a batch becomes one row."""
    if self._file is None:
      return
    pixels = np.asarray(image)
    if pixels.dtype != np.uint8:
      pixels = np.clip(np.round((pixels.astype(np.float32) + 1.0) * 127.5), 0, 255).astype(np.uint8)
    if pixels.ndim == 4:
      pixels = np.concatenate(list(pixels), axis=1)
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
      raise ValueError(f"{name}: expected [..., H, W, 1 or 3], got {np.shape(image)}")
    path = os.path.join(self._workdir, "images", name, f"{step:08d}.png")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    self._board.add_image(name, pixels, step, dataformats="HWC")

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._file is not None:
      self._file.close()
      self._board.close()
      self._file = None


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl in order of step, rows of the same step merged."""
  rows: dict[int, dict[str, Any]] = {}
  with open(os.path.join(workdir, _FILE), encoding="utf-8") as f:
    for line in f:
      row = json.loads(line)
      rows.setdefault(row["step"], {}).update(row)
  return [rows[step] for step in sorted(rows)]


def mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Each metric's mean over the rows where it is a number; NaN where it is none (an empty quarter of t)."""
  names = dict.fromkeys(name for row in rows for name in row)  # a player that rests has none
  values = {n: [row[n] for row in rows if math.isfinite(row.get(n, math.nan))] for n in names}
  return {name: sum(x) / len(x) if x else math.nan for name, x in values.items()}


class Progress:
  """A tqdm bar (on a terminal, process 0) and the run's speed.

  Args:
    total: steps of the run.
    start: steps already done.
    batch_size: examples a step, over all processes.
    desc: what the bar is called.
  """

  def __init__(self, total: int, start: int, batch_size: int, *, desc: str = "train"):
    self._batch_size, self._step, self._flops, self._peak = batch_size, start, 0, None
    self._calls: collections.deque[tuple[float, int]] = collections.deque(maxlen=_WINDOW)
    self._last: tuple[float, int] | None = None  # the newest update; its call may not be over
    disable = None if jax.process_index() == 0 else True  # None: only where there is no terminal
    self._bar = tqdm.tqdm(
      total=total, initial=start, desc=desc, disable=disable, dynamic_ncols=True
    )

  def set_flops(self, model_flops: int) -> None:
    """Model FLOPs a step over all devices; from now on `speed` holds the MFU."""
    self._flops, self._peak = model_flops, flops.total_peak()
    if self._peak is None:
      logging.warning("no peak FLOP/s known for %s: no MFU", jax.devices()[0].device_kind)

  def update(self, step: int, values: Mapping[str, Any] | None = None) -> None:
    """`step` steps are done; `values` may hold a loss to show."""
    now = time.perf_counter()
    if self._last is not None and now - self._last[0] > _BURST_SECONDS:
      self._calls.append(self._last)
    self._last = (now, step)
    self._bar.update(step - self._step)
    self._step = step
    if not self._bar.disable:
      shown = {name.split("/")[-1]: f"{value:.3g}" for name, value in self.speed().items()}
      losses = {name: v for name, v in (values or {}).items() if name.endswith("loss")}
      shown |= {name: f"{value:.4g}" for name, value in losses.items()}
      self._bar.set_postfix(shown, refresh=False)

  def speed(self) -> dict[str, float]:
    """Examples seen and, once two calls are over, step time, images per second, MFU.

    The first call, which compiles, is never part of the average.
    """
    row = {"speed/examples": float(self._step * self._batch_size)}
    if len(self._calls) < 2:
      return row
    (start, first), (stop, last) = self._calls[0], self._calls[-1]
    seconds = (stop - start) / max(last - first, 1)
    row |= {"speed/step_s": seconds, "speed/img_per_s": self._batch_size / seconds}
    if self._flops and self._peak:
      row["speed/mfu"] = self._flops / seconds / self._peak
    return row

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """What runs inside (an evaluation, a checkpoint) is not counted as training time."""
    start = time.perf_counter()
    try:
      yield
    finally:
      gone = time.perf_counter() - start
      self._calls = collections.deque(((t + gone, s) for t, s in self._calls), maxlen=_WINDOW)
      if self._last is not None:
        self._last = (self._last[0] + gone, self._last[1])

  def close(self) -> None:
    """Leaves the bar as it is."""
    self._bar.close()


def _rewind(path: str, step: int) -> None:
  """Drops lines beyond `step`, and a last line that was cut off."""
  if not os.path.exists(path):
    return
  kept = []
  with open(path, encoding="utf-8", errors="replace") as f:
    for line in f:
      with contextlib.suppress(ValueError, KeyError, TypeError):
        if json.loads(line)["step"] <= step:
          kept.append(line if line.endswith("\n") else line + "\n")
  temporary = f"{path}.tmp"
  with open(temporary, "w", encoding="utf-8") as f:
    f.writelines(kept)
  os.replace(temporary, path)
