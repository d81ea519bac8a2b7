r"""Breaks each property that the tests hold, one at a time, and wants a test to fail for it.

  python -m benchmarks.broken [--only rope] [--out benchmarks/results/broken.json]

The tree is never touched: each break is made in a copy of its tracked files. A property whose test passes all the same
is printed as SURVIVED, and the exit code is 1. A line of BREAKS that the code no longer has is an error: write it anew.
"""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import tqdm
from absl import flags

from benchmarks import machine
from seedream_jax import types
from seedream_jax.run import cli

_ONLY = flags.DEFINE_string("only", "", "Part of a property's or a file's name; default: all.")
_OUT = flags.DEFINE_string("out", "", "The results, .json.")


@dataclasses.dataclass(frozen=True)
class Break:
  """One property, the edit that breaks it, and the tests that must notice (pytest arguments)."""

  what: str
  file: str
  old: str
  new: str
  tests: str


_DIT, _FLOW, _RUN = "tests/models/dit_test.py", "tests/flow", "tests/run/loop_test.py"
BREAKS = (
  Break("a block is the identity at init", "seedream_jax/models/dit.py",
        '"modulation": nnx.initializers.zeros', '"modulation": nnx.initializers.ones', f"{_DIT} -k identity"),
  Break("a new condition changes nothing at init", "seedream_jax/models/conditioning.py",
        "MLP(FREQUENCIES, width, zero=True, rngs=rngs)", "MLP(FREQUENCIES, width, rngs=rngs)",
        "tests/models/conditioning_test.py -k adds_exactly_zero"),
  Break("RoPE scores do not change under a shift", "seedream_jax/ops/rope.py",
        "b * cos_BL1F + a * sin_BL1F", "b * cos_BL1F - a * sin_BL1F", "tests/ops/rope_test.py -k shift"),
  Break("the centre has one position for all grids", "seedream_jax/ops/rope.py",
        "(base - 1) / 2 + scale * (jnp.arange(w, dtype=jnp.float32) - (w - 1) / 2)",
        "scale * jnp.arange(w, dtype=jnp.float32)", "tests/ops/rope_test.py -k centre"),
  Break("one scale for both axes", "seedream_jax/ops/rope.py",
        "y_h = (base - 1) / 2 + scale *", "y_h = (base - 1) / 2 + base / h *", "tests/ops/rope_test.py -k square"),
  Break("the order of text enters by its position only", "seedream_jax/models/dit.py",
        "q_i, k_i = rope.apply(q_i, cos, sin), rope.apply(k_i, cos, sin)",
        "q_i, k_i = rope.apply(q_i, cos, sin), rope.apply(k_i, cos, sin)\n    k_t = k_t.at[:, 0].mul(2.0)",
        f"{_DIT} -k order_of_text"),
  Break("padding has no influence and no gradient", "seedream_jax/ops/attention.py",
        "jnp.where(mask_BL[:, None, None, :], s_BNSL, _MASKED)", "s_BNSL", f"{_DIT} -k masked_text"),
  Break("a byte keeps its slot in every bucket", "seedream_jax/models/dit.py",
        "self.position[cfg.max_text_len :]", "self.position[llm_len : llm_len + cfg.glyph_len]",
        f"{_DIT} -k larger_bucket"),
  Break("queries and keys are normed per head", "seedream_jax/models/llm.py",
        "self.q_norm(q_BLNK), self.k_norm(k_BLNK)", "q_BLNK, k_BLNK", "tests/models/llm_test.py -k numpy"),
  Break("the LLM is causal", "seedream_jax/models/llm.py", "causal=True", "causal=False",
        "tests/models/llm_test.py -k causal"),
  Break("v, x0 and eps turn into each other", "seedream_jax/flow/path.py",
        "return xt + (1 - expand(t_B, xt)) * v", "return xt - (1 - expand(t_B, xt)) * v", f"{_FLOW}/path_test.py"),
  Break("Euler is exact on a straight path", "seedream_jax/flow/solvers.py",
        "return (x + (t_next - t) * velocity(x, t),), None", "return (x + (t_next - t) * velocity(x, t) / 2,), None",
        f"{_FLOW}/solvers_test.py -k straight"),
  Break("shifts compose as products", "seedream_jax/flow/timesteps.py",
        "alpha * t / (1 + (alpha - 1) * t)", "alpha * t / (1 + alpha * t)", f"{_FLOW}/timesteps_test.py -k compose"),
  Break("guidance 1 is the condition", "seedream_jax/flow/solvers.py",
        "v_u + path.expand(scale_B, v_u) * (v_c - v_u)", "v_c + path.expand(scale_B, v_u) * (v_c - v_u)",
        f"{_FLOW}/solvers_test.py -k scale_one"),
  Break("an example does not depend on its neighbours", "seedream_jax/flow/timesteps.py",
        "fn(jax.random.fold_in(rng, example_id)))(id_B)",
        "fn(jax.random.fold_in(rng, example_id)))(jnp.arange(id_B.shape[0]))",
        "tests/stages/denoise_test.py -k neighbours"),
  Break("the golden step", "seedream_jax/stages/denoise.py", "axis=(1, 2, 3))\n\n\nclass Denoise",
        "axis=(1, 2, 3)) * 1.001\n\n\nclass Denoise", "tests/stages/denoise_test.py -k golden"),
  Break("R_a may be negative", "seedream_jax/eval/judges.py", '(score.target - score.errors, score.target)',
        '(max(score.target - score.errors, 0), score.target)', "tests/eval/judges_test.py -k negative"),
  Break("resume goes on with the data where it stood", "seedream_jax/run/loop.py",
        "l.iterate(start) for", "l.iterate(0) for", f"{_RUN} -k resume"),
  Break("a bad step leaves no trace", "seedream_jax/run/step.py",
        "keep = functools.partial(jnp.where, finite)", "keep = functools.partial(jnp.where, True)",
        f"{_RUN} -k bad_step"),
  Break("accumulation changes nothing", "seedream_jax/run/step.py",
        "x.reshape(-1, self.accum_steps, *x.shape[1:])",
        "x.at[0].set(x[1]).reshape(-1, self.accum_steps, *x.shape[1:])",
        f"{_RUN} -k accumulation"),
  Break("samples are drawn by the averaged weights", "seedream_jax/eval/evaluators.py",
        '**state.ema[player].get("eval", {})', "**{}", f"{_RUN} -k averaged_weights"),
  Break("two processes read halves of one batch", "seedream_jax/run/open.py",
        "process_count=jax.process_count())", "process_count=1)", "tests/run/distributed_loop_test.py"),
  Break("a SIGTERM to one process stops all at one step", "seedream_jax/run/loop.py",
        "if jax.process_count() > 1:\n    # JAX", "if False:\n    # JAX", "tests/run/distributed_loop_test.py"),
  Break("a flipped byte is noticed", "seedream_jax/engine/checkpoint.py",
        'if digest != manifest["files"][name]["sha256"]:', "if False:",
        "tests/engine/checkpoint_test.py -k falls_back"),
  Break("aesthetic labels change nothing until trained", "seedream_jax/models/dit.py",
        'rngs, "added", use_bias=False)\n\n  def __call__(self, txt_BTD',
        'rngs, use_bias=False)\n\n  def __call__(self, txt_BTD',
        f"{_DIT} -k labels_change_nothing"),
  Break("strength 0 takes the labels away", "seedream_jax/models/conditioning.py",
        "scale_B = scale_B * strength_B", "scale_B = scale_B + 0 * strength_B", f"{_DIT} -k labels_change"),
  Break("a reward ranks the preferred first", "seedream_jax/stages/reward.py",
        "score_BR[:, 1] - score_BR[:, 0]", "score_BR[:, 0] - score_BR[:, 1]",
        "tests/stages/reward_test.py -k formula"),
  Break("a text reward counts for quoted text only", "seedream_jax/stages/refl.py",
        'asked_B if fields["text_only"] else', "asked_B if False else",
        "tests/stages/refl_test.py -k quoted_text"),
  Break("a reward is asked under the noise of its training", "seedream_jax/stages/refl.py",
        "if std and rng is not None:", "if False:", "tests/stages/refl_test.py -k by_hand"),
  Break("both pictures of a pair have one noise", "seedream_jax/stages/reward.py",
        "noise_BHWC[:, None]", "noise_BHWC[:, None] * jnp.linspace(-1, 1, 2).reshape(1, 2, 1, 1, 1)",
        "tests/stages/reward_test.py -k noise_is_of_training"),
  Break("DPO shows both pictures of a pair one noise", "seedream_jax/stages/dpo.py",
        "each(draw.eps_BHWC)", "jnp.tile(draw.eps_BHWC, (r, 1, 1, 1))", "tests/stages/dpo_test.py -k by_hand"),
  Break("DPO holds to the reference", "seedream_jax/stages/dpo.py",
        "error(REFERENCE, frozen[REFERENCE])", "0.0 * error(REFERENCE, frozen[REFERENCE])",
        "tests/stages/dpo_test.py -k log_2"),
  Break("a guard goes back to the best step", "seedream_jax/eval/evaluators.py",
        'return max(rows, key=lambda row: row["score"])', "return rows[-1]",
        "tests/eval/evaluators_test.py -k guard"),
  Break("a resampled union is balanced", "data_pipelines/resample.py",
        "float(counts[value]) ** -power", "float(counts[value]) ** power",
        "tests/data_pipelines/resample_test.py -k shares"),
)  # fmt: skip


def check(broken: Break) -> tuple[bool, float]:
  """(whether a test failed, seconds)."""
  start = time.time()
  with tempfile.TemporaryDirectory() as copy:
    names = subprocess.run(
      ("git", "ls-files", "-z"), capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, names.split("\0")):
      target = pathlib.Path(copy, name)
      target.parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(name, target)
    path = pathlib.Path(copy, broken.file)
    code = path.read_text(encoding="utf-8")
    if broken.old not in code:
      raise types.UserError(f"{broken.file}: no longer has {broken.old!r} ({broken.what})")
    path.write_text(code.replace(broken.old, broken.new), encoding="utf-8")
    pytest = (sys.executable, "-m", "pytest", "-x", "-q", *broken.tests.split())
    code = subprocess.run(pytest, cwd=copy, capture_output=True, timeout=900).returncode
  if code not in (0, 1):
    raise types.UserError(f"{broken.tests}: pytest ended with code {code}, not with a failed test")
  return code == 1, time.time() - start


def main(argv: list[str]) -> int:
  """Entry point."""
  del argv
  chosen = [b for b in BREAKS if _ONLY.value in b.what or _ONLY.value in b.file]
  if not chosen:
    raise types.UserError(f"--only {_ONLY.value}: no such property or file")
  rows = []
  for broken in tqdm.tqdm(chosen, unit="break"):
    noticed, seconds = check(broken)
    rows.append({"property": broken.what, "file": broken.file, "tests": broken.tests,
                 "noticed": noticed, "seconds": round(seconds, 1)})  # fmt: skip
    tqdm.tqdm.write(f"{'noticed ' if noticed else 'SURVIVED'} {broken.what}")
  report = {"commit": machine.commit(), "noticed": sum(r["noticed"] for r in rows), "breaks": rows}
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
  print(json.dumps({k: v for k, v in report.items() if k != "breaks"} | {"of": len(rows)}))
  return 0 if report["noticed"] == len(rows) else 1


if __name__ == "__main__":
  cli.run(main)
