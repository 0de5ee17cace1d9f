"""Layers of a few different costs: the best choice within a budget, exact.

Layers of one cost are one curve, gain over groups. The curves are combined by listing all combinations that are not
worse in both gain and cost than another one; what a bound shows to be hopeless is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from crossdock.errors import UsageError
from crossdock_powerinfer.bounds import turns_up
from crossdock_powerinfer.charge import program
from crossdock_powerinfer.rank import Ints

MAX_STATES: Final = 1 << 23


@dataclass(frozen=True, slots=True)
class Curve:
    """What the layers of one cost can gain: best[k] with at most k groups, of which a layer takes taken[layer][k]."""

    cost: int
    layers: tuple[int, ...]
    best: Ints
    taken: Sequence[Ints]


def of_many_costs(gains: Sequence[Ints], costs: Sequence[int], budget: int, minimum: int) -> list[int]:
    """Groups per layer. Arguments and errors as for `choose.choose`."""
    curves = []
    for cost in sorted(set(costs)):
        layers = tuple(layer for layer, other in enumerate(costs) if other == cost)
        own = [gains[layer] for layer in layers]
        most = min(budget // cost, sum(len(layer) for layer in own))
        if minimum > 1:
            best, taken = program(own, [(minimum, len(layer)) for layer in own], most)
        else:
            best, taken = _sorted(own, most)
        curves.append(Curve(cost, layers, best, taken))
    groups = [0] * len(gains)
    for curve, k in zip(curves, _combine(curves, budget), strict=True):
        for layer, column in zip(curve.layers, curve.taken, strict=True):
            groups[layer] = int(column[k])
    return groups


def _sorted(gains: Sequence[Ints], most: int) -> tuple[Ints, list[Ints]]:
    """Without a minimum the best k groups of all layers are the k largest gains: no layer's ever rise."""
    every = np.concatenate(gains)
    owner = np.repeat(np.arange(len(gains)), [len(one) for one in gains])
    order = np.argsort(-every, kind="stable")[:most]
    best = np.concatenate([[0], np.cumsum(every[order])]).astype(np.int64)
    return best, [np.concatenate([[0], np.cumsum(owner[order] == n)]) for n in range(len(gains))]


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
            while len(hull) > 1 and turns_up((hull[-2], best[hull[-2]]), (hull[-1], best[hull[-1]]), (k, best[k])):
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
