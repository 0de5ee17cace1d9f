"""A picture of a split as one SVG without fonts, scripts or links: coverage against the budget, neurons per layer.

Only text is made here; the caller writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log10

from crossdock_powerinfer.split import Split

WIDTH, HEIGHT = 960, 400
TOP, BOTTOM = 64, 52
LEFT_PANEL, RIGHT_PANEL = (70, 450), (560, 935)
LABEL = 150  # room for the text at the point
INK, SOFT, LINE, POINT = "#222", "#777", "#2563a8", "#c8401e"


def chart(split: Split, curve: Sequence[tuple[int, float]], title: str) -> str:
    """The picture. `curve`: (cost in the split's unit, coverage) as the budget grows."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        _text(LEFT_PANEL[0], 24, title, size=15, weight="bold"),
    ]
    parts += _coverage(split, curve)
    parts += _layers(split)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _coverage(split: Split, curve: Sequence[tuple[int, float]]) -> list[str]:
    """Coverage against what is spent, with the choice marked."""
    left, right = LEFT_PANEL
    scale, unit = _unit(max([cost for cost, _ in curve] + [split.used, 1]), split.unit)
    most = max([cost for cost, _ in curve] + [split.used, 1]) / scale
    bottom, height = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP

    def x(cost: float) -> float:
        return left + (right - left) * cost / most

    def y(share: float) -> float:
        return bottom - height * share

    out = [_text(left, TOP - 14, "activations covered, %", fill=SOFT)]
    for share in (0, 0.25, 0.5, 0.75, 1):
        out.append(_rule(left, y(share), right, y(share), "#e4e4e4"))
        out.append(_text(left - 8, y(share) + 4, f"{100 * share:.0f}", anchor="end", fill=SOFT))
    for tick in _ticks(most):
        out.append(_rule(x(tick), bottom, x(tick), bottom + 5, SOFT))
        out.append(_text(x(tick), bottom + 20, f"{tick:g}", anchor="middle", fill=SOFT))
    label = f"VRAM for neurons, {unit}" if split.unit == "bytes" else f"neurons on the GPU{unit}"
    out.append(_text((left + right) / 2, bottom + 40, label, anchor="middle", fill=SOFT))
    points = " ".join(f"{x(cost / scale):.1f},{y(share):.1f}" for cost, share in curve)
    out.append(f'<polyline points="{points}" fill="none" stroke="{LINE}" stroke-width="2"/>')
    at, share = x(split.used / scale), split.coverage
    out.append(f'<path d="M{at:.1f} {bottom}V{y(share):.1f}" stroke="{POINT}" stroke-dasharray="4 3"/>')
    out.append(f'<circle cx="{at:.1f}" cy="{y(share):.1f}" r="5" fill="{POINT}"/>')
    spent = f"{split.used / scale:.3g} {unit}" if split.unit == "bytes" else f"{split.used:,} neurons"
    text = f"{100 * share:.1f}% with {spent}"
    if at - left < LABEL:
        out.append(_text(at + 10, min(y(share) + 26, bottom - 8), text, fill=POINT))
    else:  # the curve is concave: it lies above its chord, and the text below that
        chord = y(share * (1 - LABEL / (at - left)))
        out.append(_text(at - 10, min(chord + 24, bottom - 8), text, anchor="end", fill=POINT))
    return out


def _layers(split: Split) -> list[str]:
    """A bar per layer: neurons on the GPU, on the layer's width in grey."""
    left, right = RIGHT_PANEL
    bottom, height = HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP
    most = max(layer.width for layer in split.layers)
    count = len(split.layers)
    step = (right - left) / count
    gap = min(4.0, 0.2 * step)
    out = [_text(left, TOP - 14, "neurons on the GPU, per layer", fill=SOFT)]
    for number, layer in enumerate(split.layers):
        for value, colour in ((layer.width, "#e4e4e4"), (layer.neurons, LINE)):
            tall = height * value / most
            out.append(
                f'<rect x="{left + number * step + gap / 2:.2f}" y="{bottom - tall:.1f}" width="{step - gap:.2f}" '
                f'height="{tall:.1f}" fill="{colour}"/>'
            )
    for tick in _ticks(most):
        y = bottom - height * tick / most
        out.append(_rule(left - 5, y, left, y, SOFT))
        out.append(_text(left - 8, y + 4, f"{tick:,.0f}", anchor="end", fill=SOFT))
    every = max(1, round(_ticks(max(count - 1, 1))[1])) if count > 1 else 1
    for number in range(0, count, every):
        out.append(_text(left + (number + 0.5) * step, bottom + 20, str(number), anchor="middle", fill=SOFT))
    out.append(_text((left + right) / 2, bottom + 40, "layer", anchor="middle", fill=SOFT))
    return out


def _unit(most: int, unit: str) -> tuple[int, str]:
    if unit == "neurons":
        return (1000, ", thousands") if most >= 20_000 else (1, "")
    for power, name in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if most >= 1024**power:
            return int(1024**power), name
    return 1, "bytes"


def _ticks(most: float) -> list[float]:
    """0, 1, 2, ... times 1, 2 or 5 of a power of ten, four to nine of them."""
    power = 10.0 ** floor(log10(most / 4)) if most > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10) if most / (power * factor) < 8)
    return [step * number for number in range(int(most / step + 1e-9) + 1)]


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", fill: str = INK, size: int = 12, weight: str = ""
) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    bold = f' font-weight="{weight}"' if weight else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}"{bold}>{escaped}</text>'
    )


def _rule(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="{colour}"/>'
