"""The pictures of a run that a notebook keeps: its inputs and its curves as SVG in images. Pure."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence

from ..engine.model import SHOWN_STATUSES
from ..engine.series import Series
from . import render

WIDTH = 640  # pixels
HEIGHT, LEFT, BOTTOM = 200, 64, 22
CURVES = 60  # that are drawn
POINTS = 64  # of each
WIDE = 1000  # times the smallest number is the largest where the axis is logarithmic
# Told apart also by most who see colours otherwise, and seen on light and on dark ground.
COLOURS = ("#2f7fc1", "#b87a00", "#1a936f", "#c2649a", "#d1602b", "#8c6bb1", "#4d9aa8", "#808080")

SQUARES = 600  # at most; of more inputs several share one
SQUARE = 12  # pixels
# As in view.css; the loudest status of a square that stands for several is shown, as in view.js.
FILLS = ("#9e9e9e", "#1976d2", "#2e7d32", "#c62828", "#6d6d6d")
WAITING, RUNNING, DONE, FAILED, CANCELLED = range(len(SHOWN_STATUSES))


def squares(column: bytes) -> str:
    """Return a square for each input, or for several, as HTML; "" where there are no inputs.

    The image is of at most 40 KiB, whatever the number of inputs.

    Args:
        column: a status for each input (`model.SHOWN_STATUSES`).
    """
    if not column:
        return ""
    per = -(-len(column) // SQUARES)
    bins = [_loudest(column[at : at + per]) for at in range(0, len(column), per)]
    across = WIDTH // SQUARE
    parts = []
    for at, status in enumerate(bins):
        x, y = at % across * SQUARE, at // across * SQUARE
        parts.append(f'<use href="#s{status}" x="{x}" y="{y}"/>')
    side = SQUARE - 2
    shapes = [f'<rect width="{side}" height="{side}" fill="{fill}"/>' for fill in FILLS]
    shapes[WAITING] = (
        f'<rect x=".5" y=".5" width="{side - 1}" height="{side - 1}" fill="none" '
        f'stroke="{FILLS[WAITING]}"/>'
    )
    # Told apart without colours, too.
    cross = f"M2 2L{side - 2} {side - 2}M{side - 2} 2L2 {side - 2}"
    shapes[FAILED] += f'<path d="{cross}" stroke="#fff" stroke-width="1.5"/>'
    shapes[CANCELLED] += f'<path d="M2 {side / 2}H{side - 2}" stroke="#fff" stroke-width="1.5"/>'
    symbols = "".join(f'<g id="s{n}">{shape}</g>' for n, shape in enumerate(shapes))
    height = -(-len(bins) // across) * SQUARE
    counts = [f"{n:,} {name}" for at, name in enumerate(SHOWN_STATUSES) if (n := column.count(at))]
    alt = f"map of {render.inputs(len(column))}: {', '.join(counts)}"
    return _image(alt, f"<defs>{symbols}</defs>{''.join(parts)}", height)


def _loudest(statuses: bytes) -> int:
    for status in (FAILED, RUNNING, CANCELLED):
        if status in statuses:
            return status
    return DONE if statuses.count(DONE) > statuses.count(WAITING) else WAITING


def _image(alt: str, inside: str, height: int) -> str:
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 0 {WIDTH} {height}">{inside}</svg>'
    )
    data = base64.b64encode(text.encode()).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{data}"></p>'


def curves(series: Series) -> str:
    """Return the numbers of the key that is shown first as HTML; "" where there are none.

    Curves of generators; of a plain function points, behind a click. The image is of at most 80 KiB, whatever the number of points.
    """
    key = series.shown()
    lines = [(index, x, y) for at, index, x, y in series.whole(10**9) if at == key]
    if max((len(x) for _, x, _ in lines), default=0) < 2:
        return ""
    name = render.plain(series.keys[key], 40)
    if series.by_input:
        title = f"{name}, by input"
        image = _image(title, _drawn(title, lines, by_input=True), HEIGHT)
        return f"<details><summary>numbers</summary>{image}</details>"
    alt = f"{name} of {render.inputs(len(lines))}, output by output"
    return _image(alt, _drawn(f"{name}, by output", lines[:CURVES], by_input=False), HEIGHT)


def _drawn(
    title: str, curves: Sequence[tuple[int, Sequence[int], Sequence[float]]], *, by_input: bool
) -> str:
    """Draw curves of (input, x, y), or points."""
    right = max(max(x) for _, x, _ in curves) or 1
    low = min(min(y) for _, _, y in curves)
    high = max(max(y) for _, _, y in curves)
    wide = low > 0 and high / low > WIDE

    def scaled(y: float) -> float:
        return math.log10(y) if wide else y / 2  # halves differ by no more than a float can be

    top, room = scaled(high), (scaled(high) - scaled(low)) or 1.0

    def place(x: int, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - 8) * x / right
        down = 8 + (HEIGHT - BOTTOM - 8) * ((top - scaled(y)) / room)
        return f"{across:.0f},{down:.1f}"

    def drawn(xs: Sequence[int], ys: Sequence[float], colour: str) -> str:
        if by_input:  # a short line with round ends is a dot
            dots = "".join(f"M{place(x, y)}h0" for x, y in zip(xs, ys, strict=True))
            return f'<path stroke="{colour}" stroke-width="4" stroke-linecap="round" d="{dots}"/>'
        step = max(1, -(-len(xs) // POINTS))
        points = " ".join(map(place, xs[::step], ys[::step]))
        return f'<polyline stroke="{colour}" points="{points}"/>'

    lines = [drawn(xs, ys, COLOURS[n % len(COLOURS)]) for n, (_, xs, ys) in enumerate(curves)]
    bottom = HEIGHT - BOTTOM
    style = 'font-family="sans-serif" font-size="11" fill="#808080"'
    texts = (
        f'<text x="{LEFT - 6}" y="16" text-anchor="end">{high:.4g}</text>'
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">{low:.4g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{html.escape(title)}{", log" * wide}</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">{right:,}</text>'
    )
    axes = f'<path stroke="#808080" fill="none" d="M{LEFT} 4V{bottom}H{WIDTH - 8}"/>'
    return f'{axes}<g {style}>{texts}</g><g fill="none" stroke-width="1.3">{"".join(lines)}</g>'
