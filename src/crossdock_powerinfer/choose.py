"""The best choice of neuron groups: exact, in integers.

A layer takes its first n groups, so the gains of a layer never rise. Maximise the sum of gains, the costs within a
budget; with a minimum, a layer takes none or at least that many (a fixed charge). Layers of one cost per group are a
sort, or a dynamic program (`charge`); different costs are combined (`curves`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossdock_powerinfer.charge import charged
from crossdock_powerinfer.curves import of_many_costs
from crossdock_powerinfer.rank import Counts, Ranked, guess, rank, reach


@dataclass(frozen=True, slots=True)
class Choice:
    """Groups taken per layer; `gain` is what they cover and `cost` what they take of the budget.

    unsure  layers of which groups that `choose` was not given could be in a best choice: this is none until they are
    price   about what a group must gain to be in a best choice
    """

    groups: tuple[int, ...]
    gain: int
    cost: int
    unsure: tuple[int, ...] = ()
    price: int = 0


def best(
    layers: Sequence[Counts], grain: int, costs: Sequence[int], budget: int, minimum: int = 0
) -> tuple[list[Ranked], Choice]:
    """Rank each layer's counts as far as the choice needs it, and choose.

    layers  counts per layer [n_ff], not negative; `grain` of them are a group. The rest and errors as for `choose`
    """
    if len(set(costs)) > 1:
        ranked = [rank(counts, grain, len(counts)) for counts in layers]
    elif minimum > 1:
        ranked = [rank(counts, grain, minimum, minimum) for counts in layers]
    else:
        least = guess(layers, grain, max(budget, 0) // costs[0])
        ranked = [rank(counts, grain, max(reach(counts, grain, least), 1)) for counts in layers]
    while True:
        found = choose([one.gains for one in ranked], costs, budget, minimum, [one.beyond for one in ranked])
        if not found.unsure:
            return ranked, found
        for layer in found.unsure:
            known, counts = ranked[layer], layers[layer]
            wanted = max(reach(counts, grain, found.price // grain), len(known.gains) * 5 // 4 + 1)
            ranked[layer] = rank(counts, grain, wanted, minimum)


def choose(
    gains: Sequence[Sequence[int]], costs: Sequence[int], budget: int, minimum: int = 0, beyond: Sequence[int] = ()
) -> Choice:
    """The groups per layer of the highest total gain.

    gains    per layer, never rising, not negative; all together within int64
    costs    per layer: what one group takes, at least 1
    minimum  least groups of a layer that has any
    beyond   per layer: what no group after those of `gains`, which are at least `minimum`, can gain; -1 when none is
    Raises UsageError when the layers have so many different costs that the search would take gigabytes.
    """
    budget, beyond = max(budget, 0), beyond or [-1] * len(gains)
    price = 0
    if len(set(costs)) > 1:
        groups = of_many_costs([np.array(one, np.int64) for one in gains], costs, budget, minimum)
        unsure = [layer for layer, more in enumerate(beyond) if more >= 0]
    elif minimum > 1:
        groups, unsure, price = charged(gains, budget // costs[0], minimum, beyond)
    else:
        groups, unsure, price = _free(gains, budget // costs[0], beyond)
    gain = sum(sum(layer[:n]) for layer, n in zip(gains, groups, strict=True))
    cost = sum(n * one for n, one in zip(groups, costs, strict=True))
    return Choice(tuple(groups), gain, cost, tuple(unsure), price)


def _free(gains: Sequence[Sequence[int]], most: int, beyond: Sequence[int]) -> tuple[list[int], list[int], int]:
    """Without a minimum the best groups of all layers are the largest gains; of equal ones the first layer's."""
    taken = sorted(itertools.chain.from_iterable(gains), reverse=True)[:most]
    if not taken:
        return [0] * len(gains), [], 0
    cheapest = taken[-1] if len(taken) == most else 0
    equal, groups, unsure = taken.count(cheapest), [], []
    for number, layer in enumerate(gains):
        as_dear = min(layer.count(cheapest), equal)
        equal -= as_dear
        n = len([gain for gain in layer if gain > cheapest]) + as_dear
        groups.append(n)
        if n == len(layer) and beyond[number] >= cheapest:
            unsure.append(number)
    return groups, unsure, cheapest
