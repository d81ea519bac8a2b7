"""Compiles for hardware that is not here, as far as a plan reads: all but the machine code.

libtpu partitions, fuses and schedules a program and lays out its memory; XLA writes the outcome down (`xla_dump_to`),
the text that a compiled program has too. Then libtpu makes machine code of it for about five times as long. So a
process of its own compiles, and is ended once the outcome stands there.
"""

import dataclasses
import glob
import multiprocessing
import os
import re
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from seedream_jax import types

_TEXT = ".after_optimizations_after_buffer_assignment.txt"
_MEMORY = ".after_optimizations-buffer-assignment.txt"
_BUFFER = re.compile(r"^allocation \d+: size (\d+),( color \d+,)? page \d+(.*)$", re.M)
_POLL_S = 0.2


class OutOfMemory(Exception):
  """XLA's message, for a program that the chip cannot hold."""


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What libtpu made of a program.

  Attributes:
    facts: what `make` told of it.
    text: the HLO module, optimised and scheduled.
    memory: bytes of main memory: arguments, those of them that are donated, temporaries, outputs (donated included).
    said: what libtpu wrote to stderr.
    seconds, cpu_seconds: of the process, tracing included.
    error: XLA's message instead of text and memory, where it refused.
  """

  facts: Mapping[str, Any]
  text: str
  memory: Mapping[str, int]
  said: str
  seconds: float
  cpu_seconds: float
  error: str = ""


def compile_apart(make: Callable[..., tuple[dict[str, Any], Any]], *args: Any) -> Outcome:
  """Compiles what `make(*args)`, called in a process of its own, returns.

  Args:
    make: a function of a module, which returns (facts, a jax.stages.Lowered); facts are kept even where XLA refuses.
    *args: picklable.

  Raises:
    types.UserError: `make` did.
    RuntimeError: the process ended without an outcome, or `make` failed in another way.
  """
  context, start, cpu = multiprocessing.get_context("spawn"), time.monotonic(), _cpu_seconds()
  here, there = context.Pipe()
  with tempfile.TemporaryDirectory() as folder:
    child = context.Process(target=_work, args=(there, folder, make, args), daemon=True)
    child.start()
    there.close()
    try:
      facts, error = _receive(here, folder), ""
      while not _is_written(folder):
        if here.poll(_POLL_S):
          error = _receive(here, folder)
          break
    finally:
      child.kill()
      child.join()
    took, said = (time.monotonic() - start, _cpu_seconds() - cpu), _said(folder)
    if error:
      return Outcome(facts, "", {}, said, *took, error)
    return Outcome(facts, _read(folder, _TEXT), memory(_read(folder, _MEMORY)), said, *took)


def memory(text: str) -> dict[str, int]:
  """Bytes of main memory by use, from a buffer assignment's text; other memories of a TPU have a color."""
  out = dict(arguments=0, donated=0, temporaries=0, outputs=0)
  for size, color, rest in _BUFFER.findall(text):
    if color:
      continue
    live = "maybe-live-out" in rest
    if " parameter " in rest:
      out["arguments"] += int(size)
      out["donated"] += int(size) * live
    out["outputs"] += int(size) * live
    out["temporaries"] += int(size) * ("preallocated-temp" in rest)
  return out


def _work(pipe: Any, folder: str, make: Callable, args: tuple) -> None:
  """The process: sends the facts, then '' or XLA's message; an exception instead of either."""
  file = os.open(os.path.join(folder, "stderr"), os.O_WRONLY | os.O_CREAT)
  os.dup2(file, 2)
  jax.config.update(
    "jax_enable_compilation_cache", False
  )  # what comes from there is not written down
  try:
    facts, lowered = make(*args)
    pipe.send(facts)
    try:
      lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": True})
      pipe.send("")
    except jax.errors.JaxRuntimeError as e:
      pipe.send(str(e))
  except Exception as e:
    pipe.send(e if isinstance(e, types.UserError) else RuntimeError(f"{type(e).__name__}: {e}"))


def _cpu_seconds() -> float:
  """Of all processes that this one started and that have ended."""
  usage = resource.getrusage(resource.RUSAGE_CHILDREN)
  return usage.ru_utime + usage.ru_stime


def _receive(pipe: Any, folder: str) -> Any:
  try:
    found = pipe.recv()
  except EOFError as e:
    raise RuntimeError(f"the compiling process ended: {_said(folder)[-2000:]}") from e
  if isinstance(found, Exception):
    raise found
  return found


def _is_written(folder: str) -> bool:
  """Whether the last of the two files is there to its end."""
  if not _paths(folder, _TEXT):
    return False
  size = os.path.getsize(_paths(folder, _TEXT)[0])
  time.sleep(_POLL_S)
  text = _read(folder, _TEXT)
  return len(text.encode()) == size and "\nENTRY " in text and text.rstrip().endswith("}")


def _paths(folder: str, suffix: str) -> list[str]:
  return glob.glob(os.path.join(folder, "**", "*" + suffix), recursive=True)


def _read(folder: str, suffix: str) -> str:
  with open(_paths(folder, suffix)[0], encoding="utf-8") as f:
    return f.read()


def _said(folder: str) -> str:
  with open(os.path.join(folder, "stderr"), encoding="utf-8", errors="replace") as f:
    return f.read()
