"""Preference data: pictures to choose between, choices, and the pairs that a reward learns from.

  python -m data_pipelines.preferences sample ...   # candidate pictures of each prompt, by several models
  python -m data_pipelines.preferences rate ...     # choices by raters that share nothing with the judges
  python -m data_pipelines.preferences label ...    # choices by a person, on a page of this machine
  python -m data_pipelines.preferences import ...   # choices, ours or published, to records for training
  python -m data_pipelines.preferences score ...    # a reward model against held-out choices
  python -m data_pipelines.preferences mine ...     # the prompts that rewards like least, to draw of again
  python -m data_pipelines.preferences negatives ... # a model's pictures alone, as labelled negatives for SFT

Each says more with --help.
"""

import difflib
import importlib
import sys

from absl import flags

from seedream_jax.run import cli

_VERBS = {
  "sample": "sample",
  "rate": "rate",
  "label": "label",
  "import": "importer",
  "score": "score",
  "mine": "mine",
  "negatives": "negatives",
}


def main() -> None:
  """Hands over to the verb; without one, or with an unknown one, says which there are."""
  name = sys.argv[1] if len(sys.argv) > 1 else ""
  if name in ("--help", "-h", "help", "--helpfull"):
    print(__doc__)
    sys.exit(0)
  if name not in _VERBS:
    near = difflib.get_close_matches(name, list(_VERBS), 1)
    hint = f"; nearest: {near[0]}" if near else ""
    cli.fail(f"verb {name!r}: expected one of {', '.join(_VERBS)}{hint}")
  verb = importlib.import_module(f"data_pipelines.preferences.{_VERBS[name]}")
  # What --help prints: absl knows the main program's flags by sys.argv[0], its text by __main__.
  sys.argv[:2] = [f"data_pipelines.preferences {name}"]
  sys.modules["__main__"].__doc__ = verb.__doc__
  verb.define_flags()
  flags.adopt_module_key_flags(verb)
  cli.run(verb.main)


if __name__ == "__main__":
  main()
