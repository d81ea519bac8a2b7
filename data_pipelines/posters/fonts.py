"""Where the typefaces are: fontconfig finds them, or a flag names their folder; hashes go into the
manifest.
"""

import dataclasses
import functools
import hashlib
import pathlib
import shutil
import subprocess
import sys

import PIL
from PIL import ImageFont

from seedream_jax import types

PACKAGES = "fonts-noto-color-emoji fonts-lxgw-wenkai fonts-noto-cjk"
EMOJI_SIZE = 109  # the only strike of Noto Color Emoji's bitmaps


@dataclasses.dataclass(frozen=True)
class Face:
  """One typeface: the family and style its file must carry, and the file's usual name."""

  file: str
  family: str
  style: str


FACES: dict[str, Face] = {
  "emoji": Face("NotoColorEmoji.ttf", "Noto Color Emoji", "Regular"),
  "sans_bold": Face("NotoSansCJK-Bold.ttc", "Noto Sans CJK SC", "Bold"),
  "sans": Face("NotoSansCJK-Regular.ttc", "Noto Sans CJK SC", "Regular"),
  "serif_bold": Face("NotoSerifCJK-Bold.ttc", "Noto Serif CJK SC", "Bold"),
  "serif": Face("NotoSerifCJK-Regular.ttc", "Noto Serif CJK SC", "Regular"),
  "kai": Face("LXGWWenKai-Regular.ttf", "LXGW WenKai", "Regular"),
  "kai_bold": Face("LXGWWenKai-Bold.ttf", "LXGW WenKai", "Bold"),
  "kai_light": Face("LXGWWenKai-Light.ttf", "LXGW WenKai", "Light"),
}


@dataclasses.dataclass(frozen=True)
class FontSet:
  """Resolved font files, (face, path, index in the collection); picklable, for worker processes."""

  files: tuple[tuple[str, str, int], ...]

  def load(self, face: str, px: int, *, shaped: bool = False) -> ImageFont.FreeTypeFont:
    """The face at an em of `px`; `shaped` joins ZWJ sequences, else no shaping library is used."""
    path, index = next((path, index) for name, path, index in self.files if name == face)
    engine = ImageFont.Layout.RAQM if shaped else ImageFont.Layout.BASIC
    return ImageFont.truetype(path, px, index=index, layout_engine=engine)

  def provenance(self) -> dict[str, str]:
    """What the pixels depend on: Pillow's version and each font file's sha256."""
    out = {"pillow": PIL.__version__}
    for name, path, index in self.files:
      out[name] = f"{pathlib.Path(path).name}#{index} sha256:{_sha256(path)}"
    return out


@functools.cache
def _sha256(path: str) -> str:
  return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


@functools.cache
def find(folder: str = "") -> FontSet:
  """Finds every face, in `folder` if given, else through fontconfig.

  Raises:
    types.UserError: naming the missing faces, the Debian packages and the flag.
  """
  if folder and not pathlib.Path(folder).is_dir():
    raise types.UserError(
      f"--fonts: {folder!r} is not a folder; expected one that holds {FACES['emoji'].file} ..."
    )
  listed = [str(p) for p in sorted(pathlib.Path(folder).rglob("*"))] if folder else _fontconfig()
  by_name = {pathlib.Path(p).name: p for p in listed}
  found, missing = [], []
  for name, face in FACES.items():
    path = by_name.get(face.file)
    index = None if path is None else _index(path, face)
    if index is None:
      missing.append(face.file)
    else:
      found.append((name, path, index))
  if missing:
    where = f"in {folder}" if folder else "by fontconfig"
    raise types.UserError(
      f"fonts: {', '.join(missing)} not found {where}; install {PACKAGES}, or give --fonts FOLDER"
    )
  return FontSet(tuple(found))


def _fontconfig() -> list[str]:
  command = shutil.which("fc-list")
  if command is None:
    raise types.UserError(
      f"fonts: fontconfig (fc-list) is not installed; install {PACKAGES}, or give --fonts FOLDER"
    )
  listing = subprocess.run(
    [command, "--format", "%{file}\\n"], capture_output=True, text=True, check=True
  )
  return sorted(set(listing.stdout.split("\n")) - {""})


def _index(path: str, face: Face) -> int | None:
  """The collection index whose names are the face's; a collection holds one design per region."""
  for index in range(16):
    try:
      family, style = ImageFont.truetype(path, EMOJI_SIZE, index=index).getname()
    except OSError:
      return None
    if family == face.family and (style == face.style or face.style in ("Light", "Regular")):
      return index
  return None


def main() -> int:
  """Says where the typefaces are, or what is missing; `make fonts` asks."""
  try:
    for name, path, index in find().files:
      print(f"{name}: {path}#{index}")
  except types.UserError as e:
    print(f"error: {e}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
