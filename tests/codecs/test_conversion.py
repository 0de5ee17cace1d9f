"""Conversions: exactness claims, runs, sizes, threads sharing one conversion."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from crossdock.codecs import registry
from crossdock.codecs.codec import encoded_size
from crossdock.codecs.conversion import RUN, Workspace, convert

PLAIN = [n for n in registry.names() if registry.get(n).block == 1]


@pytest.mark.parametrize(
    ("source", "target", "exact"),
    [
        ("bfloat16", "float32", True),
        ("bfloat16", "float16", False),
        ("float16", "bfloat16", False),
        ("float16", "float32", True),
        ("float32", "bfloat16", False),
        ("float64", "float32", False),
        ("float32", "float64", True),
        ("float8_e4m3fn", "float16", True),
        ("float8_e5m2", "float8_e4m3fn", False),
        ("int8", "bfloat16", True),
        ("uint16", "float16", False),
        ("int32", "float64", False),
        ("int64", "float64", False),
        ("q8_0", "q8_0", True),
        ("q8_0", "float32", True),
        ("q8_0", "float16", False),
        ("float32", "q8_0", False),
    ],
)
def test_exactness(source: str, target: str, exact: bool) -> None:
    assert convert(registry.get(source), registry.get(target)).exact is exact


@pytest.mark.parametrize("source", [n for n in PLAIN if registry.get(n).block_bytes <= 2])
def test_claimed_exact_casts_lose_no_value(source: str) -> None:
    """Every pattern of every small dtype, to each target that claims to hold it and to each that does not."""
    a, wide = registry.get(source), registry.get("float64")
    raw = np.arange(256**a.block_bytes, dtype=f"u{a.block_bytes}").view(np.uint8)
    values = np.empty(raw.size // a.block_bytes, np.float32)
    a.decode(raw, values)
    for target in PLAIN:
        b = registry.get(target)
        if not b.encodes or target == source:
            continue
        conversion = convert(a, b)
        out = np.zeros(encoded_size(b, values.size), np.uint8)
        conversion(raw, out)
        back = np.zeros(values.size * 8, np.uint8)
        convert(b, wide)(out, back)
        same = (back.view(np.float64) == values) | ~np.isfinite(values)
        assert bool(same.all()) is conversion.exact, target


@pytest.mark.parametrize(
    ("source", "target"),
    [("bfloat16", "q8_0"), ("q8_0", "q4_0"), ("float16", "float8_e4m3fn"), ("q4_k", "q5_1")],
)
def test_any_cut_gives_the_bytes_of_the_whole(source: str, target: str) -> None:
    a, b = registry.get(source), registry.get(target)
    conversion = convert(a, b)
    elements = 2 * RUN + 1024
    raw = np.random.default_rng(2).integers(0, 60, encoded_size(a, elements), dtype=np.uint8)
    whole = np.zeros(encoded_size(b, elements), np.uint8)
    conversion(raw, whole)
    parts = np.zeros_like(whole)
    workspace = Workspace()
    cuts = [0, conversion.block, 256 * 9, RUN + 512, elements]
    for start, stop in itertools.pairwise(cuts):
        conversion(
            raw[encoded_size(a, start) : encoded_size(a, stop)],
            parts[encoded_size(b, start) : encoded_size(b, stop)],
            workspace,
        )
    assert np.array_equal(whole, parts)
    assert whole.any()


def test_threads_share_a_conversion_with_a_workspace_each() -> None:
    conversion = convert(registry.get("bfloat16"), registry.get("q8_0"))
    rng = np.random.default_rng(4)
    raws = [rng.integers(0, 255, 2 * 64 * 1024, dtype=np.uint8) & 0xBF for _ in range(8)]

    def work(raw: np.ndarray) -> bytes:
        out, workspace = np.zeros(64 * 1024 // 32 * 34, np.uint8), Workspace()
        for _ in range(5):
            conversion(raw, out, workspace)
        return out.tobytes()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, raws)) == [work(raw) for raw in raws]


@pytest.mark.parametrize(("raw", "out"), [(63, 34), (64, 33), (66, 34), (64, 68)])
def test_sizes_that_do_not_fit_are_refused(raw: int, out: int) -> None:
    conversion = convert(registry.get("bfloat16"), registry.get("q8_0"))
    with pytest.raises(ValueError, match="do not fill"):
        conversion(np.zeros(raw, np.uint8), np.zeros(out, np.uint8))


def test_scratch_is_bounded_and_nothing_for_copies() -> None:
    get = registry.get
    assert convert(get("bf16"), get("bf16")).scratch_bytes(1 << 30) == 0
    assert convert(get("bf16"), get("q8_0")).scratch_bytes(1 << 30) <= 1 << 20
    assert convert(get("q6_k"), get("f16")).scratch_bytes(1 << 30) <= 1 << 20


def test_input_at_an_odd_address() -> None:
    conversion = convert(registry.get("bfloat16"), registry.get("float16"))
    raw = np.random.default_rng(5).integers(0, 60, 2001, dtype=np.uint8)
    aligned, odd = np.zeros(2000, np.uint8), np.zeros(2001, np.uint8)
    conversion(raw[1:].copy(), aligned)
    conversion(raw[1:], odd[1:])
    assert np.array_equal(aligned, odd[1:])
