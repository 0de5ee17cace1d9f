"""How far two runs of values lie apart, in numbers that can be added over the parts of a tensor.

Sums are kept in float64, over runs whose squares float32 holds; a run that it does not hold, or with values that are
not finite, is done in float64. Positions where a value is not finite count as an error only if both sides differ.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdock.codecs.codec import Values

RUN = 32768
_ALONE = 8192  # OpenBLAS uses threads for more than 10,000 (kernel/x86_64/ddot.c)
SMALL, LARGE = 1e-12, 1e12  # the largest of a run within these: its squares neither vanish nor overflow in float32


@dataclass(frozen=True, slots=True)
class ErrorStats:
    """Differences between values and a reference. `ErrorStats()` is that of nothing.

    max_abs        largest |value - reference|
    sum_squares    of value - reference, and `sum_squares_reference` of the reference
    max_reference  largest |reference|
    nonfinite      positions where one side is not finite and the other is not the same
    """

    elements: int = 0
    max_abs: float = 0.0
    sum_squares: float = 0.0
    max_reference: float = 0.0
    sum_squares_reference: float = 0.0
    nonfinite: int = 0

    def __add__(self, other: ErrorStats) -> ErrorStats:
        return ErrorStats(
            self.elements + other.elements,
            max(self.max_abs, other.max_abs),
            self.sum_squares + other.sum_squares,
            max(self.max_reference, other.max_reference),
            self.sum_squares_reference + other.sum_squares_reference,
            self.nonfinite + other.nonfinite,
        )

    @property
    def rms(self) -> float:
        """Root of the mean square difference."""
        return math.sqrt(self.sum_squares / self.elements) if self.elements else 0.0

    @property
    def relative_rms(self) -> float:
        """`rms` over the root mean square of the reference; inf if only the reference is zero."""
        if self.sum_squares_reference:
            return math.sqrt(self.sum_squares / self.sum_squares_reference)
        return math.inf if self.sum_squares else 0.0


def compare(reference: Values, values: Values, *, precise: bool = False) -> ErrorStats:
    """Figures of two flat float32 arrays of one size. Relative error of the sums: below 1e-5, typically 1e-7.

    precise  below 1e-12, so that rounded figures do not depend on how the values were cut into runs
    """
    if reference.shape != values.shape:
        raise ValueError(f"{values.shape} values against {reference.shape} of the reference")
    total = ErrorStats()
    with np.errstate(all="ignore"):
        for start in range(0, reference.size, RUN):
            r, v = reference[start : start + RUN], values[start : start + RUN]
            total += _narrow(r, v, np.float64 if precise else np.float32) or _wide(r, v)
    return total


def _narrow(reference: Values, values: Values, dtype: type[np.floating[Any]]) -> ErrorStats | None:
    """With squares and sums in `dtype`; None where that is not enough. What is not finite shows in the largest."""
    difference = values - reference
    error, size = _largest(difference), _largest(reference)
    if not all(SMALL <= most <= LARGE or most == 0 for most in (error, size)):
        return None
    wide = (x.astype(dtype, copy=False) for x in (difference, reference))
    squares, squares_reference = map(_squares, wide)
    return ErrorStats(reference.size, error, squares, size, squares_reference)


def _squares(values: NDArray[np.floating[Any]]) -> float:
    """The sum of squares, in pieces that OpenBLAS does not share among threads, which spin on a busy machine."""
    parts = (values[start : start + _ALONE] for start in range(0, values.size, _ALONE))
    return sum(float(np.dot(part, part)) for part in parts)


def _largest(values: Values) -> float:
    """The largest absolute value; NaN if there is one."""
    return max(float(values.max()), -float(values.min()))


def _wide(reference: Values, values: Values) -> ErrorStats:
    elements = reference.size
    finite = np.isfinite(reference) & np.isfinite(values)
    unequal = 0
    if not finite.all():
        r, v = reference[~finite], values[~finite]
        unequal = int(np.count_nonzero(~((r == v) | (np.isnan(r) & np.isnan(v)))))
        reference, values = reference[finite], values[finite]
    wide = reference.astype(np.float64)
    difference = values - wide
    return ErrorStats(
        elements,
        float(np.abs(difference).max(initial=0)),
        float(np.dot(difference, difference)),
        float(np.abs(wide).max(initial=0)),
        float(np.dot(wide, wide)),
        unequal,
    )
