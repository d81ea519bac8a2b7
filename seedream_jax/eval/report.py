"""What a reader sees: a JSON report, a sheet of pictures with prompts, one self-contained page.

Dimension key: H W pixels.
"""

import base64
import html
import io
import json
import math
import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from seedream_jax.eval import fonts

FAMILY = "Noto Sans CJK SC"
_COLORS = ("#3b6ea8", "#c2543d", "#4f8a52", "#8a5fa8", "#b08a2e", "#3f8f99", "#a8507e", "#6b6b6b")


class Sheet(NamedTuple):
  """Pictures with what was asked of them; `notes` are short marks under a prompt."""

  title: str
  images: Sequence[np.ndarray]  # uint8 [H, W, 3], any sizes
  prompts: Sequence[str]
  notes: Sequence[str] = ()


class Curve(NamedTuple):
  """One line of a plot."""

  label: str
  steps: Sequence[float]
  values: Sequence[float]


def write_json(path: str, report: Mapping[str, Any]) -> None:
  """Writes a report, whole or not at all."""
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with open(f"{path}.tmp", "w", encoding="utf-8") as f:
    json.dump(report, f, ensure_ascii=False, indent=1, allow_nan=False)
    f.write("\n")
  os.replace(f"{path}.tmp", path)


# A sheet of pictures


def sample_sheet(
  sheet: Sheet, *, columns: int = 4, cell: int = 192, text_size: int = 14, max_lines: int = 5
) -> Image.Image:
  """Draws pictures in a grid, each with its prompt below it in a font that has Chinese.

  Args:
    sheet: what to show.
    columns: pictures a row.
    cell: width of a column; pictures are scaled to fit, small ones by whole factors so that pixels
      stay square.
    text_size: of the prompts, in pixels.
    max_lines: of a prompt; a longer one ends in an ellipsis.
  """
  if len(sheet.images) != len(sheet.prompts):
    raise ValueError(f"{len(sheet.images)} images, {len(sheet.prompts)} prompts")
  font, bold = fonts.load(FAMILY, text_size), fonts.load(FAMILY, text_size + 4, "Bold")
  gap, line = 12, round(text_size * 1.45)
  texts = [wrap(prompt, font, cell, max_lines) for prompt in sheet.prompts]
  notes = [*sheet.notes, *[""] * (len(texts) - len(sheet.notes))]
  rows = [range(start, min(start + columns, len(texts))) for start in range(0, len(texts), columns)]
  tall = [
    max((len(texts[i]) + bool(notes[i])) * line for i in row) + cell + gap * 2 for row in rows
  ]
  top = round((text_size + 4) * 2.2) if sheet.title else gap
  canvas = Image.new("RGB", (columns * (cell + gap) + gap, top + sum(tall)), (250, 249, 246))
  draw = ImageDraw.Draw(canvas)
  if sheet.title:
    draw.text((gap, gap // 2), sheet.title, font=bold, fill=(30, 30, 30))
  y = top
  for row, height in zip(rows, tall):
    for column, i in enumerate(row):
      x = gap + column * (cell + gap)
      picture = fit(sheet.images[i], cell)
      canvas.paste(picture, (x + (cell - picture.width) // 2, y + (cell - picture.height) // 2))
      for n, text in enumerate(texts[i]):
        draw.text((x, y + cell + 4 + n * line), text, font=font, fill=(50, 50, 50))
      if notes[i]:
        at = (x, y + cell + 4 + len(texts[i]) * line)
        draw.text(at, notes[i], font=font, fill=(150, 70, 40))
    y += height
  return canvas


def fit(image_HW3: np.ndarray, cell: int) -> Image.Image:
  """The picture in a square of `cell` pixels: enlarged by a whole factor, or smoothly reduced."""
  image = Image.fromarray(np.ascontiguousarray(image_HW3))
  longest = max(image.size)
  if longest <= cell:
    factor = cell // longest
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
  image.thumbnail((cell, cell), Image.Resampling.LANCZOS)
  return image


def wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
  """Breaks at spaces and between wide characters; cut to `max_lines`, with an ellipsis."""
  lines, current = [], ""
  for piece in _pieces(text):
    if current and font.getlength((current + piece).rstrip()) > width:
      lines.append(current.rstrip())
      current = ""
    current += piece if current or piece.strip() else ""
    while font.getlength(current.rstrip()) > width:  # a single word wider than the column
      cut = next(
        n for n in range(len(current) - 1, 0, -1) if n == 1 or font.getlength(current[:n]) <= width
      )
      lines.append(current[:cut])
      current = current[cut:]
  lines.append(current.rstrip())
  if len(lines) > max_lines:
    last = lines[max_lines - 1]
    while last and font.getlength(f"{last}…") > width:
      last = last[:-1]
    lines = [*lines[: max_lines - 1], f"{last}…"]
  return lines


def _pieces(text: str) -> list[str]:
  """Words with their trailing space; wide characters alone, closing marks with what they close."""
  pieces: list[str] = []
  for char in text:
    wide = unicodedata.east_asian_width(char) in "WF"
    closes = unicodedata.category(char) in ("Pe", "Pf") or char in "，。、；：？！,.;:?!"
    previous = pieces[-1][-1] if pieces else " "
    opened = unicodedata.category(previous) in ("Ps", "Pi")
    after_wide = unicodedata.east_asian_width(previous) in "WF"
    joins = closes or opened or char == " " or not (wide or after_wide or previous == " ")
    if pieces and joins:
      pieces[-1] += char
    else:
      pieces.append(char)
  return pieces


# A page

_STYLE = """
:root { --ink: #24262b; --faint: #6d7078; --line: #dddad2; --paper: #faf9f6; --card: #ffffff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e1; --faint: #9a9da5; --line: #3a3c42; --paper: #1c1d20; --card: #26282c; }
} body { margin: 0 auto; max-width: 1180px; padding: 32px 24px 80px; background: var(--paper);
color: var(--ink);
  font: 15px/1.55 system-ui, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 40px 0 12px; } p.sub { color:
var(--faint); margin: 0 0 24px; } .plots { display: grid; grid-template-columns: repeat(auto-fill,
minmax(340px, 1fr)); gap: 20px; } figure { margin: 0; } figcaption { font-size: 13px; color:
var(--faint); margin-bottom: 4px; } svg text { fill: var(--faint); font-size: 11px; } svg .axis {
stroke: var(--line); } .key { font-size: 12px; color: var(--faint); } .key i { display: inline-
block; width: 14px; height: 3px;
  margin: 0 5px 3px 10px; vertical-align: middle; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .scroll { overflow-x: auto;
} td, th { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); text-align: right; font-
weight: normal; } th { color: var(--faint); font-size: 13px; } td:first-child, th:first-child {
text-align: left; } tr.refused td { color: var(--faint); } .grid { display: grid; grid-template-
columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 18px 16px; } .grid img { width: 100%; aspect-
ratio: 1; object-fit: contain; background: var(--card); image-rendering: pixelated; } .grid p {
margin: 4px 0 0; font-size: 13px; line-height: 1.4; } .grid .note { color: #b0603c; }
"""


def html_page(
  path: str,
  *,
  title: str,
  subtitle: str = "",
  plots: Mapping[str, Sequence[Curve]] | None = None,
  reports: Sequence[Mapping[str, Any]] = (),
  sheets: Sequence[Sheet] = (),
) -> None:
  """Writes one file with everything inside: curves as SVG, metrics as tables, pictures as PNG data.

  Args:
    path: of the page.
    title: of the page.
    subtitle: one line under it.
    plots: {name: curves}; a curve per run.
    reports: as `suites.summarize` makes them.
    sheets: pictures with prompts.
  """
  body = [f"<h1>{_escape(title)}</h1>", f'<p class="sub">{_escape(subtitle)}</p>']
  if plots:
    body += [
      "<h2>Curves</h2>",
      '<div class="plots">',
      *(plot(n, c) for n, c in plots.items()),
      "</div>",
    ]
  body += [_table(report) for report in reports]
  body += [_grid(sheet) for sheet in sheets]
  page = (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{_escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
    + "\n".join(body)
    + "\n</body></html>\n"
  )
  os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
  with open(f"{path}.tmp", "w", encoding="utf-8") as f:
    f.write(page)
  os.replace(f"{path}.tmp", path)


def plot(name: str, curves: Sequence[Curve], width: int = 340, height: int = 190) -> str:
  """An SVG of curves over steps; values that are not finite break the line."""
  left, right, top, bottom = 48, 8, 8, 22
  points = [
    (s, v) for c in curves for s, v in zip(c.steps, c.values) if v is not None and math.isfinite(v)
  ]
  if not points:
    return f"<figure><figcaption>{_escape(name)}: no data</figcaption></figure>"
  (x0, x1), (y0, y1) = (_range([p[axis] for p in points]) for axis in (0, 1))

  def place(step: float, value: float) -> str:
    x = left + (step - x0) / (x1 - x0) * (width - left - right)
    y = top + (y1 - value) / (y1 - y0) * (height - top - bottom)
    return f"{x:.1f},{y:.1f}"

  parts = []
  for tick in _ticks(y0, y1):
    y = place(x0, tick).split(",")[1]
    parts.append(f'<line class="axis" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
    parts.append(f'<text x="{left - 6}" y="{y}" dy="4" text-anchor="end">{_number(tick)}</text>')
  for tick in _ticks(x0, x1):
    x = place(tick, y0).split(",")[0]
    parts.append(f'<text x="{x}" y="{height - 6}" text-anchor="middle">{_number(tick)}</text>')
  for i, curve in enumerate(curves):
    for run in _runs(curve):
      line = " ".join(place(s, v) for s, v in run)
      color = _COLORS[i % len(_COLORS)]
      parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.6"/>')
  last = [next((v for v in reversed(c.values) if v is not None), math.nan) for c in curves]
  key = "".join(
    f'<i style="background:{_COLORS[i % len(_COLORS)]}"></i>{_escape(c.label)} {_number(v)}'
    for i, (c, v) in enumerate(zip(curves, last))
  )
  return (
    f"<figure><figcaption>{_escape(name)}</figcaption>"
    f'<svg viewBox="0 0 {width} {height}" role="img" '
    f'aria-label="{_escape(name)}">{"".join(parts)}</svg><div class="key">{key}</div></figure>'
  )


def _table(report: Mapping[str, Any]) -> str:
  rows = [
    f"<tr><td>{_escape(name)}</td><td>{m['value']:.3f}</td><td>{m['lo']:.3f} – {m['hi']:.3f}</td>"
    f"<td>{m['ceiling']:.3f}</td><td>{m['n']}</td></tr>"
    for name, m in report["metrics"].items()
  ]
  for name, r in report["refused"].items():
    ceiling = "–" if r["ceiling"] is None else f"{r['ceiling']:.3f}"
    rows.append(
      f'<tr class="refused"><td>{_escape(name)}</td>'
      f'<td colspan="2">refused: {_escape(r["reason"])}</td>'
      f"<td>{ceiling}</td><td></td></tr>"
    )
  distance = ""
  if fd := report.get("fd_judge"):
    mark = "smoke only; " if fd["smoke"] else ""
    distance = (
      f'<p class="sub">FD-judge {fd["value"]:.2f} x that of ground truth '
      f"({mark}n = {fd['n']}, reference {fd['reference_n']}).</p>"
    )
  weight = {"smoke": "smoke only, no evidence", "hint": "a hint, below the size of evidence"}
  note = weight.get(report["strength"], "evidence size")
  return (
    f'<h2>{_escape(report["suite"])}</h2><p class="sub">{report["n"]} images, '
    f"{report['clusters']} scenes; {note}. Intervals: 95%, prompts resampled.</p>{distance}"
    '<div class="scroll"><table><tr><th>metric</th><th>value</th>'
    f"<th>95% interval</th><th>ceiling</th><th>n</th></tr>{''.join(rows)}</table></div>"
  )


def _grid(sheet: Sheet) -> str:
  notes = [*sheet.notes, *[""] * (len(sheet.images) - len(sheet.notes))]
  cells = [
    f'<figure><img alt="{_escape(prompt)}" src="data:image/png;base64,{_png(image)}">'
    f"<p>{_escape(prompt)}</p>"
    + (f'<p class="note">{_escape(note)}</p>' if note else "")
    + "</figure>"
    for image, prompt, note in zip(sheet.images, sheet.prompts, notes)
  ]
  return f'<h2>{_escape(sheet.title)}</h2><div class="grid">{"".join(cells)}</div>'


def _png(image_HW3: np.ndarray) -> str:
  out = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image_HW3)).save(out, "png")
  return base64.b64encode(out.getvalue()).decode()


def _escape(text: str) -> str:
  return html.escape(str(text), quote=True)


def _range(values: Sequence[float]) -> tuple[float, float]:
  low, high = float(min(values)), float(max(values))
  pad = 0.5 * abs(low) or 1.0
  return (low, high) if high > low else (low - pad, high + pad)


def _ticks(low: float, high: float, count: int = 4) -> list[float]:
  """Round numbers inside the range."""
  raw = (high - low) / count
  scale = 10.0 ** math.floor(math.log10(raw))
  step = next(m for m in (1, 2, 5, 10) if m * scale >= raw * 0.999) * scale
  first = math.ceil(low / step - 1e-9)
  return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _runs(curve: Curve) -> list[list[tuple[float, float]]]:
  """The curve cut at values that are missing or not finite."""
  runs: list[list[tuple[float, float]]] = [[]]
  for step, value in zip(curve.steps, curve.values):
    if value is None or not math.isfinite(value):
      runs.append([])
    else:
      runs[-1].append((step, value))
  return [run for run in runs if run]


def _number(x: float) -> str:
  if not math.isfinite(x):
    return "–"
  if abs(x) >= 10_000:
    return f"{x / 1000:g}k"
  return f"{x:.4g}"
