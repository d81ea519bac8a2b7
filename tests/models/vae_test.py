"""The autoencoder: diffusers' names and sizes, its grids, and its latent statistics."""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax import nnx

from seedream_jax import types
from seedream_jax.engine import trees
from seedream_jax.models import vae

# Modules of diffusers 0.35's AutoencoderKL(block_out_channels=(4, 6), layers_per_block=1,
# latent_channels=3, use_quant_conv=False), as its state dict spells them.
RESNET = ("norm1", "conv1", "norm2", "conv2")
ATTENTION = ("group_norm", "to_q", "to_k", "to_v", "to_out.0")
DIFFUSERS = {
  "encoder": ("conv_in", "conv_norm_out", "conv_out"),
  "encoder.down_blocks.0.resnets.0": RESNET,
  "encoder.down_blocks.0.downsamplers.0": ("conv",),
  "encoder.down_blocks.1.resnets.0": (*RESNET, "conv_shortcut"),
  "encoder.mid_block.attentions.0": ATTENTION,
  "encoder.mid_block.resnets.0": RESNET,
  "encoder.mid_block.resnets.1": RESNET,
  "decoder": ("conv_in", "conv_norm_out", "conv_out"),
  "decoder.mid_block.attentions.0": ATTENTION,
  "decoder.mid_block.resnets.0": RESNET,
  "decoder.mid_block.resnets.1": RESNET,
  "decoder.up_blocks.0.resnets.0": RESNET,
  "decoder.up_blocks.0.resnets.1": RESNET,
  "decoder.up_blocks.0.upsamplers.0": ("conv",),
  "decoder.up_blocks.1.resnets.0": (*RESNET, "conv_shortcut"),
  "decoder.up_blocks.1.resnets.1": RESNET,
}
SHAPES = {
  "encoder.conv_in.weight": (3, 3, 3, 4),
  "encoder.down_blocks.0.downsamplers.0.conv.weight": (3, 3, 4, 4),
  "encoder.down_blocks.1.resnets.0.conv_shortcut.weight": (1, 1, 4, 6),
  "encoder.conv_out.weight": (3, 3, 6, 6),
  "decoder.conv_in.weight": (3, 3, 3, 6),
  "decoder.up_blocks.0.upsamplers.0.conv.weight": (3, 3, 6, 6),
  "decoder.up_blocks.1.resnets.0.conv_shortcut.weight": (1, 1, 6, 4),
  "decoder.conv_out.weight": (3, 3, 4, 3),
}


def _part(variant="nano", **overrides):
  cfg = vae.make_config(variant, **overrides)
  return types.Part.from_module(lambda rngs: vae.VAE(cfg, rngs=rngs))


def _tiny(**overrides):
  sizes = dict(widths=(4, 6), norm_groups=2, latent_channels=3)
  return _part(**{**sizes, **overrides})


def _image(*shape):
  return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, shape), jnp.float32)


def _draw(abstract):
  """Parameters of no special kind, without compiling an initialiser."""
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), jnp.float32), abstract
  )


def _compiled(fn, *args):
  """fn(*args) under jit, without the minute LLVM would take to make it fast."""
  options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  return jax.jit(fn).lower(*args).compile(compiler_options=options)(*args)


class VAETest(parameterized.TestCase):
  def test_names_and_shapes_are_diffusers(self):
    part = _tiny(mid_attention=True, decoder_layers=2)
    got = {}
    for path, leaf in trees.flatten(part.abstract).items():
      name = re.sub(r"_(\d+)(?=\.)", r".\1", path.replace("/", "."))
      got[re.sub(r"\.(kernel|scale)$", ".weight", name)] = leaf.shape
    stats = {name: got.pop(name) for name in ("stats.mean", "stats.std")}
    want = {
      f"{block}.{layer}.{leaf}"
      for block, layers in DIFFUSERS.items()
      for layer in layers
      for leaf in ("weight", "bias")
    }
    self.assertEqual(set(got), want)
    self.assertEqual({name: got[name] for name in SHAPES}, SHAPES)
    self.assertEqual(stats, {"stats.mean": (3,), "stats.std": (3,)})

  @parameterized.parameters("sd3", "flux", "full")
  def test_parameter_count_is_the_published_one(self, variant):
    flat = trees.flatten(_part(variant).abstract)
    count = sum(leaf.size for path, leaf in flat.items() if not path.startswith("stats/"))
    self.assertEqual(count, 83_819_683)  # FLUX.1's ae.safetensors; SD3's VAE has the same shape

  @parameterized.parameters(
    ("nano", 8, (24, 40)), ("nano", 8, (8, 56)), ("nano_f4", 4, (12, 20)), ("small", 8, (24, 8))
  )
  def test_grids(self, variant, factor, size):
    part = _part(variant)
    h, w = size[0] // factor, size[1] // factor

    def run(params, image_BHWC):
      model = part.bind(params)
      mean_BHWC, logvar_BHWC = model.encode(image_BHWC)
      return mean_BHWC, logvar_BHWC, model.decode(mean_BHWC)

    image = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    shapes = [x.shape for x in jax.eval_shape(run, part.abstract, image)]
    self.assertEqual(shapes, [(2, h, w, 16), (2, h, w, 16), (2, *size, 3)])

  def test_side_that_does_not_divide_is_the_users_error(self):
    part = _tiny()
    with self.assertRaisesRegex(types.UserError, "15x10.*multiples of 2"):
      jax.eval_shape(
        lambda p, x: part.bind(p).encode(x),
        part.abstract,
        jax.ShapeDtypeStruct((1, 15, 10, 3), jnp.float32),
      )

  def test_an_image_does_not_depend_on_its_neighbours(self):
    part = _tiny()
    params, image_BHWC = _draw(part.abstract), _image(3, 6, 10, 3)
    encode = jax.jit(lambda x: part.bind(params).encode(x)[0])
    whole = encode(image_BHWC)
    for i in range(3):
      among_copies = encode(jnp.repeat(image_BHWC[i : i + 1], 3, axis=0))
      np.testing.assert_allclose(whole[i], among_copies[0], rtol=1e-4, atol=1e-5)

  def test_every_parameter_moves_the_output(self):
    part = _tiny(mid_attention=True)
    image_BHWC = _image(2, 6, 10, 3)

    def total(params):
      model = part.bind(params)
      mean_BHWC, logvar_BHWC = model.encode(image_BHWC)
      out_BHWC = model.decode(model.denormalize(mean_BHWC))
      return jnp.sum(out_BHWC**2) + jnp.sum(logvar_BHWC**2)

    grads = trees.flatten(_compiled(jax.grad(total), _draw(part.abstract)))
    still = {path for path, g in grads.items() if float(jnp.max(jnp.abs(g))) < 1e-7}
    # A bias on keys shifts every score of a query alike, which the softmax does not see.
    self.assertEqual(
      still, {f"{side}/mid_block/attentions_0/to_k/bias" for side in ("encoder", "decoder")}
    )

  def test_group_norm_by_definition(self):
    rng = np.random.default_rng(2)
    x_BHWC = rng.normal(3.0, 2.0, (2, 3, 5, 6)).astype(np.float32)
    part = types.Part.from_module(lambda rngs: vae.GroupNorm(6, 2, rngs=rngs))
    scale, bias = rng.standard_normal((2, 6)).astype(np.float32)
    got = part.bind({"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)})(x_BHWC)
    grouped = x_BHWC.reshape(2, 3, 5, 2, 3)
    mean = grouped.mean((1, 2, 4), keepdims=True)
    std = np.sqrt(grouped.var((1, 2, 4), keepdims=True) + 1e-6)
    want = ((grouped - mean) / std).reshape(x_BHWC.shape) * scale + bias
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)

  def test_stats_start_at_the_published_shift_and_scale(self):
    cfg = vae.make_config("flux")
    stats = vae.Stats(cfg, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(stats.mean[...], np.full(16, 0.1159), rtol=1e-6)
    np.testing.assert_allclose(stats.std[...], np.full(16, 1 / 0.3611), rtol=1e-6)

  def test_normalize_uses_stats_channel_by_channel_and_inverts(self):
    part = _tiny()
    params, z_BHWC = _draw(part.abstract), _image(2, 3, 5, 3)
    params["stats"] = {"mean": jnp.array([1.0, 2.0, 3.0]), "std": jnp.array([0.5, 2.0, 7.0])}
    model = part.bind(params)
    x0_BHWC = model.normalize(z_BHWC)
    np.testing.assert_allclose(x0_BHWC[..., 2], (z_BHWC[..., 2] - 3.0) / 7.0, rtol=1e-5)
    np.testing.assert_allclose(model.denormalize(x0_BHWC), z_BHWC, rtol=1e-5, atol=1e-5)

  def test_posterior_sample_is_mean_plus_std_eps(self):
    mean, logvar, eps = (
      _image(2, 3, 5, 7),
      jnp.full((2, 3, 5, 7), 2 * jnp.log(3.0)),
      _image(2, 3, 5, 7),
    )
    np.testing.assert_allclose(
      vae.sample_posterior(mean, logvar, eps), mean + 3.0 * eps, rtol=1e-5, atol=1e-6
    )

  def test_starts_with_a_quiet_posterior(self):
    cfg = vae.make_config("nano", widths=(4,), norm_groups=2, latent_channels=3)
    with mock.patch.object(vae, "_KERNEL_INIT", nnx.initializers.zeros_init()):  # compiles faster
      bias = vae.Encoder(cfg, rngs=nnx.Rngs(0)).conv_out.bias[...]
    np.testing.assert_array_equal(bias, [0.0, 0.0, 0.0, -6.0, -6.0, -6.0])

  def test_logvar_is_bounded(self):
    part = _tiny(widths=(4,))
    params = _draw(part.abstract)
    params["encoder"]["conv_out"]["bias"] = jnp.array([0.0, 0.0, 0.0, 99.0, -99.0, 1.0])
    logvar_BHWC = jax.jit(lambda p, x: part.bind(p).encode(x)[1])(params, _image(1, 4, 6, 3))
    self.assertEqual(float(jnp.max(logvar_BHWC)), 20.0)
    self.assertEqual(float(jnp.min(logvar_BHWC)), -30.0)

  def test_unknown_names_are_the_users_error(self):
    with self.assertRaisesRegex(types.UserError, "nano"):
      vae.make_config("nanoo")
    with self.assertRaisesRegex(types.UserError, "widths"):
      vae.make_config("nano", width=3)


if __name__ == "__main__":
  absltest.main()
