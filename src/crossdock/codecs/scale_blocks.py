"""Scales that blocks of a matrix share, as fp8 weights have them: found, divided by, multiplied with, run by run.

A cell is a tensor, a row, a column or a block of it. Nothing here knows tensors' names or files. Facts: NVIDIA ModelOpt
a2fbac7b `export/quant_utils.py` (scale = largest / 448, weight / scale in float32), DeepSeek-V3 (blocks of 128 x 128).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from crossdock.codecs.codec import Values
from crossdock.errors import FormatError

LARGEST = np.float32(448)  # of float8_e4m3fn
SMALLEST = np.float32(2.0**-126)  # a scale below is no normal float32, which GPUs take for zero
RUN = 1 << 16  # elements worked on at a time


@dataclass(frozen=True, slots=True)
class ScaleBlocks:
    """A matrix of `height` x `width` elements in C order, cut into blocks of `rows` x `columns`, less at the edges."""

    rows: int
    columns: int
    height: int
    width: int

    @property
    def across(self) -> int:
        """The number of blocks side by side in a row of the matrix."""
        return -(-self.width // self.columns)

    @property
    def count(self) -> int:
        """The number of blocks in the matrix."""
        return -(-self.height // self.rows) * self.across

    @property
    def elements(self) -> int:
        """The number of elements in the matrix."""
        return self.height * self.width

    @classmethod
    def whole(cls, shape: tuple[int, ...], parts: int = 1) -> ScaleBlocks:
        """All of a tensor of `shape` as one cell, or each of its equal parts, one after another."""
        height, width = math.prod(shape[:-1]), shape[-1]
        return cls(height // parts, width, height, width)

    @property
    def by_row(self) -> bool:
        """Whether every row is a cell."""
        return self.rows == 1 and self.columns >= self.width

    def pieces(self, first: int, size: int) -> Iterator[tuple[slice, int, int, int, int]]:
        """`size` elements from `first` on as (which of them, first row, rows, first column, columns)."""
        at = 0
        while at < size:
            row, column = divmod(first + at, self.width)
            rows, columns = 1, min(self.width - column, size - at)
            if columns == self.width:
                rows = min((size - at) // self.width, max(1, RUN // self.width))
            yield slice(at, at + rows * columns), row, rows, column, columns
            at += rows * columns

    def spread(self, scales: Values, row: int, rows: int, column: int, columns: int) -> Values:
        """The scales of a piece as an array that can be multiplied with its rows x columns."""
        if scales.size == 1:
            return scales
        table = scales.reshape(-1, self.across)
        table = table[row : row + rows] if self.rows == 1 else table[np.arange(row, row + rows) // self.rows]
        if self.across == 1:
            return table
        if self.columns == 1:
            return table[:, column : column + columns]
        return table[:, np.arange(column, column + columns) // self.columns]


def multiply(values: Values, first: int, scale_blocks: ScaleBlocks, scales: Values) -> None:
    """Multiply, in place, the elements from `first` on by their blocks' scales (float32, of all blocks in C order)."""
    for where, row, rows, column, columns in scale_blocks.pieces(first, values.size):
        part = values[where].reshape(rows, columns)
        np.multiply(part, scale_blocks.spread(scales, row, rows, column, columns), out=part)


def divide(values: Values, first: int, scale_blocks: ScaleBlocks, scales: Values) -> None:
    """Divide values by the scale of their block: the reverse of `multiply`."""
    for where, row, rows, column, columns in scale_blocks.pieces(first, values.size):
        part = values[where].reshape(rows, columns)
        np.divide(part, scale_blocks.spread(scales, row, rows, column, columns), out=part)


def grow(largest: Values, values: Values, first: int, scale_blocks: ScaleBlocks) -> None:
    """Raise `largest`, of all blocks, by the elements from `first` on. What is not finite does not count."""
    table = largest.reshape(-1, scale_blocks.across)
    with np.errstate(invalid="ignore"):
        for where, row, rows, column, columns in scale_blocks.pieces(first, values.size):
            size = np.abs(values[where].reshape(rows, columns))
            found = _along(size, column, scale_blocks)
            if not np.isfinite(found).all():
                found = _along(np.where(np.isfinite(size), size, np.float32(0)), column, scale_blocks)
            low = column // scale_blocks.columns
            np.maximum.at(table[:, low : low + found.shape[1]], np.arange(row, row + rows) // scale_blocks.rows, found)


def _along(size: Values, column: int, scale_blocks: ScaleBlocks) -> Values:
    """The largest of each row in each block that it meets, from `column` on: rows x blocks."""
    columns = size.shape[1]
    if scale_blocks.columns == 1:
        return size
    if scale_blocks.across == 1:
        whole: Values = np.max(size, axis=1, keepdims=True, initial=0)
        return whole
    ends = np.arange(
        (column // scale_blocks.columns + 1) * scale_blocks.columns - column, columns, scale_blocks.columns
    )
    found: Values = np.maximum.reduceat(size, np.concatenate(([0], ends)), axis=1)
    return found


def scales_of(largest: Values) -> Values:
    """The scale of each cell: its largest value / 448, 1 where all is zero, never below the smallest normal float32."""
    scales: Values = np.maximum(largest / LARGEST, SMALLEST)
    scales[largest == 0] = 1
    return scales


def checked(scales: Values, where: str) -> Values:
    """Scales as they were read. Raises FormatError for what is no positive number."""
    if not (np.isfinite(scales) & (scales > 0)).all():
        odd = scales[~(np.isfinite(scales) & (scales > 0))]
        raise FormatError(
            "fp8 scales that are not positive numbers", where=where, got=", ".join(map(str, odd[:4])),
            cause="a damaged file, or scales that were never calibrated",
        )  # fmt: skip
    return scales
