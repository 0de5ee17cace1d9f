"""Encoding ggml's super-blocks of 256: the scales that a search found become few bits, the values levels of them.

As quantize_row_q*_K_ref of llama.cpp ggml/src/ggml-quants.c, b11549, without importance matrix: the same bytes. A
super-block that holds inf or nan, which ggml refuses, becomes nan as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from crossdock.codecs.codec import Bytes, Values
from crossdock.codecs.ggml_k_search import LEAST, NUMPY, Affine, Fit, Levels, Searches, farthest, nearest
from crossdock.codecs.ggml_legacy import half

BLOCK = 256
_ZERO, _ONE, _NIBBLE = np.float32(0), np.float32(1), np.uint8(15)
_FOUR_BITS = np.uint8(4)
_TWO = Affine(16, 3, -0.5, 15, True)
_FOUR = Affine(32, 15, -1.0, 20, False)
_FIVE = Affine(32, 31, -0.5, 15, False)

Pack = Callable[[Values, Bytes, Searches], None]


def encode(name: str, values: Values, out: Bytes, search: Searches = NUMPY) -> None:
    """Whole super-blocks of `values` as the K type `name`, into `out`."""
    pack = _PACKS[name]
    rows = values.reshape(-1, BLOCK)
    blocks = out.reshape(len(rows), out.size // max(len(rows), 1))
    with np.errstate(all="ignore"):
        for start in range(0, len(rows), search.run):
            part, into = rows[start : start + search.run], blocks[start : start + search.run]
            pack(part.reshape(-1), into, search)
            # the sum of what is finite may overflow; that of anything else never looks finite
            for block in np.flatnonzero(~np.isfinite(np.add.reduce(part, axis=1))):
                if not np.isfinite(part[block]).all():
                    into[block] = 0
                    into[block, [at + 1 for at in _SCALES[name]]] = 0x7E


def _pack_q2_k(x: Values, b: Bytes, search: Searches) -> None:
    fit = search.affine(x, _TWO)
    scales, lows = fit.scale.reshape(-1, 16), -fit.low.reshape(-1, 16)
    b[:, :16] = _factors(scales, 15, b, 80) | _factors(lows, 15, b, 82) << 4
    q = _affine_levels(x, fit, half(b, 80) * (b[:, :16] & 15), half(b, 82) * (b[:, :16] >> 4), 3, search)
    b[:, 16:80] = _packed(q, 32, 2)


def _pack_q3_k(x: Values, b: Bytes, search: Searches) -> None:
    scale, found = search.search_q3_k(x)
    scales = scale.reshape(-1, 16)
    far = farthest(scales.T)[1][:, None]
    inverse = np.float32(-32) / far
    factors = np.clip(nearest(inverse * scales).astype(np.int8), -32, 31)
    factors[far[:, 0] == 0] = -32
    _put_half(b, 108, np.where(far == 0, _ZERO, _ONE / inverse))
    few = (factors + np.int8(32)).view(np.uint8)
    b[:, 96:104], b[:, 104:108] = _packed(few & _NIBBLE, 8, 4), _packed(few >> _FOUR_BITS, 4, 2)
    scale = (half(b, 108) * factors).reshape(-1)
    q = _levels(x, scale, np.zeros_like(scale), 4, 7, search, lambda kept: found.reshape(-1, 16)[kept])
    b[:, 32:96], b[:, :32] = _packed(q & np.uint8(3), 32, 2), _packed(q >> np.uint8(2), 32, 1)


def _pack_q4_k(x: Values, b: Bytes, search: Searches) -> None:
    b[:, 16:144] = _packed(_with_six_bits(x, b, _FOUR, search), 32, 4)


def _pack_q5_k(x: Values, b: Bytes, search: Searches) -> None:
    q = _with_six_bits(x, b, _FIVE, search)
    b[:, 48:176], b[:, 16:48] = _packed(q & _NIBBLE, 32, 4), _packed(q >> _FOUR_BITS, 32, 1)


def _pack_q6_k(x: Values, b: Bytes, search: Searches) -> None:
    fit = search.symmetric(x)
    scales = fit.scale.reshape(-1, 16)
    far = farthest(scales.T)[1][:, None]
    inverse = np.float32(-128) / far
    factors = np.minimum(nearest(inverse * scales), 127).astype(np.int8)
    b[:, 192:208] = factors.view(np.uint8)
    _put_half(b, 208, _ONE / inverse)
    scale = (half(b, 208) * factors).reshape(-1)
    q = _levels(x, scale, np.zeros_like(scale), 32, 63, search, lambda kept: _found(x, fit, kept, 32, 63))
    b[:, :128], b[:, 128:192] = _packed(q & _NIBBLE, 64, 4), _packed(q >> _FOUR_BITS, 32, 2)
    b[np.abs(far[:, 0]) < LEAST] = 0


def _with_six_bits(x: Values, b: Bytes, how: Affine, search: Searches) -> Levels:
    """The levels of q4_k and q5_k; writes scale, minimum and the 8 + 8 factors of six bits."""
    fit = search.affine(x, how)
    scales, lows = fit.scale.reshape(-1, 8), -fit.low.reshape(-1, 8)
    factor, low = (np.minimum(_factors(numbers, 63, b, at), 63) for numbers, at in ((scales, 0), (lows, 2)))
    b[:, 4:8] = factor[:, :4] | factor[:, 4:] >> 4 << 6
    b[:, 8:12] = low[:, :4] | low[:, 4:] >> 4 << 6
    b[:, 12:16] = factor[:, 4:] & 15 | low[:, 4:] << 4
    return _affine_levels(x, fit, half(b, 0) * factor, half(b, 2) * low, how.top, search)


def _affine_levels(x: Values, fit: Fit, scale: Values, add: Values, top: int, search: Searches) -> Levels:
    return _levels(x, scale.reshape(-1), add.reshape(-1), 0, top, search, lambda kept: _found(x, fit, kept, 0, top))


def _levels(
    x: Values,
    scale: Values,
    add: Values,
    middle: int,
    top: int,
    search: Searches,
    found: Callable[[NDArray[np.intp]], Levels],
) -> Levels:
    """The levels of all values, a row for every super-block; as in ggml, a sub-block whose scale came to nothing keeps
    those that the search found."""
    q = search.levels(x, scale, add, middle, top)
    kept = np.flatnonzero(scale == 0)
    if kept.size:
        q.reshape(scale.size, -1)[kept] = found(kept)
    return q.reshape(-1, BLOCK)


def _found(x: Values, fit: Fit, kept: NDArray[np.intp], middle: int, top: int) -> Levels:
    inverse = fit.inverse[kept, None]
    rounded = nearest(inverse * (x.reshape(fit.scale.size, -1)[kept] - fit.base[kept, None])) + np.int32(middle)
    levels: Levels = (np.clip(rounded, 0, top) * (inverse != 0)).astype(np.uint8)
    return levels


def _factors(numbers: Values, most: int, b: Bytes, at: int) -> Levels:
    """Each number in parts of the largest of its row, which has `most`; the size of a part goes to byte `at`."""
    top = np.fmax.reduce(np.ascontiguousarray(numbers.T), axis=0, initial=_ZERO)[:, None] + _ZERO  # +0, never nan
    inverse = np.where(top > 0, np.float32(most) / top, _ZERO)
    _put_half(b, at, top / np.float32(most))
    return nearest(inverse * numbers).astype(np.uint8)


def _packed(levels: Levels, group: int, bits: int) -> Levels:
    """Every row as groups of `group` bytes: the lowest `bits` of all bytes of a group, the next, and so on."""
    parts = levels.reshape(len(levels), -1, 8 // bits, group)
    out = parts[:, :, 0].copy()
    for number in range(1, 8 // bits):
        out |= parts[:, :, number] << np.uint8(number * bits)
    return out.reshape(len(levels), -1)


def _put_half(blocks: Bytes, at: int, numbers: Values) -> None:
    """Write a column as the float16 at byte `at` of each block."""
    blocks[:, at : at + 2].view(np.float16)[:] = numbers


_PACKS: Mapping[str, Pack] = MappingProxyType(
    {"q2_k": _pack_q2_k, "q3_k": _pack_q3_k, "q4_k": _pack_q4_k, "q5_k": _pack_q5_k, "q6_k": _pack_q6_k}
)
_SCALES: Mapping[str, tuple[int, ...]] = MappingProxyType(  # where the float16 lie
    {"q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}
)
