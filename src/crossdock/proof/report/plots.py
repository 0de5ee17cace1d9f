"""Scatter plots and strips as inline SVG: numbers in, markup out. Every text that goes in is escaped here.

Heights are logarithmic, in whole decades; what is zero lies on the bottom line, what is not finite on the top, in red.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from crossdock.wording import clean

WIDTH, HEIGHT = 1000.0, 230.0
LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 14.0, 22.0
TICKS = 16  # labels below, at most
COLOURS = ("a", "b", "c", "d", "e", "f")  # variables of style.css


class Dot(NamedTuple):
    """A mark: x in the plot's units, its value, what it says when pointed at, and its group."""

    x: float
    value: float
    title: str
    group: str = ""
    wrong: bool = False


def text(value: object) -> str:
    """Any value as HTML text; control characters and the like are spelled out."""
    return escape(clean(value), quote=True)


def colours(groups: Sequence[str]) -> Mapping[str, str]:
    """A colour for each group, in order; after six they repeat."""
    return {group: f"var(--{COLOURS[number % len(COLOURS)]})" for number, group in enumerate(groups)}


def scatter(
    dots: Sequence[Dot],
    keys: Mapping[str, str],
    span: float,
    ticks: Sequence[tuple[float, str]],
    *,
    name: str,
    limit: float | None = None,
    height: float = HEIGHT,
) -> str:
    """Dots over 0 to `span`. ticks: (x, label) along the bottom; limit: a line that the dots should stay below."""
    positive = [dot.value for dot in dots if 0 < dot.value < math.inf]
    reach = [*positive, *([limit] if limit else [])]
    low = math.floor(math.log10(min(reach))) if reach else -1
    high = max(math.ceil(math.log10(max(reach))), low + 1) if reach else 0
    base = height - BOTTOM

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / max(span, 1)

    def up(value: float) -> float:
        if not math.isfinite(value):
            return TOP
        share = 0.0 if value <= 0 else (math.log10(value) - low) / (high - low)
        return base - (base - TOP) * min(max(share, 0.0), 1.0)

    out = [f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{text(name)}">']
    for decade in range(low, high + 1, max(1, (high - low) // 5)):
        y = up(10.0**decade)
        out.append(f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end">{_power(decade)}</text>')
    for x, label in _thinned(ticks):
        out.append(f'<text x="{across(x):.1f}" y="{height - 5:g}" text-anchor="middle">{text(label)}</text>')
    for dot in dots:
        bad = dot.wrong or not math.isfinite(dot.value)
        paint = 'class="wrong-mark"' if bad else f'class="mark" style="--key:{keys.get(dot.group, "var(--a)")}"'
        out.append(
            f'<circle {paint} cx="{across(dot.x):.1f}" cy="{up(dot.value):.1f}" r="{3.4 if len(dots) < 600 else 2.4}">'
            f"<title>{text(dot.title)}</title></circle>"
        )
    if limit:
        y = up(limit)
        out.append(f'<line class="limit" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(
            f'<text class="limit-name" x="{WIDTH - RIGHT:g}" y="{y - 4:.1f}" text-anchor="end">limit {limit:.2g}</text>'
        )
    return "".join([*out, "</svg>"])


def strip(values: Sequence[tuple[bool, str]], *, name: str) -> str:
    """A row of cells, good or bad, each with what it says when pointed at. Neighbours that are good are one cell."""
    room = (WIDTH - LEFT - RIGHT) / max(len(values), 1)
    out = [f'<svg viewBox="0 0 {WIDTH:g} 30" role="img" aria-label="{text(name)}">']
    start = 0
    while start < len(values):
        stop = start + 1
        good = values[start][0]
        while good and stop < len(values) and values[stop][0]:
            stop += 1
        kind, wide = ("agree", (stop - start) * room) if good else ("disagree", max(room * 0.9, 1.5))
        says = f"{stop - start} positions agree" if good else values[start][1]
        out.append(
            f'<rect class="{kind}" x="{LEFT + start * room:.1f}" y="6" width="{wide:.1f}" height="16">'
            f"<title>{text(says)}</title></rect>"
        )
        start = stop
    return "".join([*out, "</svg>"])


def _power(decade: int) -> str:
    """10 to a power as people write it: 0.01, 1, 100; beyond, 1e-7."""
    return f"{10.0**decade:g}" if -3 <= decade <= 3 else f"1e{decade}"


def _thinned(ticks: Sequence[tuple[float, str]]) -> Sequence[tuple[float, str]]:
    return ticks[:: max(1, -(-len(ticks) // TICKS))]
