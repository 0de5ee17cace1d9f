"""The arithmetic of value maps (`layout.maps`): float32 in, float32 out, in place.

Exponentials and logarithms are computed in float64 and rounded once: the same on every processor, and within one step
of float32 of what PyTorch computes, whose last bit depends on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from crossdock.codecs.codec import Values

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
            elif kind in _OF_NUMBER:
                _OF_NUMBER[kind](values, np.float32(number), out=values)
            else:
                for low in range(0, values.size, _RUN):
                    part = values[low : low + _RUN]
                    part[:] = _PRECISE[kind](part.astype(np.float64))
