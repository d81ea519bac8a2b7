"""Reads a compiled program's text: the bytes that one chip moves through its main memory.

An instruction reads what it takes and writes what it makes, as many times as the loops around it turn; a fusion only
its ends. What the compiler keeps on the chip (a TPU's layouts then name a memory space, S(1)) moves nothing, a slice
moves itself and not the array it is cut from, and a buffer that an asynchronous collective hands on does not move.
Kernels count their arguments once, so that this is a floor for those that read blocks again. Padding to tiles is left
out.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

from seedream_jax.engine import hlo

# Names of buffers, not copies; a started operation is charged where it starts.
_FREE = frozenset({
  "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
  "copy-done", "slice-done", "async-done", "async-update", "opt-barrier",
} | {f"{kind}-done" for kind in hlo.KINDS})  # fmt: skip
_FREE_CALLS = (
  "AllocateBuffer",
  "AssumeGatherIndicesInBound",
  "AsyncCollectiveDone",
  "AsyncCollectiveStart",
  "ConcatBitcast",
)
_TYPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_OP = re.compile(r"(?:^|[\s)}])([a-z][\w\-]*)\(")
_CUTS = ("slice", "dynamic-slice", "gather")
_RENAMED = ("bitcast", "reshape", "copy", "convert")
_PASSED_ON = (*hlo.KINDS, "parameter", "custom-call", "get-tuple-element")


@dataclasses.dataclass(frozen=True)
class _Type:
  nbytes: int
  in_memory: bool  # main memory, not the chip's own


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  op: str
  types: tuple[_Type, ...]
  operands: tuple[str, ...]
  rest: str  # of the line, from the type on

  @property
  def nbytes(self) -> int:
    """In main memory."""
    return sum(t.nbytes for t in self.types if t.in_memory)

  @property
  def size(self) -> int:
    """Wherever it is."""
    return sum(t.nbytes for t in self.types)

  @property
  def called(self) -> str:
    """The computation that it stands for."""
    return re.search(r"(?:calls|to_apply)=%?([\w.\-]+)", self.rest)[1]


class _Computation(dict):
  """{name: instruction}, in order."""

  root: _Instruction

  @functools.cached_property
  def parameters(self) -> dict[int, _Instruction]:
    found = (i for i in self.values() if i.op == "parameter")
    return {int(re.search(r"parameter\((\d+)\)", i.rest)[1]): i for i in found}

  @functools.cached_property
  def users(self) -> dict[str, list[_Instruction]]:
    found: dict[str, list[_Instruction]] = {}
    for instruction in self.values():
      for operand in dict.fromkeys(instruction.operands):
        found.setdefault(operand, []).append(instruction)
    return found


def moved(text: str) -> int:
  """Bytes of one call of an optimised HLO module, of one chip.

  Raises:
    ValueError: a loop whose turns XLA does not know.
  """
  lines = hlo.computations(text)
  entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.M)
  program = {name: _parse(body) for name, body in lines.items()}
  charged: set[str] = set()  # channels of collectives: each stands in several fusions
  return sum(_walk(program, lines, entry[1], 1, charged)) if entry else 0


def _parse(lines: list[str]) -> _Computation:
  out = _Computation()
  for line in lines:
    head, _, rest = line.strip().partition(" = ")
    op = _OP.search(rest)
    if not op:
      continue
    types = tuple(
      _Type(_nbytes(dtype, dims), "S(" not in layout)
      for dtype, dims, layout in _TYPE.findall(rest[: op.start() + 1])
      if dtype in hlo.BITS
    )
    name = head.removeprefix("ROOT ").removeprefix("%")
    operands = re.findall(r"%([\w.\-]+)", rest[op.end() : _close(rest, op.end())])
    out[name] = _Instruction(name, op[1], types, tuple(operands), rest)
    if head.startswith("ROOT"):
      out.root = out[name]
  return out


def _nbytes(dtype: str, dims: str) -> int:
  return math.prod(int(d) for d in dims.split(",") if d) * hlo.BITS[dtype] // 8


def _close(text: str, start: int) -> int:
  """Where the bracket that opened before `start` closes."""
  depth = 1
  for at in range(start, len(text)):
    depth += (text[at] == "(") - (text[at] == ")")
    if not depth:
      return at
  return len(text)


def _walk(
  program: Mapping[str, _Computation],
  lines: Mapping[str, list[str]],
  name: str,
  times: int,
  charged: set[str],
) -> Iterator[int]:
  here = program[name]
  for i in here.values():
    if i.op == "while":
      turns = hlo.turns(lines, i.rest)
      if turns is None:
        raise ValueError(f"a loop has no known trip count: %{i.name}")
      body = re.search(r"body=%?([\w.\-]+)", i.rest)[1]
      yield from _walk(program, lines, body, times * turns, charged)
    elif i.op == "conditional":
      yield max(sum(_walk(program, lines, b, times, charged)) for b in hlo.branches(i.rest))
    elif i.op in ("call", "async-start"):
      yield from _walk(program, lines, i.called, times, charged)
    elif i.op == "fusion":
      yield times * _fusion(program, i, charged)
    else:
      yield times * _one(here, i, charged)


def _one(here: _Computation, i: _Instruction, charged: set[str]) -> int:
  """An instruction outside a fusion."""
  taken = [here[name] for name in i.operands]
  if i.op in _FREE or (i.op == "custom-call" and any(f'"{t}"' in i.rest for t in _FREE_CALLS)):
    return 0
  if i.op in ("copy-start", "slice-start"):  # (to, from, context); ((from), to, context)
    to, source = i.types[:2] if i.op == "copy-start" else (i.types[-2], i.types[0])
    return to.nbytes * (to.in_memory + source.in_memory)
  if i.op.removesuffix("-start") in hlo.KINDS:
    return _collective(here, i, charged)
  if i.op in _CUTS:
    return i.nbytes + (i.size if taken[0].nbytes else 0)
  if i.op == "dynamic-update-slice":
    return taken[1].nbytes + (taken[1].size if i.nbytes else 0)
  return i.nbytes + sum(t.nbytes for t in taken)


def _collective(here: _Computation, i: _Instruction, charged: set[str]) -> int:
  """What it takes and makes, once a channel."""
  channel = re.search(r"channel_id=(\d+)", i.rest)
  if channel and channel[1] in charged:
    return 0
  if channel:
    charged.add(channel[1])
  if i.op.endswith("-start"):  # its type repeats what it takes, but for an all-reduce's
    return i.nbytes * (1 + i.op.startswith("all-reduce"))
  return i.nbytes + sum(here[name].nbytes for name in i.operands)


def _fusion(program: Mapping[str, _Computation], i: _Instruction, charged: set[str]) -> int:
  """Its ends, and the collectives that it starts or carries."""
  inner = program[i.called]
  inside = sum(_collective(inner, j, charged) for j in inner.values() if j.op in hlo.KINDS)
  read = sum(_read(program, inner, p) for p in inner.parameters.values() if p.nbytes)
  return inside + read + _written(program, inner, i.types)


def _read(
  program: Mapping[str, _Computation], inner: _Computation, i: _Instruction, is_new: bool = False
) -> int:
  """Bytes that a fusion reads of its parameter, or of what renames or (then `is_new`) converts it."""
  total = 0
  for user in inner.users.get(i.name, ()):
    if user.op in _RENAMED and user is not inner.root:
      share = i.size / max(
        user.size, 1
      )  # what is read is of this dtype, not of the one converted to
      total += round(share * _read(program, inner, user, is_new or user.op != "bitcast"))
    elif user.op in _CUTS and user.operands[0] == i.name:
      total += user.size
    elif user.op == "fusion":
      nested = program[user.called]
      places = [k for k, name in enumerate(user.operands) if name == i.name]
      total += sum(_read(program, nested, nested.parameters[k]) for k in places)
    elif user.op == "dynamic-update-slice" and user.operands[0] == i.name:
      continue  # updated in place
    elif is_new or user.op not in ("tuple", "custom-call", *hlo.KINDS):
      return i.size
  return min(total, i.size)


def _written(
  program: Mapping[str, _Computation], inner: _Computation, types: tuple[_Type, ...]
) -> int:
  """Bytes that a fusion writes; `types` are the ones it has where it stands."""
  root = inner.root
  elements = [inner[name] for name in root.operands] if root.op == "tuple" else [root]
  total, at = 0, 0
  for element in elements:
    made, at = types[at : at + len(element.types)], at + len(element.types)
    total += _made(program, inner, element, sum(t.nbytes for t in made if t.in_memory))
  return total


def _made(
  program: Mapping[str, _Computation], inner: _Computation, i: _Instruction, nbytes: int
) -> int:
  """Bytes of one result that are new."""
  is_new = inner.root.op != "tuple"  # one result that is a parameter is a copy of it
  while i.op in _RENAMED:
    is_new |= i.op != "bitcast"
    i = inner[i.operands[0]]
  if i.op in _PASSED_ON:
    return nbytes if is_new else 0
  if i.op == "fusion":
    nested = program[i.called]
    return _made(program, nested, nested.root, nbytes) if nested.root.op != "tuple" else nbytes
  if i.op == "dynamic-update-slice":
    return min(nbytes, inner[i.operands[1]].size)
  return nbytes
