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
Counts = NDArray[np.int32] | Ints
SAMPLE: Final = 4096
ROOM: Final = 1.1  # more than the guess by so much, since groups are whole


@dataclass(frozen=True, slots=True)
class Ranked:
    """A layer's first groups, the highest counts first.

    gains   never rising: the sum of each group's counts
    least   the lowest count in each group
    beyond  what no further group of the layer can gain; -1 when it has none
    groups  groups that the layer has in all
    """

    gains: tuple[int, ...]
    least: tuple[int, ...]
    beyond: int
    groups: int

    def at_most(self) -> tuple[int, ...]:
        """What each group of the layer gains, or cannot exceed when it was not ranked."""
        return self.gains + (self.beyond,) * (self.groups - len(self.gains))


def rank(counts: Counts, grain: int, groups: int, together: int = 0) -> Ranked:
    """The first `groups` groups of `grain` counts each, or all; what is left of a layer's width is in no group.

    together  so many of the first groups are taken as a whole or not at all: they are summed up, not sorted, and each
              is given an even part of their gain, and their lowest count
    """
    every = len(counts) // grain
    groups = min(groups, every)
    start = len(counts) - groups * grain
    ordered = counts.copy()
    if 0 < start < len(counts):
        ordered.partition(start)
    beyond = -1 if groups == every else grain * int(ordered[start] if groups else ordered.max())
    if not 1 < together <= groups:
        return Ranked(*_sorted(ordered[start:], grain), beyond, every)
    split = len(counts) - together * grain
    if start < split:
        ordered[start:].partition(split - start)
    gain, spare = divmod(int(np.add.reduce(ordered[split:], dtype=np.int64)), together)
    gains, least = (gain + 1,) * spare + (gain,) * (together - spare), (int(ordered[split]),) * together
    if start < split:
        further, lowest = _sorted(ordered[start:split], grain)
        gains, least = gains + further, least + lowest
    return Ranked(gains, least, beyond, every)


def _sorted(counts: Counts, grain: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Gain and lowest count of each group, the highest group first; sorts in place."""
    counts.sort()
    lowest_first = counts.reshape(-1, grain)
    gains = np.add.reduce(lowest_first, axis=1, dtype=np.int64)
    return tuple(gains[::-1].tolist()), tuple(lowest_first[::-1, 0].tolist())


def reach(counts: Counts, grain: int, least: int) -> int:
    """How many groups have a count of at least `least`; what is left of a layer's width counts as one."""
    return -(-int(np.count_nonzero(counts >= least)) // grain)


def guess(layers: Sequence[Counts], grain: int, groups: int) -> int:
    """The count that some more than the best `groups` groups of all layers reach, as a sample has it."""
    width = sum(map(len, layers))
    step = max(1, width // SAMPLE)
    sample = np.concatenate([counts[::step] for counts in layers])
    below = len(sample) - max(1, int(ROOM * groups * grain / width * len(sample)))
    if below <= 0:
        return 0
    sample.partition(below)
    return int(sample[below])


def hottest(counts: Counts, neurons: int, least: int) -> NDArray[np.int32]:
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
