"""ggml's super-blocks of 256: q2_k, q3_k, q4_k, q5_k, q6_k, both ways; encoding is in `ggml_k_encode`.

Layouts as in llama.cpp ggml/src/ggml-common.h (block_q*_K) and dequantize_row_q*_K in ggml-quants.c,
b11549; values equal gguf-py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from crossdock.codecs.codec import Bytes, Values
from crossdock.codecs.ggml_k_encode import BLOCK, encode
from crossdock.codecs.ggml_k_search import Levels
from crossdock.codecs.ggml_legacy import half

RUN = 64  # super-blocks decoded at a time: 64 KiB of float32


@dataclass(frozen=True, slots=True)
class SuperBlocks:
    """One K type. `unpack` gives the values of a run of super-blocks, [blocks, 256] in any grouping."""

    name: str
    block_bytes: int
    file_type: int
    unpack: Callable[[Bytes], Values] = field(repr=False)
    block: int = BLOCK
    exact: bool = False
    encodes: bool = True
    searches: bool = True
    cost: int = 16
    is_scaled: bool = False
    compiled: str = "crossdock.codecs.ggml_k_numba:encoder"

    def encode(self, values: Values, out: Bytes) -> None:
        """The bytes of ggml's own quantiser, without an importance matrix."""
        encode(self.name, values, out)

    def decode(self, raw: Bytes, out: Values) -> None:
        """Values in float32, in ggml's order of operations."""
        blocks, rows = raw.reshape(-1, self.block_bytes), out.reshape(-1, BLOCK)
        with np.errstate(all="ignore"):
            for start in range(0, len(rows), RUN):
                part = blocks[start : start + RUN]
                rows[start : start + RUN] = self.unpack(part).reshape(len(part), BLOCK)


def super_blocks(name: str) -> SuperBlocks:
    """One of the five codecs of this file."""
    kinds = {
        "q2_k": (84, 10, _q2_k),
        "q3_k": (110, 12, _q3_k),
        "q4_k": (144, 15, _q4_k),
        "q5_k": (176, 17, _q5_k),
        "q6_k": (210, 18, _q6_k),
    }
    return SuperBlocks(name, *kinds[name])


def _q2_k(b: Bytes) -> Values:
    # 16 scale/minimum nibble pairs, 64 bytes of 2 bits, scale of scales, scale of minima
    n = len(b)
    scale = half(b, 80) * (b[:, :16] & 15).astype(np.float32)
    low = half(b, 82) * (b[:, :16] >> 4).astype(np.float32)
    q = _bits(b[:, 16:80], 32, 2).reshape(n, 16, 16)
    return scale[:, :, None] * q.astype(np.float32) - low[:, :, None]


def _q3_k(b: Bytes) -> Values:
    # 32 bytes of third bits (set means no -4), 64 bytes of 2 bits, 16 six-bit scales in 12 bytes, scale
    n = len(b)
    scales = _bits(b[:, 96:104], 8, 4).reshape(n, 16) | _bits(b[:, 104:108], 4, 2).reshape(n, 16) << 4
    scale = half(b, 108) * (scales.astype(np.int8) - np.int8(32)).astype(np.float32)
    q = _bits(b[:, 32:96], 32, 2).reshape(n, 16, 16) | _bits(b[:, :32], 32, 1).reshape(n, 16, 16) << 2
    return scale[:, :, None] * (q.astype(np.int8) - np.int8(4)).astype(np.float32)


def _q4_k(b: Bytes) -> Values:
    # scale, minimum, 8 + 8 six-bit factors in 12 bytes, 128 bytes of 4 bits
    return _scaled(b, _bits(b[:, 16:144], 32, 4).reshape(len(b), 8, 32))


def _q5_k(b: Bytes) -> Values:
    # as q4_k, with 32 bytes of fifth bits before the 128
    n = len(b)
    q: Levels = _bits(b[:, 48:176], 32, 4).reshape(n, 8, 32)
    q |= _bits(b[:, 16:48], 32, 1).reshape(n, 8, 32) << 4
    return _scaled(b, q)


def _q6_k(b: Bytes) -> Values:
    # 128 bytes of low 4 bits, 64 bytes of high 2 bits, 16 int8 scales, scale
    n = len(b)
    q = _bits(b[:, :128], 64, 4).reshape(n, 16, 16) | _bits(b[:, 128:192], 32, 2).reshape(n, 16, 16) << 4
    scale = half(b, 208) * b[:, 192:208].view(np.int8).astype(np.float32)
    return scale[:, :, None] * (q.astype(np.int8) - np.int8(32)).astype(np.float32)


def _scaled(b: Bytes, q: Levels) -> Values:
    """scale * factor * q - minimum * factor, the factors six bits each as q4_k and q5_k pack them."""
    first, second, rest = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    factor = np.concatenate([first & 63, rest & 15 | first >> 2 & 48], axis=1)
    low = np.concatenate([second & 63, rest >> 4 | second >> 2 & 48], axis=1)
    scale = half(b, 0) * factor.astype(np.float32)
    minimum = half(b, 2) * low.astype(np.float32)
    return scale[:, :, None] * q.astype(np.float32) - minimum[:, :, None]


def _bits(packed: Bytes, group: int, bits: int) -> Levels:
    """Unpack groups of `group` bytes: the lowest `bits` of all bytes of a group, then the next, and so on."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    unpacked: Levels = packed.reshape(len(packed), -1, 1, group) >> shifts & np.uint8(2**bits - 1)
    return unpacked
