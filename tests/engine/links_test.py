"""Collectives on a torus, against times worked out by hand."""

import itertools

from absl.testing import absltest, parameterized

from seedream_jax.engine import hardware, hlo, links


def _places(topology):
  return list(itertools.product(*map(range, topology.shape)))


class LinksTest(parameterized.TestCase):
  @parameterized.parameters(
    ("v5e:16x16", range(256), 255 / 256 / 180e9),  # both rings
    ("v5e:16x16", range(16), 15 / 16 / 90e9),  # one ring
    ("v5e:16x16", range(8), 7 / 8 / 45e9),  # a part of one
    ("v5e:4x4", range(16), 15 / 16 / 90e9),  # two lines
    ("v5p:4x4x4", range(64), 63 / 64 / 540e9),
    ("v5p:2x4x4", range(32), 31 / 32 / 270e9),  # no whole cube: three lines
    ("v5e:16x16", (0, 17, 34), 2 / 3 / 45e9),  # no box
    ("v5e:4x4", range(1), 0.0),
  )
  def test_a_gathered_byte(self, name, chips, want):
    topology = hardware.parse(name)
    gather = hlo.Collective("all-gather", 1, tuple(chips), 1)
    self.assertAlmostEqual(links.seconds(gather, _places(topology), topology), want, delta=1e-15)

  def test_an_all_reduce_goes_round_twice_and_a_permutation_one_way(self):
    topology = hardware.parse("v5e:16x16")
    time = lambda kind: links.seconds(  # noqa: E731
      hlo.Collective(kind, 1 << 20, tuple(range(16)), 3), _places(topology), topology
    )
    self.assertAlmostEqual(time("all-reduce"), 2 * time("all-gather"))
    self.assertAlmostEqual(time("reduce-scatter"), time("all-gather"))
    self.assertAlmostEqual(time("collective-permute"), 3 * (1 << 20) / 45e9)

  @parameterized.parameters("v5e:16x16", "v5e:4x4", "v5e:4x16")
  def test_an_all_to_all_fills_the_middle_links(self, name):
    topology = hardware.parse(name)
    rows, columns = topology.shape
    exchange = hlo.Collective("all-to-all", 1 << 20, tuple(range(rows * columns)), 1)
    times = []
    for n, across in ((rows, columns), (columns, rows)):
      # Half of what half of the chips have crosses one middle, or on a ring two, of `across` links each.
      crossing = n * across / 2 * (1 << 20) / 2
      times.append(crossing / (across * 45e9 * (2 if n == 16 else 1)))
    found = links.seconds(exchange, _places(topology), topology)
    self.assertAlmostEqual(found, max(times))


if __name__ == "__main__":
  absltest.main()
