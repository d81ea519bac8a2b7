r"""Train step and sampler of the DiT against its PyTorch twin, eager and under torch.compile, in one alternating run.

  python -m benchmarks.twin --shape nano --rounds 12 --out benchmarks/results/twin-nano.json

Same parameters, same batch, AdamW on both sides, float32; losses are compared before anything is timed. A round is
one step of each in turn; figures are medians over rounds, ratios are ours over theirs: below 1 where we are quicker.
Needs `pip install seedream_jax[torch]` and a C++ compiler.
"""

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import tqdm
from absl import flags

from benchmarks import machine
from seedream_jax.run import cli

_SHAPE = flags.DEFINE_enum(
  "shape", "nano", ["nano", "wide"], "nano, or width 512 and depth 8 at 16x16 tokens."
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", 12, "Rounds; the first two are thrown away.", lower_bound=3
)
_OUT = flags.DEFINE_string("out", "", "Results, .json.")

# batch, latent side, text bucket
_SHAPES = {
  "nano": ({}, 16, 8, 32),
  "wide": (dict(width=512, depth=8, num_heads=8, rope_base=16), 8, 16, 32),
}
_SOLVER_STEPS, _GUIDANCE = 8, 4.0


def ours(cfg, params, inputs: dict[str, np.ndarray]) -> dict[str, Callable]:
  """{name: fn() -> loss or latents}; each call blocks until it is done."""
  import jax
  import jax.numpy as jnp
  import optax

  from seedream_jax import types
  from seedream_jax.flow import solvers, timesteps
  from seedream_jax.models import dit

  part = types.Part.from_module(lambda rngs: dit.DiT(cfg, rngs=rngs))
  texts = [jnp.asarray(inputs[k]) for k in ("llm", "llm_mask", "glyph", "glyph_mask")]
  xt, target, t = (jnp.asarray(inputs[k]) for k in ("xt", "target", "t"))
  optimizer = optax.adamw(1e-4, weight_decay=0.01)

  def loss_fn(params, xt, target, t, texts):
    bound = part.bind(params)
    return jnp.mean(jnp.square(bound(xt, t, bound.splice(*texts)) - target))

  def step(params, opt, *batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, *batch)
    updates, opt = optimizer.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, loss

  def sample(params, noise, texts):
    bound = part.bind(params)
    cond = bound.splice(*texts)
    velocity = solvers.guided(bound, cond, cond, _GUIDANCE)
    return solvers.sample(velocity, noise, timesteps.grid(_SOLVER_STEPS))

  state = [jax.tree.map(jnp.array, params), optimizer.init(params)]
  step, sample = jax.jit(step, donate_argnums=(0, 1)), jax.jit(sample)

  def train() -> float:
    *state[:], loss = step(*state, xt, target, t, texts)
    return float(loss)

  frozen = jax.tree.map(jnp.array, params)
  return {"train step": train, "sampler": lambda: np.asarray(sample(frozen, xt, texts))}


def theirs(cfg, params, inputs: dict[str, np.ndarray], compiled: bool) -> dict[str, Callable]:
  """The twin's, in the same form."""
  import torch

  from seedream_jax.interop import diffusers, names, torch_twin

  fields = {k: v for k, v in diffusers.transformer_json(cfg).items() if k != "_class_name"}
  tensors = {k: torch.tensor(v) for k, v in names.to_theirs(names.DIT, params).items()}
  nchw = lambda x: torch.tensor(x).permute(0, 3, 1, 2).contiguous()  # noqa: E731
  xt, target, t = nchw(inputs["xt"]), nchw(inputs["target"]), torch.tensor(inputs["t"])
  texts = [torch.tensor(inputs[k]) for k in ("llm", "llm_mask", "glyph", "glyph_mask")]

  def make():
    twin = torch_twin.SeedreamTransformer(**fields)
    twin.load_state_dict(tensors)
    return twin, torch.compile(twin) if compiled else twin

  (trained, train_fn), (frozen, sample_fn) = make(), make()
  optimizer = torch.optim.AdamW(trained.parameters(), 1e-4, weight_decay=0.01, fused=True)

  def train() -> float:
    loss = (train_fn(xt, t, *texts) - target).square().mean()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return float(loss)

  @torch.no_grad()
  def sample() -> np.ndarray:
    x, both = xt, [torch.cat([text, text]) for text in texts]
    grid = torch.linspace(1.0, 0.0, _SOLVER_STEPS + 1)
    for now, after in itertools.pairwise(grid):
      cond, empty = sample_fn(torch.cat([x, x]), now.expand(2 * len(x)), *both).chunk(2)
      x = x + (after - now) * (empty + _GUIDANCE * (cond - empty))
    return x.permute(0, 2, 3, 1).numpy()

  frozen.eval()
  return {"train step": train, "sampler": sample}


def main(argv: Sequence[str]) -> int:
  """Entry point."""
  del argv
  cli.prepare_jax()
  import jax

  from seedream_jax import types
  from seedream_jax.models import dit

  changes, batch, side, length = _SHAPES[_SHAPE.value]
  cfg = dit.make_config("nano", **changes)
  part = types.Part.from_module(lambda rngs: dit.DiT(cfg, rngs=rngs))
  random = np.random.RandomState(0)
  # A model at init is the identity, which some compiler might notice.
  params = jax.tree.map(
    lambda x: np.asarray(x) + 0.02 * random.randn(*x.shape).astype(np.float32),
    part.init(jax.random.key(0)),
  )
  draw = lambda *shape: random.randn(*shape).astype(np.float32)  # noqa: E731
  latent = (batch, side, side, cfg.latent_channels)
  inputs = {
    "xt": draw(*latent), "target": draw(*latent), "t": random.rand(batch).astype(np.float32),
    "llm": draw(batch, length, cfg.text_dim), "llm_mask": np.arange(length)[None].repeat(batch, 0) < 20,
    "glyph": draw(batch, cfg.glyph_len, cfg.glyph_dim), "glyph_mask": np.ones((batch, cfg.glyph_len), bool),
  }  # fmt: skip
  sides = {
    "ours": ours(cfg, params, inputs),
    "torch.compile": theirs(cfg, params, inputs, True),
    "torch eager": theirs(cfg, params, inputs, False),
  }
  results = {}
  for task in ("train step", "sampler"):
    values = {name: fns[task]() for name, fns in sides.items()}
    for name, value in values.items():
      np.testing.assert_allclose(
        value, values["torch eager"], rtol=2e-2, atol=1e-2, err_msg=f"{name}: {task}"
      )
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in tqdm.tqdm(range(_ROUNDS.value), desc=f"{_SHAPE.value}: {task}"):
      for name, fns in sides.items():
        start = time.perf_counter()
        fns[task]()
        if i >= 2:
          seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    ratios = {name: medians["ours"] / s for name, s in medians.items() if name != "ours"}
    results[task] = {
      "median_s": medians,
      "min_s": {n: min(s) for n, s in seconds.items()},
      "ours_over": ratios,
    }
    for name, s in medians.items():
      print(
        f"{task:12s} {name:14s} {s * 1e3:9.1f} ms"
        + (f"  ours / it = {ratios[name]:.2f}" if name != "ours" else "")
      )
  report = {
    "shape": _SHAPE.value,
    "batch": batch,
    "commit": machine.commit(),
    "cpu": machine.cpu(),
    "results": results,
  }
  if _OUT.value:
    os.makedirs(os.path.dirname(os.path.abspath(_OUT.value)), exist_ok=True)
    with open(_OUT.value, "w", encoding="utf-8") as f:
      json.dump(report, f, indent=1)
  print(json.dumps({task: r["ours_over"] for task, r in results.items()}))
  return 0


if __name__ == "__main__":
  cli.run(main)
