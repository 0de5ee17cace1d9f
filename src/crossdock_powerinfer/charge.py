"""Layers that take no groups or at least a minimum, all at one cost a group: exact, by a price and a dynamic program.

At a price for every group each layer has its own best number of groups; every choice loses something against these.
A number of groups that alone loses more than a known choice does in all is in no best choice. That decides most layers,
and the program runs over the others.
"""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Sequence
from typing import Final

import numpy as np

from crossdock_powerinfer.rank import Ints

NOTHING: Final = np.iinfo(np.int64).min // 4  # less than any sum of gains
Window = tuple[int, int]  # a layer may take from .. to .. groups, or none


def charged(
    gains: Sequence[Sequence[int]], most: int, minimum: int, beyond: Sequence[int]
) -> tuple[list[int], list[int], int]:
    """At most `most` groups in all: groups per layer, layers whose further groups could be in a best choice, the price.

    As long as there are such layers nothing is chosen. The rest as for `choose.choose`.
    """
    parts = {
        layer: (sum(one[:minimum]), one[minimum:most])
        for layer, one in enumerate(gains)
        if minimum <= min(len(one), most)
    }
    price = _price(list(parts.values()), most, minimum)
    own = {}  # per layer: how many further groups gain more than the price, and what all of it is worth
    for layer, (first, further) in parts.items():
        n = bisect_left(further, -price, key=operator.neg)
        own[layer] = n, first + sum(further[:n]) - price * (minimum + n)
    # a choice at hand: what is worth its price, and the next best groups for what is left; a better one loses less
    good = [layer for layer, (_, worth) in own.items() if worth > 0]
    left = most - sum(minimum + own[layer][0] for layer in good)
    rest = sorted((gain for layer in good for gain in parts[layer][1][own[layer][0] :]), reverse=True)
    slack = price * left - sum(rest[:left])
    windows, unsure = {}, []
    for layer, (n, worth) in own.items():
        if (spare := slack + min(worth, 0)) >= 0:
            low, high, spare = _window(parts[layer][1], n, price, spare)
            windows[layer] = minimum + low, minimum + high
            if minimum + high == len(gains[layer]) < most and 0 <= beyond[layer] >= price - spare:
                unsure.append(layer)
    groups = [windows[layer][1] if layer in windows else 0 for layer in range(len(gains))]
    opened = {layer: one for layer, one in windows.items() if own[layer][1] <= slack or one[0] < one[1]}
    if opened and not unsure:
        room = min(most - sum(groups) + (some := sum(groups[layer] for layer in opened)), some)
        _, taken = program([np.array(gains[layer], np.int64) for layer in opened], list(opened.values()), room)
        for layer, column in zip(opened, taken, strict=True):
            groups[layer] = int(column[room])
    # first what makes the price higher or the choice at hand better: it leaves fewer of the others unsure
    dear = [layer for layer in unsure if beyond[layer] > price]
    return groups, dear or [layer for layer in unsure if layer in good] or unsure, price


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


def _price(parts: Sequence[tuple[int, Sequence[int]]], most: int, minimum: int) -> int:
    """What a group costs when the budget is just used up, if layers could be taken in fractions; rounded up.

    parts  per layer: the gain of its first `minimum` groups, and of each further one
    Every price gives a true bound, this one a close one. Per group, the first part never gains less than the rest.
    """
    rates = [(-(-first // minimum), minimum) for first, _ in parts]
    rates += [(gain, 1) for _, further in parts for gain in further]
    for rate, takes in sorted(rates, reverse=True):
        if (most := most - takes) < 0:
            return rate
    return 0


def _window(further: Sequence[int], own: int, price: int, spare: int) -> tuple[int, int, int]:
    """The fewest and the most groups that lose no more than `spare` against `own` of them, and what the most leave."""
    low, left = own, spare
    while low and (left := left + price - further[low - 1]) >= 0:
        low -= 1
    high, left = own, spare
    while high < len(further) and left >= price - further[high]:
        left += further[high] - price
        high += 1
    return low, high, left
