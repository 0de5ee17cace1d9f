"""Stored tensors that must hold the same values, as comparisons in a plan: what is stored twice is not trusted."""

from __future__ import annotations

import math

from crossdock.errors import Problem
from crossdock.layout.lenses import Lens, Placement
from crossdock.planning.plan import EqualityCheck
from crossdock.planning.tensors.extents import Extents, moves_for
from crossdock.planning.tensors.resolved import Resolved, SourceSlice


def equality_checks(resolved: Resolved, extents: Extents) -> tuple[EqualityCheck, ...]:
    """A comparison for every stored tensor that must equal a canonical one."""
    return tuple(_check(resolved, extents, copy, like) for copy, like in resolved.equality_checks)


def _check(resolved: Resolved, extents: Extents, copy: SourceSlice, like: str) -> EqualityCheck:
    """Compare what `copy` holds with the same box of canonical tensor `like`."""
    shape = tuple(p.high - p.low for p in copy.lens.axes)
    flat = tuple(Placement(p.axis, dim, 1, p.low, p.high) for dim, p in enumerate(copy.lens.axes))
    lens = Lens(like, flat, (0,) * len(shape))
    other, _, used = moves_for(extents, resolved, like, lens, shape)
    alone = Resolved({like: {(None, None): (copy,)}}, (), {})
    one, _, _ = moves_for(extents, alone, like, lens, shape)
    names = " and ".join(dict.fromkeys(slice.shown for slice in used))
    if like == copy.lens.tensor:
        on_mismatch = Problem(
            f"differs from {names}, whose copy on a later pipeline stage it is",
            where=copy.shown,
            cause="a file of another iteration or run, or a copy that went wrong",
            fix="copy the rank files again, or take another iteration: --iteration",
        )
    else:
        on_mismatch = Problem(
            f"differs from {names}, to which the configuration ties it",
            where=copy.shown,
            cause="the run was trained with untied embeddings",
            fix="--set tie_word_embeddings=false keeps both",
            check="tied-head",
        )
    return EqualityCheck(copy.shown, names, math.prod(shape), tuple(one), tuple(other), on_mismatch)
