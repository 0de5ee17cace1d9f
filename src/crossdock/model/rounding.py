"""Float32 functions whose last bit depends on how they are computed, each rounded as PyTorch does, on any processor.

A deep model carries the last bit of any step into its logits, so only the same roundings give the same logits: those of
Intel's processors with AVX-512. `sums` has the orders of addition. Arrays of float64 pass in plain float64.
Facts: SLEEF 3.9 (src/libm/sleefsimdsp.c), glibc 2.36 (sysdeps/ieee754/flt-32/e_expf.c), and about Intel's MKL, whose
source is closed, its results. docs/decisions/0005 tells what this is worth.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]

CACHED = 1 << 15  # values whose float64 stays in a processor's cache

LN2 = (0.693145751953125, 1.428606765330187045e-06)  # a multiple of the first part is exact
EXP = (
    0.000198527617612853646278381,
    0.00139304355252534151077271,
    0.00833336077630519866943359,
    0.0416664853692054748535156,
    0.166666671633720397949219,
    0.5,
)
EXP2 = ("0x1.c6af84b912394p-5", "0x1.ebfce50fac4f3p-3", "0x1.62e42ff0c52d6p-1", "0x1p0")
PI = (3.141592651605606, 1.984187159361081e-09)  # likewise
SINE = (2.605780638048875e-06, -0.00019809602901974725, 0.008333066246082635, -0.16666659550427773)


def fma(a: Array | float, b: Array | float, c: Array | float) -> Array:
    """a · b + c, rounded once: a product of float32 is exact in float64.

    (A sum in float64 that comes to lie midway between two float32, one of 2²⁹, is rounded twice.)
    """
    kind = np.result_type(a, b, c)
    one, other, third = (np.asarray(part, kind) for part in (a, b, c))
    return np.asarray((np.multiply(one, other, dtype=np.float64) + third).astype(kind))


def polynomial(x: Array, coefficients: Sequence[Array | float]) -> Array:
    """Of the highest degree's coefficient first, by Horner's rule in fused multiply-adds."""
    first, *others = coefficients
    return functools.reduce(lambda y, c: fma(y, x, c), others, np.full_like(x, first))


def exp(x: Array, whole: int = 1) -> Array:
    """e to the power of x, as SLEEF has it in vectors.

    whole  values of a row that PyTorch computes together; what is left of a row goes to the C library
    """
    if x.dtype != np.float32:
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(np.exp(x))
    flat, out = np.ascontiguousarray(x).reshape(-1), np.empty(x.size, np.float32)
    for low in range(0, x.size, CACHED):
        out[low : low + CACHED] = _exp(flat[low : low + CACHED])
    rows = out.reshape(x.shape)
    if rest := x.shape[-1] % whole:
        rows[..., -rest:] = _exp_of_libm(x[..., -rest:])
    return rows


def _exp(x: Array) -> Array:
    x = np.clip(x, -104, 104)
    doublings = np.rint(x * np.float32(1 / math.log(2)))
    for part in LN2:
        x = fma(doublings, -part, x)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        return np.asarray(np.ldexp(fma(x * x, polynomial(x, EXP), x) + 1, doublings.astype(np.int32)))


def _exp_of_libm(x: Array) -> Array:
    """glibc's expf: steps of a 32nd of a power of two, and a polynomial between, in float64."""
    steps = x.astype(np.float64) * (32 / math.log(2))
    whole = np.rint(steps)
    between = np.polyval([float.fromhex(c) for c in EXP2], (steps - whole) / 32)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray((between * np.exp2(whole / 32)).astype(np.float32))


def precisely(function: Callable[[Array], Array], x: Array) -> Array:
    """`function` of x in float64, rounded to what x is: right in all but a few of a billion."""
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(function(x.astype(np.float64)).astype(x.dtype))


def sine(x: Array) -> Array:
    """sin x in float32, of angles up to 10,000, as MKL has it: a polynomial of degree nine in float64, rounded.

    The coefficients are those of the least relative error on -π/2 to π/2 (Remez); of millions of angles one differs.
    """
    return _half_waves(x.astype(np.float64), 0)


def cosine(x: Array) -> Array:
    """cos x, as `sine`."""
    return _half_waves(x.astype(np.float64), 0.5)


def _half_waves(x: Array, ahead: float) -> Array:
    """sin(x + ahead · π): every other half wave has its sign changed."""
    turns = np.rint(x / math.pi + ahead)
    for part in PI:
        x = x - (turns - ahead) * part
    square = x * x
    return np.asarray((x + x * square * np.polyval(SINE, square)) * (1 - 2 * (turns % 2)), np.float32)
