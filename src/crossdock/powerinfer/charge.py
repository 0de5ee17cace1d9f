"""Layers that take no groups or at least a minimum, all at one cost a group: exact, by a price and a dynamic program.

At a price for every group each layer has its own best number of groups; every choice loses something against these.
A number of groups that alone loses more than a known choice does in all is in no best choice. That decides most layers,
and the program runs over the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from crossdock.powerinfer.rank import Ints

NOTHING: Final = np.iinfo(np.int64).min // 4  # less than any sum of gains
Window = tuple[int, int]  # a layer may take from .. to .. groups, or none


def charged(gains: Sequence[Ints], most: int, minimum: int, beyond: Sequence[int]) -> tuple[list[int], list[int]]:
    """At most `most` groups in all: groups per layer, and the layers of which further groups could be in a best choice.

    As long as there are such layers nothing is chosen. The rest as for `choose.choose`.
    """
    possible, unsure = _possible(gains, most, minimum, beyond)
    if unsure:
        return [0] * len(gains), unsure
    groups = (possible.shape[1] - 1 - possible[:, ::-1].argmax(axis=1)).tolist()  # the most of each layer
    open_layers = np.flatnonzero(possible.sum(axis=1) > 1).tolist()
    if open_layers:
        fewest = (1 + possible[:, 1:].argmax(axis=1)).tolist()
        most = min(most - sum(groups) + (some := sum(groups[layer] for layer in open_layers)), some)
        windows = [(fewest[layer], groups[layer]) for layer in open_layers]
        _, taken = program([gains[layer] for layer in open_layers], windows, most)
        for layer, column in zip(open_layers, taken, strict=True):
            groups[layer] = int(column[most])
    return groups, unsure


def program(gains: Sequence[Ints], windows: Sequence[Window], most: int) -> tuple[Ints, list[Ints]]:
    """The best gain with at most k groups for every k up to `most`, and per layer what it takes of k.

    Layer after layer: best[k] = max(best[k], max over n of the window of best[k - n] + sum of n gains). Of equal
    choices it is the one in which the last layer takes least, then the one before it, and so on.
    """
    best = np.zeros(most + 1, np.int64)
    picks = []
    for layer, (least, top) in zip(gains, windows, strict=True):
        top = min(top, most)
        pick = np.zeros(most + 1, np.int64)
        if least <= top:
            sums = np.cumsum(layer[:top])[least - 1 :]
            padded = np.concatenate([np.full(top, NOTHING), best[: most + 1 - least]])
            # row k holds best[k - top] ... best[k - least]; turned round: n = least ... top
            offers = np.lib.stride_tricks.sliding_window_view(padded, top - least + 1)[:, ::-1] + sums
            at = offers.argmax(axis=1)
            offered = np.take_along_axis(offers, at[:, None], 1)[:, 0]
            pick = np.where(offered > best, at + least, 0)
            best = np.maximum(best, offered)
        picks.append(pick)
    left = np.arange(most + 1)
    taken = []
    for pick in reversed(picks):
        taken.append(pick[left])
        left = left - taken[-1]
    return best, taken[::-1]


def _possible(
    gains: Sequence[Ints], most: int, minimum: int, beyond: Sequence[int]
) -> tuple[NDArray[np.bool_], list[int]]:
    """Per layer and number of groups: could it be in a best choice? And the layers that could take more than given."""
    deepest = min(max(len(layer) for layer in gains), most)
    table = np.zeros((len(gains), deepest), np.int64)
    for row, layer in zip(table, gains, strict=True):
        row[: len(layer)] = layer[:deepest]
    sums = np.zeros((len(gains), deepest + 1), np.int64)
    np.cumsum(table, axis=1, out=sums[:, 1:])
    number = np.arange(deepest + 1)
    given = np.array([[min(len(layer), deepest)] for layer in gains])
    legal = (number <= given) & ((number == 0) | (number >= minimum))
    wide = given[:, 0] >= minimum
    price = _price(table[wide], sums[wide], most, minimum) if wide.any() else 0
    worth = np.where(legal, sums - price * number, NOTHING)
    own = worth.argmax(axis=1)[:, None]  # of equally good numbers of groups the least
    best, deep = (np.take_along_axis(worth, n, 1)[:, 0].tolist() for n in (own, given))
    slack = price * most + sum(best)
    if (left := most - int(own.sum())) >= 0:  # a choice at hand: these groups, and the next best ones for what is left
        further = np.sort(table[(own > 0) & (number[:-1] >= own)])
        slack -= int(np.take_along_axis(sums, own, 1).sum() + further[max(len(further) - left, 0) :].sum())
    possible = legal & (np.array(best)[:, None] - worth <= slack)
    unsure = [
        layer
        for layer, more in enumerate(beyond)
        if more >= 0 and len(gains[layer]) < most and best[layer] - deep[layer] + price - more <= slack
    ]
    return possible, unsure


def _price(table: Ints, sums: Ints, most: int, minimum: int) -> int:
    """What a group costs when the budget is just used up, if layers could be taken in fractions; rounded up.

    Every price gives a true bound, this one a close one: so a float does.
    """
    number = np.arange(table.shape[1] + 1)
    rate = sums[:, minimum:] / number[minimum:]
    first = minimum + rate.argmax(axis=1)  # a layer begins with as many groups as have the highest average
    rates = np.concatenate([rate.max(axis=1), table[number[:-1] >= first[:, None]]])
    takes = np.concatenate([first, np.ones(len(rates) - len(first), np.int64)])
    order = np.argsort(-rates, kind="stable")
    at = int(np.searchsorted(np.cumsum(takes[order]), most, side="right"))
    return int(np.ceil(rates[order[at]])) if at < len(order) else 0
