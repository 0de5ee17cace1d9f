"""ggml's blocks of 32: q8_0, q4_0, q4_1, q5_0, q5_1, both ways.

Bytes equal those of ggml's reference quantisers (llama.cpp ggml/src/ggml-quants.c, quantize_row_*_ref,
b11549). Work proceeds in runs that stay in the L2 cache; maxima of blocks are folded pairwise over the
whole run, because numpy's own reduction over a short axis is four times slower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from crossdock.codecs.codec import Bytes, Values

BLOCK = 32
RUN = 1024  # blocks worked on at a time: 128 KiB of float32
_SIGN, _MAGNITUDE = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
# roundf(v) == trunc(v + copysign(h, v)) for |v| < 2**22, with h the float32 below one half; with 0.5 itself
# the sum for 0.49999997 would be rounded up to 1.
_BELOW_HALF = np.float32(0.49999997)

_HALF = np.dtype("V16")  # half a block of bytes, moved as one

Number = TypeVar("Number", np.float32, np.int32, np.uint32)


@dataclass(frozen=True, slots=True)
class Q8_0:
    """float16 scale, 32 int8: value = scale * q."""

    name: str = "q8_0"
    block: int = BLOCK
    block_bytes: int = 34
    exact: bool = False
    encodes: bool = True
    searches: bool = False
    cost: int = 1
    is_scaled: bool = False
    file_type: int = 7
    compiled: str = "crossdock.codecs.ggml_legacy_numba:encoder"

    def encode(self, values: Values, out: Bytes) -> None:
        """Scale = largest magnitude / 127; quotients are rounded half away from zero."""
        rows, blocks = values.reshape(-1, BLOCK), out.reshape(-1, self.block_bytes)
        spare, sign = np.empty(RUN * BLOCK, np.float32), np.empty(RUN * BLOCK, np.uint32)
        with np.errstate(all="ignore"):
            for start in range(0, len(rows), RUN):
                x, into = rows[start : start + RUN], blocks[start : start + RUN]
                v = spare[: x.size].reshape(x.shape)
                half = sign[: x.size].reshape(x.shape)
                np.bitwise_and(x.view(np.uint32), _MAGNITUDE, out=half)
                scale, inverse = _scale(_fold(np.maximum, half).view(np.float32) / np.float32(127))
                into[:, :2].view(np.float16)[:, 0] = scale
                np.multiply(x, inverse[:, None], out=v)
                np.bitwise_and(v.view(np.uint32), _SIGN, out=half)
                np.bitwise_or(half, _BELOW_HALF.view(np.uint32), out=half)
                np.add(v, half.view(np.float32), out=v)
                np.copyto(into[:, 2:].view(np.int8), v, casting="unsafe")

    def decode(self, raw: Bytes, out: Values) -> None:
        """value = scale * q in float32."""
        blocks, rows = raw.reshape(-1, self.block_bytes), out.reshape(-1, BLOCK)
        with np.errstate(all="ignore"):
            for start in range(0, len(rows), RUN):
                part, x = blocks[start : start + RUN], rows[start : start + RUN]
                np.copyto(x, part[:, 2:].view(np.int8))
                np.multiply(x, half(part, 0), out=x)


@dataclass(frozen=True, slots=True)
class Nibbles:
    """Four or five bits an element: float16 scale, float16 minimum if `affine`, fifth bits, 16 bytes.

    The low half of byte i belongs to element i, the high half to element i + 16.
    value = scale * (q - 2**(bits-1)), or scale * q + minimum if `affine`.
    """

    name: str
    bits: int
    affine: bool
    file_type: int
    block: int = BLOCK
    exact: bool = False
    encodes: bool = True
    searches: bool = False
    cost: int = 1
    is_scaled: bool = False
    compiled: str = ""

    @property
    def block_bytes(self) -> int:
        return 2 + 2 * self.affine + 4 * (self.bits == 5) + 16

    def encode(self, values: Values, out: Bytes) -> None:
        """Round to 2**bits levels between minimum and maximum (affine) or around zero."""
        rows, blocks = values.reshape(-1, BLOCK), out.reshape(-1, self.block_bytes)
        spare, levels = np.empty(RUN * BLOCK, np.float32), np.empty(RUN * BLOCK, np.uint8)
        with np.errstate(all="ignore"):
            for start in range(0, len(rows), RUN):
                x, into = rows[start : start + RUN], blocks[start : start + RUN]
                v, q = spare[: x.size].reshape(x.shape), levels[: x.size].reshape(x.shape)
                if self.affine:
                    low = _least(x)
                    # + 0: blocks of zeros of both signs have scale +0
                    span = _fold(np.maximum, x) - low + np.float32(0)
                    scale, inverse = _scale(span / np.float32(2**self.bits - 1))
                    into[:, 2:4].view(np.float16)[:, 0] = _quiet(low)
                    np.subtract(x, low[:, None], out=v)
                    np.multiply(v, inverse[:, None], out=v)
                    np.add(v, np.float32(0.5), out=v)
                else:
                    half = 2 ** (self.bits - 1)
                    scale, inverse = _scale(_farthest(x) / np.float32(-half))
                    np.multiply(x, inverse[:, None], out=v)
                    np.add(v, np.float32(half + 0.5), out=v)
                into[:, :2].view(np.float16)[:, 0] = scale
                np.copyto(q, v, casting="unsafe")
                q -= q >> self.bits  # 2**bits, which ggml cuts to 2**bits - 1
                if self.bits == 5:
                    into[:, -20:-16] = np.packbits((q & 16).reshape(-1), bitorder="little").reshape(-1, 4)
                    q &= 15
                halves = q.reshape(-1).view(_HALF)
                packed, upper = (halves[i::2].copy().view(np.uint8) for i in (0, 1))
                packed |= upper << 4
                into[:, -16:].view(_HALF)[:, 0] = packed.view(_HALF)

    def decode(self, raw: Bytes, out: Values) -> None:
        """Multiply, then add, in float32."""
        blocks, rows = raw.reshape(-1, self.block_bytes), out.reshape(-1, BLOCK)
        with np.errstate(all="ignore"):
            for start in range(0, len(rows), RUN):
                part, x = blocks[start : start + RUN], rows[start : start + RUN]
                q = np.concatenate([part[:, -16:] & 15, part[:, -16:] >> 4], axis=1)
                if self.bits == 5:
                    q |= np.unpackbits(part[:, -20:-16], axis=1, bitorder="little") << 4
                np.copyto(x, q)
                if not self.affine:
                    np.subtract(x, np.float32(2 ** (self.bits - 1)), out=x)
                np.multiply(x, half(part, 0), out=x)
                if self.affine:
                    np.add(x, half(part, 2), out=x)


def legacy(name: str) -> Q8_0 | Nibbles:
    """One of the five codecs of this file."""
    file_types = {"q4_0": 2, "q4_1": 3, "q5_0": 8, "q5_1": 9}
    return Q8_0() if name == "q8_0" else Nibbles(name, int(name[1]), name.endswith("_1"), file_types[name])


def _fold(op: np.ufunc, rows: NDArray[Number]) -> NDArray[Number]:
    """`op` over each row of 32, as five passes over neighbours."""
    x = rows.reshape(-1)
    while x.size > len(rows):
        x = op(x[0::2], x[1::2])
    return x


def _scale(scale: Values) -> tuple[Values, Values]:
    """The scale and its inverse: 0 for a scale of 0; nan where it overflows, ggml on x86 then has q = 0."""
    inverse = np.float32(1) / scale
    inverse[np.isinf(inverse)] = np.nan
    inverse[scale == 0] = 0
    return _quiet(scale), inverse


def _quiet(x: Values) -> Values:
    """All nans as the one with an empty payload: which nan numpy keeps of several is not defined."""
    x[np.isnan(x)] = np.nan
    return x


def _farthest(rows: Values) -> Values:
    """The signed element of largest magnitude of each row; of several the first, +0 if all are zero."""
    # as signed numbers the patterns of positive floats are the largest, as unsigned ones those of negative
    high = _fold(np.maximum, rows.view(np.int32)).view(np.uint32)
    low = _fold(np.maximum, rows.view(np.uint32))
    far = np.where(high & _MAGNITUDE > low & _MAGNITUDE, high, low).view(np.float32)
    tied = np.flatnonzero((high ^ low) == _SIGN)
    if tied.size:
        far[tied] = rows[tied, np.abs(rows[tied]).argmax(axis=1)]
    return far + np.float32(0)


def _least(rows: Values) -> Values:
    """The smallest element of each row; of zeros of both signs the first."""
    low = _fold(np.minimum, rows)
    zero = np.flatnonzero(low == 0)
    if zero.size:
        low[zero] = rows[zero, (rows[zero] == 0).argmax(axis=1)]
    return low


def half(blocks: Bytes, at: int) -> Values:
    """The float16 at byte `at` of each block, as a float32 column."""
    return blocks[:, at : at + 2].view(np.float16).astype(np.float32)
