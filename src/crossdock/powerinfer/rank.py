"""The hottest neurons of a layer in groups, sorted only as far as a choice can need them.

A group that is worth its place has at least one count as high as the average count of the cheapest group taken; what
lies below is never sorted. How far that is, is guessed from a sample: a guess costs time when it is wrong, never
a neuron, because every ranking says what the groups after it cannot exceed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
SAMPLE: Final = 8192
ROOM: Final = 1.1  # more than the guess by so much, since groups are whole


@dataclass(frozen=True, slots=True)
class Ranked:
    """A layer's first groups, the highest counts first.

    gains   int64 [groups], never rising: the sum of each group's counts
    least   int64 [groups]: the lowest count in each group
    beyond  what no further group of the layer can gain; -1 when it has none
    groups  groups that the layer has in all
    """

    gains: Ints
    least: Ints
    beyond: int
    groups: int

    def at_most(self) -> list[int]:
        """What each group of the layer gains, or cannot exceed when it was not ranked."""
        gains: list[int] = self.gains.tolist()
        return gains + [self.beyond] * (self.groups - len(gains))


def rank(counts: Ints, grain: int, groups: int) -> Ranked:
    """The first `groups` groups of `grain` counts each; what is left of a layer's width is in no group."""
    start = len(counts) - groups * grain
    ordered = counts.copy()
    if 0 < start < len(counts):
        ordered.partition(start)
    ordered = ordered[start:]
    ordered.sort()
    lowest_first = ordered.reshape(groups, grain)
    beyond, every = -1, len(counts) // grain
    if groups < every:
        beyond = grain * int(ordered[0] if groups else counts.max())
    # a copy of the least counts: the sorted ones can go
    return Ranked(np.add.reduce(lowest_first, axis=1)[::-1], lowest_first[::-1, 0].copy(), beyond, every)


def depths(layers: Sequence[Ints], grain: int, groups: int, minimum: int) -> list[int]:
    """How many groups of each layer to rank when `groups` in all can be taken; at least one, and `minimum`."""
    width = sum(len(counts) for counts in layers)
    step = max(1, width // SAMPLE)
    sample = np.concatenate([counts[::step] for counts in layers])
    below = len(sample) - max(1, int(ROOM * groups * grain / width * len(sample)))
    cut = np.partition(sample, below)[below] if below > 0 else 0
    out = []
    for counts in layers:
        reached = -(-int(np.count_nonzero(counts >= cut)) // grain)
        out.append(min(max(reached, minimum, 1), len(counts) // grain))
    return out


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
