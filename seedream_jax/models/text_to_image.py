"""The text-to-image model: two text encoders, a VAE and a DiT (Seedream 2.0, Sec. 3).

Dims: B batch, L LLM tokens, G glyph bytes, T = L + G spliced text, E LLM width, H W C image or
latent. The LLM reads the whole prompt, ByT5 only the strings to be rendered. What is trained *with*
the DiT (the ByT5 projection, text positions) lives in the DiT's own tree.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from seedream_jax import types
from seedream_jax.models import byt5, dit, llm, vae

# part name -> (module class, config maker)
_MODULES: dict[str, tuple[type[nnx.Module], Callable]] = {
  "llm": (llm.LLM, llm.make_config),
  "byt5": (byt5.ByT5, byt5.make_config),
  "vae": (vae.VAE, vae.make_config),
  "dit": (dit.DiT, dit.make_config),
}


class TextToImage:
  """Parts and the functions that join them; `params` is always {part: tree} with the parts a
  function needs.

  Args:
    model: the config's model group; each of its sub-dicts `llm`, `byt5`, `vae`, `dit` holds
      `variant` and overrides. Absent ones make no part.
    trained: parts kept as float32 masters; the others take `frozen_dtype`.
    frozen_dtype: storage dtype of frozen parts.
  """

  def __init__(
    self, model: ConfigDict, *, trained: tuple[str, ...] = ("dit",), frozen_dtype: str = "bfloat16"
  ):
    self.configs = {
      name: make(**model[name]) for name, (_, make) in _MODULES.items() if name in model
    }
    self.parts: dict[str, types.Part] = {
      name: _part(name, cfg, "float32" if name in trained else frozen_dtype)
      for name, cfg in self.configs.items()
    }

  def text_features(
    self,
    params: dict[str, types.Params],
    llm_ids_BL: jax.Array,
    byt5_ids_BG: jax.Array,
    *,
    drop_llm_B: jax.Array | None = None,
    drop_byt5_B: jax.Array | None = None,
    cached: tuple[jax.Array, jax.Array] | None = None,
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Runs both encoders, or ByT5 alone where the LLM's features are precomputed.

    Args:
      params: trees of `llm` and `byt5`.
      llm_ids_BL: the prompt's ids, padded at the right.
      byt5_ids_BG: byte ids of its quoted spans, padded at the right; a row that starts with eos
        renders no string.
      drop_llm_B: True replaces the prompt by the empty one, [eos].
      drop_byt5_B: True hides every byte.
      cached: the LLM's features_BLE of `llm_ids_BL`, and those of the empty prompt's one token, empty_BE;
        then `params` needs no `llm`.

    Returns:
      llm features_BLE and mask_BL, ByT5 features_BGE and mask_BG; masks are True on what the DiT
      may see.
    """
    types.check_dims(llm_ids_BL=llm_ids_BL, byt5_ids_BG=byt5_ids_BG)
    cfg = self.configs["llm"]
    if drop_llm_B is not None:
      empty_BL = llm.empty_prompt(cfg, llm_ids_BL.shape)
      llm_ids_BL = jnp.where(drop_llm_B[:, None], empty_BL, llm_ids_BL)
    mask_BL = llm.text_mask(cfg, llm_ids_BL)
    mask_BG = (byt5_ids_BG != byt5.PAD) & (byt5_ids_BG[:, :1] != byt5.EOS)
    if drop_byt5_B is not None:
      mask_BG = mask_BG & ~drop_byt5_B[:, None]
    if cached is None:
      llm_BLE = self.parts["llm"].bind(params["llm"])(llm_ids_BL, mask_BL)
    else:
      llm_BLE = self._cached(*cached, drop_llm_B)
    byt5_BGE = self.parts["byt5"].bind(params["byt5"])(byt5_ids_BG, mask_BG)
    return llm_BLE, mask_BL, byt5_BGE, mask_BG

  def _cached(self, features_BLE, empty_BE, drop_llm_B) -> jax.Array:
    """Precomputed features in the LLM's dtype; dropped rows hold the empty prompt's one feature, then zeros."""
    if drop_llm_B is not None:
      empty_BLE = jnp.zeros_like(features_BLE).at[:, 0].set(empty_BE)
      features_BLE = jnp.where(drop_llm_B[:, None, None], empty_BLE, features_BLE)
    return features_BLE.astype(self.configs["llm"].dtype)

  def encode_text(
    self, params: dict[str, types.Params], llm_ids_BL: jax.Array, byt5_ids_BG: jax.Array, **kwargs
  ) -> types.Cond:
    """`text_features`, whose arguments it takes, spliced by the DiT: LLM tokens first, then ByT5 in fixed slots."""
    features = self.text_features(params, llm_ids_BL, byt5_ids_BG, **kwargs)
    return self.parts["dit"].bind(params["dit"]).splice(*features)

  def encode_image(self, params: dict[str, types.Params], image_BHWC: jax.Array) -> jax.Array:
    """The normalised latent x0, float32.

    Args:
      params: tree of `vae`.
      image_BHWC: uint8 pixels, float32 pixels in [-1, 1], or a precomputed float16 latent (the
        VAE's mean, not normalised): the dtype tells which.
    """
    model = self.parts["vae"].bind(params["vae"])
    if image_BHWC.dtype == jnp.float16:
      return model.normalize(image_BHWC.astype(jnp.float32))
    if image_BHWC.dtype == jnp.uint8:
      image_BHWC = vae.pixels(image_BHWC)
    mean_BHWC, _ = model.encode(image_BHWC)
    return model.normalize(mean_BHWC.astype(jnp.float32))

  def decode(self, params: dict[str, types.Params], z_BHWC: jax.Array) -> jax.Array:
    """The image in [-1, 1] of a normalised latent, float32."""
    model = self.parts["vae"].bind(params["vae"])
    return jnp.clip(model.decode(model.denormalize(z_BHWC)).astype(jnp.float32), -1.0, 1.0)


def _part(name: str, cfg, dtype: str) -> types.Part:
  cls = _MODULES[name][0]
  return types.Part.from_module(lambda rngs: cls(cfg, rngs=rngs), jnp.dtype(dtype))
