"""Scatter plots and strips as inline SVG: numbers in, markup out. Every text that goes in is escaped here.

Heights are logarithmic; what is zero lies on the bottom line, what is not finite on the top, in red.
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
LINES = 6  # labels at the side, at most
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
    percent: bool = False,
    limit: tuple[float, str] | None = None,
    height: float = HEIGHT,
) -> str:
    """Dots over 0 to `span`. ticks: (x, label) along the bottom; limit: a line that the dots should stay below, and its
    name; percent: label heights as such.
    """
    lines = _lines([dot.value for dot in dots] + ([limit[0]] if limit else []))
    low, high = math.log10(lines[0]), math.log10(lines[-1])
    base = height - BOTTOM

    def across(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * x / max(span, 1)

    def up(value: float) -> float:
        if not math.isfinite(value):
            return TOP
        share = 0.0 if value <= 0 else (math.log10(value) - low) / (high - low)
        return base - (base - TOP) * min(max(share, 0.0), 1.0)

    out = [f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{text(name)}">']
    for line in lines:
        y = up(line)
        out.append(f'<line class="grid" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{LEFT - 8:g}" y="{y + 4:.1f}" text-anchor="end">{_tick_text(line, percent)}</text>')
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
        y = up(limit[0])
        out.append(f'<line class="limit" x1="{LEFT:g}" x2="{WIDTH - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(
            f'<text class="limit-name" x="{WIDTH - RIGHT:g}" y="{y - 4:.1f}" text-anchor="end">{text(limit[1])}</text>'
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


def _lines(values: Sequence[float]) -> Sequence[float]:
    """Round heights from below the values to above: 1, 2 and 5 of each decade, or decades if those are many."""
    some = [value for value in values if 0 < value < math.inf] or [1.0]
    first, last = math.floor(math.log10(min(some))), math.ceil(math.log10(max(some)))
    last = max(last, first + 1)
    fine = [digit * 10.0**decade for decade in range(first, last + 1) for digit in (1, 2, 5)]
    low = max((at for at, line in enumerate(fine) if line <= min(some)), default=0)
    high = max(min(at for at, line in enumerate(fine) if line >= max(some)), low + 1)
    if high - low < LINES:
        return fine[low : high + 1]
    step = -(-(last - first) // (LINES - 1))
    return [10.0**decade for decade in range(first, last + step, step)]


def _tick_text(value: float, percent: bool) -> str:
    """A round number as people write it: 0.01, 5, 20%; beyond, 1e-7."""
    shown = f"{100 * value:.0e}" if percent else f"{value:.0e}"
    shown = f"{float(shown):g}" if 1e-4 < float(shown) < 1e4 else shown.replace("e-0", "e-").replace("e+0", "e")
    return f"{shown}%" if percent else shown


def _thinned(ticks: Sequence[tuple[float, str]]) -> Sequence[tuple[float, str]]:
    return ticks[:: max(1, -(-len(ticks) // TICKS))]
