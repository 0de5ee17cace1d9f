"""Counting what should not be in weights: nan, inf, all zeros, and what a cast would turn into inf or zero.

Float bit patterns without the sign are ordered like magnitudes, so one comparison of integers finds the few that
are not ordinary, and only these are looked at. Nothing is ever changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdock.codecs.cast import Plain
from crossdock.codecs.codec import Bytes, Codec

RUN = 1 << 18  # patterns looked at at a time; in shorter runs threads wait for each other's interpreter lock
Patterns = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, slots=True)
class ValueCounts:
    """Counts over the elements of a tensor; add those of its parts. `ValueCounts()` is the count of nothing.

    nan, inf   elements that are not finite in the source
    all_zero   every element is +0 or -0
    overflow   finite in the source, inf or cut to the largest value in the target
    underflow  not zero in the source, zero in the target
    """

    nan: int = 0
    inf: int = 0
    all_zero: bool = True
    elements: int = 0
    overflow: int = 0
    underflow: int = 0

    def __add__(self, other: ValueCounts) -> ValueCounts:
        return ValueCounts(
            self.nan + other.nan,
            self.inf + other.inf,
            self.all_zero and other.all_zero,
            self.elements + other.elements,
            self.overflow + other.overflow,
            self.underflow + other.underflow,
        )

    @property
    def nonfinite(self) -> int:
        return self.nan + self.inf


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Patterns without sign of one float dtype, and what happens to them in a target dtype.

    infinite  pattern of inf, one above the largest finite pattern where the dtype has no inf
    over      first pattern that is too large for the target
    under     last pattern that a cast makes zero
    """

    infinite: int
    has_inf: bool
    over: int
    under: int


def count(raw: Bytes, codec: Codec, target: Codec | None = None) -> ValueCounts:
    """Count the elements of `raw`, whole blocks of `codec`; what casting loses if `target` is a plain float.

    Block codecs are decoded first. Integers and scales are only tested for all zero.
    """
    if isinstance(codec, Plain) and not codec.encodes:
        return ValueCounts(all_zero=not raw.any(), elements=raw.size // codec.block_bytes)
    if not isinstance(codec, Plain):
        return _count_blocks(raw, codec)
    limits = thresholds(codec, target if isinstance(target, Plain) and target.encodes else None)
    patterns = raw.view(f"u{codec.block_bytes}")
    total = ValueCounts()
    for start in range(0, patterns.size, RUN):
        total += _count(patterns[start : start + RUN], limits)
    return total


@cache
def thresholds(source: Plain, target: Plain | None) -> Thresholds:
    """The thresholds of a cast, found by bisection over all patterns, with ml_dtypes' unsaturated casts."""
    size = source.block_bytes
    infinite = _first(source, source, 8 * size - 1, lambda x: not np.isfinite(x))
    has_inf = bool(np.isinf(_value(source, source, infinite)))
    if target is None or target == source:
        return Thresholds(infinite, has_inf, infinite, 0)
    over = _first(source, target, 8 * size - 1, lambda x: not np.isfinite(x))
    under = _first(source, target, 8 * size - 1, lambda x: x != 0) - 1
    return Thresholds(infinite, has_inf, over, under)


def _count(patterns: Patterns, limits: Thresholds) -> ValueCounts:
    if not limits.under:  # nothing can be lost below: two maxima tell whether anything is beyond
        largest = _largest(patterns)
        if largest < limits.over:
            return ValueCounts(all_zero=largest == 0, elements=patterns.size)
    # shifted, a pattern has no sign; what is below the ordinary ones becomes large
    shifted = patterns << 1
    shifted -= 2 * limits.under + 2
    odd = patterns[shifted > 2 * (limits.over - limits.under) - 4] << 1 >> 1
    zero = int(np.count_nonzero(odd == 0))
    inf = int(np.count_nonzero(odd == limits.infinite)) if limits.has_inf else 0
    nan = int(np.count_nonzero(odd >= limits.infinite)) - inf
    overflow = int(np.count_nonzero(odd >= limits.over)) - nan - inf
    underflow = int(np.count_nonzero(odd <= limits.under)) - zero
    return ValueCounts(nan, inf, zero == patterns.size, patterns.size, overflow, underflow)


def _largest(patterns: Patterns) -> int:
    # as signed numbers the positive floats are the largest, as unsigned ones the negative floats
    positive = int(patterns.view(f"i{patterns.itemsize}").max())
    negative = int(patterns.max()) - (1 << (8 * patterns.itemsize - 1))
    return max(positive, negative, 0)


def _count_blocks(raw: Bytes, codec: Codec) -> ValueCounts:
    step = max(RUN // codec.block, 1)
    values = np.empty(step * codec.block, np.float32)
    total = ValueCounts()
    for start in range(0, raw.size, step * codec.block_bytes):
        part = raw[start : start + step * codec.block_bytes]
        into = values[: part.size // codec.block_bytes * codec.block]
        codec.decode(part, into)
        total += _count(into.view(np.uint32), Thresholds(0x7F800000, True, 0x7F800000, 0))
    return total


def _first(source: Plain, target: Plain, bits: int, holds: Any) -> int:
    """The first pattern whose value in `target` satisfies a predicate that stays true from there on."""
    low, high = 0, 2**bits
    while low < high:
        middle = (low + high) // 2
        if holds(_value(source, target, middle)):
            high = middle
        else:
            low = middle + 1
    return low


def _value(source: Plain, target: Plain, pattern: int) -> float:
    with np.errstate(all="ignore"):
        element = np.array([pattern], f"u{source.block_bytes}").view(source.dtype)
        return float(element.astype(target.dtype)[0])
