"""Reads a compiled program's text: what its collectives carry, with the turns of the loops around them.

XLA's own cost analysis takes the body of a scan once; here each while loop multiplies its body by the trip count that
XLA wrote beside it.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

BITS = {
  "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "f8e4m3fn": 8, "f8e5m2": 8, "s16": 16, "u16": 16, "f16": 16,
  "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64,
}  # fmt: skip
KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LESS = re.compile(r"ROOT .* compare\(.*%([\w.\-]+), .*%([\w.\-]+)\), direction=LT")
_CALLS = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(
  r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))"
)


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective operation of the program.

  Attributes:
    kind: of KINDS.
    bytes: of the whole array that one chip gathers, reduces or sends, once.
    chips: that take part together, as the program numbers them; of one group, the others are like it.
    times: how often it runs in one call.
    channel: XLA's number of it, None where it gave none.
  """

  kind: str
  bytes: int
  chips: tuple[int, ...]
  times: int
  channel: int | None = None

  @property
  def wire_bytes(self) -> float:
    """What each chip must send in all, by a ring: an all-reduce goes round twice."""
    rounds = 2 if self.kind == "all-reduce" else 1
    share = 1.0 if self.kind == "collective-permute" else (len(self.chips) - 1) / len(self.chips)
    return rounds * share * self.bytes * self.times


def collectives(text: str) -> list[Collective]:
  """All collectives of an optimised HLO module's text.

  Raises:
    ValueError: a loop with collectives in it whose turns XLA does not know.
  """
  bodies = computations(text)
  entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.M)
  found = list(_walk(bodies, entry[1], 1)) if entry else []
  # An asynchronous collective stands in the fusions that start, carry and end it, on one channel.
  channels = {c.channel: c for c in reversed(found) if c.channel is not None}
  return [c for c in found if c.channel is None or channels[c.channel] is c]


def computations(text: str) -> dict[str, list[str]]:
  """{name: lines} of every computation of a module's text."""
  found, name = {}, None
  for line in text.splitlines():
    start = line.rstrip()
    if start.endswith("{") and not start.startswith(" ") and not start.startswith("HloModule"):
      name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", start)[1]
      found[name] = []
    elif start == "}":  # alone: a kernel's metadata has lines that only start with one
      name = None
    elif name is not None:
      found[name].append(line)
  return found


def _walk(bodies: dict[str, list[str]], name: str, times: int) -> Iterator[Collective]:
  for line in bodies.get(name, ()):
    head, _, rest = line.partition(" = ")
    op = re.search(r"(?:^|[\s)}])([a-z][\w\-]*)\(", rest)
    if not op:
      continue
    kind = op[1].removesuffix("-start")
    if kind in KINDS:
      channel = re.search(r"channel_id=(\d+)", rest)
      size, chips = _nbytes(op[1], rest, op.start()), _chips(kind, rest)
      yield Collective(kind, size, chips, times, int(channel[1]) if channel else None)
    if op[1] == "while":
      inner = list(_walk(bodies, re.search(r"body=%?([\w.\-]+)", rest)[1], 1))
      count = turns(bodies, rest) if inner else 0
      if count is None:
        raise ValueError(f"a loop with collectives has no known trip count: {head.strip()}")
      yield from (dataclasses.replace(c, times=c.times * times * count) for c in inner)
      continue
    for called in _CALLS.findall(rest) if op[1] not in ("reduce", "scatter", "sort", "map") else ():
      if kind not in KINDS:
        yield from _walk(bodies, called, times)
    if options := [list(_walk(bodies, name, times)) for name in branches(rest)]:
      yield from max(options, key=lambda found: sum(c.wire_bytes for c in found))


def branches(rest: str) -> list[str]:
  """The computations between which a conditional's line chooses."""
  return [
    name.strip(" %") for found in _BRANCHES.findall(rest) for name in "".join(found).split(",")
  ]


def turns(bodies: dict[str, list[str]], rest: str) -> int | None:
  """What XLA wrote beside the loop, else what its counter, which starts at 0, is compared with, by its steps."""
  if match := _TURNS.search(rest):
    return int(match[1])
  condition = bodies.get(re.search(r"condition=%?([\w.\-]+)", rest)[1], [])
  compared = next((m for line in condition if (m := _LESS.search(line))), None)
  limit = compared and _constant(condition, compared[2])
  if limit is None:
    return None
  step = _step(bodies.get(re.search(r"body=%?([\w.\-]+)", rest)[1], []), condition, compared[1])
  return -(-limit // step) if step else None


def _step(body: list[str], condition: list[str], counter: str) -> int | None:
  """What a turn adds to the counter: 2 where XLA unrolled the loop of a windowed matmul; 1 where it does not say."""
  element = re.compile(rf"%{re.escape(counter)} = .*get-tuple-element\(.*index=(\d+)")
  index = next((int(m[1]) for line in condition if (m := element.search(line))), None)
  root = next((line for line in body if "ROOT" in line), "")
  if index is None or " tuple(" not in root:
    return 1
  name = re.findall(r"%([\w.\-]+)", root.partition(" tuple(")[2])[index]
  added = re.compile(rf"%{re.escape(name)} = .* add\(%[\w.\-]+, %([\w.\-]+)\)")
  found = next((m[1] for line in body if (m := added.search(line))), None)
  return _constant(body, found) if found else 1


def _constant(lines: list[str], name: str) -> int | None:
  pattern = re.compile(rf"%{re.escape(name)} = [su]32\[\]\S* constant\((\d+)\)")
  return next((int(m[1]) for line in lines if (m := pattern.search(line))), None)


def _nbytes(op: str, rest: str, end: int) -> int:
  """Of the larger side: what an all-gather makes, what a reduce-scatter takes."""
  sizes = [
    math.prod(int(d) for d in dims.split(",") if d) * BITS[dtype] // 8
    for dtype, dims in _SHAPE.findall(rest[:end])
    if dtype in BITS and (dtype, dims) != ("u32", "")  # handles of a started op
  ]
  if op.endswith("-start") and not op.startswith("all-reduce") and len(sizes) > 1:
    sizes = sizes[len(sizes) // 2 :]  # its operands come first
  return sum(sizes) * (len(_chips(op, rest)) if op.startswith("reduce-scatter") else 1)


def _chips(op: str, rest: str) -> tuple[int, ...]:
  """One group's, in any of the ways that HLO writes it."""
  if op.startswith("collective-permute"):
    pair = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", rest)
    return (int(pair[1]), int(pair[2])) if pair else (0, 1)
  if match := re.search(r"replica_groups=\[([\d,]+)\](<=\S+)", rest):
    shape = [int(n) for n in match[1].split(",")]
    return tuple(_iota(match[2]).reshape(shape)[0].tolist())
  if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
    return tuple(int(n) for n in match[1].split(","))
  if match := re.search(
    r"replica_groups=(?:@\w+|mesh)\[?([^\]{]*)\]?(?:, device_ids=(\S+))? \{([^}]*)\}", rest
  ):
    sizes = {axis: int(size) for axis, size in re.findall(r"'([^']+)'=(\d+)", match[1])}
    ids = _iota(match[2]) if match[2] else np.arange(math.prod(sizes.values()))
    return _along(ids.reshape(tuple(sizes.values())), list(sizes), match[3])
  raise ValueError(f"cannot read the replica groups of {rest[:200]}")


def _iota(text: str) -> np.ndarray:
  """Of '<=[2,4]T(1,0)' or '([2,4]T(1,0))': the numbers in that shape, axes swapped, then flat."""
  match = re.search(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
  if not match:
    raise ValueError(f"cannot read the device order {text[:200]}")
  shape = [int(n) for n in match[1].split(",")]
  order = [int(n) for n in match[2].split(",")] if match[2] else range(len(shape))
  return np.arange(math.prod(shape)).reshape(shape).transpose(order).reshape(-1)


def _along(ids: np.ndarray, names: list[str], text: str) -> tuple[int, ...]:
  """The first group along "'a','b':(2)4": whole axes, or after the first 2 the 4 parts of one."""
  index: list[Any] = [0] * ids.ndim
  for axis, before, part in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", text):
    at = names.index(axis)
    step = ids.shape[at] // (int(before) * int(part)) if part else 1
    index[at] = slice(0, step * int(part) if part else None, step)
  return tuple(ids[tuple(index)].reshape(-1).tolist())
