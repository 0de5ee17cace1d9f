"""The best choice of neuron groups: exact, in integers.

A layer takes its first n groups, so the gains of a layer never rise. Maximise the sum of gains, the costs within a
budget; with a minimum, a layer takes none or at least that many (a fixed charge). Layers of one cost per group are a
sort, or a dynamic program (`charge`); different costs are combined (`curves`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossdock.powerinfer.charge import charged
from crossdock.powerinfer.curves import of_many_costs
from crossdock.powerinfer.rank import Ints, Ranked, depths, rank


@dataclass(frozen=True, slots=True)
class Choice:
    """Groups taken per layer; `gain` is what they cover and `cost` what they take of the budget.

    unsure  layers of which groups that `choose` was not given could be in a best choice: this is none until they are
    """

    groups: tuple[int, ...]
    gain: int
    cost: int
    unsure: tuple[int, ...] = ()


def best(
    layers: Sequence[Ints], grain: int, costs: Sequence[int], budget: int, minimum: int = 0
) -> tuple[list[Ranked], Choice]:
    """Rank each layer's counts as far as the choice needs it, and choose.

    layers  per layer int64 [n_ff], not negative; `grain` of them are a group. The rest and errors as for `choose`
    """
    first = [len(counts) // grain for counts in layers]
    if len(set(costs)) == 1:
        first = depths(layers, grain, max(budget, 0) // costs[0], minimum)
    ranked = [rank(counts, grain, n) for counts, n in zip(layers, first, strict=True)]
    while True:
        found = choose([one.gains for one in ranked], costs, budget, minimum, [one.beyond for one in ranked])
        if not found.unsure:
            return ranked, found
        for layer in found.unsure:
            known = ranked[layer]
            ranked[layer] = rank(layers[layer], grain, min(2 * len(known.gains), known.groups))


def choose(
    gains: Sequence[Ints], costs: Sequence[int], budget: int, minimum: int = 0, beyond: Sequence[int] = ()
) -> Choice:
    """The groups per layer of the highest total gain.

    gains    per layer int64, never rising, not negative; all together within int64
    costs    per layer: what one group takes, at least 1
    minimum  least groups of a layer that has any
    beyond   per layer: what no group after those of `gains`, which are at least `minimum`, can gain; -1 when none is
    Raises UsageError when the layers have so many different costs that the search would take gigabytes.
    """
    budget, beyond = max(budget, 0), beyond or [-1] * len(gains)
    if len(set(costs)) > 1:
        groups = of_many_costs(gains, costs, budget, minimum)
        unsure = [layer for layer, more in enumerate(beyond) if more >= 0]
    elif minimum > 1:
        groups, unsure = charged(gains, budget // costs[0], minimum, beyond)
    else:
        groups, unsure = _free(gains, budget // costs[0], beyond)
    gain = int(np.concatenate([layer[:n] for layer, n in zip(gains, groups, strict=True)]).sum())
    cost = sum(n * one for n, one in zip(groups, costs, strict=True))
    return Choice(tuple(groups), gain, cost, tuple(unsure))


def _free(gains: Sequence[Ints], most: int, beyond: Sequence[int]) -> tuple[list[int], list[int]]:
    """Without a minimum the best groups of all layers are the largest gains; of equal ones the first layer's."""
    every = np.concatenate(gains)
    owner = np.repeat(np.arange(len(gains)), [len(layer) for layer in gains])
    order = np.argsort(-every, kind="stable")[:most]
    groups = np.bincount(owner[order], minlength=len(gains)).tolist()
    if not most:
        return groups, []
    cheapest = int(every[order[-1]]) if len(order) == most else 0
    each = enumerate(zip(gains, groups, beyond, strict=True))
    return groups, [number for number, (layer, n, more) in each if n == len(layer) and more >= cheapest]
