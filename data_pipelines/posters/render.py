"""Scene trees to pixels, with cached sprites and glyphs.

Emoji come from Noto Color Emoji's bitmaps, text from real typefaces; everything is composed in
numpy and every position is a whole pixel, so the boxes and centres written back into the scene are
exact. Dims: H W pixels, C RGB.
"""

import collections
import functools
from collections.abc import Callable, Hashable

import numpy as np
from PIL import Image, ImageDraw

from data_pipelines.posters import fonts as fonts_lib
from data_pipelines.posters import palette, styles
from data_pipelines.posters import scene as scene_lib

_FAINT = 16  # coverage under this is no ink: dropped, so a box is exactly what shows
_CONDENSE = 0.85  # Latin is narrowed at least this much
_CACHE_BYTES = 192 << 20


class Renderer:
  """Draws scenes; keeps sprites and text masks it has drawn before."""

  def __init__(self, fonts: fonts_lib.FontSet):
    self._fonts = fonts
    self._cache: collections.OrderedDict[Hashable, np.ndarray] = collections.OrderedDict()
    self._cached_bytes = 0
    self._loaded: dict[tuple[str, int, bool], object] = {}
    self._caps: dict[str, float] = {}

  def render(self, scene: scene_lib.Scene) -> tuple[np.ndarray, scene_lib.Scene]:
    """Returns (image_HWC uint8, the scene with exact text box, subject centres and sizes)."""
    scene = _own(scene)
    dice = scene_lib.Dice("render", scene.get("seed", 0))
    axes, style = scene["aesthetics"], scene["style"]
    color = np.float32(palette.COLORS[scene["background"]["color"]])
    color = np.clip(color + np.float32([dice.uniform(-6, 6) for _ in range(3)]), 0, 255)
    canvas = self._background(scene, color, dice)
    sprites = [self.sprite(s["emoji"], s["size"], style) for s in scene["subjects"]]
    corners = [_corner(s["center"], sprite) for s, sprite in zip(scene["subjects"], sprites)]
    if axes["lighting"]:
      for sprite, (y, x) in zip(sprites, corners):
        drop = max(1, sprite.shape[0] // 16)
        _shade(canvas, sprite[..., 3] * (0.28 / 255), y + drop, x + drop)
    for subject, sprite, (y, x) in zip(scene["subjects"], sprites, corners):
      _paste(canvas, sprite, y, x)
      subject["center"] = [y + sprite.shape[0] / 2, x + sprite.shape[1] / 2]
    if scene["text"] is not None:
      self._draw_text(canvas, scene["text"])
    if axes["composition"]:
      canvas = styles.frame(canvas, color)
    if axes["color"]:
      canvas = styles.richer_color(canvas)
    if axes["lighting"]:
      canvas = styles.key_light(canvas, dice.integer(0, 1))
    if axes["texture"] or style == "ink_wash":
      canvas = styles.grain(canvas, dice.integer(0, 2**18 - 1), 5.0 if axes["texture"] else 3.0)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), scene

  def measure(self, scene: scene_lib.Scene) -> scene_lib.Scene:
    """The scene with exact box, centres and sizes, without drawing it."""
    scene = _own(scene)
    for subject in scene["subjects"]:
      sprite = self.sprite(subject["emoji"], subject["size"], scene["style"])
      y, x = _corner(subject["center"], sprite)
      subject["center"] = [y + sprite.shape[0] / 2, x + sprite.shape[1] / 2]
    if scene["text"] is not None:
      self._locate_text(scene["text"])
    return scene

  def sprite(self, emoji: str, px: int, style: str = "plain") -> np.ndarray:
    """The emoji's ink, longer side `px`, as premultiplied float RGBA in [0, 255]."""
    return self._cached(
      ("sprite", emoji, px, style), lambda: self._make_sprite(emoji, px, style)
    ).astype(np.float32)

  def text_mask(
    self, content: str, face: str, px: int, direction: str, room: tuple[int, int]
  ) -> np.ndarray:
    """The string's coverage as uint8, cropped to its ink, within `room` (height, width)."""
    key = ("text", content, face, px, direction, room)
    return self._cached(key, lambda: self._make_text(content, face, px, direction, room))

  def has_ink(self, emoji: str) -> bool:
    """Whether the emoji font can draw it."""
    return self._master(emoji) is not None

  def _cached(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
    if key in self._cache:
      self._cache.move_to_end(key)
      return self._cache[key]
    value = make()
    self._cache[key] = value
    self._cached_bytes += value.nbytes
    while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
      self._cached_bytes -= self._cache.popitem(last=False)[1].nbytes
    return value

  def _font(self, face: str, px: int, shaped: bool = False) -> object:
    key = (face, px, shaped)
    if key not in self._loaded:
      self._loaded[key] = self._fonts.load(face, px, shaped=shaped)
    return self._loaded[key]

  def _master(self, emoji: str) -> Image.Image | None:
    shaped = "\u200d" in emoji
    # Without a shaper U+FE0F would be a glyph of its own.
    text = emoji if shaped else emoji.replace("\ufe0f", "")
    image = Image.new("RGBA", (160, 160))
    font = self._font("emoji", fonts_lib.EMOJI_SIZE, shaped)
    ImageDraw.Draw(image).text((4, 8), text, font=font, embedded_color=True)
    box = image.getchannel("A").getbbox()
    return image.crop(box) if box else None

  def _make_sprite(self, emoji: str, px: int, style: str) -> np.ndarray:
    master = self._master(emoji)
    if master is None:
      raise ValueError(f"{emoji!r}: not in the emoji font")
    scale = px / max(master.size)
    size = tuple(max(1, round(v * scale)) for v in master.size)
    sprite = np.asarray(master.convert("RGBa").resize(size, Image.Resampling.LANCZOS), np.float32)
    if style != "plain":
      sprite = styles.STYLES[style](sprite)
    return np.clip(sprite + 0.5, 0, 255).astype(np.uint8)

  def _make_text(
    self, content: str, face: str, px: int, direction: str, room: tuple[int, int]
  ) -> np.ndarray:
    while True:
      mask = self._glyphs(content, face, px, direction, room)
      if (mask.shape[0] <= room[0] and mask.shape[1] <= room[1]) or px <= 4:
        return mask
      px -= 1

  def _glyphs(
    self, content: str, face: str, px: int, direction: str, room: tuple[int, int]
  ) -> np.ndarray:
    if direction == "v":
      rows = [_ink_cell(self._font(face, px), char, px) for char in content]
      return _crop(np.concatenate(rows))
    if content.isascii():
      return self._latin(content, face, px, room[1])
    font = self._font(face, px)
    left, top, right, bottom = font.getbbox(content)
    image = Image.new("L", (right - left + 2, bottom - top + 2))
    ImageDraw.Draw(image).text((1 - left, 1 - top), content, font=font, fill=255)
    return _crop(np.asarray(image))

  def _latin(self, content: str, face: str, px: int, width: int) -> np.ndarray:
    """Latin with cap height `px`, drawn three times as large and condensed to fit `width`."""
    if face not in self._caps:
      box = self._font(face, 300).getbbox("H")
      self._caps[face] = (box[3] - box[1]) / 300
    font = self._font(face, round(3 * px / self._caps[face]))
    left, top, right, bottom = font.getbbox(content)
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), content, font=font, fill=255)
    size = (max(1, round(min(image.width / 3 * _CONDENSE, width))), max(1, round(image.height / 3)))
    return _crop(np.asarray(image.resize(size, Image.Resampling.BOX)))

  def _locate_text(self, text: dict) -> np.ndarray:
    y0, x0, y1, x1 = text["zone"]
    margin = max(1, round(min(y1 - y0, x1 - x0) / 32))
    room = (int(y1 - y0) - 2 * margin, int(x1 - x0) - 4 * margin)
    mask = self.text_mask(text["content"], text["face"], text["px"], text["direction"], room)
    top = round(y0 + margin + (room[0] - mask.shape[0]) * text["at"][0])
    left = round(x0 + 2 * margin + (room[1] - mask.shape[1]) * text["at"][1])
    text["box"] = [top, left, top + mask.shape[0], left + mask.shape[1]]
    return mask

  def _draw_text(self, canvas: np.ndarray, text: dict) -> None:
    mask = self._locate_text(text)[..., None] * np.float32(1 / 255)
    y0, x0, y1, x1 = text["box"]
    region = canvas[y0:y1, x0:x1]
    region += mask * (np.float32(palette.COLORS[text["color"]]) - region)

  def _background(
    self, scene: scene_lib.Scene, color: np.ndarray, dice: scene_lib.Dice
  ) -> np.ndarray:
    height, width = scene["size"]
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = color
    background = scene["background"]
    if background["kind"] == "solid":
      return canvas
    other = np.float32(palette.COLORS[background["color2"]])
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None]
    x = np.linspace(0, 1, width, dtype=np.float32)[None, :]
    if background["kind"] == "gradient":
      mix = (y + 0 * x) if dice.chance(0.5) else (x + 0 * y)
      return canvas + mix[..., None] * (other - color)
    cells = dice.integer(5, 9) * np.float32([height, width]) / min(height, width)
    u, v = y * cells[0], x * cells[1]
    shape = dice.integer(0, 2)
    if shape == 0:  # stripes
      mix = (((u + v) % 2) < 0.6).astype(np.float32)
    elif shape == 1:  # dots
      mix = (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.22).astype(np.float32)
    else:  # checks
      mix = ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
    return canvas + 0.55 * mix[..., None] * (other - color)


@functools.cache
def shared(fonts: fonts_lib.FontSet) -> Renderer:
  """The process's renderer for these fonts: its cache outlives a shard."""
  return Renderer(fonts)


def _own(scene: scene_lib.Scene) -> scene_lib.Scene:
  """A copy whose subjects and text may be written to (deepcopy took a quarter of the time)."""
  text = scene["text"]
  return {
    **scene,
    "subjects": [dict(s) for s in scene["subjects"]],
    "text": None if text is None else dict(text),
  }


def _corner(center: list[float], sprite: np.ndarray) -> tuple[int, int]:
  return round(center[0] - sprite.shape[0] / 2), round(center[1] - sprite.shape[1] / 2)


def window(
  shape: tuple[int, ...], height: int, width: int, y: int, x: int
) -> tuple[slice, slice, slice, slice]:
  """Rows and columns of a canvas, then the same part of a (height, width) patch put at (y, x)."""
  y0, x0 = max(y, 0), max(x, 0)
  y1, x1 = max(y0, min(y + height, shape[0])), max(x0, min(x + width, shape[1]))
  return slice(y0, y1), slice(x0, x1), slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)


def _paste(canvas: np.ndarray, sprite: np.ndarray, y: int, x: int) -> None:
  rows, columns, from_rows, from_columns = window(canvas.shape, *sprite.shape[:2], y, x)
  patch = sprite[from_rows, from_columns]
  canvas[rows, columns] += patch[..., :3] - canvas[rows, columns] * (
    patch[..., 3:] * np.float32(1 / 255)
  )


def _shade(canvas: np.ndarray, amount_HW: np.ndarray, y: int, x: int) -> None:
  rows, columns, from_rows, from_columns = window(canvas.shape, *amount_HW.shape, y, x)
  canvas[rows, columns] *= 1 - amount_HW[from_rows, from_columns, None]


def _ink_cell(font: object, char: str, px: int) -> np.ndarray:
  """One character in its em square."""
  image = Image.new("L", (px, px))
  left, top, right, bottom = font.getbbox(char)
  at = ((px - right - left) / 2, (px - bottom - top) / 2)
  ImageDraw.Draw(image).text(at, char, font=font, fill=255)
  return np.asarray(image)


def _crop(mask_HW: np.ndarray) -> np.ndarray:
  """Drops what is too faint to be ink, then the margins."""
  mask = np.where(mask_HW >= _FAINT, mask_HW, 0).astype(np.uint8)
  rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
  if not rows.size:
    raise ValueError("text without ink: not in the typeface")
  return mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
