"""What a scene shows, as integers: the columns of the loader's `label_BA` that a classifier learns.

Dims: B batch, A label columns, V subject vocabulary.
The loader looks each column up in the scene tree; -1 stands for absent or outside the vocabulary.
Columns are, in this order: one a subject slot, background colour, count, language of the text.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from seedream_jax import types

_FIXED = ("background.color", "count", "text.lang")  # columns after the subject slots


class Labels(NamedTuple):
  """One answer a question; -1 where a scene has none."""

  subject_BV: jax.Array  # float32 multi-hot
  color_B: jax.Array  # int32
  count_B: jax.Array  # int32
  text_B: jax.Array  # float32, 1 where there is text


class Vocabulary(NamedTuple):
  """What the answers stand for."""

  subjects: tuple[str, ...]  # emoji
  colors: tuple[str, ...]
  counts: tuple[int, ...]
  slots: int  # subjects a scene may hold


def vocabulary(columns: Sequence[tuple[str, Sequence[Any]]]) -> Vocabulary:
  """Reads a config's `labels` back; UserError unless they are the columns that `decode` expects."""
  slots, fixed = columns[: -len(_FIXED)], columns[-len(_FIXED) :]
  want = (*(f"subjects.{i}.emoji" for i in range(max(len(slots), 1))), *_FIXED)
  paths = tuple(path for path, _ in columns)
  if paths != want or any(tuple(words) != tuple(slots[0][1]) for _, words in slots):
    raise types.UserError(
      f"data.labels: columns {', '.join(paths) or 'none'}; expected {', '.join(want)}, "
      "every slot with one vocabulary"
    )
  (_, colors), (_, counts), _ = fixed
  return Vocabulary(tuple(slots[0][1]), tuple(colors), tuple(counts), len(slots))


def decode(label_BA: jax.Array, num_subjects: int) -> Labels:
  """The answers in a batch of such columns."""
  if label_BA.shape[1] <= len(_FIXED):
    raise ValueError(
      f"label_BA of shape {label_BA.shape}: expected subject slots and {len(_FIXED)} more"
    )
  slots_BA, (color_B, count_B, lang_B) = label_BA[:, : -len(_FIXED)], label_BA[:, -len(_FIXED) :].T
  subject_BV = jnp.max(jax.nn.one_hot(slots_BA, num_subjects), axis=1)  # -1 gives a row of zeros
  return Labels(subject_BV, color_B, count_B, (lang_B >= 0).astype(jnp.float32))
