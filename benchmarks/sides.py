"""The two sides of a comparison, the DiT here and its PyTorch twin, as tasks that block until they are done.

Same batch, AdamW on both sides, Euler with guidance as sampler; from the same parameters both give the same losses
and latents. JAX and torch are imported by the functions that use them: a child that measures one side must not pay
for the other.
"""

import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

TASKS = ("train step", "sampler")
TEXTS = ("llm", "llm_mask", "glyph", "glyph_mask")
SOLVER_STEPS, GUIDANCE = 8, 4.0
_LR, _DECAY = 1e-4, 0.01

Batch = Mapping[str, np.ndarray]


def draw_batch(cfg: Any, batch: int, side: int, length: int) -> dict[str, np.ndarray]:
  """Latents of `side` x `side` and texts of `length` LLM tokens, random, the same every time."""
  random = np.random.RandomState(0)
  draw = lambda *shape: random.randn(*shape).astype(np.float32)  # noqa: E731
  latent = (batch, side, side, cfg.latent_channels)
  return {
    "xt": draw(*latent), "target": draw(*latent), "t": random.rand(batch).astype(np.float32),
    "llm": draw(batch, length, cfg.text_dim),
    "llm_mask": np.arange(length)[None].repeat(batch, 0) < max(length * 5 // 8, 1),
    "glyph": draw(batch, cfg.glyph_len, cfg.glyph_dim), "glyph_mask": np.ones((batch, cfg.glyph_len), bool),
  }  # fmt: skip


def our_functions(cfg: Any) -> dict[str, Callable]:
  """Pure: train step (params, opt, batch) -> (params, opt, loss), sampler (params, batch) -> latents."""
  import jax
  import jax.numpy as jnp
  import optax

  from seedream_jax.flow import solvers, timesteps

  part, optimizer = our_part(cfg), our_optimizer()

  def loss_fn(params, batch):
    bound = part.bind(params)
    cond = bound.splice(*(batch[key] for key in TEXTS))
    return jnp.mean(jnp.square(bound(batch["xt"], batch["t"], cond) - batch["target"]))

  def step(params, opt, batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    updates, opt = optimizer.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, loss

  def sample(params, batch):
    bound = part.bind(params)
    cond = bound.splice(*(batch[key] for key in TEXTS))
    velocity = solvers.guided(bound, cond, cond, GUIDANCE)
    return solvers.sample(velocity, batch["xt"], timesteps.grid(SOLVER_STEPS))

  return dict(zip(TASKS, (step, sample)))


def our_part(cfg: Any) -> Any:
  """The `types.Part` of a DiT."""
  from seedream_jax import types
  from seedream_jax.models import dit

  return types.Part.from_module(lambda rngs: dit.DiT(cfg, rngs=rngs))


def our_optimizer() -> Any:
  """What `theirs` trains with, of optax."""
  import optax

  return optax.adamw(_LR, weight_decay=_DECAY)


def ours(cfg: Any, make_params: Callable[[], Any], batch: Batch, task: str) -> Callable:
  """fn() -> loss or latents; `make_params` gives arrays that the task may overwrite."""
  import jax
  import jax.numpy as jnp

  fn, params = our_functions(cfg)[task], make_params()
  batch = jax.tree.map(jnp.asarray, dict(batch))
  if task == "sampler":
    sample = jax.jit(fn)
    return lambda: np.asarray(sample(params, batch))
  step, state = jax.jit(fn, donate_argnums=(0, 1)), [params, our_optimizer().init(params)]

  def train() -> float:
    *state[:], loss = step(*state, batch)
    return float(loss)

  return train


def translate(cfg: Any, params: Any = None) -> tuple[dict, dict[str, np.ndarray] | None]:
  """What `theirs` takes of a DiT: the twin's fields, and its tensors where there are parameters."""
  from seedream_jax.interop import diffusers, names

  fields = {k: v for k, v in diffusers.transformer_json(cfg).items() if k != "_class_name"}
  return fields, None if params is None else names.to_theirs(names.DIT, params)


def theirs(
  fields: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray] | None,
  batch: Batch,
  task: str,
  *,
  compiled: bool,
  device: str = "cpu",
  bf16: bool = False,
) -> Callable:
  """The twin's task in the same form; `bf16` is autocast over float32 weights, as ours computes in bfloat16."""
  import torch

  from seedream_jax.interop import torch_twin

  with torch.device(device):
    twin = torch_twin.SeedreamTransformer(**fields)
  if tensors is not None:
    twin.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()})
  fn = torch.compile(twin) if compiled else twin
  put = lambda key: torch.tensor(batch[key]).to(device)  # noqa: E731
  xt, target = (put(key).permute(0, 3, 1, 2).contiguous() for key in ("xt", "target"))
  t, texts = put("t"), [put(key) for key in TEXTS]

  def precision() -> contextlib.AbstractContextManager:
    return torch.autocast(device, torch.bfloat16) if bf16 else contextlib.nullcontext()

  @torch.no_grad()
  def sample() -> np.ndarray:
    x, both = xt, [torch.cat([text, text]) for text in texts]
    for now, after in itertools.pairwise(torch.linspace(1.0, 0.0, SOLVER_STEPS + 1).to(device)):
      with precision():
        cond, empty = fn(torch.cat([x, x]), now.expand(2 * len(x)), *both).chunk(2)
      x = x + (after - now) * (empty + GUIDANCE * (cond - empty)).float()
    return x.permute(0, 2, 3, 1).cpu().numpy()

  if task == "sampler":
    twin.eval()
    return sample
  optimizer = torch.optim.AdamW(twin.parameters(), _LR, weight_decay=_DECAY, fused=True)

  def train() -> float:
    with precision():
      loss = (fn(xt, t, *texts) - target).square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()

  return train
