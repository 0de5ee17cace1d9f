"""Error figures against the plain formula in float64, for any values: tiny, huge, mixed, not finite."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossdock.codecs.error_stats import RUN, ErrorStats, compare

Floats = NDArray[np.float32]


def plain(reference: Floats, values: Floats) -> ErrorStats:
    """The definition, without regard for speed."""
    wide, other = reference.astype(np.float64), values.astype(np.float64)
    finite = np.isfinite(wide) & np.isfinite(other)
    same = (wide == other) | (np.isnan(wide) & np.isnan(other))
    difference, wide = (other - np.where(finite, wide, 0))[finite], wide[finite]
    return ErrorStats(
        reference.size,
        float(np.abs(difference).max(initial=0)),
        math.fsum(difference**2),
        float(np.abs(wide).max(initial=0)),
        math.fsum(wide**2),
        int(np.count_nonzero(~finite & ~same)),
    )


def same(one: ErrorStats, other: ErrorStats) -> None:
    assert (one.elements, one.nonfinite) == (other.elements, other.nonfinite)
    assert one.max_reference == other.max_reference
    assert one.max_abs == pytest.approx(other.max_abs, rel=1e-6, abs=0)
    assert one.sum_squares == pytest.approx(other.sum_squares, rel=1e-5, abs=0)
    assert one.sum_squares_reference == pytest.approx(other.sum_squares_reference, rel=1e-5, abs=0)


@given(st.lists(st.tuples(st.floats(width=32), st.floats(width=32)), max_size=40))
def test_any_values(pairs: list[tuple[float, float]]) -> None:
    reference, values = np.array(pairs, np.float32).reshape(-1, 2).T.copy()
    same(compare(reference, values), plain(reference, values))


@given(
    st.integers(0, 1 << 32),
    st.integers(1, 2 * RUN + 7),
    st.sampled_from([1e-38, 1e-20, 1e-13, 1e-3, 1.0, 1e11, 1e20, 3e38]),
    st.sampled_from([0.0, 1e-6, 1e-2, 2.0]),
    st.sampled_from([None, math.nan, math.inf, -math.inf]),
)
def test_any_scale(seed: int, size: int, scale: float, error: float, odd: float | None) -> None:
    random = np.random.default_rng(seed)
    reference = (random.uniform(-1, 1, size) * scale).astype(np.float32)
    values = (reference * random.uniform(1 - error, 1 + error, size).clip(-1, 1)).astype(np.float32)
    if odd is not None:
        for array in (reference, values):
            array[random.integers(size)] = odd
    same(compare(reference, values), plain(reference, values))


def test_a_difference_beyond_float32() -> None:
    largest = float(np.finfo(np.float32).max)
    figures = compare(np.array([largest, 1], np.float32), np.array([-largest, 1], np.float32))
    assert (figures.max_abs, figures.nonfinite) == (2 * largest, 0)


def test_equal_infinities_are_no_error() -> None:
    both = np.array([math.inf, -math.inf, math.nan, 2], np.float32)
    assert compare(both, both.copy()) == ErrorStats(4, 0.0, 0.0, 2.0, 4.0, 0)
