"""How long a torus's links need for a collective, every link at its full rate and nothing waiting.

Between neighbours there is one link, of half a `Chip.link_rate` each way. All-gather, reduce-scatter and all-reduce
use both ways of all axes that their chips span: W bytes/s an axis that is a ring, W / 2 one that is a line, whose end
has one link only. An all-to-all must cross the middle: n / 4 times what a chip has, at those rates, of the axis where
that takes longest (https://jax-ml.github.io/scaling-book/sharding). Of a part of a ring nothing but a line is left.
The time that a message needs for its way is left out: 1 us a hop.
"""

from collections.abc import Sequence

from seedream_jax.engine import hardware, hlo


def seconds(
  collective: hlo.Collective, places: Sequence[Sequence[int]], topology: hardware.Topology
) -> float:
  """Of all its calls.

  Args:
    collective: of the program.
    places: the coordinates of the program's chips, in its order.
    topology: they are of.
  """
  if len(collective.chips) < 2 or not collective.bytes:
    return 0.0
  if collective.kind == "collective-permute":  # to a neighbour, one way
    return collective.wire_bytes / (topology.chip.link_rate / 2)
  rates = _rates([places[i] for i in collective.chips], topology)
  if collective.kind == "all-to-all":
    return collective.times * max(collective.bytes * n / 4 / rate for n, rate in rates)
  return collective.wire_bytes / sum(rate for _, rate in rates)


def _rates(places: Sequence[Sequence[int]], topology: hardware.Topology) -> list[tuple[int, float]]:
  """(chips, bytes/s) along each axis that they span; of a group that is no box, of one line through it."""
  sides = [len({place[axis] for place in places}) for axis in range(len(topology.shape))]
  rate, out, volume = topology.chip.link_rate, [], 1
  for side, whole, ring in zip(sides, topology.shape, topology.rings):
    volume *= side
    if side > 1:
      out.append((side, rate if ring and side == whole else rate / 2))
  return out if volume == len(places) else [(len(places), rate / 2)]
