"""The curves of a run as the picture that a notebook keeps: SVG, in an image. Pure."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence

from ..engine.series import Series
from . import render

WIDTH, HEIGHT, LEFT, BOTTOM = 640, 200, 64, 22
CURVES = 60  # that are drawn
POINTS = 64  # of each
WIDE = 1000  # times the smallest number is the largest where the axis is logarithmic
# Told apart also by most who see colours otherwise, and seen on light and on dark ground.
COLOURS = ("#2f7fc1", "#b87a00", "#1a936f", "#c2649a", "#d1602b", "#8c6bb1", "#4d9aa8", "#808080")


def image(series: Series) -> str:
    """Return the curves of the key that is shown first as HTML; "" where there are none.

    The image is of at most 100 KiB, whatever the number of points.
    """
    key = series.shown()
    curves = [(index, x, y) for at, index, x, y in series.whole(10**9) if at == key]
    if max((len(x) for _, x, _ in curves), default=0) < 2:
        return ""
    name = render.plain(series.keys[key], 40)
    alt = f"{name} of {len(curves):,} input{'s' if len(curves) != 1 else ''}, output by output"
    text = base64.b64encode(svg(name, curves[:CURVES]).encode()).decode()
    return f'<p><img alt="{html.escape(alt)}" src="data:image/svg+xml;base64,{text}"></p>'


def svg(name: str, curves: Sequence[tuple[int, Sequence[int], Sequence[float]]]) -> str:
    """Draw curves of (input, x, y)."""
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

    lines = []
    for n, (_, xs, ys) in enumerate(curves):
        step = max(1, -(-len(xs) // POINTS))
        points = " ".join(map(place, xs[::step], ys[::step]))
        lines.append(f'<polyline stroke="{COLOURS[n % len(COLOURS)]}" points="{points}"/>')
    bottom = HEIGHT - BOTTOM
    style = 'font-family="sans-serif" font-size="11" fill="#808080"'
    texts = (
        f'<text x="{LEFT - 6}" y="16" text-anchor="end">{high:.4g}</text>'
        f'<text x="{LEFT - 6}" y="{bottom}" text-anchor="end">{low:.4g}</text>'
        f'<text x="{LEFT}" y="{HEIGHT - 6}">{html.escape(name)}, by output{", log" * wide}</text>'
        f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">{right:,}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}"><path stroke="#808080" fill="none" '
        f'd="M{LEFT} 4V{bottom}H{WIDTH - 8}"/><g {style}>{texts}</g>'
        f'<g fill="none" stroke-width="1.3">{"".join(lines)}</g></svg>'
    )
