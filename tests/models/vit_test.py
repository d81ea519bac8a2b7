"""The shared ViT and the text towers: positions on another grid, what may see what, where a text is read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from seedream_jax import types
from seedream_jax.models import two_tower, vit

VIT = vit.ViTConfig(width=12, depth=2, num_heads=3, mlp_dim=14, patch=5, grid=(3, 3))
TEXT = dict(width=8, depth=2, num_heads=2, mlp_dim=12, vocab_size=31, length=11)


def make(cls, cfg, seed: int = 0):
  """A module with random leaves, norm scales and biases too, so that none can be ignored unseen."""
  part = types.Part.from_module(lambda rngs: cls(cfg, rngs=rngs))
  rng = np.random.default_rng(seed)
  return part.bind(
    jax.tree.map(
      lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape), jnp.float32), part.abstract
    )
  )


def _cubic(distance: float) -> float:
  """Keys' kernel with a = -0.75, as PyTorch's upsample_bicubic2d has it (ATen/native/UpSample.h)."""
  a, x = -0.75, abs(distance)
  if x <= 1:
    return (a + 2) * x**3 - (a + 3) * x**2 + 1
  return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0


class PositionsTest(parameterized.TestCase):
  @parameterized.parameters((3, 3), (3, 7), (7, 3), (5, 1), (4, 9))
  def test_bicubic(self, size, new):
    """Sample by sample: no weight but the kernel's, edges repeated, and each row a mean."""
    got, want = vit.bicubic(size, new), np.zeros((new, size))
    for i in range(new):
      at = (i + 0.5) * size / new - 0.5
      for k in range(-3, size + 3):
        want[i, min(max(k, 0), size - 1)] += _cubic(at - k)
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(got.sum(axis=1), 1.0, atol=1e-6)

  def test_the_trained_grid_is_the_table(self):
    model = make(vit.ViT, VIT)
    np.testing.assert_array_equal(model.positions((3, 3)), model.position_embedding[...])

  def test_rows_and_columns_are_not_swapped(self):
    """A table that grows downwards only still does on a 2 x 4 grid."""
    model = make(vit.ViT, VIT)
    rows = np.repeat(np.arange(3.0), 3)
    table = np.concatenate([[9.0], rows])[:, None] * np.ones((1, 12))
    model.position_embedding[...] = jnp.asarray(table, jnp.float32)
    got = np.asarray(model.positions((2, 4)))
    self.assertEqual(got.shape, (9, 12))
    np.testing.assert_allclose(got[0], 9.0)  # the class token's is not resized
    np.testing.assert_allclose(got[1:5, 0], got[1, 0], atol=1e-6)
    self.assertLess(got[1, 0], got[5, 0])


class ViTTest(parameterized.TestCase):
  @parameterized.parameters((15, 15), (10, 25))
  def test_tokens(self, height, width):
    model = make(vit.ViT, VIT)
    tokens = model(jnp.zeros((2, height, width, 3)))
    self.assertEqual(tokens.shape, (2, 1 + height * width // 25, 12))

  def test_uint8_is_the_same_picture(self):
    model = make(vit.ViT, dataclasses.replace(VIT, mean=(0.4, 0.5, 0.3), std=(0.2, 0.3, 0.1)))
    pixels = np.random.RandomState(0).randint(0, 256, (1, 15, 15, 3)).astype(np.uint8)
    floats = pixels.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(model(pixels), model(floats), rtol=2e-4, atol=2e-5)

  def test_a_patch_is_its_own_token(self):
    """Without blocks, a pixel changes the token of its patch alone, counted row by row."""
    model = make(vit.PatchEmbedding, VIT)
    image = np.zeros((1, 10, 15, 3), np.float32)
    changed = image.copy()
    changed[0, 7, 11, 2] = 1.0  # second row of patches, third column
    moved = np.any(np.asarray(model(changed)) != np.asarray(model(image)), axis=-1)[0]
    self.assertEqual(np.flatnonzero(moved).tolist(), [5])
    np.testing.assert_allclose(
      np.asarray(model(changed) - model(image))[0, 5], model.kernel[...][2, 1, 2], atol=1e-6
    )

  def test_layer_scale_of_zero_is_the_identity(self):
    block = make(vit.Block, dataclasses.replace(VIT, layer_scale=True, gated=True))
    x_BLE = jnp.asarray(np.random.RandomState(0).randn(2, 5, 12), jnp.float32)
    self.assertGreater(float(jnp.max(jnp.abs(block(x_BLE) - x_BLE))), 1e-3)
    for name in ("layer_scale1", "layer_scale2"):
      getattr(block, name)[...] = jnp.zeros(12)
    np.testing.assert_array_equal(block(x_BLE), x_BLE)

  def test_sides_that_the_patch_does_not_divide(self):
    with self.assertRaisesRegex(
      types.UserError, "image of 14x15: .* multiples of 5; nearest: 15x15"
    ):
      make(vit.ViT, VIT)(jnp.zeros((1, 14, 15, 3)))


class TextTest(parameterized.TestCase):
  def _towers(self):
    yield make(two_tower.CausalText, two_tower.CausalTextConfig(eos_id=7, **TEXT))
    yield make(two_tower.Bert, two_tower.BertConfig(**TEXT))

  def test_padding_is_not_seen(self):
    for model in self._towers():
      ids = np.array([[4, 9, 12, 7, 0, 0, 0]])
      mask = np.array([[1, 1, 1, 1, 0, 0, 0]], bool)
      other = np.where(mask, ids, 23)
      np.testing.assert_allclose(
        model.pooled(ids, mask), model.pooled(other, mask), atol=1e-6, err_msg=type(model).__name__
      )
      np.testing.assert_allclose(model.pooled(ids, mask), model.pooled(ids[:, :4]), atol=1e-5)

  def test_only_the_causal_tower_is_blind_to_what_follows(self):
    for model, blind in zip(self._towers(), (True, False)):
      ids = np.array([[4, 9, 12, 7]])
      moved = np.array([[4, 9, 12, 8]])
      delta = np.abs(np.asarray(model(ids) - model(moved)))[0, :3].max()
      self.assertEqual(delta == 0, blind, type(model).__name__)

  @parameterized.parameters((7, 2), (None, 3))
  def test_where_a_text_is_read(self, eos_id, at):
    model = make(two_tower.CausalText, two_tower.CausalTextConfig(eos_id=eos_id, **TEXT))
    ids = np.array([[4, 9, 7, 30, 7, 30]])
    np.testing.assert_allclose(model.pooled(ids)[0], model(ids)[0, at], atol=1e-6)

  def test_too_long(self):
    for model in self._towers():
      with self.assertRaisesRegex(ValueError, "text of 12 tokens: the tower reads at most 11"):
        model.pooled(np.zeros((1, 12), np.int32))


class TwoTowerTest(absltest.TestCase):
  def test_pictures_keep_their_ratio_and_get_about_the_tables_patches(self):
    cfg = dataclasses.replace(VIT, grid=(4, 4))  # of 5 pixels a side
    for size, want in (((48, 32), (25, 15)), ((20, 20), (20, 20)), ((16, 160), (5, 65))):
      image_BHWC = jnp.zeros((2, *size, 3))
      self.assertEqual(two_tower.fit(image_BHWC, cfg).shape, (2, *want, 3))
    image_BHWC = np.array([0, 255], np.uint8).repeat(1200).reshape(1, 40, 20, 3)
    top_BHWC = two_tower.fit(image_BHWC, cfg)
    self.assertEqual(top_BHWC.shape, (1, 30, 15, 3))
    np.testing.assert_allclose(top_BHWC[0, (3, -3), 7, 0], (-1, 1), atol=0.05)

  def test_unit_vectors_and_scale(self):
    one = dict(depth=1)
    text = two_tower.BertConfig(**TEXT | one)
    cfg = two_tower.TwoTowerConfig(dataclasses.replace(VIT, **one), text, 7)
    model = make(two_tower.TwoTower, cfg)
    image_BHWC = np.random.RandomState(0).randint(0, 256, (2, 15, 20, 3)).astype(np.uint8)
    x_BP = jax.jit(model.image)(image_BHWC)
    y_BP = jax.jit(model.text)(
      np.array([[4, 9, 12], [5, 6, 0]]), np.array([[1, 1, 1], [1, 1, 0]], bool)
    )
    for z_BP in (x_BP, y_BP):
      self.assertEqual((z_BP.shape, z_BP.dtype), ((2, 7), jnp.float32))
      np.testing.assert_allclose(jnp.linalg.norm(z_BP, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(model.scale(), np.exp(model.logit_scale[...]), rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
