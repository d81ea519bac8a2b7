"""Bytes through main memory: by hand on text, and of compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax.engine import traffic

_KIB = 1 << 10  # f32[256]


def module(entry: str, *others: str) -> str:
  return "\n".join(("HloModule m", *others, "ENTRY %main (p: f32[256]) -> f32[256] {", entry, "}"))


def fused(body: str) -> str:
  return f"%f (x: f32[256]) -> f32[256] {{\n{body}\n}}"


_P = "  %p = f32[256]{0} parameter(0)\n  %q = f32[64,256]{1,0} parameter(1)\n  %i = s32[] parameter(2)\n"


class TextTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ("add", "ROOT %r = f32[256]{0} add(%p, %p)", 3),
    ("on_chip", "ROOT %r = f32[256]{0:T(256)S(1)} negate(%p)", 1),
    ("bitcast", "ROOT %r = f32[16,16]{1,0} bitcast(%p)", 0),
    ("slice", "ROOT %r = f32[1,256]{1,0} dynamic-slice(%q, %i, %i)", 2),
    ("update", "ROOT %r = f32[64,256]{1,0} dynamic-update-slice(%q, %p, %i)", 2),
    ("prefetch", "%s = (f32[256]{0:S(1)}, f32[256]{0}, u32[]{:S(2)}) copy-start(%p)", 1),
    ("buffer", '%b = f32[256]{0} custom-call(), custom_call_target="AllocateBuffer"', 0),
    ("kernel", '%k = f32[256]{0} custom-call(%p, %q), custom_call_target="tpu_custom_call"', 66),
    (
      "gather",
      "%g = f32[16,256]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,16]<=[16]",
      17,
    ),
  )
  def test_one(self, line, kib):
    self.assertEqual(traffic.moved(module(_P + "  " + line)), kib * _KIB)

  @parameterized.named_parameters(
    ("reads_what_it_cuts", "  ROOT %r = f32[256]{0} fusion(%q), calls=%f",
     "  %x = f32[64,256]{1,0} parameter(0)\n  %b = f32[64,256]{1,0} bitcast(%x)\n"
     "  %s = f32[1,256]{1,0} dynamic-slice(%b, %i, %i)\n  ROOT %n = f32[256]{0} negate(%s)", 2),
    ("writes_what_it_updates", "  ROOT %r = f32[64,256]{1,0} fusion(%q, %p), calls=%f",
     "  %x = f32[64,256]{1,0} parameter(0)\n  %y = f32[256]{0} parameter(1)\n"
     "  ROOT %u = f32[64,256]{1,0} dynamic-update-slice(%x, %y, %i)", 2),
    ("hands_on_a_buffer", "  ROOT %r = (f32[256]{0}, f32[64,256]{1,0}) fusion(%p, %q), calls=%f",
     "  %x = f32[256]{0} parameter(0)\n  %y = f32[64,256]{1,0} parameter(1)\n  %i = s32[] parameter(2)\n"
     "  %n = f32[256]{0} negate(%x)\n  ROOT %t = (f32[256]{0}, f32[64,256]{1,0}) tuple(%n, %y)", 2),
    ("converts", "  ROOT %r = (bf16[256]{0}, f32[]) fusion(%p), calls=%f",
     "  %x = f32[256]{0} parameter(0)\n  %c = bf16[256]{0} convert(%x)\n"
     "  %z = f32[] constant(0)\n  ROOT %t = (bf16[256]{0}, f32[]) tuple(%c, %z)", 1.5 + 4 / _KIB),
    ("copies", "  ROOT %r = f32[256]{0} fusion(%p), calls=%f",
     "  %x = f32[256]{0} parameter(0)\n  ROOT %c = f32[256]{0} copy(%x)", 2),
  )  # fmt: skip
  def test_fusion(self, line, body, kib):
    self.assertEqual(traffic.moved(module(_P + line, fused(body))), kib * _KIB)

  def test_a_collective_in_several_fusions_moves_once(self):
    body = (
      "  %x = f32[256]{0} parameter(0)\n  %y = f32[16,256]{1,0} parameter(1)\n"
      "  %g = f32[16,256]{1,0} all-gather(%x), channel_id=1, replica_groups=[1,16]<=[16]\n"
      "  ROOT %t = (f32[256]{0}, f32[16,256]{1,0}) tuple(%x, %g)"
    )
    types = "(f32[256]{0}, f32[16,256]{1,0})"
    lines = [f"  %r{k} = {types} fusion(%p, %q), calls=%f" for k in range(3)]
    self.assertEqual(traffic.moved(module(_P + "\n".join(lines), fused(body))), 17 * _KIB)

  def test_a_loop_of_unknown_turns_is_refused(self):
    line = "  ROOT %w = f32[256]{0} while(%p), condition=%c, body=%f"
    with self.assertRaisesRegex(ValueError, "no known trip count: %w"):
      traffic.moved(module(_P + line, fused("  %x = f32[256]{0} parameter(0)")))


class CompiledTest(parameterized.TestCase):
  def moved(self, fn, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    return traffic.moved(jax.jit(fn).lower(*arguments).compile().as_text())

  def test_elementwise_is_one_pass(self):
    self.assertEqual(self.moved(lambda x: jnp.tanh(x * 2 + 1), (64, 256)), 2 * 64 * _KIB)

  def test_matmul(self):
    found = self.moved(lambda x, y: x @ y, (256, 512), (512, 128))
    self.assertEqual(found, 4 * (256 * 512 + 512 * 128 + 256 * 128))

  def test_a_scan_reads_its_slices_every_turn(self):
    """A turn more costs one kernel and the carry, not the stack: the slope over depth is flat."""

    def fn(x, kernels):
      return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]

    found = [self.moved(fn, (8, 256), (depth, 256, 256)) for depth in (5, 9, 17)]
    a_turn = (found[2] - found[1]) / 8
    self.assertEqual(a_turn, (found[1] - found[0]) / 4)
    kernel, carry = 256 * _KIB, 8 * _KIB
    self.assertBetween(a_turn, kernel + 2 * carry, 4 * (kernel + 2 * carry))


if __name__ == "__main__":
  absltest.main()
