"""Captions say what is there, quote what is written, and keep VMix's labels to themselves."""

import re

from absl.testing import absltest, parameterized

from data_pipelines.posters import captions, palette, splits, subjects, worlds
from data_pipelines.posters import scene as scene_lib
from seedream_jax.data import tokenizers

_ZH_PLACES = ("左", "右", "上方", "下方", "中间")
_EN_PLACES = ("left", "right", "top", "bottom", "center")
_AESTHETIC = (
  r"光影|打光|光线|质感|纹理|构图|饱和|鲜艳|边框|颗粒|lighting|\blit\b|light(?:ed|ing)|textured?|grain|"
  r"composition|compos|framed?|vivid|vibrant|saturat|aesthetic|quality|beautiful|masterpiece"
)


def _scenes(count, name="nano", **changes):
  world = worlds.make_world(name).tilted(**changes)
  return world, [scene_lib.sample(scene_lib.Dice("say", i), world, (64, 64)) for i in range(count)]


def _unquoted(text, scene):
  """The caption without its quoted strings and without names of subjects."""
  for left, right in ("“”", "「」", "『』", '""'):
    text = re.sub(f"{left}[^{right}]*{right}", "", text)
  for subject in scene["subjects"]:
    kind = subjects.lookup(subject["emoji"])
    for name in (kind.plural, kind.en, kind.zh):
      text = text.replace(name, "")
  return text


def _changed(scene, world):
  """The scene with one thing that can be said made another, one at a time."""

  def other(value, options):
    return next(o for o in options if o != value)

  def change(key, **fields):
    return {**scene, key: {**scene[key], **fields}}

  background, text, things = scene["background"], scene["text"], scene["subjects"]
  yield change("background", color=other(background["color"], palette.NANO))
  yield {**scene, "style": other(scene["style"], ("plain", *worlds.STYLES))}
  if text is not None:
    yield change("text", content=text["content"] + "A")
    yield change("text", color=other(text["color"], palette.NANO))
    yield change("text", place=other(text["place"], ("top", "bottom", "left")))
    if len(world.faces) > 1:
      yield change("text", face=other(text["face"], world.faces))
      yield change("text", direction=other(text["direction"], "hv"))
  if things:
    first = things[0]
    yield {
      **scene,
      "subjects": [{**first, "place": other(first["place"], ("left", "top"))}, *things[1:]],
    }
    yield {**scene, "subjects": things[1:], "count": len(things) - 1, "counterfactual": False}
  if len(things) == 1:
    yield {**scene, "subjects": [{**first, "scale": other(first["scale"], ("small", "large"))}]}


class CaptionsTest(parameterized.TestCase):
  @parameterized.parameters("nano", "small")
  def test_quotes_hold_exactly_the_strings(self, name):
    world, scenes = _scenes(250, name)
    for i, scene in enumerate(scenes):
      want = [scene["text"]["content"]] if scene["text"] is not None else []
      for said in captions.all_of(scene, scene_lib.Dice(i), world):
        self.assertEqual(tokenizers.find_quoted(said["text"]), want, said)
      for lang in ("zh", "en"):
        self.assertEqual(tokenizers.find_quoted(captions.full(scene, lang)), want)
        self.assertEqual(tokenizers.find_quoted(captions.short(scene, lang)), want)

  def test_aesthetics_do_not_leak(self):
    world, scenes = _scenes(150)
    for i, scene in enumerate(scenes):
      flipped = {**scene, "aesthetics": {k: 1 - v for k, v in scene["aesthetics"].items()}}
      said = captions.all_of(scene, scene_lib.Dice(i), world)
      self.assertEqual(said, captions.all_of(flipped, scene_lib.Dice(i), world))
      for caption in said:
        self.assertNotRegex(_unquoted(caption["text"], scene).lower(), _AESTHETIC)

  @parameterized.parameters("nano", "small")
  def test_all_but_short_name_the_place_of_text(self, name):
    world, scenes = _scenes(200, name, text_rate=1.0)
    for i, scene in enumerate(scenes):
      for said in captions.all_of(scene, scene_lib.Dice(i), world):
        if said["kind"] == "short":
          continue
        place = scene["text"]["place"]
        words = {"zh": {"top": "上方", "bottom": "下方", "left": "左边", "right": "右边"}, "en": {}}
        want = words[said["lang"]].get(place, place)
        self.assertIn(want, _unquoted(said["text"], scene), said)

  def test_short_leaves_place_size_and_colour_unsaid(self):
    world, scenes = _scenes(300)
    for i, scene in enumerate(scenes):
      for said in captions.all_of(scene, scene_lib.Dice(i), world):
        if said["kind"] != "short":
          continue
        rest = _unquoted(said["text"], scene)
        for word in (
          *_ZH_PLACES,
          *_EN_PLACES,
          *palette.ZH.values(),
          "小小",
          "大大",
          "small",
          "large",
        ):
          self.assertNotIn(word, rest)
        for color in palette.NANO:
          self.assertNotRegex(rest, rf"\b{color}\b")

  @parameterized.product(name=("nano", "small"), lang=("zh", "en"))
  def test_full_names_everything(self, name, lang):
    world, scenes = _scenes(60, name)
    for scene in scenes:
      prompt = captions.full(scene, lang, len(world.faces) > 1)
      for subject in scene["subjects"]:
        kind = subjects.lookup(subject["emoji"])
        self.assertTrue(any(n in prompt for n in (kind.zh, kind.en, kind.plural)), prompt)
      for other in _changed(scene, world):
        self.assertNotEqual(splits.content_key(other), splits.content_key(scene))
        self.assertNotEqual(captions.full(other, lang, len(world.faces) > 1), prompt)

  def test_kinds_fit_the_scene(self):
    world, scenes = _scenes(300, counterfactual_rate=0.5)
    for i, scene in enumerate(scenes):
      said = captions.all_of(scene, scene_lib.Dice(i), world)
      kinds = {c["kind"] for c in said}
      self.assertEqual("textual" in kinds, scene["text"] is not None)
      self.assertEqual("surreal" in kinds, scene["counterfactual"])
      self.assertContainsSubset({"short", "long"}, kinds)
      for kind in kinds:
        self.assertCountEqual(["zh", "en"], [c["lang"] for c in said if c["kind"] == kind])
      for caption in said:
        if caption["lang"] == "en":
          self.assertNotRegex(_unquoted(caption["text"], scene), "[一-鿿]")

  def test_several_phrasings(self):
    world, scenes = _scenes(1, text_rate=1.0, bare_text_rate=0.0)
    for kind in ("short", "long", "textual"):
      for lang in ("zh", "en"):
        dice = (scene_lib.Dice(i) for i in range(60))
        said = {_unquoted(captions.make(scenes[0], kind, lang, d), scenes[0]) for d in dice}
        self.assertGreaterEqual(len(said), 3, (kind, lang))

  @parameterized.parameters(
    ("🐼", "a", "pandas"), ("🐉", "a", "dragons"), ("🧤", "a", "pairs of gloves"),
    ("🐺", "a", "wolves"), ("🎲", "a", "dice"), ("⚓", "an", "anchors"), ("🦄", "a", "unicorns"),
    ("🐒", "a", "monkeys"), ("🍎", "an", "apples"), ("🦋", "a", "butterflies"),
    ("⛄", "a", "snowmen"),
  )  # fmt: skip
  def test_english(self, emoji, article, plural):
    kind = subjects.lookup(emoji)
    self.assertEqual((kind.article, kind.plural), (article, plural))

  def test_a_world_may_say_its_axes_for_comparison(self):
    world, scenes = _scenes(30, axis_rate=0.5)
    for scene in scenes:
      dice = lambda: scene_lib.Dice("again", scene["seed"])  # noqa: B023, E731
      silent = captions.all_of(scene, dice(), world)
      said = captions.all_of(scene, dice(), world.tilted(say_axes=True))
      for a, b in zip(silent, said):
        words = b["text"].removeprefix(a["text"])
        self.assertEqual(words, captions.axis_words(scene["aesthetics"], b["lang"]))
        self.assertEqual(len(re.findall("，|, ", words)), sum(scene["aesthetics"].values()))


if __name__ == "__main__":
  absltest.main()
