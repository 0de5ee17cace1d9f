"""ggml's own quantisers, called in the library of the xllamacpp wheel, and values to try them on."""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

ROW = 1024


@cache
def _library() -> ctypes.CDLL:
    found = importlib.util.find_spec("xllamacpp")
    assert found is not None
    assert found.origin is not None
    library = ctypes.CDLL(str(next(Path(found.origin).parent.glob("xllamacpp*.so"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    return library


def ggml_quantize(values: NDArray[np.float32], name: str, nbytes: int, row: int = ROW) -> NDArray[np.uint8]:
    """What ggml_quantize_chunk makes of rows of `row` values, without an importance matrix."""
    assert values.flags.c_contiguous
    out = np.zeros(nbytes, np.uint8)
    number = int(GGMLQuantizationType[name.upper()])
    rows = values.size // row
    written = _library().ggml_quantize_chunk(number, values.ctypes.data, out.ctypes.data, 0, rows, row, None)
    assert written == nbytes
    return out


def ggml_type_size(number: int) -> tuple[int, int]:
    """Elements and bytes of a block, as ggml itself counts them."""
    size = _library().ggml_type_size
    size.restype = ctypes.c_size_t
    return int(_library().ggml_blck_size(number)), int(size(number))


def awkward_values() -> dict[str, NDArray[Any]]:
    """Sets of float32 that break careless quantisers; sizes are multiples of 1024."""
    rng = np.random.default_rng(20)
    size = 1 << 15
    plain = (rng.standard_normal(size) * 0.02).astype(np.float32)
    zeros = np.where(rng.random(size) < 0.5, np.float32(-0.0), np.float32(0))
    # a block maximum of 127 gives a scale of exactly 1: halves are then ties
    halves = rng.integers(-254, 255, size).astype(np.float32) / 2
    halves[::32] = 127 * rng.choice([-1.0, 1.0], halves[::32].size)
    towards_zero, away = np.nextafter(halves, np.float32(0)), np.nextafter(halves, halves * 2)
    towards_zero[::32] = away[::32] = halves[::32]
    patterns = rng.integers(0, 1 << 32, size, dtype=np.uint32).view(np.float32)
    powers = np.exp2(rng.integers(-150, 100, (size // 32, 1)))
    constants = rng.standard_normal(size // 32).astype(np.float32)
    constants[::3] = 0
    spikes = np.where(rng.random(size) < 0.01, np.float32(1e4), np.float32(1)) * plain
    sets = {
        "plain": plain,
        "bfloat16": (plain.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32),
        "few levels, tied maxima": rng.integers(-3, 4, size).astype(np.float32),
        "zeros of both signs": zeros,
        "half zeros": np.where(rng.random(size) < 0.5, zeros, plain),
        "no negative ones": np.where(rng.random(size) < 0.5, zeros, np.abs(plain)),
        "no positive ones": np.where(rng.random(size) < 0.5, zeros, -np.abs(plain)),
        "all positive": np.abs(plain) + np.float32(1e-3),
        "halves": halves,
        "below halves": towards_zero,
        "above halves": away,
        "just below one half": np.where(np.arange(size) % 32, np.float32(0.49999997), np.float32(127)),
        "denormal": plain * np.float32(1e-38),
        "smallest": plain * np.float32(1e-42),
        "scale overflows float16": plain * np.float32(1e12),
        "huge": plain * np.float32(1e38),
        "any finite pattern": np.where(np.isfinite(patterns), patterns, np.float32(1)),
        "spikes": spikes,
        "constant in blocks of 32": np.repeat(constants, 32),
        "constant but for one": np.repeat(constants, 32) + np.where(np.arange(size) % 256, np.float32(0), plain),
        "outliers far above the rest": np.where(np.arange(size) % 256, plain * np.float32(1e-7), plain),
        "at the limit of what counts as zero": plain * np.float32(2e-14),
        "largest": np.copysign(np.float32(3.4e38), plain),
        "any power": (plain.reshape(-1, 32) * powers).astype(np.float32).reshape(-1),
    }
    return {name: np.ascontiguousarray(values, np.float32) for name, values in sets.items()}
