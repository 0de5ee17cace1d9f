"""Pairs of matrices of small rank that an adapter adds to canonical tensors, and their products in a plan.

A pair is two slices of stored tensors that have the axis `rank` besides axes of the tensor that they change. Lenses
give the moves, as they do for everything else; the product is planned, not computed: see
docs/decisions/0006-merge-is-a-product-in-the-plan.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from crossdock.errors import PlanError
from crossdock.layout.boxes import steps_of
from crossdock.layout.lenses import Lens, Placement, Range
from crossdock.planning.plan import Move, Product
from crossdock.planning.tensors.extents import Extents, moves_from
from crossdock.planning.tensors.resolved import Key, SourceSlice, key_of

RANK = "rank"
ONE = "one"  # the axis of a vector, which is a matrix of one row
BATCH = ("layer", "expert")  # axes that both sides have: one matrix for each index


@dataclass(frozen=True, slots=True)
class Pair:
    """What is added to canonical `tensor`: scale * left * right transposed, over the axes that each of them has.

    magnitudes  what lengths the rows of the sum are scaled to (DoRA), over the axes of `left`
    """

    tensor: str
    left: SourceSlice
    right: SourceSlice
    rank: int
    scale: float = 1.0
    magnitudes: SourceSlice | None = None

    @property
    def key(self) -> Key:
        """The layer and the expert that it is of, None for several or none."""
        return key_of(self.left.lens)


Addition = Mapping[str, Mapping[Key, tuple[Pair, ...]]]


def by_tensor(pairs: Sequence[Pair]) -> Addition:
    """The same pairs by canonical tensor, layer and expert."""
    out: dict[str, dict[Key, tuple[Pair, ...]]] = {}
    for pair in pairs:
        keys = out.setdefault(pair.tensor, {})
        keys[pair.key] = (*keys.get(pair.key, ()), pair)
    return out


def meeting(addition: Addition, lens: Lens) -> Iterator[Pair]:
    """The pairs that may add to what `lens` holds."""
    by_key = addition.get(lens.tensor, {})
    layer, expert = key_of(lens)
    if layer is not None and (expert is not None or not any(p.axis == "expert" for p in lens.axes)):
        for key in {(layer, expert), (layer, None), (None, expert), (None, None)}:
            yield from by_key.get(key, ())
        return
    yield from (pair for pairs in by_key.values() for pair in pairs)


def products_for(
    extents: Extents, addition: Addition, lenses: Sequence[Lens], shape: tuple[int, ...], factors: Mapping[Lens, float]
) -> tuple[Product, ...]:
    """What an adapter adds to a tensor of `shape` with these lenses, one product for each matrix in it.

    factors  by what the differences of a lens's values grow on the way from canonical values to what is stored

    Raises PlanError where a matrix does not lie in rows and columns of the tensor.
    """
    return tuple(
        product
        for lens in lenses
        for pair in meeting(addition, lens)
        for product in _products(extents, pair, lens, shape, factors.get(lens, 1.0))
    )


def _products(extents: Extents, pair: Pair, lens: Lens, shape: tuple[int, ...], factor: float) -> Iterator[Product]:
    """The products of one pair: one for each layer and expert that both hold."""
    placed = {p.axis: p for p in lens.axes}
    left, right = ({p.axis: (p.low, p.high) for p in side.lens.axes} for side in (pair.left, pair.right))
    box: dict[str, Range] = {}
    for axis, p in placed.items():
        low, high = left.get(axis) or right[axis]
        box[axis] = (max(low, p.low), min(high, p.high))
        if box[axis][0] >= box[axis][1]:
            return
    batch = [axis for axis in placed if axis in left and axis in right]
    for numbers in itertools.product(*(range(*box[axis]) for axis in batch)):
        fixed = {axis: (number, number + 1) for axis, number in zip(batch, numbers, strict=True)}
        yield _Matrix(lens, shape, {**box, **fixed}, frozenset(batch)).product(extents, pair, factor)


@dataclass(frozen=True)
class _Matrix:
    """One matrix in a tensor: the box of canonical indices that it is, `batch` being axes that are fixed in it."""

    lens: Lens
    shape: tuple[int, ...]
    box: Mapping[str, Range]
    batch: frozenset[str]

    def product(self, extents: Extents, pair: Pair, factor: float) -> Product:
        """What `pair` adds to it. Raises PlanError when its sides lie mixed in the tensor."""
        for cut in range(len(self.shape) + 1):
            for rows, columns in ((pair.left, pair.right), (pair.right, pair.left)):
                over, under = self._axes(rows), self._axes(columns)
                if not (all(self._dim(axis) < cut for axis in over) and all(self._dim(axis) >= cut for axis in under)):
                    continue
                if any(self._dim(axis) >= cut for axis in self.batch):
                    continue
                if pair.magnitudes is not None and (rows is not pair.left or not self._whole(columns)):
                    raise PlanError(
                        "DoRA scales whole rows of a weight, which lie otherwise in this target",
                        where=pair.left.shown,
                        fix="merge it with peft (merge_and_unload), and pass the merged folder",
                    )
                return self._product(extents, pair, cut, rows, columns, factor)
        raise PlanError("the axes of the adapter's pair lie mixed in the target", where=pair.left.shown)

    def _product(
        self, extents: Extents, pair: Pair, cut: int, rows: SourceSlice, columns: SourceSlice, factor: float
    ) -> Product:
        width = math.prod(self.shape[cut:])
        top = self._first(range(cut)) // width
        height = 1 + sum((p.high - p.low - 1) * p.step for p in self._placed(rows, width, 0))
        across = self._first(range(cut, len(self.shape)))
        sides = []
        for side, size, first, unit in ((rows, height, 0, width), (columns, width, across, 1)):
            ranked = Placement(RANK, 1, 1, 0, pair.rank)
            lens = Lens(side.lens.tensor, (*self._placed(side, unit, 0), *self._fixed(side), ranked), (first, 0))
            sides.append(_moves(extents, side, lens, (size, pair.rank)))
        lengths: tuple[Move, ...] = ()
        if pair.magnitudes is not None:
            axes = (*self._placed(pair.magnitudes, width, 0), *self._fixed(pair.magnitudes))
            lens = Lens(pair.magnitudes.lens.tensor, axes, (0,))
            lengths = _moves(extents, pair.magnitudes, lens, (height,))
        return Product(pair.rank, height, width, sides[0], sides[1], pair.scale * factor, top * width, lengths)

    def _axes(self, side: SourceSlice) -> list[str]:
        """The axes of the tensor that one factor alone has."""
        own = {p.axis for p in side.lens.axes}
        return [p.axis for p in self.lens.axes if p.axis in own and p.axis not in self.batch]

    def _dim(self, axis: str) -> int:
        return next(p.dim for p in self.lens.axes if p.axis == axis)

    def _placed(self, side: SourceSlice, unit: int, dim: int) -> list[Placement]:
        """The axes of one factor along a matrix whose neighbours are `unit` elements of the tensor apart."""
        steps, own = steps_of(self.shape), set(self._axes(side))
        found = [
            Placement(p.axis, dim, p.step * steps[p.dim] // unit, *self.box[p.axis])
            for p in self.lens.axes
            if p.axis in own
        ]
        vector = not found and any(p.axis == ONE for p in side.lens.axes)
        return [Placement(ONE, dim, 1, 0, 1)] if vector else found

    def _fixed(self, side: SourceSlice) -> list[Placement]:
        own = {p.axis for p in side.lens.axes}
        return [Placement(axis, -1, 0, *self.box[axis]) for axis in sorted(self.batch & own)]

    def _first(self, dims: range) -> int:
        """The element of the tensor at which the matrix begins, counted along `dims`."""
        steps = steps_of(self.shape)
        first = sum(self.lens.starts[dim] * steps[dim] for dim in dims)
        return first + sum(
            (self.box[p.axis][0] - p.low) * p.step * steps[p.dim] for p in self.lens.axes if p.dim in dims
        )

    def _whole(self, side: SourceSlice) -> bool:
        """Whether the matrix has all of this factor's columns."""
        sizes = {p.axis: (p.low, p.high) for p in side.lens.axes}
        return all(self.box[axis] == sizes[axis] for axis in self._axes(side))


def _moves(extents: Extents, side: SourceSlice, lens: Lens, shape: tuple[int, ...]) -> tuple[Move, ...]:
    moves, count = moves_from(extents, side, lens, shape)
    if count != lens.volume:
        raise PlanError("the adapter's pair does not fit its tensor", where=side.shown, got=f"{count} elements")
    return tuple(sorted(moves, key=lambda move: move.dst))


def ranked(side: SourceSlice, axis: str) -> SourceSlice:
    """`side` with its axis `axis` called `rank`."""
    axes = tuple(replace(p, axis=RANK) if p.axis == axis else p for p in side.lens.axes)
    return replace(side, lens=replace(side.lens, axes=axes))
