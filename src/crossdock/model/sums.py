"""Sums of float32 in PyTorch's order of additions, on any processor: of products of matrices, and along the last axis.

Not faster or more exact than numpy's own: the same to the last bit, which is what `rounding` says it is for.
Facts: PyTorch 2.13 (aten/src/ATen/native/cpu: SumKernel.cpp, SoftMaxKernel.cpp, moments_utils.h; cpu/vec/vec512), and
about Intel's MKL, whose source is closed, its results.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossdock.model.rounding import Array, fma

LANES = 8  # PyTorch compiles sums and moments for AVX2 at most
WIDE = 16  # and softmax for AVX-512
CHUNK = 16  # vectors that sums and moments take at a time
LONGEST = 384  # products that MKL adds up in one go
STRIP = 1 << 17  # values whose float64 a product of matrices holds


def product(a: Array, b: Array) -> Array:
    """The matrix product a [n, k] · b [k, m]; in float32 every sum in order of k, by one fused multiply-add each.

    So do MKL's kernels, and of more than 384 they add up the sums of parts. They do it otherwise for n below 16 when k
    is 24 n or more, of which nothing is here: that n counts the tokens of a whole batch, which a forward does not know.
    """
    if a.dtype != np.float32:
        return np.asarray(a @ b)
    out = np.empty((a.shape[0], b.shape[1]), np.float32)
    parts = list(itertools.pairwise(_bounds(a.shape[1])))
    step = 1 + STRIP // max(a.shape)
    for left in range(0, b.shape[1], step):
        strip = b[:, left : left + step]
        out[:, left : left + step] = _sum([_in_order(a[:, low:high], strip[low:high]) for low, high in parts])
    return out


def _bounds(k: int) -> list[int]:
    step = LONGEST if k > 2 * LONGEST else k if k <= LONGEST else -(-k // 2)
    return [*range(0, k, step), k]


def _in_order(a: Array, b: Array) -> Array:
    a, b = a.T[:, :, None].astype(np.float64), np.ascontiguousarray(b, np.float64)
    rounded = np.zeros((a.shape[1], b.shape[1]), np.float32)
    total, exact = rounded.astype(np.float64), rounded.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        for column, row in zip(a, b, strict=True):
            np.multiply(column, row, out=exact)
            exact += total
            rounded[...] = exact
            total[...] = rounded
    return rounded


def mean(x: Array) -> Array:
    """Over the last axis, which is kept."""
    return np.asarray(total(x) / x.shape[-1])


def total(x: Array) -> Array:
    """The sum over the last axis, which is kept: four vectors side by side, each sum a cascade of sixteens."""
    lanes = LANES if x.shape[-1] >= LANES else 1
    vectors, rest = _vectors(x, lanes)
    fours = len(vectors) // 4 * 4
    first, *others = _cascade(vectors[:fours].reshape(-1, 4, *vectors.shape[1:]))
    sums = _sum([first, *vectors[fours:], *others])
    return _sum([*rest, *np.moveaxis(sums, -1, 0)])[..., None]


def total_wide(x: Array) -> Array:
    """The sum over the last axis as softmax has it: vectors in order, then the halves of what they come to."""
    n = x.shape[-1]
    if n < WIDE:
        return _sum(np.moveaxis(x, -1, 0))[..., None]
    padded = np.zeros((*x.shape[:-1], -(-n // WIDE) * WIDE), x.dtype)
    padded[..., :n] = x
    sums = _sum(_vectors(padded, WIDE)[0])
    while sums.shape[-1] > 1:
        sums = sums[..., : sums.shape[-1] // 2] + sums[..., sums.shape[-1] // 2 :]
    return sums


def _vectors(x: Array, lanes: int) -> tuple[Array, Array]:
    """The last axis cut into vectors [vectors, ..., lanes], and what is left [rest, ...]."""
    whole = x.shape[-1] // lanes * lanes
    vectors = x[..., :whole].reshape(*x.shape[:-1], -1, lanes)
    return np.moveaxis(vectors, -2, 0), np.moveaxis(x[..., whole:], -1, 0)


def _sum(rows: Any) -> Array:
    """Along the first axis, in order."""
    rows = np.asarray(rows)
    return np.add.accumulate(rows, axis=0)[-1] if len(rows) else np.zeros(rows.shape[1:], rows.dtype)


def _cascade(rows: Array) -> Array:
    """Along the first axis: sixteens in order, sixteens of their sums, and so on; what each leaves joins at the end."""
    left = []
    for _ in range(3):
        whole = len(rows) // CHUNK * CHUNK
        left.append(_sum(rows[whole:]))
        rows = _sum(np.moveaxis(rows[:whole].reshape(-1, CHUNK, *rows.shape[1:]), 1, 0))
    return _sum([*left, _sum(rows)])


@dataclass(frozen=True, slots=True)
class _Moments:
    """Of `count` values in each lane: their mean, and the sum of their squared distances from it."""

    count: int
    mean: Array
    spread: Array


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and variance over the last axis, which is kept: Welford's way in lanes, chunks of which join in a tree."""
    vectors, rest = _vectors(x, LANES)
    in_lanes = _joined(list(_chunks(vectors)))
    count, centre, spread = 0, np.zeros(x.shape[:-1], x.dtype), np.zeros(x.shape[:-1], x.dtype)
    for value in rest:
        count += 1
        apart = value - centre
        centre = centre + apart / count
        spread = spread + apart * (value - centre)
    if in_lanes is not None:
        for lane in range(LANES):
            share = in_lanes.count / (count + in_lanes.count)
            apart = in_lanes.mean[..., lane] - centre
            centre = fma(share, apart, centre)
            spread = spread + fma(apart * apart * share, count, in_lanes.spread[..., lane])
            count += in_lanes.count
    return centre[..., None], (spread / x.shape[-1])[..., None]


def _chunks(vectors: Array) -> Iterator[_Moments]:
    for low in range(0, len(vectors), CHUNK):
        centre = spread = np.zeros(vectors.shape[1:], vectors.dtype)
        for count, values in enumerate(vectors[low : low + CHUNK], 1):
            apart = values - centre
            centre = fma(1 / count, apart, centre)
            spread = fma(apart, values - centre, spread)
        yield _Moments(min(CHUNK, len(vectors) - low), centre, spread)


def _joined(chunks: list[_Moments]) -> _Moments | None:
    """As a binary counter adds: a chunk joins the lowest level, a full level the next one."""
    depth = (len(chunks) - 1).bit_length()
    levels: list[_Moments | None] = [None] * max(depth, 1)
    for number, chunk in enumerate(chunks, 1):
        levels[0] = _join(levels[0], chunk)
        for level in range(1, depth):
            if number >> (level - 1) & 1:
                break
            levels[level], levels[level - 1] = _join(levels[level], levels[level - 1]), None
    return functools.reduce(_join, levels)


def _join(one: _Moments | None, other: _Moments | None) -> _Moments | None:
    if one is None or other is None:
        return one or other
    count = one.count + other.count
    apart = other.mean - one.mean
    nearer = other.count / count * apart
    spread = fma(apart * one.count, nearer, one.spread + other.spread)
    return _Moments(count, one.mean + nearer, spread)
