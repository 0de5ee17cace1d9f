"""Block codecs against ggml's C quantisers and gguf-py, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize, quantize

from crossdock.codecs import registry
from crossdock.codecs.codec import encoded_size
from crossdock.codecs.ggml_legacy import _BELOW_HALF
from crossdock.formats.gguf.types import TYPES_BY_CODEC
from oracles.ggml_reference import awkward_values, ggml_quantize, ggml_type_size

LEGACY = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
SUPER = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
VALUES = awkward_values()


def test_block_sizes_agree_with_ggml_and_with_the_types_of_gguf() -> None:
    for kind in TYPES_BY_CODEC.values():
        assert (kind.block, kind.block_bytes) == ggml_type_size(kind.number), kind.codec
    shared = TYPES_BY_CODEC.keys() & set(registry.names())
    assert len(shared) == 18
    for name in shared:
        codec = registry.get(name)
        assert (codec.block, codec.block_bytes) == ggml_type_size(TYPES_BY_CODEC[name].number)


def encode(name: str, values: np.ndarray) -> np.ndarray:
    codec = registry.get(name)
    out = np.zeros(encoded_size(codec, values.size), np.uint8)
    codec.encode(values, out)
    return out


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("name", LEGACY + SUPER)
def test_encoding_equals_ggml(name: str, values: str) -> None:
    ours = encode(name, VALUES[values])
    theirs = ggml_quantize(VALUES[values], name, ours.size)
    block_bytes = registry.get(name).block_bytes
    different = np.flatnonzero((ours != theirs).reshape(-1, block_bytes).any(axis=1))
    assert different.size == 0, f"{different.size} blocks, the first is {different[0]}"


@pytest.mark.parametrize("name", LEGACY)
def test_encoding_equals_gguf_py(name: str) -> None:
    values = VALUES["plain"]
    theirs = quantize(values.reshape(-1, 1024), GGMLQuantizationType[name.upper()])
    assert np.array_equal(encode(name, values), theirs.reshape(-1))


@pytest.mark.parametrize("name", LEGACY + SUPER)
def test_decoding_any_bytes_equals_gguf_py(name: str) -> None:
    codec = registry.get(name)
    raw = np.random.default_rng(3).integers(0, 256, (700, codec.block_bytes), dtype=np.uint8)
    ours = np.empty(len(raw) * codec.block, np.float32)
    codec.decode(raw.reshape(-1), ours)
    with np.errstate(all="ignore"):
        theirs = dequantize(raw, GGMLQuantizationType[name.upper()]).reshape(-1)
    both_nan = np.isnan(ours) & np.isnan(theirs)
    assert np.array_equal(ours.view(np.uint32)[~both_nan], theirs.view(np.uint32)[~both_nan])
    assert not both_nan.all()


@pytest.mark.parametrize("name", LEGACY + SUPER)
def test_parts_equal_the_whole(name: str) -> None:
    """Runs of any number of blocks give the bytes of the whole: tasks may be cut anywhere."""
    values, codec = VALUES["half zeros"], registry.get(name)
    whole = encode(name, values).reshape(-1, codec.block_bytes)
    for start, stop in ((0, 1), (3, len(whole) * 2 // 3), (1, len(whole))):
        part = encode(name, values[start * codec.block : stop * codec.block])
        assert np.array_equal(part.reshape(-1, codec.block_bytes), whole[start:stop])


@pytest.mark.parametrize("name", LEGACY + SUPER)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_nonfinite_value_spoils_its_block_only_and_always_alike(name: str, bad: float) -> None:
    size = registry.get(name).block
    values = VALUES["plain"][: size * 96].copy()
    clean = encode(name, values).reshape(96, -1)
    values[size * 40 + 7] = bad
    spoilt = encode(name, values).reshape(96, -1)
    assert np.flatnonzero((clean != spoilt).any(axis=1)).tolist() == [40]
    alone = encode(name, values[size * 40 : size * 41])
    assert np.array_equal(alone, spoilt[40])
    decoded = np.empty(size, np.float32)
    registry.get(name).decode(alone, decoded)
    assert not np.isfinite(decoded).all()


@pytest.mark.parametrize("name", SUPER)
def test_sizes_of_values_that_a_model_has_equal_ggml(name: str) -> None:
    """Super-blocks of many sizes, spreads and tails, each with its own; half a million values."""
    rng = np.random.default_rng(21)
    shape = (2048, 256)
    sizes = np.exp(rng.uniform(-12, 3, (shape[0], 1))) * np.exp(rng.normal(0, 1, (shape[0], 8))).repeat(32, axis=1)
    values = (rng.standard_t(3, shape) * sizes + rng.normal(0, 0.3, (shape[0], 1)) * sizes).astype(np.float32)
    ours = encode(name, values.reshape(-1))
    assert np.array_equal(ours, ggml_quantize(values.reshape(-1), name, ours.size))


def test_rounding_is_half_away_from_zero() -> None:
    """trunc(v + copysign(h, v)) is roundf for every float32 around every half, and for zero."""
    halves = (np.arange(-128, 128) + np.float32(0.5)).astype(np.float32)
    near = [halves]
    for towards in (np.float32(0), np.float32(-1000), np.float32(1000)):
        step = halves
        for _ in range(3):
            step = np.nextafter(step, towards)
            near.append(step)
    v = np.concatenate([*near, np.float32([0.0, -0.0, 0.49999997, -0.49999997, 1e-45, 127, -127])])
    exact = np.copysign(np.floor(np.abs(v.astype(np.float64)) + 0.5), v)
    assert np.array_equal(np.trunc(v + np.copysign(_BELOW_HALF, v)), exact)
    assert not np.array_equal(np.trunc(v + np.copysign(np.float32(0.5), v)), exact)
