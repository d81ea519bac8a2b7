"""Low-rank adapters (LoRA, arXiv:2106.09685): y = x W + (alpha / rank) (x A) B beside chosen kernels.

Dims: ... leading dims of a stack, D input width, F output width, R rank.
A model's config names the kernels by regex; `attach` gives each of them two leaves more, NAME/lora_a
and NAME/lora_b beside NAME/kernel. A is drawn, B is zero: at init each layer's output is the base's
bit for bit. The adapter acts on activations, inside the scanned block: the frozen kernel then needs no
gradient of its own. Merged in the step instead, W + A B has to be made and its gradient taken in
full; what that costs is counted in tests/models/lora_test.py. `merge` is for what leaves training:
exports and packed weights.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from seedream_jax import types
from seedream_jax.engine import trees

LEAVES = r".*/lora_[ab]"  # for optim.trainable and init.allow_missing


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
  """What `model.PART.lora` holds.

  Attributes:
    targets: regex on kernels' paths, as in r"blocks/.*/(q|k|v|out|mlp_in|mlp_out)/kernel".
    rank: R, width of the bottleneck.
    alpha: the adapter counts alpha / rank.
  """

  targets: str
  rank: int = 8
  alpha: float = 8.0

  def __post_init__(self):
    if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
      raise types.UserError(f"lora.rank={self.rank!r}, expected a whole number above 0")
    if not isinstance(self.targets, str):
      raise types.UserError(f"lora.targets={self.targets!r}, expected a regex on paths of kernels")
    if not isinstance(self.alpha, (int, float)) or not 0 < self.alpha < float("inf"):
      raise types.UserError(f"lora.alpha={self.alpha!r}, expected a number above 0")

  @property
  def scale(self) -> float:
    """alpha / rank."""
    return self.alpha / self.rank


def make_config(fields: Mapping[str, Any] | LoRAConfig | None) -> LoRAConfig | None:
  """The LoRAConfig of a config's `lora` entry; None or empty is none.

  Raises:
    types.UserError: an unknown field, naming the nearest, a bad value, or no targets.
  """
  if isinstance(fields, LoRAConfig) or not fields:
    return fields or None
  known = [field.name for field in dataclasses.fields(LoRAConfig)]
  for name in fields:
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
      raise types.UserError(f"lora: unknown field {name!r}; nearest is {near!r}")
  if "targets" not in fields:
    raise types.UserError("lora: field 'targets' is required, a regex on paths of kernels")
  return LoRAConfig(**fields)


class Linear(nnx.Linear):
  """A linear layer with an adapter beside it; takes over the leaves of the layer it replaces."""

  def __init__(self, base: nnx.Linear, cfg: LoRAConfig, *, rngs: nnx.Rngs):
    for name, value in vars(base).items():
      if not name.startswith("_"):  # flax's own book-keeping
        setattr(self, name, value)
    *stack, din, dout = base.kernel.shape
    a_init = nnx.initializers.lecun_normal(batch_axis=tuple(range(len(stack))))
    self.lora_a = nnx.Param(a_init(rngs.params(), (*stack, din, cfg.rank), jnp.float32))
    self.lora_b = nnx.Param(jnp.zeros((*stack, cfg.rank, dout), jnp.float32))
    self.lora_scale = cfg.scale

  def __call__(self, x: jax.Array, out_sharding: Any = None) -> jax.Array:
    """x W + b + scale (x A) B over the last dim, in the layer's dtype."""
    y = super().__call__(x, out_sharding)
    x, a_DR, b_RF = self.promote_dtype((x, self.lora_a[...], self.lora_b[...]), dtype=self.dtype)
    dims = lambda x: (((x.ndim - 1,), (0,)), ((), ()))  # noqa: E731
    low = self.dot_general(x, a_DR, dims(x)) * jnp.asarray(self.lora_scale, x.dtype)
    return y + self.dot_general(low, b_RF, dims(low)).astype(y.dtype)


def attach(model: nnx.Module, cfg: LoRAConfig | None, where: str, *, rngs: nnx.Rngs) -> None:
  """Gives the linear layers of `model` that `cfg.targets` names an adapter, in place; None does nothing.

  Call it last in a model's constructor: the base's leaves are then drawn as they are without.

  Args:
    model: stacked layers and plain ones alike.
    cfg: which, and how wide.
    where: the config's name for `cfg`, as "model.dit.lora", for messages.
    rngs: draws A.

  Raises:
    types.UserError: `targets` matches nothing, or a leaf that is no linear layer's kernel.
  """
  if cfg is None:
    return
  leaves = trees.flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
  linear = {
    "/".join(map(str, (*path, "kernel"))): path
    for path, module in nnx.iter_modules(model)
    if isinstance(module, nnx.Linear)
  }
  found = [path for path in leaves if trees.matches(cfg.targets, path)]
  for path in found:
    if path not in linear:
      raise types.UserError(
        f"{where}.targets: {cfg.targets!r} matches {path!r}, which is no linear layer's kernel; "
        f"nearest is {_nearest(path, linear)!r}"
      )
  if not found:
    raise types.UserError(
      f"{where}.targets: {cfg.targets!r} matches no kernel; nearest is {_nearest(cfg.targets, linear)!r}"
    )
  for path in found:
    *parents, name = linear[path]
    parent = model
    for key in parents:
      parent = parent[key] if isinstance(key, int) else getattr(parent, key)
    setattr(parent, name, Linear(getattr(parent, name), cfg, rngs=rngs))


def merge(params: types.Params, cfg: LoRAConfig | None) -> types.Params:
  """W + scale A B in each kernel's place, computed in float32 on the host, without the adapters' leaves.

  Args:
    params: a part's tree; one without adapters comes back as it is.
    cfg: of the run that trained it.

  Returns:
    numpy kernels of their former dtype where there was an adapter; the tree fits the base model.

  Raises:
    types.UserError: adapters, but no `cfg` to say how much they count.
  """
  flat = trees.flatten(params)
  stems = [path.removesuffix("/lora_a") for path in flat if path.endswith("/lora_a")]
  if not stems:
    return params
  if cfg is None:
    raise types.UserError(f"leaf '{stems[0]}/lora_a' is an adapter's, but its config has no lora")
  out = {path: x for path, x in flat.items() if not trees.matches(LEAVES, path)}
  for stem in stems:
    a, b = (np.asarray(flat[f"{stem}/lora_{x}"], np.float32) for x in "ab")
    kernel = np.asarray(flat[f"{stem}/kernel"])
    merged = kernel.astype(np.float32) + np.float32(cfg.scale) * np.matmul(a, b)
    out[f"{stem}/kernel"] = merged.astype(kernel.dtype)
  return trees.unflatten(out)


def without(cfg: Any) -> Any:
  """A part's config without its adapters, as `merge`'s result wants it."""
  return dataclasses.replace(cfg, lora=None) if getattr(cfg, "lora", None) else cfg


def strip(config: Mapping[str, Any]) -> dict[str, Any]:
  """A run's whole config, as JSON holds it, without any part's adapters."""
  model = {
    part: {k: v for k, v in fields.items() if k != "lora"}
    if isinstance(fields, Mapping)
    else fields
    for part, fields in config.get("model", {}).items()
  }
  return {**config, "model": model} if model else dict(config)


def _nearest(name: str, valid: Mapping[str, Any]) -> str:
  """By layer and leaf first: before those a regex is mostly dots and stars."""

  def likeness(path: str) -> tuple[float, float]:
    tails = ("/".join(x.split("/")[-2:]) for x in (name, path))
    return difflib.SequenceMatcher(None, *tails).ratio(), difflib.SequenceMatcher(
      None, name, path
    ).ratio()

  return max(valid, key=likeness)
