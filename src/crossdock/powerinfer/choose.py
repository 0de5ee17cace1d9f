"""The best choice of neuron groups: exact, in integers, with a bound that proves it or says how far it could be.

Each layer's counts are sorted and summed in groups of `grain`; a layer takes its first n groups, so the gains of a
layer never rise. Maximise the sum of gains, the costs within a budget; with a minimum, a layer takes none or at least
that many (a fixed charge). Layers of equal cost per group are one dynamic program over counts; the few different
costs are then combined by listing all combinations that are not worse in both gain and cost than another one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

import numpy as np
from numpy.typing import NDArray

from crossdock.errors import UsageError

Ints = NDArray[np.int64]
NOTHING: Final = np.iinfo(np.int64).min // 4  # less than any sum of gains
MAX_STATES: Final = 1 << 23


@dataclass(frozen=True, slots=True)
class Choice:
    """Groups taken per layer; `gain` is what they cover and `cost` what they take of the budget."""

    groups: tuple[int, ...]
    gain: int
    cost: int


@dataclass(frozen=True, slots=True)
class Curve:
    """What a set of layers of one cost can gain: best[k] with at most k groups, taken[layer][k] of them by a layer."""

    cost: int
    layers: tuple[int, ...]
    best: Ints
    taken: tuple[Ints, ...]


def ranked(counts: Ints, grain: int) -> tuple[Ints, Ints]:
    """Groups of `grain` counts each, highest counts first: (sums, the least count of each group).

    What is left of a layer's width is in no group.
    """
    groups = len(counts) // grain
    lowest_first = np.sort(counts)[len(counts) - groups * grain :].reshape(groups, grain)
    return lowest_first.sum(axis=1)[::-1], lowest_first[::-1, 0].copy()  # a copy: the sorted counts can go


def hottest(counts: Ints, neurons: int, least: int) -> NDArray[np.int32]:
    """The numbers of the `neurons` highest counts, ascending; of equal counts the lowest numbers.

    least  the lowest of these counts
    """
    if not neurons:
        return np.zeros(0, np.int32)
    chosen = (counts >= least).nonzero()[0].astype(np.int32)
    if len(chosen) > neurons:  # too many of the least count: the last ones of it stay out
        ties = np.flatnonzero(counts[chosen] == least)
        chosen = np.delete(chosen, ties[neurons - len(chosen) :])
    return chosen


def choose(gains: Sequence[Ints], costs: Sequence[int], budget: int, minimum: int = 0) -> Choice:
    """The groups per layer of the highest total gain.

    gains    per layer int64, never rising, not negative; all together within int64
    costs    per layer: what one group takes, at least 1
    minimum  least groups of a layer that has any
    Raises UsageError when the layers have so many different costs that the search would take gigabytes.
    """
    curves = []
    for cost in sorted(set(costs)):
        layers = tuple(layer for layer, other in enumerate(costs) if other == cost)
        most = min(max(budget, 0) // cost, sum(len(gains[layer]) for layer in layers))
        own = [gains[layer] for layer in layers]
        curves.append(
            _sorted_curve(cost, layers, own, most) if minimum <= 1 else _charged(cost, layers, own, most, minimum)
        )
    counts = _combine(curves, max(budget, 0))
    groups = [0] * len(gains)
    for curve, k in zip(curves, counts, strict=True):
        for layer, taken in zip(reversed(curve.layers), reversed(curve.taken), strict=True):
            groups[layer] = int(taken[k])
            if (
                minimum > 1
            ):  # `taken` of a dynamic program is what this layer takes of k; the rest is for those before it
                k -= groups[layer]
    gain = sum(int(layer[:n].sum()) for layer, n in zip(gains, groups, strict=True))
    return Choice(tuple(groups), gain, sum(n * cost for n, cost in zip(groups, costs, strict=True)))


def upper_bound(gains: Sequence[Ints], costs: Sequence[int], budget: int, minimum: int = 0) -> int:
    """What no choice can exceed: the optimum when layers may be taken in fractions, in exact arithmetic.

    Built from the concave hull of each layer's sums, without any of `choose`'s steps: equal to a choice's gain, it
    proves that choice optimal.
    """
    segments: list[tuple[Fraction, int, int]] = []  # gain per cost, gain, cost
    for layer, cost in zip(gains, costs, strict=True):
        hull = [(0, 0)]
        sums = np.concatenate([[0], np.cumsum(layer)]).tolist()
        for n in range(max(minimum, 1), len(sums)):
            point = (n, sums[n])
            while len(hull) > 1 and _turns_up(hull[-2], hull[-1], point):
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


def _turns_up(a: tuple[int, int], b: tuple[int, int], c: tuple[int, int]) -> bool:
    return int((b[1] - a[1]) * (c[0] - b[0])) <= int((c[1] - b[1]) * (b[0] - a[0]))


def _sorted_curve(cost: int, layers: tuple[int, ...], gains: list[Ints], most: int) -> Curve:
    """Without a minimum the best k groups of all layers are the k largest gains: no layer's ever rise."""
    every = np.concatenate(gains)
    owner = np.repeat(np.arange(len(gains)), [len(one) for one in gains])
    order = np.argsort(-every, kind="stable")[:most]
    best = np.concatenate([[0], np.cumsum(every[order])]).astype(np.int64)
    owners = owner[order]
    taken = tuple(np.concatenate([[0], np.cumsum(owners == n)]) for n in range(len(gains)))
    return Curve(cost, layers, best, taken)


def _charged(cost: int, layers: tuple[int, ...], gains: list[Ints], most: int, minimum: int) -> Curve:
    """Over the layers: best[k] = max(best[k], max over n >= minimum of best[k - n] + sum of n gains)."""
    best = np.zeros(most + 1, np.int64)
    taken = []
    for layer in gains:
        top = min(len(layer), most)
        if top < minimum:
            taken.append(np.zeros(most + 1, np.int64))
            continue
        sums = np.cumsum(layer)[minimum - 1 : top]
        padded = np.concatenate([np.full(top, NOTHING), best[: most + 1 - minimum]])
        windows = np.lib.stride_tricks.sliding_window_view(padded, top - minimum + 1)
        # row k holds best[k - top] ... best[k - minimum]; turned round: n = minimum ... top
        offers = windows[:, ::-1] + sums
        pick = offers.argmax(axis=1)
        offered = np.take_along_axis(offers, pick[:, None], 1)[:, 0]
        better = offered > best
        taken.append(np.where(better, pick + minimum, 0))
        best = np.where(better, offered, best)
    return Curve(cost, layers, best, tuple(taken))


def _combine(curves: Sequence[Curve], budget: int) -> list[int]:
    """Groups for each curve. The last curve takes what the others leave; of the others all sensible states are kept."""
    gain, cost = np.zeros(1, np.int64), np.zeros(1, np.int64)
    steps: list[tuple[Ints, Ints]] = []
    for number, curve in enumerate(curves[:-1]):
        rest = curves[number + 1 :]
        parent, k, gain, cost = _extend(gain, cost, curve, budget)
        floor = _greedy(gain, cost, rest, budget)
        keep = gain + _relaxed(rest, budget - cost) >= floor
        parent, k, gain, cost = parent[keep], k[keep], gain[keep], cost[keep]
        steps.append((parent, k))
    last = curves[-1]
    room = np.minimum((budget - cost) // last.cost, len(last.best) - 1)
    state = int(np.argmax(gain + last.best[room]))
    out = [int(room[state])]
    for parent, k in reversed(steps):
        out.append(int(k[state]))
        state = int(parent[state])
    return out[::-1]


def _extend(gain: Ints, cost: Ints, curve: Curve, budget: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Every state with every number of groups, without those that another one beats in gain and cost."""
    steps = np.arange(len(curve.best))
    if len(gain) * len(steps) > MAX_STATES:
        raise UsageError(
            "the layers have too many different costs for an exact choice",
            got=f"{len(gain) * len(steps):,} combinations",
            expected=f"at most {MAX_STATES:,}",
            fix="a larger --grain",
        )
    costs = (cost[:, None] + steps * curve.cost).ravel()
    gains = (gain[:, None] + curve.best).ravel()
    fits = np.flatnonzero(costs <= budget)
    order = fits[np.lexsort((-gains[fits], costs[fits]))]
    above = np.maximum.accumulate(np.concatenate([[-1], gains[order][:-1]]))
    kept = order[gains[order] > above]
    return kept // len(steps), kept % len(steps), gains[kept], costs[kept]


def _greedy(gain: Ints, cost: Ints, rest: Sequence[Curve], budget: int) -> int:
    """A gain that can be had: the states, then the other curves one after another with what is left."""
    for curve in rest:
        room = np.minimum((budget - cost) // curve.cost, len(curve.best) - 1)
        gain, cost = gain + curve.best[room], cost + room * curve.cost
    return int(gain.max())


def _relaxed(rest: Sequence[Curve], left: Ints) -> Ints:
    """What the other curves can gain at most within `left`: fractions of the steps of their concave hulls."""
    rates, costs = [], []
    for curve in rest:
        hull = [0]
        best = curve.best.tolist()
        for k in range(1, len(best)):
            while len(hull) > 1 and _turns_up((hull[-2], best[hull[-2]]), (hull[-1], best[hull[-1]]), (k, best[k])):
                hull.pop()
            hull.append(k)
        steps = np.diff(hull) * curve.cost
        rates.append(np.diff(curve.best[hull]) / steps)
        costs.append(steps)
    rate, cost = np.concatenate(rates), np.concatenate(costs)
    order = np.argsort(-rate, kind="stable")
    at = np.concatenate([[0], np.cumsum(cost[order])])
    value = np.concatenate([[0.0], np.cumsum(rate[order] * cost[order])])
    bound = np.interp(left, at, value)
    # float64 must not cut off the optimum
    whole: Ints = np.ceil(bound * (1 + 1e-9)).astype(np.int64) + 1
    return whole
