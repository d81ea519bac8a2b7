"""Which tree, command and machine a measurement is of; imports no JAX."""

import os
import pathlib
import shlex
import subprocess
import sys
import time
from typing import Any


def commit() -> str:
  """The commit of the tree this runs in, "+changes" when tracked files differ from it; "none" outside of git."""
  git = ("git", "describe", "--always", "--dirty=+changes", "--exclude=*")
  try:
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return "none"


def cpu() -> str:
  """How many cores of which model, by Linux's name of it."""
  with open("/proc/cpuinfo", encoding="utf-8") as f:
    names = [line.split(":")[1].strip() for line in f if line.startswith("model name")]
  return f"{os.cpu_count()} cores of {names[0] if names else 'unknown'}"


def origin() -> dict[str, Any]:
  """What every result opens with; a load near or above the number of cores says "beside other work"."""
  name = pathlib.Path(sys.argv[0]).stem
  return {
    "command": shlex.join(["python", "-m", f"benchmarks.{name}", *sys.argv[1:]]),
    "commit": commit(),
    "date": time.strftime("%Y-%m-%d"),
    "cpu": cpu(),
    "load_when_begun": round(os.getloadavg()[0], 1),
  }
