"""Captions from the scene tree: short, long, artistic, textual and surreal, in Chinese and English.

Rendered strings always stand in quotes, and nothing else does. Short captions leave place, size and
colour unsaid, so what they ask for has many answers; every other caption that mentions text names
its place; `full` names everything. Aesthetic labels are VMix's to carry: no caption says them, but in a world
that says its axes, for comparison.
"""

from collections.abc import Mapping
from typing import Any

from data_pipelines.posters import palette, subjects, worlds
from data_pipelines.posters import scene as scene_lib

Caption = dict[str, Any]  # text, lang, kind, weight

KINDS = ("short", "long", "artistic", "textual", "surreal")
_WEIGHTS = {"short": 1.0, "long": 1.0, "artistic": 0.5, "textual": 0.5, "surreal": 0.5}

_QUOTES = {"zh": ("“”", "“”", "“”", "「」", "『』", '""'), "en": ('""', '""', '""', "“”")}

_ZH_PLACE = {
  "top_left": "左上方",
  "top": "上方",
  "top_right": "右上方",
  "left": "左边",
  "center": "中间",
  "right": "右边",
  "bottom_left": "左下方",
  "bottom": "下方",
  "bottom_right": "右下方",
}
_EN_PLACE = {
  "top_left": "at the top left",
  "top": "at the top",
  "top_right": "at the top right",
  "left": "on the left",
  "center": "in the center",
  "right": "on the right",
  "bottom_left": "at the bottom left",
  "bottom": "at the bottom",
  "bottom_right": "at the bottom right",
}
_ZH_STYLE = {
  "paper_cut": "剪纸",
  "ink_wash": "水墨",
  "neon": "霓虹",
  "pixel": "像素",
  "sketch": "素描",
}
_EN_STYLE = {
  "paper_cut": "paper-cut",
  "ink_wash": "ink wash",
  "neon": "neon",
  "pixel": "pixel art",
  "sketch": "pencil sketch",
}
_ZH_FACE = {
  "sans_bold": "粗黑体",
  "sans": "黑体",
  "serif": "宋体",
  "kai": "楷体",
  "kai_bold": "粗楷体",
  "serif_bold": "粗宋体",
  "kai_light": "细楷体",
}
_EN_FACE = {
  "sans_bold": "bold sans-serif",
  "sans": "sans-serif",
  "serif": "serif",
  "kai": "kai script",
  "kai_bold": "bold kai script",
  "serif_bold": "bold serif",
  "kai_light": "light kai script",
}
_ZH_COUNT = ("零", "一", "两", "三")
_EN_COUNT = ("no", "one", "two", "three")
_ZH_MOOD = {
  "plain": "简洁的平面",
  "paper_cut": "民间剪纸",
  "ink_wash": "写意水墨",
  "neon": "霓虹灯牌",
  "pixel": "复古像素",
  "sketch": "手绘铅笔",
}
_EN_MOOD = {
  "plain": "clean flat",
  "paper_cut": "folk paper-cut",
  "ink_wash": "loose ink wash",
  "neon": "neon sign",
  "pixel": "retro pixel art",
  "sketch": "hand-drawn pencil",
}


_ZH_AXES = {
  "color": "色彩鲜明",
  "lighting": "光线柔和",
  "texture": "纸纹质感",
  "composition": "构图考究",
}
_EN_AXES = {
  "color": "vibrant color",
  "lighting": "soft lighting",
  "texture": "paper texture",
  "composition": "fine composition",
}


def axis_words(axes: Mapping[str, int], lang: str) -> str:
  """What follows a caption to name its positive axes; "" where there is none."""
  table, comma = (_ZH_AXES, "，") if lang == "zh" else (_EN_AXES, ", ")
  return "".join(comma + table[axis] for axis, positive in axes.items() if positive)


def all_of(scene: scene_lib.Scene, dice: scene_lib.Dice, world: worlds.World) -> list[Caption]:
  """The captions a record carries, one per language and kind that fits the scene."""
  faces = len(world.faces) > 1
  out = []
  for kind in KINDS:
    if kind == "textual" and scene["text"] is None:
      continue
    if kind == "artistic" and (
      not scene["subjects"] or (scene["style"] == "plain" and scene["text"] is not None)
    ):
      continue
    if kind == "surreal" and not scene["counterfactual"]:
      continue
    for lang in ("zh", "en"):
      out.append(
        {
          "text": make(scene, kind, lang, dice, faces)
          + (axis_words(scene["aesthetics"], lang) if world.say_axes else ""),
          "lang": lang,
          "kind": kind,
          "weight": _WEIGHTS[kind],
        }
      )
  return out


def make(
  scene: scene_lib.Scene, kind: str, lang: str, dice: scene_lib.Dice, faces: bool = False
) -> str:
  """One caption; `faces` says whether the typeface is worth naming."""
  writer = (_Chinese if lang == "zh" else _English)(scene, dice, faces)
  return getattr(writer, kind)()


def full(scene: scene_lib.Scene, lang: str, faces: bool = False) -> str:
  """The fixed phrasing that names everything: what benches and evaluations prompt with."""
  writer = (_Chinese if lang == "zh" else _English)(scene, None, faces)
  return writer.full()


def short(scene: scene_lib.Scene, lang: str) -> str:
  """The plainest short caption, in a fixed phrasing."""
  writer = (_Chinese if lang == "zh" else _English)(scene, None, False)
  return writer.short()


class _Writer:
  """What both languages share: the scene, and choices; without dice, always the first option."""

  lang = ""

  def __init__(self, scene: scene_lib.Scene, dice: scene_lib.Dice | None, faces: bool):
    self.scene, self.faces = scene, faces
    self.text, self.style = scene["text"], scene["style"]
    self.things = [(subjects.lookup(s["emoji"]), s) for s in scene["subjects"]]
    self.alike = len({s["emoji"] for s in scene["subjects"]}) == 1 and len(self.things) > 1
    self._dice = dice

  def pick(self, *options: str) -> str:
    return self._dice.pick(options) if self._dice else options[0]

  @property
  def quoted(self) -> str:
    left, right = self.pick(*_QUOTES[self.lang])
    return f"{left}{self.text['content']}{right}"


class _Chinese(_Writer):
  lang = "zh"

  def counted(self, kind: subjects.Subject, count: int = 1, size: str = "") -> str:
    return f"{_ZH_COUNT[count]}{kind.measure}{size}{kind.zh}"

  def nouns(self, bare: bool = False) -> str:
    """The subjects without place or size: "一只熊猫和一条龙"."""
    if self.alike:
      return self.counted(self.things[0][0], len(self.things))
    names = [
      kind.zh if bare and len(self.things) == 1 else self.counted(kind) for kind, _ in self.things
    ]
    return "、".join(names[:-1]) + "和" + names[-1] if len(names) > 1 else names[0]

  def placed(self) -> str:
    """The subjects with place and size: "左边一只小熊猫，右边一条龙"."""
    size = {"small": "小小的", "large": "大大的", None: ""}
    if self.alike:
      where = "、".join(_ZH_PLACE[s["place"]] for _, s in self.things)
      return f"{self.counted(self.things[0][0], len(self.things))}，分别在{where}"
    verb = self.pick("", "有", "是")
    return "，".join(
      f"{_ZH_PLACE[s['place']]}{verb}{self.counted(k, 1, size[s['scale']])}" for k, s in self.things
    )

  def background(self) -> str:
    b = self.scene["background"]
    first = palette.ZH[b["color"]]
    if b["kind"] == "solid":
      return f"{first}背景"
    other = palette.ZH[b["color2"]]
    return f"{first}到{other}的渐变背景" if b["kind"] == "gradient" else f"{first}和{other}花纹背景"

  def lettering(self, verb: str = "") -> str:
    """The string with its place and colour: "上方写着红色的“春天”"."""
    t = self.text
    face = _ZH_FACE[t["face"]] if self.faces else ""
    way = "竖排" if t["direction"] == "v" else ""
    place, color = _ZH_PLACE[t["place"]], palette.ZH[t["color"]]
    return f"{place}{verb or self.pick('写着', '印着', '有')}{color}{face}{way}的{self.quoted}"

  def styled(self) -> str:
    return "" if self.style == "plain" else f"{_ZH_STYLE[self.style]}风格"

  def relation(self) -> str:
    (a, one), (b, two) = self.things
    return f"{a.zh}比{b.zh}大" if one["size"] > two["size"] else f"{b.zh}比{a.zh}大"

  def full(self) -> str:
    parts = [
      self.styled(),
      self.background(),
      self.placed() if self.things else "",
      self.lettering() if self.text else "",
    ]
    if self.scene["counterfactual"]:
      parts.append(self.relation())
    return "，".join(filter(None, parts))

  def short(self) -> str:
    style = self.styled() + "的" if self.styled() else ""
    if self.text is None:
      return self.pick(
        f"{style}{self.nouns(True)}", f"{style}{self.nouns()}", f"一张{style}图，{self.nouns()}"
      )
    if not self.things:
      return self.pick(
        f"{style}文字{self.quoted}", f"写着{self.quoted}的{style}海报", f"{style}{self.quoted}"
      )
    return self.pick(
      f"{style}{self.nouns(True)}，写着{self.quoted}",
      f"{style}{self.nouns()}和文字{self.quoted}",
      f"写着{self.quoted}的{style}海报，有{self.nouns()}",
    )

  def long(self) -> str:
    if self.pick("full", "other") == "full":
      return self.full()
    parts = [self.lettering()] if self.text else []
    parts += [self.placed()] if self.things else []
    if self._dice and self._dice.chance(0.5):
      parts.reverse()
    if self.scene["counterfactual"]:
      parts.append(self.relation())
    body = "，".join(parts)
    style = self.styled()
    return self.pick(
      f"一张{style}{'的' if style else ''}海报，{self.background()}，{body}",
      f"{self.background()}的{style}海报，{body}",
      f"{style}{'，' if style else ''}{body}，{self.background()}",
    )

  def artistic(self) -> str:
    mood = _ZH_MOOD[self.style]
    text = f"，{self.lettering()}" if self.text else ""
    return self.pick(
      f"{mood}风格的{self.nouns()}，{self.background()}{text}",
      f"{self.background()}上的{mood}作品，画着{self.nouns()}{text}",
      f"一幅{mood}画，主角是{self.nouns()}，{self.background()}{text}",
    )

  def textual(self) -> str:
    t = self.text
    face = _ZH_FACE[t["face"]]
    unit = "字" if t["lang"] == "zh" else "单词"
    rest = f"，{self.pick('旁边是', '配上', '还有')}{self.nouns()}" if self.things else ""
    style = f"，{self.styled()}" if self.styled() else ""
    way = "竖排的" if t["direction"] == "v" else ""
    place, color = _ZH_PLACE[t["place"]], palette.ZH[t["color"]]
    return self.pick(
      f"{place}{way}{color}{unit}{self.quoted}，{self.background()}{rest}{style}",
      f"海报{place}用{face}写着{way}{self.quoted}，{color}，{self.background()}{rest}{style}",
      f"{self.quoted}以{color}{face}{way[:2]}写在{place}，{self.background()}{rest}{style}",
    )

  def surreal(self) -> str:
    a, b = sorted(self.things, key=lambda t: -t[1]["size"])
    text = f"，{self.lettering()}" if self.text else ""
    style = f"{self.styled()}，" if self.styled() else ""
    return style + self.pick(
      f"{self.counted(a[0])}比{b[0].zh}还大，{self.background()}{text}",
      f"超现实的画面，巨大的{a[0].zh}和小小的{b[0].zh}，{self.background()}{text}",
      f"{_ZH_PLACE[a[1]['place']]}的{a[0].zh}比{_ZH_PLACE[b[1]['place']]}的{b[0].zh}大，{self.background()}{text}",
    )


class _English(_Writer):
  lang = "en"

  def counted(self, kind: subjects.Subject, count: int = 1, size: str = "") -> str:
    if count > 1:
      return f"{_EN_COUNT[count]} {kind.plural}"
    return f"a {size} {kind.en}" if size else f"{kind.article} {kind.en}"

  def nouns(self) -> str:
    if self.alike:
      return self.counted(self.things[0][0], len(self.things))
    names = [self.counted(kind) for kind, _ in self.things]
    return ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else names[0]

  def placed(self) -> str:
    if self.alike:
      where = ", ".join(_EN_PLACE[s["place"]] for _, s in self.things)
      return f"{self.counted(self.things[0][0], len(self.things))}, {where}"
    return ", ".join(
      f"{self.counted(k, 1, s['scale'] or '')} {_EN_PLACE[s['place']]}" for k, s in self.things
    )

  def background(self) -> str:
    b = self.scene["background"]
    first = palette.EN[b["color"]]
    if b["kind"] == "solid":
      return f"{first} background"
    other = palette.EN[b["color2"]]
    return (
      f"{first} to {other} gradient background"
      if b["kind"] == "gradient"
      else f"{first} and {other} patterned background"
    )

  def on_background(self) -> str:
    phrase = self.background()
    return f"on {'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"

  def hand(self) -> str:
    """Colour, typeface and direction of the lettering: "red bold sans-serif vertical"."""
    t = self.text
    face = f" {_EN_FACE[t['face']]}" if self.faces else ""
    way = " vertical" if t["direction"] == "v" else ""
    return f"{palette.EN[t['color']]}{face}{way}"

  def lettering(self) -> str:
    place = _EN_PLACE[self.text["place"]]
    return self.pick(
      f"{self.quoted} in {self.hand()} letters {place}",
      f"{self.hand()} text {self.quoted} {place}",
      f"the word {self.quoted} written {place} in {self.hand()}",
    )

  def styled(self) -> str:
    return "" if self.style == "plain" else f"{_EN_STYLE[self.style]} style"

  def relation(self) -> str:
    (a, one), (b, two) = self.things
    big, little = (a, b) if one["size"] > two["size"] else (b, a)
    return f"the {big.en} is bigger than the {little.en}"

  def full(self) -> str:
    parts = [
      self.styled(),
      self.background(),
      self.placed() if self.things else "",
      self.lettering() if self.text else "",
    ]
    if self.scene["counterfactual"]:
      parts.append(self.relation())
    return ", ".join(filter(None, parts))

  def short(self) -> str:
    style = f", {self.styled()}" if self.styled() else ""
    if self.text is None:
      return self.pick(f"{self.nouns()}{style}", f"a picture of {self.nouns()}{style}")
    if not self.things:
      return self.pick(
        f"a poster that says {self.quoted}{style}",
        f"the word {self.quoted}{style}",
        f"{self.quoted}{style}",
      )
    return self.pick(
      f"{self.nouns()} with the text {self.quoted}{style}",
      f"a poster that says {self.quoted} with {self.nouns()}{style}",
      f"{self.nouns()} and the word {self.quoted}{style}",
    )

  def long(self) -> str:
    if self.pick("full", "other") == "full":
      return self.full()
    parts = [self.lettering()] if self.text else []
    parts += [self.placed()] if self.things else []
    if self._dice and self._dice.chance(0.5):
      parts.reverse()
    if self.scene["counterfactual"]:
      parts.append(self.relation())
    body = ", ".join(parts)
    style = f"{self.styled()} " if self.styled() else ""
    lead = f"{'an' if style[:1] == 'i' else 'a'} {style}"
    return self.pick(
      f"{lead}poster with {body}, {self.on_background()}",
      f"{lead}poster {self.on_background()}: {body}",
      f"{body}, {self.on_background()}" + (f", {self.styled()}" if style else ""),
    )

  def artistic(self) -> str:
    mood = _EN_MOOD[self.style]
    text = f", {self.lettering()}" if self.text else ""
    return self.pick(
      f"{mood} artwork of {self.nouns()} {self.on_background()}{text}",
      f"{self.nouns()} in a {mood} look, {self.background()}{text}",
      f"a {mood} illustration, {self.nouns()} {self.on_background()}{text}",
    )

  def textual(self) -> str:
    t = self.text
    unit = "word" if t["lang"] == "en" else "character" if len(t["content"]) == 1 else "characters"
    rest = f", {self.pick('with', 'next to', 'beside')} {self.nouns()}" if self.things else ""
    style = f", {self.styled()}" if self.styled() else ""
    place, color = _EN_PLACE[t["place"]], palette.EN[t["color"]]
    face = _EN_FACE[t["face"]]
    way = "vertical " if t["direction"] == "v" else ""
    ground = self.background()
    return self.pick(
      f"the {way}{color} {unit} {self.quoted} {place}, {ground}{rest}{style}",
      f"a poster reading {self.quoted} {place} in {way}{color} {face}, {ground}{rest}{style}",
      f"{self.quoted} set {place} in {way}{color} {face} type, {ground}{rest}{style}",
    )

  def surreal(self) -> str:
    a, b = sorted(self.things, key=lambda t: -t[1]["size"])
    text = f", {self.lettering()}" if self.text else ""
    style = f", {self.styled()}" if self.styled() else ""
    rest = f", {self.background()}{text}{style}"
    big, little = (f"{kind.en} {_EN_PLACE[s['place']]}" for kind, s in (a, b))
    return self.pick(
      f"{self.counted(a[0])} bigger than {self.counted(b[0])}{rest}",
      f"a surreal scene: a giant {a[0].en} and a tiny {b[0].en}{rest}",
      f"{a[0].article} {big} larger than the {little}{rest}",
    )
