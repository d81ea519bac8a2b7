"""Which tree and which machine a measurement is of; imports no JAX."""

import os
import subprocess


def commit() -> str:
  """The commit of the tree this runs in, "+changes" when tracked files differ from it."""
  git = ("git", "describe", "--always", "--dirty=+changes", "--exclude=*")
  return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def cpu() -> str:
  """How many cores of which model, by Linux's name of it."""
  with open("/proc/cpuinfo", encoding="utf-8") as f:
    names = [line.split(":")[1].strip() for line in f if line.startswith("model name")]
  return f"{os.cpu_count()} cores of {names[0] if names else 'unknown'}"
