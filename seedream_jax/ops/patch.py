"""Images to tokens and back.

Dims: B batch, H W grid, C channels, P patch side, I = HW / P^2 tokens, row-major, D = P P C.
"""

import einops
import jax


def patchify(x_BHWC: jax.Array, patch: int) -> jax.Array:
  """Cuts P x P patches: [B, H, W, C] -> [B, HW / P^2, P P C]."""
  h, w = x_BHWC.shape[1:3]
  if h % patch or w % patch:
    raise ValueError(f"a {h}x{w} grid does not divide into {patch}x{patch} patches")
  return einops.rearrange(x_BHWC, "b (h p) (w q) c -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(x_BID: jax.Array, h: int, w: int, patch: int) -> jax.Array:
  """Inverse of `patchify` for an image of h x w cells: [B, hw / P^2, P P C] -> [B, h, w, C]."""
  return einops.rearrange(
    x_BID, "b (h w) (p q c) -> b (h p) (w q) c", h=h // patch, w=w // patch, p=patch, q=patch
  )
