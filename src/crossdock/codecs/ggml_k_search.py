"""ggml's searches for the scales of sub-blocks, in numpy over many sub-blocks at once. Knows no packing of bits.

As make_qkx2_quants, make_qx_quants and make_q3_quants of llama.cpp ggml/src/ggml-quants.c, b11549, without importance
matrix. An array has a row for every element of a sub-block and a column for every sub-block, so that sums over rows are
made in ggml's order: each number is rounded as there, the first of equals wins as there, and nothing is fused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossdock.codecs.codec import Values

Integers = NDArray[np.int32]
Levels = NDArray[np.uint8]

MAGIC, MANTISSA, MIDDLE = np.float32(12582912), np.int32(0x7FFFFF), np.int32(0x400000)
LEAST = np.float32(1e-15)  # GROUP_MAX_EPS: sub-blocks without a larger magnitude are zero
THREE_BITS, ROUNDS = 4, 5
RUN = 128  # super-blocks encoded at a time: 128 KiB of float32


@dataclass(frozen=True, slots=True)
class Affine:
    """How a search for value = scale * level + low goes: `steps` + 1 tries of (first + 0.1 * number + top) levels.

    size  elements of a sub-block; top: the largest level
    plain weights are magnitudes and errors absolute; else weights are magnitude + root mean square, errors squared
    """

    size: int
    top: int
    first: float
    steps: int
    plain: bool


@dataclass(frozen=True, slots=True)
class Fit:
    """What a search found, one number a sub-block.

    scale, low     value = scale * level + low; low is 0 where there is none
    inverse, base  the levels it chose are nearest(inverse * (x - base)); inverse is 0 where they are all the lowest
    """

    scale: Values
    low: Values
    inverse: Values
    base: Values


@dataclass(frozen=True, slots=True)
class Searches:
    """One implementation of all that takes time. Values come flat, sub-block behind sub-block.

    run         how many super-blocks it likes to be given at a time
    affine      of values, as an Affine says
    symmetric   of values, sub-blocks of 16, levels -32 to 31
    search_q3_k       of values, sub-blocks of 16, levels 0 to 7 for -4 to 3: scales, and the levels themselves
    levels      nearest((x + add) / scale) between 0 and top, after `middle` was added; one scale and add a sub-block
    """

    run: int
    affine: Callable[[Values, Affine], Fit]
    symmetric: Callable[[Values], Fit]
    search_q3_k: Callable[[Values], tuple[Values, Levels]]
    levels: Callable[[Values, Values, Values, int, int], Levels]


def nearest(values: Values) -> Integers:
    """`values`, overwritten, as ggml's nearest_int rounds them: half to even, and beyond 2**22 no sense, but always the
    same one."""
    np.add(values, MAGIC, out=values)
    rounded = values.view(np.int32)
    np.bitwise_and(rounded, MANTISSA, out=rounded)
    return np.subtract(rounded, MIDDLE, out=rounded)


def affine(values: Values, how: Affine) -> Fit:
    """make_qkx2_quants. `low` is at most 0."""
    x = _columns(values, how.size)
    w, top = np.abs(x), np.float32(how.top)
    if not how.plain:
        w += np.sqrt(np.add.reduce(x * x) / np.float32(how.size))
    level, spare = np.empty_like(x), np.empty_like(x)
    base: Values = np.minimum(np.minimum.reduce(x), np.float32(0))
    high: Values = np.maximum.reduce(x)
    sum_w, sum_x = np.add.reduce(w), np.add.reduce(np.multiply(w, x, out=spare))
    inverse = top / (high - base)
    scale, low = np.float32(1) / inverse, base
    _levels(x, inverse, low, how.top, level)
    least = _error(x, w, level, scale, low, how.plain, spare)
    found, at, constant = inverse, base, high == base
    for number in range(how.steps + 1):
        inverse = (np.float32(how.first) + np.float32(0.1) * np.float32(number) + top) / (high - low)
        _levels(x, inverse, low, how.top, level)
        sum_l = np.add.reduce(np.multiply(w, level, out=spare))
        sum_xl = np.add.reduce(spare * x)
        sum_l2 = np.add.reduce(np.multiply(spare, level, out=spare))
        divisor = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / divisor
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / divisor
        above = new_low > 0
        new_scale = np.where(above, sum_xl / sum_l2, new_scale)
        new_low = np.where(above, np.float32(0), new_low)
        error = _error(x, w, level, new_scale, new_low, how.plain, spare)
        better = (divisor > 0) & (error < least)
        found, at = np.where(better, inverse, found), np.where(better, low, at)
        least = np.where(better, error, least)
        scale, low = np.where(better, new_scale, scale), np.where(better, new_low, low)
    zero = np.float32(0)
    return Fit(
        np.where(constant, zero, scale), np.where(constant, base, low), np.where(constant, zero, found), at
    )  # fmt: skip


def symmetric(values: Values) -> Fit:
    """make_qx_quants of 16 elements with weights x * x: value = scale * level, levels -32 to 31."""
    x = _columns(values, 16)
    level, spare = np.empty_like(x), np.empty_like(x)
    size, far = farthest(x)
    w = x * x
    wx = w * x

    def sums(inverse: Values) -> tuple[Values, Values]:
        rounded = nearest(np.multiply(x, inverse, out=spare))
        np.copyto(level, np.clip(rounded, -32, 31, out=rounded))
        products = np.add.reduce(np.multiply(wx, level, out=spare))
        np.multiply(w, level, out=spare)
        return products, np.add.reduce(np.multiply(spare, level, out=spare))

    found = np.float32(-32) / far
    sum_lx, sum_l2 = sums(found)
    scale = np.where(sum_l2 != 0, sum_lx / sum_l2, np.float32(0))
    best = scale * sum_lx
    for step in (*range(-9, 0), *range(1, 10)):
        inverse = -(np.float32(32) + np.float32(0.1) * np.float32(step)) / far
        sum_lx, sum_l2 = sums(inverse)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        new = sum_lx / sum_l2
        found, scale = np.where(better, inverse, found), np.where(better, new, scale)
        best = np.where(better, new * sum_lx, best)
    none, zero = size < LEAST, np.float32(0)
    return Fit(np.where(none, zero, scale), np.zeros_like(scale), np.where(none, zero, found), np.zeros_like(scale))


def search_q3_k(values: Values) -> tuple[Values, Levels]:
    """make_q3_quants of 16 elements: element by element a better level is looked for, five times over."""
    x = _columns(values, 16)
    size, far = farthest(x)
    level = np.empty_like(x)
    rounded = nearest(np.float32(-THREE_BITS) / far * x)
    np.copyto(level, np.clip(rounded, -THREE_BITS, THREE_BITS - 1, out=rounded))
    w = x * x
    wx = w * x
    sum_lx, sum_l2 = np.add.reduce(wx * level), np.add.reduce(w * level * level)
    for _ in range(ROUNDS):
        for i, was in enumerate(level):
            part_lx, part_l2 = sum_lx - wx[i] * was, sum_l2 - w[i] * was * was
            rounded = nearest(x[i] * part_l2 / part_lx)
            now = np.clip(rounded, -THREE_BITS, THREE_BITS - 1, out=rounded).astype(np.float32)
            new_lx, new_l2 = part_lx + wx[i] * now, part_l2 + w[i] * now * now
            better = (part_lx > 0) & (now != was) & (new_l2 > 0)
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            level[i] = np.where(better, now, was)
            sum_lx, sum_l2 = np.where(better, new_lx, sum_lx), np.where(better, new_l2, sum_l2)
    none, zero = size < LEAST, np.float32(0)
    level += THREE_BITS
    level *= ~none
    scale = np.where(sum_l2 > 0, sum_lx / sum_l2, zero)
    return np.where(none, zero, scale), level.T.astype(np.uint8).reshape(-1)


def levels(values: Values, scale: Values, add: Values, middle: int, top: int) -> Levels:
    """Search the levels as `Searches.levels` describes."""
    x = values.reshape(scale.size, -1)
    quotients = x + add[:, None]
    rounded = nearest(np.divide(quotients, scale[:, None], out=quotients))
    rounded += np.int32(middle)
    return np.clip(rounded, 0, top, out=rounded).astype(np.uint8).reshape(-1)


NUMPY = Searches(RUN, affine, symmetric, search_q3_k, levels)


def _columns(values: Values, size: int) -> Values:
    """A copy with a row for every element of a sub-block."""
    return np.ascontiguousarray(values.reshape(-1, size).T)


def _levels(x: Values, inverse: Values, low: Values, top: int, out: Values) -> None:
    np.subtract(x, low, out=out)
    rounded = nearest(np.multiply(out, inverse, out=out))
    np.copyto(out, np.clip(rounded, 0, top, out=rounded))


def _error(x: Values, w: Values, level: Values, scale: Values, low: Values, plain: bool, spare: Values) -> Values:
    """Weighted sum of what the levels lose."""
    np.multiply(level, scale, out=spare)
    np.add(spare, low, out=spare)
    np.subtract(spare, x, out=spare)
    np.abs(spare, out=spare) if plain else np.multiply(spare, spare, out=spare)
    total: Values = np.add.reduce(np.multiply(spare, w, out=spare))
    return total


def farthest(x: Values) -> tuple[Values, Values]:
    """The largest magnitude of every column, and the first element that has it."""
    size, far = np.zeros_like(x[0]), np.zeros_like(x[0])
    for row in x:
        magnitude = np.abs(row)
        larger = magnitude > size
        np.copyto(size, magnitude, where=larger)
        np.copyto(far, row, where=larger)
    return size, far
