"""The picture: one panel per main figure, one bar per system, the spread as a line over it."""

import os
import shutil
from xml.sax.saxutils import escape

from .figures import MAIN
from .process import Failed, run
from .report import number

PANEL_W, BAR_H, GAP, LABEL_W, VALUE_W, TITLE_H = 560, 18, 6, 170, 70, 34
COLUMNS = 2
COLOURS = {"veth": "#9aa0a6", "espalier": "#1a73e8", "strongswan": "#d9822b", "wireguard": "#88498f"}


def check(path):
    """Throws Failed if such a picture cannot be made here; asked before the measurement."""
    suffix = os.path.splitext(path)[1]
    if suffix not in (".svg", ".png"):
        raise Failed("--plot: the file must end in .svg or .png")
    if suffix == ".png" and shutil.which("rsvg-convert") is None:
        raise Failed("--plot: a PNG needs rsvg-convert (package librsvg2-bin); write an .svg, "
                     "or add --install")


def _colour(system):
    return next((c for prefix, c in COLOURS.items() if system.startswith(prefix)), "#5f6368")


def _text(x, y, words, anchor="start", size=12, weight="normal"):
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
            f'font-weight="{weight}">{escape(words)}</text>')


def _panel(results, figure, x, y):
    out = [_text(x, y + 16, figure.title + ("" if figure.more_is_better else "  (less is better)"),
                 size=14, weight="bold")]
    top = max((results.spread(s, figure.key)[1] or 0 for s in results.systems), default=0)
    room = PANEL_W - LABEL_W - VALUE_W
    for i, system in enumerate(results.systems):
        value = results.median(system, figure.key)
        low, high = results.spread(system, figure.key)
        row = y + TITLE_H + i * (BAR_H + GAP)
        middle, left = row + BAR_H / 2, x + LABEL_W
        out.append(_text(left - 8, middle + 4, system, anchor="end"))
        if value is None or top <= 0:
            out.append(_text(left, middle + 4, "–"))
            continue
        scale = room / top
        out.append(f'<rect x="{left}" y="{row}" width="{max(1.0, value * scale):.1f}" '
                   f'height="{BAR_H}" fill="{_colour(system)}"/>')
        if low != high:
            out.append(f'<line x1="{left + low * scale:.1f}" x2="{left + high * scale:.1f}" '
                       f'y1="{middle}" y2="{middle}" stroke="#202124" stroke-width="2"/>')
        out.append(_text(left + max(value, high) * scale + 6, middle + 4, number(value)))
    return out


def svg(results, caption):
    """The picture as SVG text."""
    rows = (len(MAIN) + COLUMNS - 1) // COLUMNS
    panel_h = TITLE_H + len(results.systems) * (BAR_H + GAP) + 18
    width, height = COLUMNS * PANEL_W + 60, rows * panel_h + 50
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
           f'viewBox="0 0 {width} {height}" font-family="sans-serif" fill="#202124">',
           f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
           _text(20, 26, caption, size=13)]
    for i, figure in enumerate(MAIN):
        out += _panel(results, figure, 20 + i % COLUMNS * (PANEL_W + 20),
                      44 + i // COLUMNS * panel_h)
    return "\n".join([*out, "</svg>\n"])


def write(results, caption, path):
    """Writes `path`; its suffix says what."""
    if path.endswith(".svg"):
        with open(path, "w", encoding="utf-8") as file:
            file.write(svg(results, caption))
        return
    source = path + ".svg"
    try:
        with open(source, "x", encoding="utf-8") as file:
            file.write(svg(results, caption))
        run(["rsvg-convert", "-o", path, source])
    finally:
        if os.path.exists(source):
            os.unlink(source)
