"""q8_0 encoding compiled by numba: the bytes of `ggml_legacy`, several times faster.

Imported only by `fast`, and only when numba is there. Strict IEEE arithmetic without fastmath; maxima are
taken over bit patterns, because integer maxima vectorise and put nan above all. A compiled q4_0 gained
little over numpy and is not here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from crossdock.codecs.codec import Bytes, Values

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]
compiled: Compile = numba.njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)
inlined: Compile = numba.njit(inline="always", error_model="numpy")

MAGNITUDE = np.uint32(0x7FFFFFFF)
INFINITE = np.uint32(0x7F800000)
LARGEST = np.float32(np.finfo(np.float32).max)
BELOW_HALF = np.float32(0.49999997)


@inlined
def half_bits(bits: Any) -> Any:
    """float16 pattern of a float32 pattern, rounded to nearest even; every nan is 0x7E00."""
    sign = np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000)
    a = np.uint32(bits & MAGNITUDE)
    if a > INFINITE:
        return np.uint32(0x7E00)
    if a >= np.uint32(0x47800000):
        return sign | np.uint32(0x7C00)
    if a < np.uint32(0x33000000):
        return sign
    if a < np.uint32(0x38800000):  # a denormal float16
        mantissa = (a & np.uint32(0x7FFFFF)) | np.uint32(0x800000)
        shift = np.uint32(126) - (a >> np.uint32(23))
        rounded = mantissa >> shift
        rest = mantissa & ((np.uint32(1) << shift) - np.uint32(1))
        middle = np.uint32(1) << (shift - np.uint32(1))
        if rest > middle or (rest == middle and rounded & np.uint32(1)):
            rounded += np.uint32(1)
        return sign | rounded
    rounded = a + np.uint32(0xC8000FFF) + ((a >> np.uint32(13)) & np.uint32(1))
    return sign | (rounded >> np.uint32(13))


@compiled
def q8_0(values: Any, patterns: Any, out: Any) -> None:
    """`patterns` is `values` seen as uint32; whole blocks of 32."""
    scale = np.empty(1, np.float32)
    scale_bits = scale.view(np.uint32)
    for block in range(values.size // 32):
        x, o = block * 32, block * 34
        top = np.uint32(0)
        for i in range(32):
            top = max(top, np.uint32(patterns[x + i] & MAGNITUDE))
        scale_bits[0] = top
        scale[0] = scale[0] / np.float32(127)
        inverse = np.float32(1) / scale[0] if scale[0] != np.float32(0) else np.float32(0)
        half = half_bits(scale_bits[0])
        out[o], out[o + 1] = half & np.uint32(0xFF), half >> np.uint32(8)
        if top >= INFINITE or inverse > LARGEST:
            for i in range(32):
                out[o + 2 + i] = 0
        else:
            for i in range(32):
                v = values[x + i] * inverse
                out[o + 2 + i] = np.uint8(np.int8(np.trunc(v + np.copysign(BELOW_HALF, v))))


def encoder(name: str) -> Callable[[Values, Bytes], None]:
    """The compiled encoder of q8_0."""
    return lambda values, out: q8_0(values, values.view(np.uint32), out)
