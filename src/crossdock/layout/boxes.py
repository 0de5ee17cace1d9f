"""Boxes between containers: from two lenses on one canonical tensor to strided copies between their elements.

Pure arithmetic on integers. A `Strided` says: copy `size` elements along each axis, from `src` in steps of `src_step`
to `dst` in steps of `dst_step`, all counted in elements.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from crossdock.layout.lenses import Lens, Range


class Strided(NamedTuple):
    """A strided copy in elements; axes outermost first in the target."""

    src: int
    dst: int
    size: tuple[int, ...]
    src_step: tuple[int, ...]
    dst_step: tuple[int, ...]


def intersect(source: Lens, target: Lens) -> dict[str, Range] | None:
    """The canonical box that both hold, or None."""
    ranges = {p.axis: (p.low, p.high) for p in source.axes}
    box = {}
    for p in target.axes:
        low, high = ranges[p.axis]
        low, high = max(low, p.low), min(high, p.high)
        if low >= high:
            return None
        box[p.axis] = (low, high)
    return box


def volume(box: dict[str, Range]) -> int:
    """Return the number of elements in a box."""
    return math.prod(high - low for low, high in box.values())


def steps_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Element steps of a C-contiguous tensor of this shape."""
    steps, step = [], 1
    for size in reversed(shape):
        steps.append(step)
        step *= size
    return tuple(reversed(steps))


def strided(
    box: dict[str, Range], source: Lens, src_steps: Sequence[int], target: Lens, dst_steps: Sequence[int]
) -> Strided:
    """The copy of `box` between two containers whose dimensions have these element steps."""
    src = sum(start * step for start, step in zip(source.starts, src_steps, strict=True))
    dst = sum(start * step for start, step in zip(target.starts, dst_steps, strict=True))
    from_axis = {p.axis: p for p in source.axes}
    axes: list[tuple[int, int, int]] = []
    for p in target.axes:
        low, high = box[p.axis]
        q = from_axis[p.axis]
        src_step = q.step * src_steps[q.dim] if q.dim >= 0 else 0
        dst_step = p.step * dst_steps[p.dim] if p.dim >= 0 else 0
        src += (low - q.low) * src_step
        dst += (low - p.low) * dst_step
        if high - low > 1:
            axes.append((dst_step, src_step, high - low))
    return folded(src, dst, axes)


def folded(src: int, dst: int, axes: list[tuple[int, int, int]]) -> Strided:
    """Sort axes by target step and join neighbours that are contiguous on both sides."""
    axes.sort(reverse=True)
    out: list[tuple[int, int, int]] = []
    for dst_step, src_step, size in axes:
        if out:
            outer_dst, outer_src, outer_size = out[-1]
            if outer_dst == dst_step * size and outer_src == src_step * size:
                out[-1] = (dst_step, src_step, outer_size * size)
                continue
        out.append((dst_step, src_step, size))
    return Strided(src, dst, tuple(a[2] for a in out), tuple(a[1] for a in out), tuple(a[0] for a in out))


def runs(start: int, axes: Sequence[tuple[int, int]], low: int, high: int) -> Iterator[tuple[int, tuple[Range, ...]]]:
    """The parts of a nested index set that fall into [low, high).

    The set is {start + sum(i * step)} over `axes` = (step, size) with descending steps, every axis nested inside one
    step of the axis before it. Yields (first index of the part, range of each axis).
    """
    if not axes:
        if low <= start < high:
            yield start, ()
        return
    (step, size), inner = axes[0], axes[1:]
    reach = sum(s * (n - 1) for s, n in inner)  # last minus first index of one inner block
    whole_low = max(0, -(-(low - start) // step)) if step else 0
    whole_high = min(size, (high - 1 - reach - start) // step + 1) if step else size
    if whole_low < whole_high:
        yield start + whole_low * step, ((whole_low, whole_high), *((0, n) for _, n in inner))
    else:
        whole_low = whole_high = max(0, min(whole_low, size))
    if not inner:
        return
    partial = {i for i in (whole_low - 1, whole_high) if 0 <= i < size and not whole_low <= i < whole_high}
    for i in sorted(partial):
        for first, ranges in runs(start + i * step, inner, low, high):
            yield first, ((i, i + 1), *ranges)


def inside_extent(
    box: dict[str, Range], source: Lens, origin: Sequence[int], shape: Sequence[int]
) -> Iterator[tuple[dict[str, Range], Lens]]:
    """The parts of `box` that lie in the chunk at `origin` of `shape`, each with a lens relative to the chunk."""
    per_dim: list[list[dict[str, Range]]] = []
    for dim, (first, size) in enumerate(zip(origin, shape, strict=True)):
        placed = sorted((p for p in source.axes if p.dim == dim), key=lambda p: -p.step)
        start = source.starts[dim] + sum((box[p.axis][0] - p.low) * p.step for p in placed)
        axes = [(p.step, box[p.axis][1] - box[p.axis][0]) for p in placed]
        found = []
        for _, ranges in runs(start, axes, first, first + size):
            found.append(
                {p.axis: (box[p.axis][0] + a, box[p.axis][0] + b) for p, (a, b) in zip(placed, ranges, strict=True)}
            )
        if not found:
            return
        per_dim.append(found)
    shifted = Lens(source.tensor, source.axes, tuple(s - o for s, o in zip(source.starts, origin, strict=True)))
    for choice in itertools.product(*per_dim):
        part = dict(box)
        for ranges_of_dim in choice:
            part.update(ranges_of_dim)
        yield part, shifted
