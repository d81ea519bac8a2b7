"""Font files through fontconfig; an absent one is named with its Debian package."""

import functools
import shutil
import subprocess

from PIL import ImageFont

from seedream_jax import types

_PACKAGES = {
  "Noto Color Emoji": "fonts-noto-color-emoji",
  "Noto Sans CJK SC": "fonts-noto-cjk",
  "LXGW WenKai": "fonts-lxgw-wenkai",
}


@functools.cache
def find(family: str, style: str = "Regular") -> tuple[str, int]:
  """(file, index in the collection) of an installed family."""
  package = _PACKAGES.get(family, "a package with this font")
  if shutil.which("fc-match") is None:
    raise types.UserError(
      f"font {family!r}: fc-match is missing; apt-get install fontconfig {package}"
    )
  query = ["fc-match", "--format", "%{file}\n%{index}\n%{family}", f"{family}:style={style}"]
  file, index, found = subprocess.run(
    query, capture_output=True, text=True, check=True
  ).stdout.split("\n")
  if family not in found.split(","):  # fontconfig always answers, with its default if need be
    raise types.UserError(
      f"font {family!r} is not installed (nearest: {found}); apt-get install {package}"
    )
  return file, int(index) & 0xFFFF  # the high bits number a variable font's instance


@functools.cache
def load(
  family: str, size: int, style: str = "Regular", *, shaped: bool = False
) -> ImageFont.FreeTypeFont:
  """The family at a pixel size; `shaped` joins ZWJ sequences and needs Pillow's Raqm."""
  file, index = find(family, style)
  engine = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
  return ImageFont.truetype(file, size, index=index, layout_engine=engine)
