"""Collectives of compiled programs, with the turns of the loops around them."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from seedream_jax.engine import hlo, mesh

_TEXT = """
HloModule jit_f, entry_computation_layout={(f32[8]{0})->f32[8]{0}}

%body.1 (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %x = f32[4,8]{1,0} parameter(0)
  %ag = (f32[4,8]{1,0}, f32[32,8]{1,0}) all-gather-start(f32[4,8]{1,0} %x), replica_groups=[2,8]<=[16], dimensions={0}
  %kernel = f32[4,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
 "xprof_metadata":"{}"
}}, metadata={op_name="splash"}
  %rs = bf16[4,8]{1,0:T(8,128)} reduce-scatter(bf16[32,8]{1,0} %y), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
}

%cond.1 (p: (s32[], f32[4,8])) -> pred[] {
  %b = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[]{:T(512)} compare(%a, %b), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[4,8]) while((s32[], f32[4,8]) %t), condition=%cond.1, body=%body.1, TURNS
  ROOT %ar = f32[8]{0} all-reduce(f32[8]{0} %p), replica_groups=[1,16]<=[16], to_apply=%add
}
""".replace("TURNS", 'backend_config={"known_trip_count":{"n":"5"}}')


class HloTest(parameterized.TestCase):
  def test_text(self):
    self.assertEqual(
      hlo.collectives(_TEXT),
      [
        hlo.Collective("all-gather", 32 * 8 * 4, tuple(range(8)), 5),
        hlo.Collective("reduce-scatter", 32 * 8 * 2, tuple(range(8)), 5),
        hlo.Collective("all-reduce", 8 * 4, tuple(range(16)), 1),
      ],
    )
    gather, _, reduce = hlo.collectives(_TEXT)
    self.assertEqual(gather.wire_bytes, 5 * 1024 * 7 / 8)
    self.assertEqual(reduce.wire_bytes, 2 * 32 * 15 / 16)

  @parameterized.parameters(
    ("replica_groups=mesh['a'=2,'b'=8,'c'=4] {'b'}", range(0, 32, 4)),
    ("replica_groups=mesh['a'=2,'b'=8] {'a','b'}", range(16)),
    ("replica_groups=mesh['a'=2,'b'=8] {'b':(2)4}", range(4)),
    ("replica_groups=mesh['a'=2,'b'=8] {'b':(1)4}", range(0, 8, 2)),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", range(0, 8, 2)),
    ("replica_groups=[4,16]<=[64]", range(16)),
    ("replica_groups=[16,4]<=[4,16]T(1,0)", range(0, 64, 16)),
    ("replica_groups={{0,2},{1,3}}", (0, 2)),
  )
  def test_groups(self, text, chips):
    self.assertEqual(hlo._chips("all-gather", text), tuple(chips))

  def test_a_collective_in_several_fusions_counts_once(self):
    line = next(line for line in _TEXT.splitlines() if "all-gather-start" in line)
    once = line.replace("dimensions={0}", "dimensions={0}, channel_id=7")
    text = _TEXT.replace(line, once + "\n" + once.replace("%ag", "%again"))
    self.assertLen(hlo.collectives(text), 3)
    self.assertLen(hlo.collectives(text.replace("channel_id=7", "")), 4)

  def test_turns_from_the_condition(self):
    text = _TEXT.replace('backend_config={"known_trip_count":{"n":"5"}}', "")
    self.assertEqual(hlo.collectives(text), hlo.collectives(_TEXT))

  def test_turns_of_a_loop_that_counts_by_two(self):
    """As around a windowed matmul, which XLA unrolls."""
    text = _TEXT.replace('backend_config={"known_trip_count":{"n":"5"}}', "")
    text = text.replace("  %b = s32[]", "  %a = u32[] get-tuple-element(%p), index=1\n  %b = u32[]")
    two = "  %two = u32[] constant(2)\n  %next = u32[] add(%n, %two)\n"
    text = text.replace("  %x = f32", f"{two}  %x = f32", 1)
    text = text.replace("to_apply=%add\n}", "to_apply=%add\n  ROOT %r = tuple(%rs, %next)\n}", 1)
    self.assertEqual([c.times for c in hlo.collectives(text)], [3, 3, 1])

  def test_a_loop_of_unknown_turns_is_refused(self):
    text = _TEXT.replace('backend_config={"known_trip_count":{"n":"5"}}', "").replace(
      "constant(5)", "parameter(1)"
    )
    with self.assertRaisesRegex(ValueError, "no known trip count: %w"):
      hlo.collectives(text)

  @parameterized.parameters(3, 7)
  def test_a_compiled_scan(self, depth):
    """Each layer's kernel is cut over all devices and gathered once a turn."""
    device_mesh = mesh.make(dict(data=1, fsdp=8, tensor=1, context=1))
    whole, cut = NamedSharding(device_mesh, P()), NamedSharding(device_mesh, P(None, "fsdp"))

    def f(x, kernels):
      def body(x, kernel):
        kernel = jax.lax.with_sharding_constraint(kernel, whole)
        return jnp.tanh(x @ kernel), None

      return jax.lax.scan(body, x, kernels)[0]

    arguments = jnp.ones((4, 16)), np.ones((depth, 16, 16), np.float32)
    compiled = jax.jit(f, in_shardings=(whole, cut)).lower(*arguments).compile()
    found = [c for c in hlo.collectives(compiled.as_text()) if c.kind == "all-gather"]
    gathered = sum(c.wire_bytes for c in found)
    self.assertEqual(gathered, depth * 16 * 16 * 4 * 7 / 8, found)


if __name__ == "__main__":
  absltest.main()
