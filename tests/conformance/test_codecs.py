"""What every registered codec must do. A codec registered by another package inherits these tests."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from crossdock.codecs import registry
from crossdock.codecs.codec import Codec, encoded_size
from crossdock.errors import UsageError

CODECS = [registry.get(name) for name in registry.names()]
ENCODERS = [codec for codec in CODECS if codec.encodes]
ELEMENTS = 256 * 12
every_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
every_encoder = pytest.mark.parametrize("codec", ENCODERS, ids=lambda codec: codec.name)


def values() -> np.ndarray:
    x = (np.random.default_rng(9).standard_normal(ELEMENTS) * 0.5).astype(np.float32)
    x[:256], x[256:288] = 0, np.float32(-0.0)
    return x


def encode(codec: Codec, x: np.ndarray) -> np.ndarray:
    out = np.full(encoded_size(codec, x.size), 0xA5, np.uint8)
    codec.encode(x, out)
    return out


def coarser(codec: Codec) -> float:
    """How much larger its errors may be than those of four bits and a half: twice as large for every bit less."""
    return float(2 ** max(0.0, 4.5 - 8 * codec.block_bytes / codec.block))


def decode(codec: Codec, raw: np.ndarray) -> np.ndarray:
    out = np.full(raw.size // codec.block_bytes * codec.block, np.nan, np.float32)
    codec.decode(raw, out)
    return out


@every_codec
def test_has_a_canonical_name_and_whole_blocks(codec: Codec) -> None:
    assert registry.canonical_name(codec.name) == codec.name
    assert registry.canonical_name(codec.name.upper()) == codec.name
    assert codec.block >= 1
    assert codec.block_bytes >= 1
    assert ELEMENTS % codec.block == 0


@every_codec
def test_survives_pickling(codec: Codec) -> None:
    again = pickle.loads(pickle.dumps(codec))
    assert (again.name, again.block, again.block_bytes) == (codec.name, codec.block, codec.block_bytes)


@every_codec
def test_decodes_any_bytes_alike_whole_or_in_blocks(codec: Codec) -> None:
    raw = np.random.default_rng(10).integers(0, 256, 7 * codec.block_bytes, dtype=np.uint8)
    whole = decode(codec, raw)
    parts = [decode(codec, raw[i : i + codec.block_bytes].copy()) for i in range(0, raw.size, codec.block_bytes)]
    assert np.array_equal(whole, np.concatenate(parts), equal_nan=True)


@every_codec
def test_nothing_in_gives_nothing_out(codec: Codec) -> None:
    codec.decode(np.empty(0, np.uint8), np.empty(0, np.float32))
    if codec.encodes:
        codec.encode(np.empty(0, np.float32), np.empty(0, np.uint8))


@every_codec
def test_what_cannot_be_written_says_so(codec: Codec) -> None:
    if not codec.encodes:
        with pytest.raises(UsageError, match=codec.name):
            encode(codec, values())
    else:
        assert encode(codec, values()).any()


@every_encoder
def test_encoding_leaves_its_input_and_is_the_same_twice(codec: Codec) -> None:
    x = values()
    first = encode(codec, x)
    assert np.array_equal(x, values())
    assert np.array_equal(first, encode(codec, x))


@every_encoder
def test_encoding_depends_on_nothing_outside_the_block(codec: Codec) -> None:
    x = values()
    whole = encode(codec, x).reshape(-1, codec.block_bytes)
    for block in (0, 1, len(whole) - 1):
        alone = encode(codec, x[block * codec.block : (block + 1) * codec.block])
        assert np.array_equal(alone, whole[block])


@every_encoder
def test_zeros_come_back_as_zeros(codec: Codec) -> None:
    assert not decode(codec, encode(codec, np.zeros(256, np.float32))).any()


@every_encoder
def test_error_is_small_and_none_where_exactness_is_claimed(codec: Codec) -> None:
    x = values()
    back = decode(codec, encode(codec, x))
    assert np.array_equal(back, x) is codec.exact
    assert np.abs(back - x).max() <= 0.13 * coarser(codec) * np.abs(x).max()


@every_encoder
def test_encoding_what_was_decoded_changes_little_or_nothing(codec: Codec) -> None:
    """Plain dtypes are stable; blocks may move by their own rounding once more, not further."""
    once = decode(codec, encode(codec, values()))
    twice = decode(codec, encode(codec, once))
    limit = 0.0 if codec.block == 1 else 0.08 * coarser(codec) * np.abs(once).max()
    assert np.abs(twice - once).max() <= limit
