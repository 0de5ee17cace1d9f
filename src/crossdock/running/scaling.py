"""Dividing a tensor's values by its scales, and holding what was written against what it stands for.

Scales of blocks follow from the values: rows that fit a block are scaled as they come; otherwise the values are gone
through once before. Verifying and writing measure errors here, in values, not in codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crossdock.codecs.codec import Bytes, Codec, Values, encoded_size
from crossdock.codecs.conversion import RUN
from crossdock.codecs.error_stats import ErrorStats, compare
from crossdock.codecs.scale_blocks import ScaleBlocks, divide, grow, multiply, scales_of


@dataclass(frozen=True, slots=True)
class Scales:
    """What a block's values were divided by: scales of `scale_blocks`; its first element is number `first`."""

    scale_blocks: ScaleBlocks
    scales: Values
    first: int

    def restore(self, values: Values, start: int) -> None:
        """Multiply, in place, the block's elements from `start` on."""
        multiply(values, self.first + start, self.scale_blocks, self.scales)


Divide = Callable[[Values, int], Scales]


def by_blocks(scale_blocks: ScaleBlocks, scales: Values) -> Divide:
    """Division by scales that are known."""

    def run(values: Values, first: int) -> Scales:
        divide(values, first, scale_blocks, scales)
        return Scales(scale_blocks, scales, first)

    return run


def by_rows(scale_blocks: ScaleBlocks) -> Divide:
    """Division of whole rows, each by its own scale, which follows from it."""

    def run(values: Values, first: int) -> Scales:
        largest = np.zeros(values.size // scale_blocks.width, np.float32)
        grow(largest, values, 0, scale_blocks)
        scales = scales_of(largest)
        divide(values, 0, scale_blocks, scales)
        return Scales(scale_blocks, scales, 0)

    return run


def distance(
    raw: Bytes, source: Codec, encoded: Bytes, target: Codec, scales: Scales | None, precise: bool = False
) -> ErrorStats:
    """How far encoded values lie from those that they stand for, in runs that stay in the cache. See `compare`."""
    block = math.lcm(source.block, target.block)
    step = max(RUN // block, 1) * block
    read, written = encoded_size(source, step), encoded_size(target, step)
    wanted, got = np.empty((2, step), np.float32)  # not the share's values, which may be `raw`
    figures = ErrorStats()
    for index in range(-(-raw.size // read)):
        source_raw = raw[index * read : (index + 1) * read]
        elements = source_raw.size // source.block_bytes * source.block
        ours, theirs = wanted[:elements], got[:elements]
        source.decode(source_raw, ours)
        target.decode(encoded[index * written : (index + 1) * written], theirs)
        if scales is not None:
            with np.errstate(all="ignore"):
                scales.restore(ours, index * step)
                scales.restore(theirs, index * step)
        figures += compare(ours, theirs, precise=precise)
    return figures
