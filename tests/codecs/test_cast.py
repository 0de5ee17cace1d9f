"""Plain dtypes against torch: every 8 and 16 bit pattern, and float32 around every rounding boundary."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from crossdock.codecs import registry
from crossdock.codecs.conversion import convert
from crossdock.errors import UsageError

torch.set_num_threads(1)
FLOATS = ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")


def patterns(name: str) -> np.ndarray:
    """Bytes of many elements: all of them up to 16 bits, else values near those of the narrow dtypes."""
    size = registry.get(name).block_bytes
    if size <= 2:
        return np.arange(256**size, dtype=f"u{size}").view(np.uint8)
    sixteen = np.arange(65536, dtype=np.uint16)
    exact = [torch.from_numpy(sixteen.view(np.int16)).view(kind) for kind in (torch.bfloat16, torch.float16)]
    values = torch.cat(exact).to(torch.float32).numpy()
    finite = values[np.isfinite(values)]
    middles = finite / 2 + np.roll(finite, 1) / 2
    near = [finite, middles, np.nextafter(middles, np.float32(0)), np.nextafter(middles, finite)]
    random = np.random.default_rng(1).integers(0, 1 << 32, 50_000, dtype=np.uint32).view(np.float32)
    every = np.concatenate([*near, random, np.float32([464, 465, 448, 65519.996, 65520, 61440, 3.4e38])])
    with np.errstate(all="ignore"):
        return every.astype(name).view(np.uint8)


def torch_cast(raw: np.ndarray, source: str, target: str) -> np.ndarray:
    tensor = torch.from_numpy(raw.copy()).view(getattr(torch, source))
    return tensor.to(getattr(torch, target)).view(torch.uint8).numpy()


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_cast_equals_torch(source: str, target: str) -> None:
    raw = patterns(source)
    a, b = registry.get(source), registry.get(target)
    out = np.zeros(raw.size // a.block_bytes * b.block_bytes, np.uint8)
    convert(a, b)(raw, out)
    theirs = torch_cast(raw, source, target)
    if source == target:
        assert np.array_equal(out, raw)
        return
    kind = f"u{b.block_bytes}"
    # nans are nans on both sides, their payloads may differ
    nan, ours_nan = (
        torch.from_numpy(x.copy()).view(getattr(torch, target)).to(torch.float32).isnan().numpy() for x in (theirs, out)
    )
    assert np.array_equal(nan, ours_nan)
    different = (out.view(kind) != theirs.view(kind)) & ~nan
    assert not different.any(), np.flatnonzero(different)[:5]


@pytest.mark.parametrize(
    ("source", "target"),
    [("bfloat16", "float16"), ("float16", "float32"), ("float16", "bfloat16"), ("float16", "float64")],
)
def test_faster_ways_give_the_bytes_of_the_plain_cast(source: str, target: str) -> None:
    """All patterns, payloads of nans included, over more than one run."""
    a, b = registry.get(source), registry.get(target)
    every = np.random.default_rng(3).permutation(np.arange(1 << 19, dtype=np.uint32)).astype(np.uint16)
    out = np.zeros(every.size * b.block_bytes, np.uint8)
    convert(a, b)(every.view(np.uint8), out)
    with np.errstate(all="ignore"):
        wanted = every.view(getattr(ml_dtypes, source, source)).astype(getattr(ml_dtypes, target, target))
    assert out.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("name", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"])
def test_integers_are_read_and_copied_but_never_made(name: str) -> None:
    codec, bfloat16 = registry.get(name), registry.get("bfloat16")
    values = np.array([0, 1, 1, 0]) if name == "bool" else np.array([0, 1, 100, 2 ** (8 * codec.block_bytes - 2)])
    raw = values.astype(name).view(np.uint8)
    out = np.empty(4, np.float32)
    codec.decode(raw, out)
    assert np.array_equal(out, values.astype(np.float32))
    copy = np.zeros_like(raw)
    convert(codec, codec)(raw, copy)
    assert np.array_equal(copy, raw)
    through = np.zeros(8, np.uint8)
    convert(codec, bfloat16)(raw, through)
    assert np.array_equal(through, torch.from_numpy(out).to(torch.bfloat16).view(torch.uint8).numpy())
    with pytest.raises(UsageError, match=f"bfloat16 cannot become {name}"):
        convert(bfloat16, codec)
    with pytest.raises(UsageError, match="only read or copied"):
        codec.encode(out, raw)


def test_any_byte_but_zero_is_true() -> None:
    out = np.empty(3, np.float32)
    registry.get("bool").decode(np.array([0, 1, 7], np.uint8), out)
    assert out.tolist() == [0, 1, 1]


def test_scales_of_8_exponent_bits_are_powers_of_two() -> None:
    out = np.empty(4, np.float32)
    registry.get("float8_e8m0fnu").decode(np.array([127, 0, 254, 255], np.uint8), out)
    assert out[:3].tolist() == [1.0, 2.0**-127, 2.0**127]
    assert np.isnan(out[3])
