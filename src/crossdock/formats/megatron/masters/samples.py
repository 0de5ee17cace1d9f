"""A few values of stored tensors, read to tell them apart, and runs of a flat vector as boxes of a tensor."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crossdock.codecs import registry as codecs
from crossdock.errors import FormatError
from crossdock.formats.stored import Extent, SourceFile
from crossdock.io.files import read_exact
from crossdock.torchfile.reader import locate_single

Box = tuple[tuple[int, ...], tuple[int, ...], int]  # origin, shape, its first element in the flat tensor


class Samples:
    """Reads few values from extents of `files`. Close it when done."""

    def __init__(self, files: Sequence[SourceFile]) -> None:
        self._files = files
        self._fds: dict[int, int] = {}
        self._places: dict[tuple[int, int], int] = {}

    def __enter__(self) -> Samples:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)

    def read(self, extent: Extent, dtype: str, first: int, count: int) -> bytes:
        """`count` elements from element `first` of the box, which lies in C order.

        Raises FormatError for a blob that is not what its index says.
        """
        fd = self._fds.get(extent.file)
        if fd is None:
            fd = self._fds[extent.file] = self._files[extent.file].open()
        at, where = extent.file, f"{self._files[extent.file].path} at byte {extent.offset:,}"
        if extent.wrapping == "raw":
            offset = extent.offset
        else:
            if (at, extent.offset) not in self._places:
                ref = locate_single(fd, extent.offset, extent.nbytes, where)
                if ref.dtype != dtype or ref.elements != math.prod(extent.shape) or not ref.contiguous:
                    raise FormatError(
                        "the blob is not what the index says", where=where, got=f"{ref.dtype} {list(ref.shape)}"
                    )
                self._places[at, extent.offset] = ref.offset
            offset = self._places[at, extent.offset]
        size = codecs.get(dtype).block_bytes
        return read_exact(fd, offset + first * size, count * size, where)

    def flat(self, extents: Sequence[Extent], start: int, stop: int) -> NDArray[np.float32]:
        """Elements [start, stop) of a vector of float32, whose `extents` are in ascending order."""
        parts = []
        for extent, low, high in parts_of(extents, start, stop):
            data = self.read(extent, "float32", low - extent.origin[0], high - low)
            parts.append(np.frombuffer(data, np.float32))
        return np.concatenate(parts) if parts else np.empty(0, np.float32)


def parts_of(extents: Sequence[Extent], start: int, stop: int) -> Iterator[tuple[Extent, int, int]]:
    """The extents of a vector, in ascending order, that meet [start, stop), each with its elements in there."""
    low, high = 0, len(extents)
    while low < high:  # the first that ends beyond `start`
        middle = (low + high) // 2
        if extents[middle].origin[0] + extents[middle].shape[0] <= start:
            low = middle + 1
        else:
            high = middle
    for extent in extents[low:]:
        first, end = extent.origin[0], extent.origin[0] + extent.shape[0]
        if first >= stop:
            return
        yield extent, max(first, start), min(end, stop)


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """The run of elements [start, stop) of a tensor in C order as boxes, each of which is a run by itself."""
    if start >= stop:
        return
    if len(shape) <= 1:
        yield ((start,), (stop - start,), start) if shape else ((), (), 0)
        return
    inner = math.prod(shape[1:])
    first, last = -(-start // inner), stop // inner
    if first > last:  # within one index of the first axis
        yield from _inside(shape, start // inner, start, stop)
        return
    if start < first * inner:
        yield from _inside(shape, first - 1, start, first * inner)
    if first < last:
        yield (first, *(0,) * (len(shape) - 1)), (last - first, *shape[1:]), first * inner
    if last * inner < stop:
        yield from _inside(shape, last, last * inner, stop)


def _inside(shape: tuple[int, ...], index: int, start: int, stop: int) -> Iterator[Box]:
    base = index * math.prod(shape[1:])
    for origin, size, first in boxes(shape[1:], start - base, stop - base):
        yield (index, *origin), (1, *size), base + first


def placed(extents: Sequence[Extent], start: int, origin: tuple[int, ...], shape: tuple[int, ...]) -> Iterator[Extent]:
    """The box of a tensor at `origin` of `shape` as extents: its elements begin at element `start` of a vector."""
    for extent, low, high in parts_of(extents, start, start + math.prod(shape)):
        for at, size, first in boxes(shape, low - start, high - start):
            skipped = start + first - extent.origin[0]
            yield run_of(extent, skipped, tuple(a + b for a, b in zip(origin, at, strict=True)), size)


def run_of(extent: Extent, first: int, origin: tuple[int, ...], shape: tuple[int, ...]) -> Extent:
    """The float32 elements from `first` of a flat extent, as the box at `origin` of `shape`."""
    if extent.wrapping == "raw":
        return replace(
            extent, offset=extent.offset + 4 * first, nbytes=4 * math.prod(shape), origin=origin, shape=shape
        )
    return replace(extent, origin=origin, shape=shape, piece=(math.prod(extent.shape), first))
