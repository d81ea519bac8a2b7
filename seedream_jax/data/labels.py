"""What a scene shows, as integers: the columns of the loader's `label_BA` that a classifier learns.

Dims: B batch, A label columns, V subject vocabulary.
The loader looks each column up in the scene tree; -1 stands for absent or outside the vocabulary.
Columns are, in this order: one a subject slot, background colour, count, language of the text.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LANGS = ("zh", "en")
_FIXED = 3  # columns after the subject slots: colour, count, language


class Labels(NamedTuple):
  """One answer a question; -1 where a scene has none."""

  subject_BV: jax.Array  # float32 multi-hot
  color_B: jax.Array  # int32
  count_B: jax.Array  # int32
  text_B: jax.Array  # float32, 1 where there is text


def columns(
  subjects: Sequence[str], colors: Sequence[str], max_count: int = 3
) -> tuple[tuple[str, tuple[Any, ...]], ...]:
  """`LoaderConfig.labels` for scenes of up to `max_count` subjects (emoji) on named colours."""
  slots = ((f"subjects.{i}.emoji", tuple(subjects)) for i in range(max_count))
  return (
    *slots,
    ("background.color", tuple(colors)),
    ("count", tuple(range(max_count + 1))),
    ("text.lang", LANGS),
  )


def decode(label_BA: jax.Array, num_subjects: int) -> Labels:
  """The answers in a batch of `columns`."""
  if label_BA.shape[1] <= _FIXED:
    raise ValueError(
      f"label_BA of shape {label_BA.shape}: expected subject slots and {_FIXED} more"
    )
  slots_BA, (color_B, count_B, lang_B) = label_BA[:, :-_FIXED], label_BA[:, -_FIXED:].T
  subject_BV = jnp.max(jax.nn.one_hot(slots_BA, num_subjects), axis=1)  # -1 gives a row of zeros
  return Labels(subject_BV, color_B, count_B, (lang_B >= 0).astype(jnp.float32))
