"""The census against counting by hand, and error figures against numpy in one piece."""

from __future__ import annotations

import numpy as np
import pytest

from crossdock.codecs import registry
from crossdock.codecs.codec import encoded_size
from crossdock.codecs.conversion import convert
from crossdock.codecs.error_stats import ErrorStats, compare
from crossdock.codecs.value_counts import ValueCounts, count

FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def by_hand(raw: np.ndarray, source: str, target: str) -> ValueCounts:
    a, b, wide = (registry.get(name) for name in (source, target, "float64"))
    n = raw.size // a.block_bytes
    before, after, out = np.zeros(8 * n, np.uint8), np.zeros(8 * n, np.uint8), None
    convert(a, wide)(raw, before)
    out = np.zeros(encoded_size(b, n), np.uint8)
    convert(a, b)(raw, out)
    convert(b, wide)(out, after)
    x, y = before.view(np.float64), after.view(np.float64)
    with np.errstate(all="ignore"):
        lost = ~np.isfinite(y) | ((np.abs(y) == 448) & (np.abs(x) > 464) & (target == "float8_e4m3fn"))
    return ValueCounts(
        int(np.isnan(x).sum()),
        int(np.isinf(x).sum()),
        not (x != 0).any(),
        n,
        int((np.isfinite(x) & lost).sum()),
        int(((x != 0) & (y == 0)).sum()),
    )


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_census_of_any_bytes(source: str, target: str) -> None:
    codec = registry.get(source)
    raw = np.random.default_rng(6).integers(0, 256, 80_000 * codec.block_bytes, dtype=np.uint8)
    assert count(raw, codec, registry.get(target)) == by_hand(raw, source, target)


@pytest.mark.parametrize("source", ["float32", "bfloat16", "float16"])
def test_census_of_ordinary_weights_and_of_each_planted_value(source: str) -> None:
    codec, half = registry.get(source), registry.get("float16")
    clean = (np.random.default_rng(7).standard_normal(70_000) * 0.02).astype(np.float32)
    clean[np.abs(clean) < 1e-6] = 0

    def counted(values: np.ndarray) -> ValueCounts:
        raw = np.zeros(encoded_size(codec, values.size), np.uint8)
        codec.encode(values.astype(np.float32), raw)
        return count(raw, codec, half)

    assert counted(clean) == ValueCounts(0, 0, False, 70_000, 0, 0)
    for value, field in (
        (np.nan, "nan"),
        (-np.nan, "nan"),
        (np.inf, "inf"),
        (-np.inf, "inf"),
        (1e6, "overflow"),
        (-1e6, "overflow"),
        (1e-9, "underflow"),
        (-1e-9, "underflow"),
    ):
        if source == "float16" and field.endswith("flow"):
            continue
        planted = clean.copy()
        planted[[3, 69_999]] = value
        for values in (planted, np.concatenate([np.abs(planted)[:-1], [value]])):
            found = counted(values)
            expected = int(np.sum(~np.isfinite(values))) if field in ("nan", "inf") else 2
            assert getattr(found, field) == expected, (value, found)
            assert sum((found.nan, found.inf, found.overflow, found.underflow)) == expected


def test_zeros_of_both_signs_are_all_zero() -> None:
    zeros = np.where(np.arange(100) % 3, np.float32(-0.0), np.float32(0)).view(np.uint8)
    assert count(zeros, registry.get("float32")) == ValueCounts(elements=100)
    one = zeros.copy()
    one[0] = 1
    assert not count(one, registry.get("float32")).all_zero
    assert not (count(zeros, registry.get("float32")) + count(one, registry.get("float32"))).all_zero


def test_block_codecs_are_counted_by_value() -> None:
    codec = registry.get("q8_0")
    values = np.ones(32 * 5000, np.float32)
    raw = np.zeros(encoded_size(codec, values.size), np.uint8)
    codec.encode(values, raw)
    assert count(raw, codec) == ValueCounts(all_zero=False, elements=values.size)
    raw[34 * 4999 : 34 * 4999 + 2] = (0x00, 0x7C)  # a scale of inf
    assert count(raw, codec).inf == 32


def test_integers_are_only_tested_for_zero() -> None:
    codec = registry.get("int32")
    assert count(np.zeros(16, np.uint8), codec) == ValueCounts(elements=4)
    assert count(np.full(16, 255, np.uint8), codec) == ValueCounts(all_zero=False, elements=4)


def test_figures_of_parts_add_up_to_those_of_the_whole() -> None:
    rng = np.random.default_rng(8)
    reference = rng.standard_normal(100_000).astype(np.float32)
    values = reference + rng.standard_normal(100_000).astype(np.float32) / 100
    whole = compare(reference, values)
    parts = compare(reference[:333], values[:333]) + compare(reference[333:], values[333:])
    difference = values.astype(np.float64) - reference
    assert whole.max_abs == parts.max_abs == np.abs(difference).max()
    assert whole.max_reference == np.abs(reference).max()
    assert whole.rms == pytest.approx(np.sqrt(np.mean(difference**2)), rel=1e-6)
    assert parts.rms == pytest.approx(whole.rms, rel=1e-6)
    assert whole.relative_rms == pytest.approx(np.linalg.norm(difference) / np.linalg.norm(reference), rel=1e-6)
    assert whole + ErrorStats() == whole


def test_nonfinite_values_count_only_where_they_differ() -> None:
    reference = np.float32([1, np.nan, np.inf, -np.inf, 2, np.inf, 5])
    values = np.float32([1, np.nan, np.inf, np.inf, np.nan, 3, 7])
    figures = compare(reference, values)
    assert (figures.nonfinite, figures.max_abs, figures.elements) == (3, 2.0, 7)
    with pytest.raises(ValueError, match="against"):
        compare(reference, values[:3])
