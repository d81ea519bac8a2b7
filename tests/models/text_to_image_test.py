"""The joined model: drops, masks, where padding goes, and which part stores what."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.models import llm, text_to_image
from tests.models import tiny

MODEL = ConfigDict(
  dict(
    llm=tiny.LLM,
    byt5=tiny.BYT5,
    dit=dict(
      variant="nano", width=16, depth=2, num_heads=2, text_dim=12, glyph_dim=10, max_text_len=11
    ),
  )
)
LLM_IDS = np.array([[5, 6, 7, 3, 0, 0, 0], [9, 3, 0, 0, 0, 0, 0]], np.int32)
BYT5_IDS = np.array([[70, 80, 1, 0, 0, 0, 0, 0], [90, 1, 0, 0, 0, 0, 0, 0]], np.int32)


class TextTest(parameterized.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.model = text_to_image.TextToImage(MODEL, trained=("dit", "llm", "byt5"))
    rng = np.random.default_rng(0)
    cls.params = jax.tree.map(
      lambda x: jnp.asarray(0.4 * rng.standard_normal(x.shape), jnp.float32),
      {name: part.abstract for name, part in cls.model.parts.items()},
    )
    cls.encode = staticmethod(jax.jit(cls.model.encode_text))

  def test_llm_first_then_bytes_in_fixed_slots(self):
    cond = self.encode(self.params, LLM_IDS, BYT5_IDS)
    self.assertEqual(cond.txt_BTE.shape, (2, 7 + 8, 12))
    want_BT = [[1] * 4 + [0] * 3 + [1] * 3 + [0] * 5, [1] * 2 + [0] * 5 + [1] * 2 + [0] * 6]
    np.testing.assert_array_equal(cond.mask_BT, np.array(want_BT, bool))
    features_BLE = self.model.parts["llm"].bind(self.params["llm"])(jnp.asarray(LLM_IDS))
    np.testing.assert_allclose(cond.vec_BE[1], features_BLE[1, :2].mean(axis=0), atol=1e-5)

  def test_padding_of_the_bucket_changes_nothing_visible(self):
    short = self.encode(self.params, LLM_IDS, BYT5_IDS)
    long = self.encode(self.params, np.pad(LLM_IDS, ((0, 0), (0, 4))), BYT5_IDS)
    np.testing.assert_allclose(long.vec_BE, short.vec_BE, atol=1e-5)
    for b in range(2):
      np.testing.assert_allclose(
        long.txt_BTE[b][long.mask_BT[b]], short.txt_BTE[b][short.mask_BT[b]], atol=1e-5
      )

  def test_dropping_the_llm_is_the_empty_prompt(self):
    dropped = self.encode(self.params, LLM_IDS, BYT5_IDS, drop_llm_B=np.array([True, False]))
    kept = self.encode(self.params, LLM_IDS, BYT5_IDS)
    ids_BL = LLM_IDS.copy()
    ids_BL[0] = [3, 0, 0, 0, 0, 0, 0]
    empty = self.encode(self.params, ids_BL, BYT5_IDS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), dropped, empty)
    np.testing.assert_array_equal(
      llm.empty_prompt(llm.make_config(), (2, 3)), np.array([[3, 0, 0]] * 2, np.int32)
    )
    self.assertGreater(float(jnp.max(jnp.abs(dropped.vec_BE[0] - kept.vec_BE[0]))), 1e-3)
    np.testing.assert_allclose(dropped.vec_BE[1], kept.vec_BE[1], atol=1e-6)

  @parameterized.parameters((9, 17), (9, 9))
  def test_other_ids_change_nothing(self, pad_id, eos_id):
    """The same texts in another spelling: rows of the embedding moved to where the new ids look."""
    model = ConfigDict(MODEL.to_dict())
    model.llm.update(dict(pad_id=pad_id, eos_id=eos_id))
    other = text_to_image.TextToImage(model, trained=("dit", "llm", "byt5"))
    ids_BL = np.where(LLM_IDS == 9, 11, LLM_IDS)  # 9 has another meaning now
    moved_BL = np.where(ids_BL == 0, pad_id, np.where(ids_BL == 3, eos_id, ids_BL))
    table_VE = self.params["llm"]["embed_tokens"]["embedding"]
    moved_VE = table_VE.at[pad_id].set(table_VE[0]).at[eos_id].set(table_VE[3])
    params = {**self.params, "llm": {**self.params["llm"], "embed_tokens": {"embedding": moved_VE}}}
    for drop_B in (None, np.array([True, False])):
      want = self.encode(self.params, ids_BL, BYT5_IDS, drop_llm_B=drop_B)
      got = other.encode_text(params, moved_BL, BYT5_IDS, drop_llm_B=drop_B)
      np.testing.assert_array_equal(got.mask_BT, want.mask_BT)
      np.testing.assert_allclose(got.vec_BE, want.vec_BE, atol=1e-5)
      for b in range(2):
        seen = np.asarray(want.mask_BT[b])
        np.testing.assert_allclose(got.txt_BTE[b][seen], want.txt_BTE[b][seen], atol=1e-5)

  @parameterized.parameters("drop", "padding", "only_eos")
  def test_no_string_hides_every_byte(self, how):
    ids_BG, drop_B = BYT5_IDS.copy(), None
    if how == "drop":
      drop_B = np.array([False, True])
    else:
      ids_BG[1] = 0
      ids_BG[1, 0] = 1 if how == "only_eos" else 0
    cond = self.encode(self.params, LLM_IDS, ids_BG, drop_byt5_B=drop_B)
    np.testing.assert_array_equal(cond.mask_BT[:, 7:].sum(axis=1), [3, 0])
    self.assertTrue(np.isfinite(cond.txt_BTE).all())

  def test_gradient_reaches_both_encoders(self):
    def total(params):
      return jnp.sum(self.model.encode_text(params, LLM_IDS, BYT5_IDS).txt_BTE ** 2)

    grads = jax.jit(jax.grad(total))(self.params)
    for name in ("llm", "byt5"):
      self.assertGreater(max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads[name])), 0)
    # The ByT5 projection is trained with the DiT; the rest of the DiT is not part of the text.
    touched = {k for k, g in grads["dit"].items() if any(np.any(x) for x in jax.tree.leaves(g))}
    self.assertEqual(touched, {"splice"})

  def test_frozen_parts_take_the_frozen_dtype(self):
    model = text_to_image.TextToImage(MODEL, trained=("dit",), frozen_dtype="bfloat16")
    dtypes = {n: {x.dtype for x in jax.tree.leaves(p.abstract)} for n, p in model.parts.items()}
    self.assertEqual(
      dtypes,
      {
        "llm": {jnp.dtype(jnp.bfloat16)},
        "byt5": {jnp.dtype(jnp.bfloat16)},
        "dit": {jnp.dtype(jnp.float32)},
      },
    )

  def test_batches_must_agree(self):
    with self.assertRaisesRegex(ValueError, "byt5_ids_BG: B=1, expected 2"):
      self.model.encode_text(self.params, LLM_IDS, BYT5_IDS[:1])

  def test_unknown_field(self):
    with self.assertRaisesRegex(types.UserError, "nearest is 'width'"):
      text_to_image.TextToImage(ConfigDict(dict(llm=dict(variant="nano", widt=3))))


class ImageTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    sizes = dict(widths=(8, 12), encoder_layers=1, decoder_layers=1, norm_groups=2)
    config = ConfigDict(dict(vae=dict(variant="nano", latent_channels=5, **sizes)))
    cls.model = text_to_image.TextToImage(config, trained=("vae",))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
      lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), jnp.float32),
      cls.model.parts["vae"].abstract,
    )
    params["stats"] = dict(mean=jnp.linspace(-1.0, 1.0, 5), std=jnp.linspace(0.5, 2.5, 5))
    cls.params = {"vae": params}
    cls.pixels = rng.integers(0, 256, (2, 6, 10, 3), dtype=np.uint8)
    cls.encode = staticmethod(jax.jit(cls.model.encode_image))

  def test_bytes_floats_and_latents_give_one_x0(self):
    x0_BHWC = self.encode(self.params, self.pixels)
    self.assertEqual((x0_BHWC.shape, x0_BHWC.dtype), ((2, 3, 5, 5), jnp.float32))
    floats_BHWC = self.pixels.astype(np.float32) / 127.5 - 1.0
    np.testing.assert_allclose(self.encode(self.params, floats_BHWC), x0_BHWC, atol=1e-5)
    vae = self.model.parts["vae"].bind(self.params["vae"])
    latent_BHWC = jax.jit(lambda x: vae.encode(x)[0])(floats_BHWC).astype(jnp.float16)
    np.testing.assert_allclose(self.encode(self.params, latent_BHWC), x0_BHWC, atol=5e-3)

  def test_decode_undoes_the_normalisation_and_clips(self):
    x0_BHWC = self.encode(self.params, self.pixels)
    vae = self.model.parts["vae"].bind(self.params["vae"])
    stats = self.params["vae"]["stats"]
    latent_BHWC = x0_BHWC * stats["std"][None, None, None] + stats["mean"][None, None, None]
    image_BHWC = jax.jit(self.model.decode)(self.params, x0_BHWC)
    want_BHWC = np.clip(jax.jit(vae.decode)(latent_BHWC), -1, 1)
    np.testing.assert_allclose(image_BHWC, want_BHWC, atol=1e-5)
    loud_BHWC = jax.jit(self.model.decode)(self.params, 100.0 * x0_BHWC)
    self.assertLessEqual(float(jnp.max(jnp.abs(loud_BHWC))), 1.0)


if __name__ == "__main__":
  absltest.main()
