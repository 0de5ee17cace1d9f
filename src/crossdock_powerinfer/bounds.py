"""What no choice of neuron groups can exceed: the proof beside a choice.

Shares no step with the search, so that a choice that reaches the bound is proven to be the best.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction


def upper_bound(gains: Sequence[Sequence[int]], costs: Sequence[int], budget: int, minimum: int = 0) -> int:
    """What no choice can exceed: the optimum when layers may be taken in fractions, in exact arithmetic.

    gains  per layer: what each group gains, or cannot exceed; never rising
    Built from the concave hull of each layer's sums, without any of `choose`'s steps: equal to a choice's gain, it
    proves that choice optimal.
    """
    segments: list[tuple[Fraction, int, int]] = []  # gain per cost, gain, cost
    for layer, cost in zip(gains, costs, strict=True):
        hull = [(0, 0)]
        sums = [0, *itertools.accumulate(layer)]
        for n in range(max(minimum, 1), len(sums)):
            point = (n, sums[n])
            while len(hull) > 1 and turns_up(hull[-2], hull[-1], point):
                hull.pop()
            hull.append(point)
        for (n, low), (m, high) in itertools.pairwise(hull):
            segments.append((Fraction(high - low, (m - n) * cost), high - low, (m - n) * cost))
    bound, left = Fraction(0), max(budget, 0)
    for rate, gain, cost in sorted(segments, key=lambda segment: segment[0], reverse=True):
        if cost > left:
            return int(bound + rate * left)
        bound, left = bound + gain, left - cost
    return int(bound)


def turns_up(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    """Whether b lies on or below the line from a to c."""
    return (b[1] - a[1]) * (c[0] - b[0]) <= (c[1] - b[1]) * (b[0] - a[0])
