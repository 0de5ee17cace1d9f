"""A product of small rank added to the values of a tensor, run by run, in tiles of bounded size.

Every value is summed in float64, rank by rank and the stored value last, and rounded once: no library's choice of order
or of threads shows in the bytes, so a resumed run and a later replay on another machine give the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
from numpy.typing import NDArray

from crossdock.codecs.codec import Values
from crossdock.errors import PlanError
from crossdock.planning.plan import Move, Plan, Product
from crossdock.running.reader import Gatherer, Reader, units_for

_HULL = 64 << 10  # bytes for reading pieces of the factors
_LEAST = 16 << 10

Factor = NDArray[np.float64]


class Adder:
    """Adds one tensor's product. One per tensor and worker. room: bytes that its tiles take, about."""

    def __init__(self, plan: Plan, product: Product, reader: Reader, room: int) -> None:
        self._plan, self._product, self._reader = plan, product, reader
        room = max(room, _LEAST)
        wide = max(1, room // 4 // (12 * product.rank))  # read as float32, held as float64
        self._columns = min(product.columns, wide, room // 32)
        self._rows = max(1, min(product.rows, wide, room // 32 // self._columns))
        self._tiles: tuple[Factor, Factor] = (np.empty((2, 0)), np.empty((2, 0)))
        self._at: list[tuple[int, int]] = [(-1, -1), (-1, -1)]
        self._hull = np.empty(_HULL, np.uint8)

    def __call__(self, values: Values, first: int) -> None:
        """Add to `values`, which are the tensor's elements from `first` on."""
        columns = self._product.columns
        for low, rows, column, width in self._tiles_of(first, first + values.size):
            left = self._factor(0, low, low + rows)
            right = self._factor(1, column, column + width)
            total = np.zeros((rows, width))
            term = np.empty((rows, width))
            for one, other in zip(left, right, strict=True):
                np.multiply(one[:, None], other[None, :], out=term)
                total += term
            at = low * columns + column - first
            into = values[at : at + rows * width].reshape(rows, width)  # a tile of several rows is of whole rows
            total += into
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


def check(plan: Plan, reader: Reader) -> None:
    """Raise PlanError when all products of the plan are zeros alone. Reads factors until one is not."""
    products = [tensor.product for tensor in plan.tensors if tensor.product is not None]
    if products and not any(_adds(plan, reader, product) for product in products):
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
    return all(
        any(
            _read(plan, reader, moves, product.rank, low, min(low + step, size), hull).any()
            for low in range(0, size, step)
        )
        for moves, size in ((product.left, product.rows), (product.right, product.columns))
    )


def _read(
    plan: Plan, reader: Reader, moves: tuple[Move, ...], rank: int, low: int, high: int, hull: NDArray[np.uint8]
) -> Factor:
    units, _ = units_for(plan, moves)
    out = np.zeros((high - low) * rank, np.float32)
    Gatherer(plan, reader, moves, units, hull, nullcontext()).fill(low * rank, high * rank, out.view(units.dtype))
    return np.ascontiguousarray(out.reshape(-1, rank).T, np.float64)
