"""Training the autoencoder: reconstruction, a little KL, features, and late an adversary (Rombach et al. 2022, App. G).

Dims: B batch, H W grid height, width (pixel or latent), C channels.
Seedream 2.0 trains its own VAE and discloses neither its losses nor their weights: all of them are ours; undisclosed.
What they must keep is strokes: a character is legible or not by a few pixels of contrast, which squared error
averages away. Hence the first differences of the error, on three scales, beside its absolute value.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.flow import timesteps
from seedream_jax.models import classifier, critic, vae, variants


@dataclasses.dataclass(frozen=True)
class AutoencodeConfig:
  """The config's stage group, without its name. Every weight is  # ours; undisclosed.

  Attributes:
    l1_weight, l2_weight: of the mean absolute and squared error of a pixel.
    edge_weight: of the mean absolute error of first differences, averaged over `edge_scales` halvings.
    edge_scales: how many image sizes the differences are taken on.
    feature_weight: of the distance between features of the frozen part `features`; 0 leaves the part out.
    kl_weight: of the mean KL of a latent element against N(0, 1). It only keeps latents from drifting apart in
      scale, so that one mean and std a channel describe them; at 1e-6 it costs no sharpness, while the posterior
      noise of a large one would blur strokes.
    latent_noise: the decoder sees the latent plus noise of up to this many standard deviations, evenly drawn for each
      example: what it will decode comes from a sampler that errs, and latents that survive noise are easier to
      sample (l-DeTok, arXiv:2507.15856).
    adversary_weight: of the critic's opinion.
    adversary_start_percent: of training, before which the critic is neither asked nor computed; set the critic's
      `start_steps` to the same step or a little earlier.
    stats_decay: of the running moments behind `stats/mean` and `stats/std`.
  """

  l1_weight: float = 1.0
  l2_weight: float = 0.0
  edge_weight: float = 1.0
  edge_scales: int = 3
  feature_weight: float = 0.0
  kl_weight: float = 1e-6
  latent_noise: float = 0.0
  adversary_weight: float = 0.02
  adversary_start_percent: float = 90.0
  stats_decay: float = 0.99


class Autoencode:
  """Two players: the autoencoder, then its critic."""

  players = ("vae", "critic")

  def __init__(self, cfg: AutoencodeConfig, model: ConfigDict, total_steps: int):
    self.cfg = cfg
    self.adversary_start = cfg.adversary_start_percent / 100 * total_steps
    vae_cfg = vae.make_config(**model.vae)
    critic_cfg = critic.make_config(**model.critic)
    self._parts = {
      "vae": types.Part.from_module(lambda rngs: vae.VAE(vae_cfg, rngs=rngs)),
      "critic": types.Part.from_module(lambda rngs: critic.Critic(critic_cfg, rngs=rngs)),
    }
    if cfg.feature_weight:
      features_cfg = classifier.make_config(**model.features)
      self._parts["features"] = types.Part.from_module(
        lambda rngs: classifier.Classifier(features_cfg, rngs=rngs)
      )

  def parts(self) -> dict[str, types.Part]:
    """Autoencoder, critic, and the frozen feature net if its loss has weight."""
    return self._parts

  def init(self, rng: jax.Array, frozen: dict[str, types.Params]) -> dict[str, types.Params]:
    """Both players from scratch."""
    del frozen
    return {p: self._parts[p].init(jax.random.fold_in(rng, i)) for i, p in enumerate(self.players)}

  def loss(
    self,
    params: dict[str, types.Params],
    frozen: dict[str, types.Params],
    ema: dict[str, dict[str, types.Params]],
    batch: types.Batch,
    rng: jax.Array,
    *,
    player: str,
    step: jax.Array,
  ) -> types.Loss:
    """Sum over examples of the player's loss; the posterior's noise follows the example's id."""
    del ema
    image_BHWC, id_B = vae.pixels(batch["train"]["image_BHWC"]), batch["train"]["id_B"]
    if player == "critic":
      return self._critic_loss(params, image_BHWC, id_B, rng)
    return self._vae_loss(params, frozen, image_BHWC, id_B, rng, step)

  def predict_fns(self) -> dict[str, Callable]:
    """reconstruct, latents and val_loss: fn(params, frozen, batch, rng)."""
    return {"reconstruct": self._reconstruct, "latents": self._latents, "val_loss": self._val_loss}

  def _vae_loss(self, params, frozen, image_BHWC, id_B, rng, step) -> types.Loss:
    cfg = self.cfg
    recon_BHWC, mean_BHWC, logvar_BHWC = self._autoencode(params["vae"], image_BHWC, id_B, rng)
    terms_B = {
      "l1": (cfg.l1_weight, per_example(jnp.abs(recon_BHWC - image_BHWC))),
      "l2": (cfg.l2_weight, per_example(jnp.square(recon_BHWC - image_BHWC))),
      "edge": (cfg.edge_weight, edge_error(recon_BHWC, image_BHWC, cfg.edge_scales)),
      "kl": (cfg.kl_weight, per_example(kl_divergence(mean_BHWC, logvar_BHWC))),
      "adversary": (cfg.adversary_weight, self._adversary(params["critic"], recon_BHWC, step)),
    }
    if cfg.feature_weight:
      net = self._parts["features"].bind(frozen["features"])
      terms_B["features"] = (cfg.feature_weight, feature_error(net, recon_BHWC, image_BHWC))
    total = sum(weight * jnp.sum(value_B) for weight, value_B in terms_B.values())
    weight = jnp.float32(image_BHWC.shape[0])
    metrics = {name: (jnp.sum(value_B), weight) for name, (_, value_B) in terms_B.items()}
    metrics["psnr"] = (jnp.sum(-10 * jnp.log10(terms_B["l2"][1] / 4 + 1e-10)), weight)  # range is 2
    return types.Loss(total, weight, metrics, self._assign(params["vae"]["stats"], mean_BHWC))

  def _critic_loss(self, params, image_BHWC, id_B, rng) -> types.Loss:
    """Hinge: real patches above 1, reconstructed ones below -1 (Lim & Ye 2017, arXiv 1705.02894)."""
    recon_BHWC, _, _ = self._autoencode(params["vae"], image_BHWC, id_B, rng)
    net = self._parts["critic"].bind(params["critic"])
    real_BHW, fake_BHW = net(image_BHWC), net(jax.lax.stop_gradient(recon_BHWC))
    total = jnp.sum(per_example(jax.nn.relu(1 - real_BHW) + jax.nn.relu(1 + fake_BHW)))
    weight = jnp.float32(image_BHWC.shape[0])
    metrics = {
      "real": (jnp.sum(per_example(real_BHW)), weight),
      "fake": (jnp.sum(per_example(fake_BHW)), weight),
    }
    return types.Loss(total, weight, metrics, {})

  def _autoencode(self, params, image_BHWC, id_B, rng) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Reconstruction from a posterior sample, and the posterior; float32."""
    model = self._parts["vae"].bind(params)
    mean_BHWC, logvar_BHWC = (x.astype(jnp.float32) for x in model.encode(image_BHWC))
    keys_B3 = timesteps.per_example(rng, id_B, lambda key: jax.random.split(key, 3))

    def normal(keys_B):
      return jax.vmap(lambda key: jax.random.normal(key, mean_BHWC.shape[1:]))(keys_B)

    z_BHWC = vae.sample_posterior(mean_BHWC, logvar_BHWC, normal(keys_B3[:, 0]))
    if self.cfg.latent_noise:
      std_C = jax.lax.stop_gradient(model.stats.std[...])
      level_B = self.cfg.latent_noise * jax.vmap(jax.random.uniform)(keys_B3[:, 2])
      level_BHWC = level_B[:, None, None, None] * std_C[None, None, None, :]
      z_BHWC = z_BHWC + level_BHWC * normal(keys_B3[:, 1])
    return model.decode(z_BHWC).astype(jnp.float32), mean_BHWC, logvar_BHWC

  def _adversary(self, critic_params, recon_BHWC, step) -> jax.Array:
    """minus the critic's mean logit, 0 before the adversary starts; the critic gets no gradient."""
    net = self._parts["critic"].bind(jax.lax.stop_gradient(critic_params))
    return jax.lax.cond(
      step >= self.adversary_start,
      lambda x_BHWC: -per_example(net(x_BHWC)),
      lambda x_BHWC: jnp.zeros(x_BHWC.shape[0]),
      recon_BHWC,
    )

  def _assign(self, stats, mean_BHWC) -> dict[str, jax.Array]:
    """Moves the first two moments of each channel towards the batch's."""
    mean_BHWC, decay = jax.lax.stop_gradient(mean_BHWC), self.cfg.stats_decay
    old_mean, old_square = stats["mean"], jnp.square(stats["std"]) + jnp.square(stats["mean"])
    mean = decay * old_mean + (1 - decay) * jnp.mean(mean_BHWC, axis=(0, 1, 2))
    square = decay * old_square + (1 - decay) * jnp.mean(jnp.square(mean_BHWC), axis=(0, 1, 2))
    std = jnp.sqrt(jnp.maximum(square - jnp.square(mean), 1e-12))
    return {"stats/mean": mean, "stats/std": std}

  def _reconstruct(self, params, frozen, batch, rng) -> jax.Array:
    """Images decoded from the posterior's mean, clipped to [-1, 1]."""
    del frozen, rng
    model = self._parts["vae"].bind(params["vae"])
    mean_BHWC, _ = model.encode(vae.pixels(batch["train"]["image_BHWC"]))
    return jnp.clip(model.decode(mean_BHWC).astype(jnp.float32), -1.0, 1.0)

  def _latents(self, params, frozen, batch, rng) -> jax.Array:
    """The posterior's mean, not normalised."""
    del frozen, rng
    return (
      self._parts["vae"].bind(params["vae"]).encode(vae.pixels(batch["train"]["image_BHWC"]))[0]
    )

  def _val_loss(self, params, frozen, batch, rng) -> tuple[jax.Array, jax.Array]:
    """(sum, weight) of the mean absolute error of reconstructions from the mean."""
    image_BHWC = vae.pixels(batch["train"]["image_BHWC"])
    recon_BHWC = self._reconstruct(params, frozen, batch, rng)
    return jnp.sum(per_example(jnp.abs(recon_BHWC - image_BHWC))), jnp.float32(image_BHWC.shape[0])


def per_example(x: jax.Array) -> jax.Array:
  """Mean over all but the leading dim."""
  return jnp.mean(x, axis=tuple(range(1, x.ndim)))


def kl_divergence(mean: jax.Array, logvar: jax.Array) -> jax.Array:
  """KL(N(mean, exp(logvar)) || N(0, 1)) of each element."""
  return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def edge_error(a_BHWC: jax.Array, b_BHWC: jax.Array, scales: int) -> jax.Array:
  """Mean absolute first difference of a - b along both sides, averaged over `scales` successive halvings; (B,)."""
  d_BHWC, total_B = a_BHWC - b_BHWC, 0.0
  for scale in range(scales):
    if scale:
      d_BHWC = _halve(d_BHWC)
    down_BHWC, right_BHWC = jnp.diff(d_BHWC, axis=1), jnp.diff(d_BHWC, axis=2)
    total_B = total_B + per_example(jnp.abs(down_BHWC)) + per_example(jnp.abs(right_BHWC))
  return total_B / scales


def feature_error(net: classifier.Classifier, a_BHWC: jax.Array, b_BHWC: jax.Array) -> jax.Array:
  """LPIPS without its learnt weights: squared distance of unit-length features, summed over levels; (B,)."""
  total_B = 0.0
  for fa_BHWC, fb_BHWC in zip(net.features(a_BHWC), net.features(b_BHWC)):
    total_B = total_B + per_example(jnp.square(_unit(fa_BHWC) - _unit(fb_BHWC)))
  return total_B


def _unit(x_BHWC: jax.Array) -> jax.Array:
  """Scaled to mean square 1 over channels."""
  return x_BHWC * jax.lax.rsqrt(jnp.mean(jnp.square(x_BHWC), axis=-1, keepdims=True) + 1e-6)


def _halve(x_BHWC: jax.Array) -> jax.Array:
  """2x2 means; an odd last row or column is dropped."""
  h, w = (n // 2 * 2 for n in x_BHWC.shape[1:3])
  x_BHWC = x_BHWC[:, :h, :w]
  x_BHWC = (x_BHWC[:, ::2] + x_BHWC[:, 1::2]) / 2
  return (x_BHWC[:, :, ::2] + x_BHWC[:, :, 1::2]) / 2


def make(config: ConfigDict) -> Autoencode:
  """The stage of a whole experiment config."""
  fields = {k: v for k, v in config.stage.items() if k != "name"}
  return Autoencode(
    variants.fill(AutoencodeConfig, fields, "stage"), config.model, config.train.total_steps
  )
