"""What an image shows against what its prompt asked: text, subjects, count, places, sizes, colours; and its aesthetics.

Judges are never a reward and never a rater: no stage imports this file. Text metrics follow
Seedream 2.0 (arXiv 2503.07703), Sec. 5: R_a = 1 - N_e/N (never clipped: insertions count), R_h =
N_c/N, availability.

An outcome is a (numerator, denominator) pair, so that a metric is a ratio of sums over images.
Names are group/.../detail, and a detail's parent holds the same outcomes and more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import threadpoolctl

from seedream_jax.eval import aesthetics, matched, ocr, pixels, templates

COUNT_LEAST = 0.65  # matched-filter score from which a subject counts as drawn
FOUND_LEAST = 0.5  # score from which a match may be one of the subjects wanted
PLACE_SLACK = 0.05  # of the image's side: how far a centre may stray over its region's border

Scene = Mapping[str, Any]
Prompt = Mapping[str, Any]  # id, prompt, lang, scene, and optionally category
Outcomes = dict[str, tuple[float, float]]


class TextScore(NamedTuple):
  """Counts for one string; metrics are ratios of their sums."""

  target: int  # N, characters asked for
  errors: int  # N_e, fewest edits between target and reading; may exceed N
  correct: int  # N_c, target characters in place in the best alignment
  exact: bool


class Answer(NamedTuple):
  """What classifier B sees in one image."""

  subjects: tuple[str, ...]  # emoji, likeliest first, as many as a scene may hold
  color: str  # of the background
  count: int


AnswerFn = Callable[[Sequence[np.ndarray]], Sequence[Answer]]


class SecondJudge:
  """Classifier B, beside the matched filter: outcomes under names that end in _b."""

  def __init__(self, answer: AnswerFn):
    self._answer = answer

  def judge(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[Outcomes]:
    """The outcomes of each uint8 image for its prompt."""
    return [
      dict(answer_outcomes(answer, prompt["scene"], prompt["lang"]))
      for answer, prompt in zip(self._answer(images), prompts)
    ]


class Judges:
  """Every judge of one world."""

  def __init__(
    self,
    subjects: Sequence[str],
    colors: Sequence[str],
    *,
    sizes: tuple[int, int] = (18, 36),
    recognizer: Callable[[Sequence[np.ndarray]], list[str]] | None = None,
    second: SecondJudge | None = None,
  ):
    """Draws nothing yet.

    Args:
      subjects: emoji that may be drawn; the matched filter tells them apart.
      colors: colour words that may be meant.
      sizes: smallest and largest longer side of a subject, in pixels at 64 px.
      recognizer: reads lines; PP-OCR by default, loaded when a text is first judged.
      second: classifier B; None leaves its outcomes out.
    """
    self._filter = matched.MatchedFilter(subjects, sizes=sizes)
    self._palette = {name: pixels.PALETTE[name] for name in colors}
    self._recognizer, self._second = recognizer, second

  def judge(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[Outcomes]:
    """The outcomes of each uint8 image for its prompt."""
    readings = self.read(images, prompts)
    # NumPy's own threads take twice the CPU for the same time, and fight others for it.
    with threadpoolctl.threadpool_limits(1):
      out = self._seen(images, prompts, readings)
    if self._second is not None:
      for outcomes, more in zip(out, self._second.judge(images, prompts)):
        outcomes |= more
    return out

  def _seen(
    self,
    images: Sequence[np.ndarray],
    prompts: Sequence[Prompt],
    readings: Sequence[str | None],
  ) -> list[Outcomes]:
    """The outcomes of every image but classifier B's."""
    out = []
    for image, prompt, reading in zip(images, prompts, readings):
      scene = prompt["scene"]
      outcomes = dict(self._pictured(image, scene, prompt["lang"]))
      outcomes |= aesthetics.outcomes(image, scene)
      if reading is not None:
        outcomes |= text_outcomes(
          ocr.fold(scene["text"]["content"]), reading, scene["text"]["lang"]
        )
      out.append(outcomes)
    return out

  def read(self, images: Sequence[np.ndarray], prompts: Sequence[Prompt]) -> list[str | None]:
    """The folded text in the zone each prompt names; None where a prompt asks for none."""
    asked = [i for i, prompt in enumerate(prompts) if prompt["scene"]["text"] is not None]
    readings: list[str | None] = [None] * len(prompts)
    if asked:
      self._recognizer = self._recognizer or ocr.Recognizer()
      zones = [text_zone(prompts[i]["scene"]) for i in asked]
      for i, text in zip(asked, ocr.read([images[i] for i in asked], zones, self._recognizer)):
        readings[i] = text
    return readings

  def _pictured(
    self, image: np.ndarray, scene: Scene, lang: str
  ) -> Iterator[tuple[str, tuple[float, float]]]:
    background, text = scene["background"], scene["text"]
    zone = None if text is None else text_zone(scene)
    if scene["subjects"]:
      even_HW3 = pixels.evenly_lit(image) if background["kind"] == "solid" else image
      found = self._filter.detect(even_HW3, style=scene["style"], text_box=zone, least=FOUND_LEAST)
      yield from subject_outcomes(found, scene, image.shape[:2], lang)
    ground = pixels.background(image)
    if background["kind"] == "solid":
      right = self._name(np.median(ground.reshape(-1, 3), axis=0)) == background["color"]
      yield from _shares("color", right, (lang,))
    if text is not None:
      mask = ocr.ink(image, zone)
      right = mask.any() and self._name(pixels.mode(image[mask])) == text["color"]
      yield from _shares("text_color", right, (lang,))

  def _name(self, rgb: np.ndarray) -> str:
    return pixels.nearest_color(rgb, self._palette)


def score_text(target: str, reading: str) -> TextScore:
  """Compares folded strings."""
  errors, correct = align(target, reading)
  return TextScore(len(target), errors, correct, target == reading)


def align(target: str, reading: str) -> tuple[int, int]:
  """(edit distance, characters matched): fewest edits first, then most matches."""
  # row[j]: (edits, -matches) between target[:i] and reading[:j].
  row = [(j, 0) for j in range(len(reading) + 1)]
  for i, want in enumerate(target, 1):
    diagonal, row[0] = row[0], (i, 0)
    for j, got in enumerate(reading, 1):
      (edits, matches), (above, m_above), (left, m_left) = diagonal, row[j], row[j - 1]
      keep = (edits, matches - 1) if want == got else (edits + 1, matches)
      diagonal, row[j] = row[j], min(keep, (above + 1, m_above), (left + 1, m_left))
  edits, matches = row[-1]
  return edits, -matches


def text_outcomes(target: str, reading: str, lang: str) -> Outcomes:
  """Outcomes of one string by its language and length."""
  score = score_text(target, reading)
  metrics = {
    "R_a": (score.target - score.errors, score.target),
    "R_h": (score.correct, score.target),
    "availability": (float(score.exact), 1.0),
  }
  return {
    f"{name}{suffix}": value
    for name, value in metrics.items()
    for suffix in ("", f"/{lang}", f"/{lang}/{score.target}")
  }


def subject_outcomes(
  found: Sequence[matched.Detection], scene: Scene, size: tuple[int, int], lang: str
) -> Iterator[tuple[str, tuple[float, float]]]:
  """Outcomes of subject, count, place and relation; detections best first.

  subject   the n best detections are the n subjects asked for
  count     as many detections as asked for, whatever they are
  place     every subject asked for stands in the place named
  relation  of a counterfactual pair, the one said to be larger is
  Styled scenes stand under styled/: they have a lower ceiling and must not pull down the rest.
  """
  want, prefix = scene["subjects"], "" if scene["style"] == templates.PLAIN else "styled/"
  names = sorted(s["emoji"] for s in want)
  best = list(found[: len(want)])
  tags = (lang, str(len(want)))
  yield from _shares(f"{prefix}subject", sorted(d.emoji for d in best) == names, tags)
  yield from _shares(
    f"{prefix}count", sum(d.score >= COUNT_LEAST for d in found) == len(want), tags
  )
  yield from _shares(f"{prefix}place", _all_placed(best, want, size), tags)
  if scene["counterfactual"]:
    longest = {d.emoji: d.size for d in best}
    small, large = sorted(want, key=lambda s: s["size"])
    right = longest.get(large["emoji"], 0) > longest.get(small["emoji"], np.inf)
    yield from _shares(f"{prefix}relation", right, (lang,))


def answer_outcomes(
  answer: Answer, scene: Scene, lang: str
) -> Iterator[tuple[str, tuple[float, float]]]:
  """Outcomes of classifier B's answer, where the matched filter and the pixels give theirs.

  subject_b   the k likeliest kinds are the k kinds asked for; top-1 where one is
  count_b     as many subjects as asked for
  color_b     the background's colour
  """
  want, prefix = scene["subjects"], "" if scene["style"] == templates.PLAIN else "styled/"
  if want:
    kinds, tags = {s["emoji"] for s in want}, (lang, str(len(want)))
    right = set(answer.subjects[: len(kinds)]) == kinds
    yield from _shares(f"{prefix}subject_b", right, tags)
    yield from _shares(f"{prefix}count_b", answer.count == len(want), tags)
  if scene["background"]["kind"] == "solid":
    yield from _shares("color_b", answer.color == scene["background"]["color"], (lang,))


def text_zone(scene: Scene) -> tuple[int, int, int, int]:
  """[y0, x0, y1, x1) of the zone a prompt names: the scene's own, else the half of its place."""
  (height, width), text = scene["size"], scene["text"]
  if text.get("zone") is not None:
    y0, x0, y1, x1 = text["zone"]
    return round(y0), round(x0), round(y1), round(x1)
  halves = {
    "top": (0, 0, height // 2, width),
    "bottom": (height // 2, 0, height, width),
    "left": (0, 0, height, width // 2),
    "right": (0, width // 2, height, width),
  }
  return halves.get(text["place"], (0, 0, height, width))


def in_place(center: tuple[float, float], place: str, size: tuple[int, int]) -> bool:
  """Whether a centre lies in the region a place word names ("top_left", "left", "center", ...).

  Each side is cut at 0.4 and 0.6; a word that does not name a row or column means the middle.
  """
  words = place.split("_")
  return all(
    low - PLACE_SLACK <= at / side <= high + PLACE_SLACK
    for at, side, (low, high) in zip(
      center, size, (_span(words, "top", "bottom"), _span(words, "left", "right"))
    )
  )


def _span(words: Sequence[str], first: str, last: str) -> tuple[float, float]:
  return (0.0, 0.4) if first in words else (0.6, 1.0) if last in words else (0.4, 0.6)


def _all_placed(
  found: Sequence[matched.Detection], want: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> bool:
  """Whether each wanted subject can be given a detection of its own kind in its place."""
  if not want:
    return True
  first, rest = want[0], want[1:]
  return any(
    d.emoji == first["emoji"]
    and in_place(d.center, first["place"], size)
    and _all_placed([*found[:i], *found[i + 1 :]], rest, size)
    for i, d in enumerate(found)
  )


def _shares(
  name: str, right: bool, tags: Sequence[str]
) -> Iterator[tuple[str, tuple[float, float]]]:
  for suffix in ("", *(f"/{tag}" for tag in tags)):
    yield name + suffix, (float(right), 1.0)
