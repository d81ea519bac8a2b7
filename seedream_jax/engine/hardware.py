"""What one chip can do, from its makers' data sheets: the roofs under a plan.

TPU figures: https://jax-ml.github.io/scaling-book/tpus (links both ways, HBM) and
https://cloud.google.com/tpu/docs/{v5e,v5p,v6e} (HBM size, peak, which slices are a torus). GPU figures: NVIDIA's H100
and H200 data sheets (SXM).
"""

import dataclasses
import difflib
import math
import re

from seedream_jax import types


@dataclasses.dataclass(frozen=True)
class Chip:
  """One chip.

  Attributes:
    flops: dense bf16 FLOP/s.
    hbm_bytes: what a program may use; TPU v5e's 16 GiB less what its runtime keeps.
    hbm_rate: bytes/s.
    link_rate: bytes/s of one torus axis, both directions together; for a GPU, of its NVLinks.
    axes: torus axes; a GPU's switch counts as one.
    ring: an axis of so many chips, or a multiple where there are 3 axes, closes to a ring; a shorter one is a line.
  """

  name: str
  flops: float
  hbm_bytes: int
  hbm_rate: float
  link_rate: float
  axes: int
  ring: int


_GIB = 1 << 30
CHIPS = {
  "v5e": Chip("TPU v5e", 197e12, int(15.75 * _GIB), 819e9, 90e9, 2, 16),
  "v5p": Chip("TPU v5p", 459e12, int(95.0 * _GIB), 2765e9, 180e9, 3, 4),
  "v6e": Chip("TPU v6e", 918e12, int(31.25 * _GIB), 1638e9, 180e9, 2, 16),
  "h100": Chip("NVIDIA H100 SXM", 989e12, int(79.0 * _GIB), 3350e9, 900e9, 1, 1),
  "h200": Chip("NVIDIA H200 SXM", 989e12, int(140.0 * _GIB), 4800e9, 900e9, 1, 1),
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """`num_chips` of one kind; `shape` is the torus's, or (n,) for GPUs on one switch."""

  name: str
  chip: Chip
  shape: tuple[int, ...]

  @property
  def num_chips(self) -> int:
    """All of them."""
    return math.prod(self.shape)

  @property
  def is_tpu(self) -> bool:
    """Whether libtpu compiles for it."""
    return self.chip.name.startswith("TPU")

  @property
  def rings(self) -> tuple[bool, ...]:
    """Whether each axis is closed. Slices of 3 axes close them all or none: they are made of cubes of 4x4x4."""
    if len(self.shape) == 3:
      return (all(side % self.chip.ring == 0 for side in self.shape),) * 3
    return tuple(side % self.chip.ring == 0 for side in self.shape)


def parse(text: str) -> Topology:
  """'v5e:16x16', 'v5p:4x4x4', 'h100:8'.

  Raises:
    types.UserError: an unknown chip or a shape that is none, naming what is valid.
  """
  kind, _, shape = text.partition(":")
  if kind not in CHIPS:
    near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.0)[0]
    raise types.UserError(
      f"--topology {text!r}: no chip {kind!r} (nearest valid: {near}); valid: {', '.join(CHIPS)}"
    )
  chip = CHIPS[kind]
  sides = 3 if kind == "v5p" else chip.axes
  if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3})*", shape) or shape.count("x") + 1 != sides:
    example = {1: "8", 2: "16x16", 3: "4x4x4"}[sides]
    raise types.UserError(f"--topology {text!r}: expected {kind}:{example} or the like")
  return Topology(text, chip, tuple(int(side) for side in shape.split("x")))
