"""The searches of `ggml_k_search` compiled by numba: the same numbers, several times faster.

Imported only by `fast`, and only when numba is there. LANES sub-blocks are worked on side by side, a row for every
element, so that LLVM vectorises over sub-blocks while each of them keeps ggml's order of IEEE operations; no fastmath.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from crossdock.codecs.codec import Bytes, Values
from crossdock.codecs.ggml_k_encode import encode
from crossdock.codecs.ggml_k_search import (
    LEAST,
    MAGIC,
    MANTISSA,
    MIDDLE,
    ROUNDS,
    THREE_BITS,
    Affine,
    Fit,
    Levels,
    Searches,
)
from crossdock.codecs.ggml_legacy_numba import compiled, inlined

LANES = 64
RUN = 512  # super-blocks encoded at a time: half a MiB of float32
_ZERO, _ONE, _TENTH = np.float32(0), np.float32(1), np.float32(0.1)
_SMALL = np.float32(1 << 21)  # far below where nearest_int no longer rounds
_BITS = np.int32(0x4B400000)  # of MAGIC: those of MAGIC + n are n more


@inlined
def nearest(value: Any, low: Any, high: Any) -> Any:
    """ggml's nearest_int, cut to low..high (int32)."""
    rounded = (np.float32(value + MAGIC).view(np.int32) & MANTISSA) - MIDDLE
    return min(max(np.int32(rounded), low), high)


@inlined
def nearest_small(value: Any, low: Any, high: Any) -> Any:
    """The same as float32, for what is small; low and high as the bits of their sum with MAGIC."""
    return np.int32(min(max(np.float32(value + MAGIC).view(np.int32), low), high)).view(np.float32) - MAGIC


@compiled
def _affine(
    values: Any, size: Any, top: Any, first: Any, steps: Any, plain: Any, scales: Any, lows: Any, found: Any, at: Any
) -> None:
    x, w = np.zeros((size, LANES), np.float32), np.zeros((size, LANES), np.float32)
    level = np.zeros((size, LANES), np.float32)
    low, high, constant = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    sum_w, sum_x, least = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    sum_l, sum_l2, sum_xl = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    inverse, scale, error = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    chosen, base = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    new_scale, new_low = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    divisor = np.zeros(LANES, np.float32)
    none, most, n = np.int32(0), np.int32(top), scales.size
    most_bits = np.int32(_BITS + top)
    for start in range(0, n, LANES):
        lanes = min(LANES, n - start)
        for j in range(lanes):
            for i in range(size):
                x[i, j] = values[(start + j) * size + i]
        if plain:
            for i in range(size):
                for j in range(LANES):
                    w[i, j] = abs(x[i, j])
        else:
            for j in range(LANES):
                error[j] = _ZERO
            for i in range(size):
                for j in range(LANES):
                    error[j] += x[i, j] * x[i, j]
            for j in range(LANES):
                error[j] = np.sqrt(error[j] / np.float32(size))
            for i in range(size):
                for j in range(LANES):
                    w[i, j] = error[j] + abs(x[i, j])
        for j in range(LANES):
            low[j] = x[0, j]
            high[j] = x[0, j]
            sum_w[j] = w[0, j]
            sum_x[j] = w[0, j] * x[0, j]
        for i in range(1, size):
            for j in range(LANES):
                low[j] = x[i, j] if x[i, j] < low[j] else low[j]
                high[j] = x[i, j] if x[i, j] > high[j] else high[j]
                sum_w[j] += w[i, j]
                sum_x[j] += w[i, j] * x[i, j]
        for j in range(LANES):
            low[j] = _ZERO if low[j] > _ZERO else low[j]
            constant[j] = low[j]
            inverse[j] = np.float32(top) / (high[j] - low[j])
            scale[j] = _ONE / inverse[j]
            least[j] = _ZERO
            chosen[j] = inverse[j]
            base[j] = low[j]
        for i in range(size):
            for j in range(LANES):
                q = np.float32(nearest(inverse[j] * (x[i, j] - low[j]), none, most))
                lost = scale[j] * q + low[j] - x[i, j]
                least[j] += w[i, j] * (abs(lost) if plain else lost * lost)
        for step in range(steps + 1):
            factor = first + _TENTH * np.float32(step) + np.float32(top)
            small = True
            for j in range(LANES):
                inverse[j] = factor / (high[j] - low[j])
                small &= abs(inverse[j]) * max(abs(high[j] - low[j]), abs(constant[j] - low[j])) < _SMALL
                sum_l[j] = _ZERO
                sum_l2[j] = _ZERO
                sum_xl[j] = _ZERO
                error[j] = _ZERO
            for i in range(size):
                for j in range(LANES):
                    v = inverse[j] * (x[i, j] - low[j])
                    q = nearest_small(v, _BITS, most_bits) if small else np.float32(nearest(v, none, most))
                    level[i, j] = q
                    weighted = w[i, j] * q
                    sum_l[j] += weighted
                    sum_l2[j] += weighted * q
                    sum_xl[j] += weighted * x[i, j]
            for j in range(LANES):
                divisor[j] = sum_w[j] * sum_l2[j] - sum_l[j] * sum_l[j]
                a = (sum_w[j] * sum_xl[j] - sum_x[j] * sum_l[j]) / divisor[j]
                b = (sum_l2[j] * sum_x[j] - sum_l[j] * sum_xl[j]) / divisor[j]
                above = b > _ZERO
                new_scale[j] = sum_xl[j] / sum_l2[j] if above else a
                new_low[j] = _ZERO if above else b
            for i in range(size):
                for j in range(LANES):
                    lost = new_scale[j] * level[i, j] + new_low[j] - x[i, j]
                    error[j] += w[i, j] * (abs(lost) if plain else lost * lost)
            for j in range(LANES):
                better = (divisor[j] > _ZERO) & (error[j] < least[j])
                chosen[j] = inverse[j] if better else chosen[j]
                base[j] = low[j] if better else base[j]
                least[j] = error[j] if better else least[j]
                scale[j] = new_scale[j] if better else scale[j]
                low[j] = new_low[j] if better else low[j]
        for j in range(lanes):
            flat = high[j] == constant[j]
            scales[start + j] = _ZERO if flat else scale[j]
            lows[start + j] = constant[j] if flat else low[j]
            found[start + j] = _ZERO if flat else chosen[j]
            at[start + j] = base[j]


@compiled
def _weigh(values: Any, x: Any, w: Any, wx: Any, size: Any, far: Any) -> None:
    """Sub-blocks of 16 side by side in x, their squares and cubes, and of each the value of the largest magnitude."""
    for j in range(values.size // 16):
        for i in range(16):
            x[i, j] = values[j * 16 + i]
    size[:] = _ZERO
    far[:] = _ZERO
    for i in range(16):
        for j in range(LANES):
            magnitude = abs(x[i, j])
            larger = magnitude > size[j]
            far[j] = x[i, j] if larger else far[j]
            size[j] = magnitude if larger else size[j]
            w[i, j] = x[i, j] * x[i, j]
            wx[i, j] = w[i, j] * x[i, j]


@compiled
def _symmetric(values: Any, scales: Any, found: Any) -> None:
    x, w, wx = (
        np.zeros((16, LANES), np.float32), np.zeros((16, LANES), np.float32), np.zeros((16, LANES), np.float32)
    )  # fmt: skip
    size, far, inverse = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    sum_lx, sum_l2 = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    chosen, scale, best = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    lowest, highest, n = np.int32(-32), np.int32(31), scales.size
    for start in range(0, n, LANES):
        lanes = min(LANES, n - start)
        _weigh(values[start * 16 : (start + lanes) * 16], x, w, wx, size, far)
        for step in range(-10, 10):
            # the first try, step -10, is the one without an offset; 0 would repeat it
            factor = -(np.float32(32) + _TENTH * np.float32(step)) if step > -10 else np.float32(-32)
            if step == 0:
                continue
            for j in range(LANES):
                inverse[j] = factor / far[j]
                sum_lx[j] = _ZERO
                sum_l2[j] = _ZERO
            for i in range(16):
                for j in range(LANES):
                    q = np.float32(nearest(inverse[j] * x[i, j], lowest, highest))
                    sum_lx[j] += wx[i, j] * q
                    sum_l2[j] += w[i, j] * q * q
            if step == -10:
                for j in range(LANES):
                    chosen[j] = inverse[j]
                    scale[j] = sum_lx[j] / sum_l2[j] if sum_l2[j] != _ZERO else _ZERO
                    best[j] = scale[j] * sum_lx[j]
            else:
                for j in range(LANES):
                    better = (sum_l2[j] > _ZERO) & (sum_lx[j] * sum_lx[j] > best[j] * sum_l2[j])
                    new = sum_lx[j] / sum_l2[j]
                    chosen[j] = inverse[j] if better else chosen[j]
                    scale[j] = new if better else scale[j]
                    best[j] = new * sum_lx[j] if better else best[j]
        for j in range(lanes):
            none = size[j] < LEAST
            scales[start + j] = _ZERO if none else scale[j]
            found[start + j] = _ZERO if none else chosen[j]


@compiled
def _search_q3_k(values: Any, scales: Any, levels: Any) -> None:
    x, w, wx = (
        np.zeros((16, LANES), np.float32), np.zeros((16, LANES), np.float32), np.zeros((16, LANES), np.float32)
    )  # fmt: skip
    level = np.zeros((16, LANES), np.float32)
    size, far = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    sum_lx, sum_l2 = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    lowest, highest, n = np.int32(-THREE_BITS), np.int32(THREE_BITS - 1), scales.size
    for start in range(0, n, LANES):
        lanes = min(LANES, n - start)
        _weigh(values[start * 16 : (start + lanes) * 16], x, w, wx, size, far)
        sum_lx[:] = _ZERO
        sum_l2[:] = _ZERO
        for i in range(16):
            for j in range(LANES):
                q = np.float32(nearest(np.float32(-THREE_BITS) / far[j] * x[i, j], lowest, highest))
                level[i, j] = q
                sum_lx[j] += wx[i, j] * q
                sum_l2[j] += w[i, j] * q * q
        for _ in range(ROUNDS):
            for i in range(16):
                for j in range(LANES):
                    was = level[i, j]
                    part_lx = sum_lx[j] - wx[i, j] * was
                    part_l2 = sum_l2[j] - w[i, j] * was * was
                    now = np.float32(nearest(x[i, j] * part_l2 / part_lx, lowest, highest))
                    new_lx = part_lx + wx[i, j] * now
                    new_l2 = part_l2 + w[i, j] * now * now
                    better = (part_lx > _ZERO) & (now != was) & (new_l2 > _ZERO)
                    better &= new_lx * new_lx * sum_l2[j] > sum_lx[j] * sum_lx[j] * new_l2
                    level[i, j] = now if better else was
                    sum_lx[j] = new_lx if better else sum_lx[j]
                    sum_l2[j] = new_l2 if better else sum_l2[j]
        for j in range(lanes):
            none = size[j] < LEAST
            scales[start + j] = _ZERO if none or not sum_l2[j] > _ZERO else sum_lx[j] / sum_l2[j]
            for i in range(16):
                levels[(start + j) * 16 + i] = 0 if none else np.uint8(level[i, j] + THREE_BITS)


@compiled
def _levels(values: Any, scale: Any, add: Any, low: Any, high: Any, out: Any) -> None:
    size = values.size // scale.size
    for j in range(scale.size):
        for i in range(j * size, (j + 1) * size):
            out[i] = np.uint8(nearest((values[i] + add[j]) / scale[j], low, high) - low)


def affine(values: Values, how: Affine) -> Fit:
    """Compute what `ggml_k_search.affine` computes, compiled."""
    fit = Fit(*(np.empty(values.size // how.size, np.float32) for _ in range(4)))
    _affine(
        values, how.size, how.top, np.float32(how.first), how.steps, how.plain,
        fit.scale, fit.low, fit.inverse, fit.base,
    )  # fmt: skip
    return fit


def symmetric(values: Values) -> Fit:
    """Compute what `ggml_k_search.symmetric` computes, compiled."""
    fit = Fit(*(np.zeros(values.size // 16, np.float32) for _ in range(4)))
    _symmetric(values, fit.scale, fit.inverse)
    return fit


def search_q3_k(values: Values) -> tuple[Values, Levels]:
    """Compute what `ggml_k_search` computes for q3_k, compiled."""
    scales, levels = np.empty(values.size // 16, np.float32), np.empty(values.size, np.uint8)
    _search_q3_k(values, scales, levels)
    return scales, levels


def levels(values: Values, scale: Values, add: Values, middle: int, top: int) -> Levels:
    """Compute what `ggml_k_search.levels` computes, compiled."""
    out = np.empty(values.size, np.uint8)
    _levels(values, scale, add, np.int32(-middle), np.int32(top - middle), out)
    return out


NUMBA = Searches(RUN, affine, symmetric, search_q3_k, levels)


def encoder(name: str) -> Callable[[Values, Bytes], None]:
    """The compiled encoder of the K type `name`."""
    return lambda values, out: encode(name, values, out, NUMBA)
