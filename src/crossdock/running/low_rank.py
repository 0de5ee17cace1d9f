"""Products of small rank added to the values of a tensor, run by run, in tiles of bounded size.

Every value is summed in float64, rank by rank and the stored value last, and rounded once: no library's choice of order
or of threads shows in the bytes, so a resumed run and a later replay on another machine give the same. Lengths of rows
(DoRA) are sums from left to right for the same reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import Values, encoded_size
from crossdock.codecs.conversion import Workspace, convert
from crossdock.errors import PlanError
from crossdock.planning.plan import Move, Plan, Product, TargetTensor
from crossdock.running.reader import Gatherer, Reader, units_for

_HULL = 64 << 10  # bytes for reading pieces of the factors
_LEAST = 16 << 10

Factor = NDArray[np.float64]


class Adders:
    """Adds the products of one tensor, whose values pass in order. One per tensor and worker.

    room     bytes that the tiles of one product take, about
    factors  what the rows of each product's sum are multiplied by, where it has magnitudes (`row_factors`)
    """

    def __init__(
        self, plan: Plan, tensor: TargetTensor, reader: Reader, room: int, factors: tuple[Factor | None, ...] = ()
    ) -> None:
        self._plan, self._reader, self._room = plan, reader, room
        scaled = factors or (None,) * len(tensor.products)
        self._products = sorted(zip(tensor.products, scaled, strict=True), key=lambda one: one[0].start)
        self._active: dict[int, Adder] = {}
        self._hull = np.empty(_HULL, np.uint8)

    def __call__(self, values: Values, first: int) -> None:
        """Add to `values`, which are the tensor's elements from `first` on."""
        for number, (product, factors) in enumerate(self._products):
            if product.start >= first + values.size:
                break
            if product.stop <= first:
                self._active.pop(number, None)
                continue
            if number not in self._active:
                self._active[number] = Adder(self._plan, product, self._reader, self._room, self._hull, factors)
            self._active[number](values, first)


class Adder:
    """Adds one product of a tensor, as `Adders` do. hull: room for reading pieces of the factors."""

    def __init__(
        self,
        plan: Plan,
        product: Product,
        reader: Reader,
        room: int,
        hull: NDArray[np.uint8],
        factors: Factor | None = None,
    ) -> None:
        self._plan, self._product, self._reader, self._row_factors = plan, product, reader, factors
        room = max(room, _LEAST)
        wide = max(1, room // 4 // (12 * product.rank))  # read as float32, held as float64
        self._columns = min(product.columns, wide, room // 32)
        self._rows = max(1, min(product.rows, wide, room // 32 // self._columns))
        self._tiles: tuple[Factor, Factor] = (np.empty((2, 0)), np.empty((2, 0)))
        self._at: list[tuple[int, int]] = [(-1, -1), (-1, -1)]
        self._hull = hull

    def __call__(self, values: Values, first: int) -> None:
        """Add to `values`, which are the tensor's elements from `first` on."""
        product = self._product
        start, stop = max(first, product.start), min(first + values.size, product.stop)
        for low, rows, column, width in self._tiles_of(start - product.start, stop - product.start):
            left = self._factor(0, low, low + rows)
            right = self._factor(1, column, column + width)
            total = np.zeros((rows, width))
            term = np.empty((rows, width))
            for one, other in zip(left, right, strict=True):
                np.multiply(one[:, None], other[None, :], out=term)
                total += term
            if product.scale != 1:
                total *= product.scale
            at = product.start + low * product.columns + column - first
            into = values[at : at + rows * width].reshape(rows, width)  # a tile of several rows is of whole rows
            total += into
            if self._row_factors is not None:
                total *= self._row_factors[low : low + rows, None]
            into[...] = total

    def _tiles_of(self, start: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
        """(first row, rows, first column, columns) of tiles that together are the elements from start to stop."""
        columns = self._product.columns
        while start < stop:
            row, column = divmod(start, columns)
            if column == 0 and self._columns == columns and stop - start >= columns:
                rows = min(self._rows, (stop - start) // columns)
                yield row, rows, 0, columns
                start += rows * columns
            else:
                width = min(self._columns, columns - column, stop - start)
                yield row, 1, column, width
                start += width

    def _factor(self, side: int, low: int, high: int) -> Factor:
        """Rows low to high of a factor, float64 [rank, high - low]; the last ones of each side are remembered."""
        if self._at[side] != (low, high):
            moves = (self._product.left, self._product.right)[side]
            tile = _read(self._plan, self._reader, moves, self._product.rank, low, high, self._hull)
            self._tiles = (tile, self._tiles[1]) if side == 0 else (self._tiles[0], tile)
            self._at[side] = (low, high)
        return self._tiles[side]


def undirected(tensor: TargetTensor) -> TargetTensor:
    """The sums of `tensor`, float32, before their rows are scaled to their magnitudes."""
    products = tuple(replace(product, magnitudes=()) for product in tensor.products)
    return replace(tensor, dtype="float32", offset=0, nbytes=4 * tensor.elements, products=products,
                   scale_blocks=None, is_scale_tensor=False, static_scales=())  # fmt: skip


def row_factors(
    plan: Plan, tensor: TargetTensor, reader: Reader, sums: Iterable[tuple[int, Values]]
) -> tuple[Factor | None, ...]:
    """What the rows of each product of `tensor` are multiplied by: magnitude / length; None without magnitudes.

    sums  the elements of `undirected(tensor)`, in order: (first, values). Takes 16 bytes a row.
    """
    squares = [np.zeros(one.rows) if one.magnitudes else None for one in tensor.products]
    for first, values in sums:
        for product, found in zip(tensor.products, squares, strict=True):
            if found is not None:
                _grow(found, product, values, first)
    return tuple(
        None if found is None else _factors(plan, reader, product, found)
        for product, found in zip(tensor.products, squares, strict=True)
    )


def _grow(squares: Factor, product: Product, values: Values, first: int) -> None:
    """Add the squares of `values` to the sums of their rows, from left to right."""
    start, stop = max(first, product.start), min(first + values.size, product.stop)
    while start < stop:
        row, column = divmod(start - product.start, product.columns)
        rows = (stop - start) // product.columns if column == 0 else 0
        width = product.columns if rows else min(product.columns - column, stop - start)
        rows = min(max(rows, 1), max(1, _LEAST // width))
        piece = values[start - first : start - first + rows * width].reshape(rows, width).astype(np.float64)
        piece *= piece
        piece[:, 0] += squares[row : row + rows]
        squares[row : row + rows] = np.add.accumulate(piece, axis=1)[:, -1]
        start += rows * width


def _factors(plan: Plan, reader: Reader, product: Product, squares: Factor) -> Factor:
    """Magnitude / length of each row; 1 for rows that have no magnitude."""
    lengths = np.sqrt(squares)
    magnitudes = _read(plan, reader, product.magnitudes, 1, 0, product.rows, np.empty(_HULL, np.uint8))[0]
    covered = np.zeros(product.rows, np.bool_)
    for move in product.magnitudes:
        index = np.array([move.dst])
        for size, step in zip(move.size, move.dst_step, strict=True):
            index = (index[:, None] + np.arange(size) * step).ravel()
        covered[index] = True
    if not lengths[covered].all():
        raise PlanError("a row of the sum is zero, so no magnitude can be given to it", where=str(plan.source_root))
    factors = np.ones(product.rows)
    factors[covered] = magnitudes[covered] / lengths[covered]
    return factors


def check(plan: Plan, reader: Reader) -> None:
    """Raise PlanError when all products of the plan are zeros alone. Reads factors until one is not."""
    products = [product for tensor in plan.tensors for product in tensor.products]
    if products and not plan.replaces and not any(_adds(plan, reader, product) for product in products):
        raise PlanError(
            "the adapter adds only zeros: merged, the model would be its base",
            where=str(plan.source_root),
            cause="an adapter that was never trained, or saved before its first step",
            check="lora-noop",
        )


def _adds(plan: Plan, reader: Reader, product: Product) -> bool:
    """Whether both factors have a value that is not zero."""
    hull = np.empty(_HULL, np.uint8)
    step = max(1, _LEAST // product.rank)
    return product.scale != 0 and all(
        any(
            _read(plan, reader, moves, product.rank, low, min(low + step, size), hull).any()
            for low in range(0, size, step)
        )
        for moves, size in ((product.left, product.rows), (product.right, product.columns))
    )


def _read(
    plan: Plan, reader: Reader, moves: tuple[Move, ...], rank: int, low: int, high: int, hull: NDArray[np.uint8]
) -> Factor:
    """Rows low to high of a factor whose stored dtype is decoded, float64 [rank, high - low]."""
    units, name = units_for(plan, moves)
    codec = codecs.get(name)
    raw = np.zeros(encoded_size(codec, (high - low) * rank), np.uint8)
    first, last = low * rank // units.block, -(-high * rank // units.block)
    Gatherer(plan, reader, moves, units, hull, nullcontext()).fill(first, last, raw.view(units.dtype))
    out = np.empty((high - low) * rank, np.float32)
    convert(codec, codecs.get("float32"))(raw, out.view(np.uint8), Workspace())
    return np.ascontiguousarray(out.reshape(-1, rank).T, np.float64)
