"""Meshes fit the devices, or the error says what would."""

import dataclasses

import jax
from absl.testing import absltest, parameterized
from jax.sharding import AxisType

from seedream_jax import types
from seedream_jax.engine import mesh


@dataclasses.dataclass(frozen=True)
class FakeDevice:
  id: int
  slice_index: int
  process_index: int = 0
  device_kind: str = "fake"
  platform: str = "fake"


class MeshTest(parameterized.TestCase):
  @parameterized.parameters(
    ({"data": -1}, (8, 1, 1, 1)),
    ({"fsdp": 4, "data": -1}, (2, 4, 1, 1)),
    ({"data": 2, "fsdp": -1, "tensor": 2}, (2, 2, 2, 1)),
    ({"context": 2, "tensor": 2, "fsdp": 2}, (1, 2, 2, 2)),
  )
  def test_shape(self, shape, expected):
    made = mesh.make(shape)
    self.assertEqual(made.axis_names, types.AXES)
    self.assertEqual(made.devices.shape, expected)
    self.assertEqual(set(made.axis_types), {AxisType.Auto})
    self.assertLen({d.id for d in made.devices.flat}, 8)

  def test_subset_of_devices(self):
    self.assertEqual(mesh.make({"data": -1}, jax.devices()[:3]).devices.shape, (3, 1, 1, 1))

  @parameterized.parameters(
    ({"fsdp": 3, "data": -1}, r"fsdp=3: 3 does not divide 8 .*\[1, 2, 4, 8\]"),
    ({"data": 4}, r"data=4 is 4 devices, there are 8; data=8 or data=-1 fits"),
    ({"data": 3, "tensor": 5}, r"15 devices, there are 8; .*\[1, 2, 4, 8\]"),
    ({"data": -1, "fsdp": -1}, r"only one axis may be -1"),
    ({"fdsp": 2}, r"unknown axis 'fdsp', did you mean 'fsdp'"),
    ({"data": 0}, r"data=0, expected a positive integer or -1"),
    ({"data": "8"}, r"data='8', expected"),
  )
  def test_errors(self, shape, message):
    with self.assertRaisesRegex(types.UserError, message):
      mesh.make(shape)

  def test_only_data_crosses_slices(self):
    devices = [FakeDevice(i, i % 2) for i in range(8)]
    with self.assertRaisesRegex(types.UserError, "data=1 must be a multiple of the 2 slices"):
      mesh.make({"fsdp": 8}, devices)
    made = mesh.make({"data": 2, "fsdp": 4}, devices)
    for row in made.devices[:, :, 0, 0]:
      self.assertLen({d.slice_index for d in row}, 1)


if __name__ == "__main__":
  absltest.main()
