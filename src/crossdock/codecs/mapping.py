"""The arithmetic of value maps (`layout.maps`): float32 in, float32 out, in place.

Exponentials and logarithms are computed in float64 and rounded once: the same on every processor, and within one step
of float32 of what PyTorch computes, whose last bit depends on the processor. Means are PyTorch's, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from crossdock.codecs.codec import Values

_CASCADE = 512  # values that PyTorch adds up without sums of sums
_RUN = 1 << 14  # values whose float64 stay in the cache
_OF_NUMBER: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {"multiply": np.multiply, "divide": np.divide, "add": np.add}
)
_PRECISE: Mapping[str, Callable[..., Any]] = MappingProxyType({"exp": np.exp, "log": np.log})


def apply_steps(values: Values, steps: Sequence[tuple[str, float]]) -> None:
    """Replace float32 `values` by what `steps` of (kind, number) make of them. NaN and infinity are results too."""
    with np.errstate(all="ignore"):
        for kind, number in steps:
            if kind == "negate":
                np.negative(values, out=values)
            elif kind == "centre":
                np.subtract(values, mean(values), out=values)
            elif kind in _OF_NUMBER:
                _OF_NUMBER[kind](values, np.float32(number), out=values)
            else:
                for low in range(0, values.size, _RUN):
                    part = values[low : low + _RUN]
                    part[:] = _PRECISE[kind](part.astype(np.float64))


def mean(values: Values) -> np.float32:
    """The mean of up to 512 float32 values as PyTorch 2.13 computes it (aten, cpu/SumKernel.cpp), of more in float64.

    Sums of every 8th value in 4 rows, the rest behind them; vectors of fewer values than 8 lanes have lanes of one.
    """
    if values.size > _CASCADE:
        return np.float32(values.mean(dtype=np.float64))
    lanes = 8 if values.size >= 8 else 1
    whole, rows = values.size // lanes * lanes, values.size // (4 * lanes) * 4 * lanes
    sums = np.zeros((4, lanes), np.float32)
    for row in values[:rows].reshape(-1, 4, lanes):
        sums += row
    for row in values[rows:whole].reshape(-1, lanes):
        sums[0] += row
    each = sums[0] + sums[1] + sums[2] + sums[3]
    total = np.float32(0)
    for value in (*values[whole:], *each):
        total = np.float32(total + value)
    return np.float32(total / np.float32(values.size))
