"""Plain dtypes: every element by itself, in as many bytes as its dtype has.

Floats are cast by numpy and ml_dtypes (round to nearest, ties to even), one-byte dtypes and float16 are read
through a table of their values. Integers and float8_e8m0fnu scales are only read or copied: nothing is ever rounded to
them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from crossdock.codecs.codec import Bytes, Values
from crossdock.errors import UsageError

_SHORT = 1 << 15  # elements at a time where the temporaries should stay in the cache
_LONG = 1 << 18  # elements at a time: threads that make shorter calls wait for each other's interpreter lock

# float dtype -> (bits of the fraction, smallest positive value, largest finite value)
_FLOATS: dict[str, tuple[int, float, float]] = {
    "float64": (52, 2.0**-1074, sys.float_info.max),
    "float32": (23, 2.0**-149, (2 - 2.0**-23) * 2.0**127),
    "float16": (10, 2.0**-24, 65504.0),
    "bfloat16": (7, 2.0**-133, (2 - 2.0**-7) * 2.0**127),
    "float8_e4m3fn": (3, 2.0**-9, 448.0),
    "float8_e5m2": (2, 2.0**-16, 57344.0),
}
_COPIED: dict[str, tuple[int, float, float]] = {
    "float8_e8m0fnu": (0, 2.0**-127, 2.0**127),
    **{f"{sign}int{bits}": (bits - (sign == "") - 1, 1.0, 2.0**bits) for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "bool": (0, 1.0, 1.0),
}
PLAIN: Final = (*_FLOATS, *_COPIED)
_FILE_TYPES = {"float32": 0, "float16": 1, "bfloat16": 32}


@dataclass(frozen=True, slots=True)
class Plain:
    """A codec with one element a block.

    fraction_bits, smallest, largest  the values it can hold, to know which casts lose nothing
    """

    name: str
    dtype: np.dtype[Any]
    encodes: bool
    fraction_bits: int
    smallest: float
    largest: float
    searches: bool = False
    cost: int = 0
    compiled: str = ""

    @property
    def block(self) -> int:
        return 1

    @property
    def block_bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def exact(self) -> bool:
        return self.name in ("float32", "float64")

    @property
    def is_scaled(self) -> bool:
        return self.encodes and self.block_bytes == 1

    @property
    def file_type(self) -> int | None:
        return _FILE_TYPES.get(self.name)

    @property
    def looked_up(self) -> bool:
        """True where a table of all patterns is faster than numpy's cast."""
        return self.block_bytes == 1 or self.name == "float16"

    @property
    def saturates(self) -> bool:
        """True for float8_e4m3fn, which has no inf: torch 2.13 and GPUs cast to its largest value instead."""
        return self.name == "float8_e4m3fn"

    def encode(self, values: Values, out: Bytes) -> None:
        """Cast float32 `values`. What is too large becomes inf, or the largest value if `saturates`."""
        if not self.encodes:
            raise UsageError(f"{self.name} is only read or copied; values cannot be converted to it")
        if self.saturates:
            _by_halves(values, out)
            return
        with np.errstate(all="ignore"):
            np.copyto(out.view(self.dtype), values, casting="unsafe")

    def decode(self, raw: Bytes, out: Values) -> None:
        """Cast to float32. float64 and integers above 2**24 are rounded."""
        if self.looked_up:
            np.take(pattern_values(self.name), raw.view(f"u{self.block_bytes}"), out=out, mode="clip")
            return
        with np.errstate(all="ignore"):
            np.copyto(out, raw.view(self.dtype), casting="unsafe")

    def holds(self, other: Plain) -> bool:
        """True when every finite value of `other` is a value of this dtype."""
        return (
            other.fraction_bits <= self.fraction_bits
            and other.smallest >= self.smallest
            and other.largest <= self.largest
        )


def plain(name: str) -> Plain:
    """The codec of a name in `PLAIN`."""
    return Plain(name, _dtype(name), name in _FLOATS, *{**_FLOATS, **_COPIED}[name])


def _dtype(name: str) -> np.dtype[Any]:
    if name.startswith(("bfloat", "float8")):
        name = getattr(ml_dtypes, name)
    dtype: np.dtype[Any] = np.dtype(name)
    return dtype


@cache
def pattern_values(name: str) -> Values:
    """The float32 values of all patterns of a dtype of one or two bytes; read-only."""
    dtype = _dtype(name)
    every = np.arange(256**dtype.itemsize, dtype=f"u{dtype.itemsize}")
    values = np.empty(every.size, np.float32)
    with np.errstate(all="ignore"):
        np.copyto(values, every != 0 if name == "bool" else every.view(dtype), casting="unsafe")
    values.flags.writeable = False
    return values


def _by_halves(values: Values, out: Bytes) -> None:
    """float32 to float8_e4m3fn in a fifth of the cast's time: the upper half of each pattern, its last bit set where
    the lower one is not zero, rounds to the same, since it has bits more than needed. There is a table of all halves.
    """
    patterns, table = values.view(np.uint32), _halves()
    for start in range(0, patterns.size, _SHORT):
        part = patterns[start : start + _SHORT]
        half = (part >> 16).astype(np.uint16)
        half |= (part & 0xFFFF) != 0
        np.take(table, half, out=out[start : start + _SHORT], mode="clip")


@cache
def _halves() -> Bytes:
    """float8_e4m3fn, cut at the largest value, for every upper half of a float32."""
    with np.errstate(all="ignore"):
        values = np.arange(65536, dtype=np.uint16).view(_dtype("bfloat16")).astype(np.float32).clip(-448, 448)
        table: Bytes = values.astype(_dtype("float8_e4m3fn")).view(np.uint8)
    table.flags.writeable = False
    return table


@cache
def byte_table(source: Plain, target: Plain) -> NDArray[Any]:
    """Target elements for every pattern of a source of one or two bytes: faster than casting."""
    patterns = np.arange(256**source.block_bytes, dtype=f"u{source.block_bytes}").view(np.uint8)
    size = patterns.size // source.block_bytes
    table = np.empty(size * target.block_bytes, np.uint8)
    if source.block_bytes == 2 and target.block_bytes > 1:  # which NaN comes out differs by way of float32
        with np.errstate(all="ignore"):
            np.copyto(table.view(target.dtype), patterns.view(source.dtype), casting="unsafe")
    else:
        values = np.empty(size, np.float32)
        source.decode(patterns, values)
        target.encode(values, table)
    table = table.view(target.dtype)
    table.flags.writeable = False
    return table


def bfloat16_to_float16(raw: Bytes, out: Bytes, table: NDArray[np.uint16]) -> None:
    """The same as the cast, in half its time: float16 has more bits of fraction, so a value that is normal in both only
    has its exponent moved. What is too small or too large for that is looked up in `table`, of all patterns."""
    source_bits, into = raw.view(np.uint16), out.view(np.uint16)
    for start in range(0, source_bits.size, _LONG):
        x, y = source_bits[start : start + _LONG], into[start : start + _LONG]
        np.left_shift(x, 3, out=y)
        y += np.uint16(0x4000)  # (127 - 15) << 10, of which 16 bits remain
        bits = x & np.uint16(0x8000)
        y |= bits
        np.left_shift(x, 1, out=bits)  # without the sign; below the smallest normal it wraps
        bits -= np.uint16(2 * 0x3880)
        rest = np.flatnonzero(bits >= np.uint16(2 * (0x4780 - 0x3880)))
        y[rest] = table[x[rest]]
