"""The vocabulary every layer shares: dims, mesh axes, batches, conditions, losses, parts, stages.

Dimension key, used as name suffixes everywhere (`x_BTD`); one letter is one dim, a digit a literal size:
  B batch        H W grid height, width (latent or pixel, the file says)    C channels     P patch side
  I image tokens (HW/P^2)   T text tokens after splicing   S = T + I joint sequence        G glyph bytes
  L any sequence D model width   E encoder width   F MLP hidden   N heads   K head dim     V vocabulary
  R candidates (2 = preferred, rejected)   M solver steps   A aesthetic tags
Suffix capitals are logical dims, never shards: an *axis* is a mesh axis, a *dim* an array dim.
Time is t in [0, 1], 0 = data, 1 = noise; images are channels-last in [-1, 1], height before width.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx, struct

# Mesh axes, outermost first; `data` is the only one that may cross slices (DCN).
DATA, FSDP, TENSOR, CONTEXT = "data", "fsdp", "tensor", "context"
AXES = (DATA, FSDP, TENSOR, CONTEXT)
BATCH_AXES = (DATA, FSDP)

Params = dict[str, Any]  # a nested dict of arrays
Batch = Mapping[str, Mapping[str, jax.Array]]  # {stream: {feature: array}}


class UserError(ValueError):
  """What the user got wrong, in one line; verbs print it to stderr and exit with code 2."""


@struct.dataclass
class Cond:
  """What the text encoders hand to the DiT.

  Attributes:
    txt_BTE: spliced text features, LLM tokens first, then ByT5 in fixed slots after the padded bucket.
    mask_BT: True where a text token may be attended to.
    vec_BE: pooled LLM feature.
    channels_BHWC: optional channel map concatenated to the noisy latent (the refiner's low-res image).
    guidance_B: optional guidance scale for a guidance-distilled model.
    tags_BA: optional int32 aesthetic labels of a DiT that has them: 1 positive, 0 negative, -1 unknown.
    tag_strength_B: VMix's lambda, 1 where None; 0 takes the labels' effect away.
    origin_B: optional int32 of a DiT that has the condition: 0 a real picture, 1 one that a model drew, -1 unknown.
  """

  txt_BTE: jax.Array
  mask_BT: jax.Array
  vec_BE: jax.Array
  channels_BHWC: jax.Array | None = None
  guidance_B: jax.Array | None = None
  tags_BA: jax.Array | None = None
  tag_strength_B: jax.Array | None = None
  origin_B: jax.Array | None = None


class Loss(NamedTuple):
  """One player's loss on one microbatch. Sums, not means: the loop divides once, after accumulation."""

  total: jax.Array  # sum over examples, f32 scalar
  weight: jax.Array  # what `total` is divided by, f32 scalar
  metrics: dict[str, tuple[jax.Array, jax.Array]]  # name -> (sum, weight)
  assign: dict[
    str, jax.Array
  ]  # path in the player's tree -> new value, for leaves without gradient


@dataclasses.dataclass(frozen=True)
class Part:
  """One parameter tree, trained or frozen: how to make it and how to call it."""

  graphdef: Any
  abstract: Params  # jax.ShapeDtypeStruct leaves
  init: Callable[[jax.Array], Params]
  dtype: Any = jnp.float32

  @classmethod
  def from_module(cls, make: Callable[[nnx.Rngs], nnx.Module], dtype: Any = jnp.float32) -> "Part":
    """Splits `make(rngs)` once, abstractly; no array is allocated here."""

    def cast(params: nnx.State) -> Params:
      return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        nnx.to_pure_dict(params),
      )

    def init(rng: jax.Array) -> Params:
      return cast(nnx.state(make(nnx.Rngs(params=rng)), nnx.Param))

    module = nnx.eval_shape(lambda: make(nnx.Rngs(params=0)))
    graphdef, params = nnx.split(module, nnx.Param)
    return cls(graphdef, jax.eval_shape(cast, params), init, dtype)

  def bind(self, params: Params) -> Any:
    """The module over `params`; call it, or its methods, inside jit."""
    return nnx.merge(self.graphdef, params)


def joint(parts: Mapping[str, Part]) -> Part:
  """The part of a player named "a+b": the trees of several parts, trained by one gradient; it binds none of them."""

  def init(rng: jax.Array) -> Params:
    return {
      name: part.init(jax.random.fold_in(rng, i)) for i, (name, part) in enumerate(parts.items())
    }

  return Part(None, {name: part.abstract for name, part in parts.items()}, init)


def by_part(params: Mapping[str, Params]) -> dict[str, Params]:
  """{player: tree} as {part: tree}."""
  out = {}
  for player, tree in params.items():
    out |= {name: tree[name] for name in player.split("+")} if "+" in player else {player: tree}
  return out


@struct.dataclass
class TrainState:
  """Everything a checkpoint holds; the data order is a function of `step` alone."""

  step: jax.Array  # int32 scalar, steps done
  params: dict[str, Params]  # {player: tree}, fp32 master
  opt: dict[str, Any]  # {player: optimiser state over its trained leaves}
  ema: dict[
    str, dict[str, Params]
  ]  # {player: {name: {flat path: array}}} over the leaves the name's regex selects
  bad_steps: (
    jax.Array
  )  # int32 scalar, consecutive updates skipped for a non-finite loss or gradient


class Stage(Protocol):
  """What a training stage supplies; the loop supplies the rest.

  A stage module is `seedream_jax/stages/NAME.py` with `make(config) -> Stage`, found by module path.
  """

  # Update order; a player sees those already updated in this step. "a+b" trains the parts a and b by one gradient.
  players: tuple[str, ...]

  def parts(self) -> dict[str, Part]:
    """Every tree, trained (named as its player) or frozen."""

  def init(self, rng: jax.Array, frozen: dict[str, Params]) -> dict[str, Params]:
    """{player: params}, from scratch or from what a frozen part holds."""

  def loss(
    self,
    params: dict[str, Params],
    frozen: dict[str, Params],
    ema: dict[str, dict[str, Params]],
    batch: Batch,
    rng: jax.Array,
    *,
    player: str,
    step: jax.Array,
  ) -> Loss:
    """The loss `player` descends on this microbatch."""

  def predict_fns(self) -> dict[str, Callable]:
    """{name: fn(params, frozen, batch, rng)}: what evaluators may call; the caller passes raw or EMA params."""


def check_dims(**arrays: jax.Array) -> dict[str, int]:
  """Checks that arrays agree on the dims their name suffixes spell; returns the sizes.

  Raises:
    ValueError: naming the array, the dim and both sizes.
  """
  sizes: dict[str, int] = {}
  for name, x in arrays.items():
    dims = name.rsplit("_", 1)[-1]
    if len(dims) != x.ndim:
      raise ValueError(f"{name}: {len(dims)} dims named, shape {x.shape}")
    for dim, size in zip(dims, x.shape):
      want = int(dim) if dim.isdigit() else sizes.setdefault(dim, size)
      if size != want:
        raise ValueError(f"{name}: {dim}={size}, expected {want}")
  return sizes
