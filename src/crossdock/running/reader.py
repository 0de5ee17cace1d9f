"""Reading boxes of the source: from moves to the target's elements in order, within a fixed buffer.

`gather` fills one run of a target tensor. It reads the smallest byte ranges that are worth a system call and copies
them in place by strides. Extents inside a torch.save blob are located when first met and remembered.
"""

from __future__ import annotations

import itertools
import math
import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import Values, encoded_size
from crossdock.codecs.scale_blocks import checked, multiply
from crossdock.errors import FormatError
from crossdock.formats.safetensors import read_header
from crossdock.formats.stored import StoredScales
from crossdock.io.files import read_into, read_runs
from crossdock.layout.boxes import Strided, runs, steps_of
from crossdock.planning.plan import Move, Plan
from crossdock.torchfile.reader import locate_single

_CHEAP = 64 << 10  # bytes that are read along rather than skipped
_SPARSE = 4  # of so many elements that are read one at least is wanted
_WORTH = 32  # bytes in one run that are worth a system call of their own


class Place(NamedTuple):
    """Where an extent's first element is. strides: element strides where they are not those the plan assumed."""

    fd: int
    offset: int
    strides: tuple[int, ...] | None


class Reader:
    """Open source files and located extents of one plan; shared by all workers. Close it when done.

    scales_alone  of values with scales, pass the scale of each instead
    """

    def __init__(self, plan: Plan, *, scales_alone: bool = False) -> None:
        self._plan = plan
        self.scales_alone = scales_alone
        self._fds: dict[int, int] = {}
        self._places: dict[int, Place] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close every file that was opened."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def where(self, number: int) -> str:
        """The file of an extent, for messages."""
        return self.path(self._plan.extents[number].at.file)

    def path(self, file: int) -> str:
        """The path of a source file, for messages."""
        return str(self._plan.sources[file].path)

    def place(self, number: int) -> Place:
        """Where extent `number` begins. Raises FormatError when its blob is not what the index said."""
        found = self._places.get(number)
        if found is None:
            found = self._places[number] = self._locate(number)
        return found

    def fd(self, file: int) -> int:
        """A source file, opened when first asked for. Raises InputError when it is not what was planned."""
        fd = self._fds.get(file)
        if fd is None:
            with self._lock:
                if file not in self._fds:
                    self._fds[file] = self._plan.sources[file].open()
                fd = self._fds[file]
        return fd

    def _locate(self, number: int) -> Place:
        extent = self._plan.extents[number]
        at, fd = extent.at, self.fd(extent.at.file)
        if at.wrapping == "raw":
            return Place(fd, at.offset, None)
        if at.wrapping == "safetensors":
            tensors = read_header(self._plan.sources[at.file].path, at.offset, at.nbytes).tensors
            names = [n for n in tensors if n == extent.tensor or n.endswith(f".{extent.tensor}")]
            if len(names) != 1 or tensors[names[0]].shape != at.shape:
                raise FormatError(f"the blob does not hold {extent.tensor}", where=self.where(number))
            return Place(fd, tensors[names[0]].begin, None)

        where = f"{self.where(number)} at byte {at.offset:,}"
        ref = locate_single(fd, at.offset, at.nbytes, where)
        fits = ref.shape == at.shape if at.piece is None else ref.elements == at.piece[0] and ref.contiguous
        if not fits or ref.dtype != extent.dtype:
            raise FormatError(
                f"the chunk of {extent.tensor} is not what the index says",
                where=where,
                expected=f"{extent.dtype} {list(at.shape if at.piece is None else at.piece[:1])}",
                got=f"{ref.dtype} {list(ref.shape)}",
            )
        if at.piece is not None:
            return Place(fd, ref.offset + at.piece[1] * ref.itemsize, None)
        return Place(fd, ref.offset, None if ref.contiguous else ref.strides)


class Units(NamedTuple):
    """How a tensor's elements travel: `block` elements in `nbytes` bytes move together, as one numpy item.

    decode  the elements are decoded to float32 while they are gathered
    """

    block: int
    nbytes: int
    dtype: np.dtype[Any]
    decode: bool


def units_for(plan: Plan, moves: Sequence[Move]) -> tuple[Units, str]:
    """The units for `moves`, and the codec that what they gather is in."""
    used = [plan.extents[number] for number in {move.extent for move in moves}]
    names = {extent.dtype for extent in used}
    if len(names) == 1 and not any(extent.scaling for extent in used):
        codec = codecs.get(next(iter(names)))
        if codec.block == 1 or all(_whole_blocks(move, codec.block) for move in moves):
            size = codec.block_bytes
            kind = np.dtype(f"u{size}") if size in (1, 2, 4, 8) else np.dtype((np.void, size))
            return Units(codec.block, size, kind, False), codec.name
    return Units(1, 4, np.dtype(np.float32), True), "float32"


def _whole_blocks(move: Move, block: int) -> bool:
    if not move.size or move.src_step[-1] != 1 or move.dst_step[-1] != 1:
        return False
    numbers = (move.src, move.dst, move.size[-1], *move.src_step[:-1], *move.dst_step[:-1])
    return not any(number % block for number in numbers)


def in_units(move: Move, block: int) -> Move:
    """`move` counted in blocks instead of elements."""
    if block == 1:
        return move
    return Move(
        move.extent,
        move.src // block,
        move.dst // block,
        (*move.size[:-1], move.size[-1] // block),
        (*(step // block for step in move.src_step[:-1]), 1),
        (*(step // block for step in move.dst_step[:-1]), 1),
    )


class Gatherer:
    """Fills runs of one target tensor in ascending order. One per tensor and worker.

    gil_lock  held while many short reads are done: threads that do them at once wait for each other at every one
    """

    def __init__(
        self,
        plan: Plan,
        reader: Reader,
        moves: Sequence[Move],
        units: Units,
        buffer: NDArray[np.uint8],
        gil_lock: AbstractContextManager[Any],
    ) -> None:
        self._plan, self._reader, self._units, self._buffer, self._gil_lock = plan, reader, units, buffer, gil_lock
        self._moves = sorted((in_units(move, units.block) for move in moves), key=lambda move: move.dst)
        self._last = [m.dst + sum((n - 1) * s for n, s in zip(m.size, m.dst_step, strict=True)) for m in self._moves]
        self._next = 0
        self._active: list[int] = []
        self._scales: dict[int, Values] = {}

    def fill(self, start: int, stop: int, out: NDArray[Any]) -> None:
        """Gather units [start, stop) of the target into `out`, whose item is the unit's dtype."""
        moves = self._moves
        while self._next < len(moves) and moves[self._next].dst < stop:
            self._active.append(self._next)
            self._next += 1
        self._active = [number for number in self._active if self._last[number] >= start]
        for number in self._active:
            move = moves[number]
            axes = tuple(zip(move.dst_step, move.size, strict=True))
            for first, ranges in runs(move.dst, axes, start, stop):
                src = move.src + sum(low * step for (low, _), step in zip(ranges, move.src_step, strict=True))
                size = tuple(high - low for low, high in ranges)
                self._copy(move.extent, Strided(src, first - start, size, move.src_step, move.dst_step), out)

    def _copy(self, extent: int, piece: Strided, out: NDArray[Any]) -> None:
        place = self._reader.place(extent)
        if place.strides is not None:
            self._copy_scattered(extent, place, piece, out)
        else:
            self._copy_piece(extent, place, piece, out)

    def _copy_piece(self, extent: int, place: Place, piece: Strided, out: NDArray[Any]) -> None:
        """Read the hull of the piece if that is worth it, else its dense runs, else halve it along its widest axis."""
        nbytes = self._units.nbytes
        hull = 1 + sum((n - 1) * s for n, s in zip(piece.size, piece.src_step, strict=True))
        count = 1
        for n in piece.size:
            count *= n
        if hull == count and not self._units.decode and _straight(piece):
            target = out[piece.dst : piece.dst + count].view(np.uint8)
            read_into(place.fd, place.offset + piece.src * nbytes, target, self._reader.where(extent))
            return
        room = self._buffer.size // 2 // 64 * 64 if self._units.decode else self._buffer.size
        width = self._source_bytes(extent, hull)
        if width <= room and (hull <= _SPARSE * count or width <= _CHEAP):
            self._copy_hull(extent, place, piece, hull, out)
            return
        if not self._units.decode and self._copy_by_runs(extent, place, piece, out):
            return
        axis = max(range(len(piece.size)), key=lambda i: (piece.size[i] - 1) * piece.src_step[i])
        half = piece.size[axis] // 2
        for low, size in ((0, half), (half, piece.size[axis] - half)):
            src = piece.src + low * piece.src_step[axis]
            dst = piece.dst + low * piece.dst_step[axis]
            sizes = (*piece.size[:axis], size, *piece.size[axis + 1 :])
            self._copy_piece(extent, place, Strided(src, dst, sizes, piece.src_step, piece.dst_step), out)

    def _copy_by_runs(self, extent: int, place: Place, piece: Strided, out: NDArray[Any]) -> bool:
        """Read each dense run of the source by itself and side by side, then copy; False where that is not worth it."""
        nbytes = self._units.nbytes
        width, apart = _dense_run(piece)
        count = math.prod(piece.size[axis] for axis in apart)
        if width * nbytes < _WORTH or count * width * nbytes > self._buffer.size:
            return False
        firsts = np.zeros(1, np.int64)
        steps, step = list(piece.src_step), width * count
        for axis in apart:
            firsts = np.add.outer(firsts, np.arange(piece.size[axis]) * piece.src_step[axis]).ravel()
            step //= piece.size[axis]
            steps[axis] = step
        raw, size = self._buffer[: count * width * nbytes], width * nbytes
        read_runs(
            place.fd, (place.offset + (piece.src + firsts) * nbytes).tolist(), size, raw, self._reader.where(extent)
        )
        _strided_copy(raw.view(self._units.dtype), Strided(0, piece.dst, piece.size, tuple(steps), piece.dst_step), out)
        return True

    def _source_bytes(self, extent: int, hull: int) -> int:
        if not self._units.decode:
            return hull * self._units.nbytes
        codec = codecs.get(self._plan.extents[extent].dtype)
        return (hull // codec.block + 2) * codec.block_bytes + 4 * (hull + 2 * codec.block)

    def _copy_hull(self, extent: int, place: Place, piece: Strided, hull: int, out: NDArray[Any]) -> None:
        where = self._reader.where(extent)
        if self._units.decode:
            codec = codecs.get(self._plan.extents[extent].dtype)
            low = piece.src // codec.block
            high = -(-(piece.src + hull) // codec.block)
            raw = self._buffer[: (high - low) * codec.block_bytes]
            half = self._buffer.size // 2 // 64 * 64  # both fit: `_copy_piece` counts bytes and values within one half
            values = self._buffer[half : half + 4 * (high - low) * codec.block].view(np.float32)
            scaling = self._plan.extents[extent].scaling
            if scaling is not None and self._reader.scales_alone:
                values.fill(1)
            else:
                read_into(place.fd, place.offset + low * codec.block_bytes, raw, where)
                codec.decode(raw, values)
            if scaling is not None:
                multiply(values, low * codec.block, scaling.scale_blocks, self._scales_of(extent, scaling))
            source: NDArray[Any] = values[piece.src - low * codec.block :]
        else:
            raw = self._buffer[: hull * self._units.nbytes]
            read_into(place.fd, place.offset + piece.src * self._units.nbytes, raw, where)
            source = raw.view(self._units.dtype)
        _strided_copy(source, piece, out)

    def _scales_of(self, extent: int, scaling: StoredScales) -> Values:
        """The scales of an extent, of all its blocks, read when first met."""
        found = self._scales.get(extent)
        if found is None:
            codec = codecs.get(scaling.dtype)
            raw = np.empty(encoded_size(codec, scaling.scale_blocks.count), np.uint8)
            path = self._reader.path(scaling.file)
            read_into(self._reader.fd(scaling.file), scaling.offset, raw, path)
            found = np.empty(scaling.scale_blocks.count, np.float32)
            codec.decode(raw, found)
            self._scales[extent] = checked(found, f"{scaling.name} in {path}")
        return found

    def _copy_scattered(self, extent: int, place: Place, piece: Strided, out: NDArray[Any]) -> None:
        """A chunk whose elements do not lie in C order: the plan's indices are mapped to its strides one by one."""
        assert place.strides is not None
        shape = self._plan.extents[extent].at.shape
        steps = steps_of(shape)
        codec = codecs.get(self._plan.extents[extent].dtype)
        limit = max(1, self._buffer.size // 64)
        axes = [(s, d, n) for s, d, n in zip(piece.src_step, piece.dst_step, piece.size, strict=True)]
        count = int(np.prod([n for _, _, n in axes], dtype=np.int64)) if axes else 1
        if count > limit:
            axis = max(range(len(axes)), key=lambda i: axes[i][2])
            half = axes[axis][2] // 2
            for low, size in ((0, half), (half, axes[axis][2] - half)):
                part = Strided(
                    piece.src + low * axes[axis][0],
                    piece.dst + low * axes[axis][1],
                    (*piece.size[:axis], size, *piece.size[axis + 1 :]),
                    piece.src_step,
                    piece.dst_step,
                )
                self._copy_scattered(extent, place, part, out)
            return
        at = np.full((), piece.src, np.int64)
        for step, _, size in axes:
            at = at[..., None] + np.arange(size, dtype=np.int64) * step
        real = np.zeros_like(at)
        for step, stride, size in zip(steps, place.strides, shape, strict=True):
            real += at // step % size * stride
        order = np.unique(real)
        raw = np.empty(order.size, np.dtype((np.void, codec.block_bytes)))
        ends = [*np.flatnonzero(np.diff(order, prepend=order[0] - 2) != 1).tolist(), order.size]
        for low, high in itertools.pairwise(ends):
            offset = place.offset + int(order[low]) * codec.block_bytes
            read_into(place.fd, offset, raw[low:high].view(np.uint8), self._reader.where(extent))
        picked = np.ascontiguousarray(raw[np.searchsorted(order, real.ravel())])
        if self._units.decode:
            values = np.empty(picked.size, np.float32)
            codec.decode(picked.view(np.uint8), values)
            source: NDArray[Any] = values
        else:
            source = picked.view(self._units.dtype)
        packed = steps_of(piece.size)
        _strided_copy(source, Strided(0, piece.dst, piece.size, packed, piece.dst_step), out)


def _dense_run(piece: Strided) -> tuple[int, list[int]]:
    """The elements of the longest runs of the source that are dense, and the axes along which such runs lie apart."""
    width = count = 1
    apart: list[int] = []
    for axis in sorted(range(len(piece.size)), key=lambda axis: piece.src_step[axis]):
        hull = width + (piece.size[axis] - 1) * piece.src_step[axis]
        if not apart and hull <= _SPARSE * count * piece.size[axis]:
            width, count = hull, count * piece.size[axis]
        else:
            apart.insert(0, axis)
    return width, apart


def _straight(piece: Strided) -> bool:
    """True when the piece is one contiguous run on both sides."""
    return not piece.size or (
        len(piece.size) - piece.size.count(1) <= 1
        and all(s == 1 == d for n, s, d in zip(piece.size, piece.src_step, piece.dst_step, strict=True) if n != 1)
    )


def _strided_copy(source: NDArray[Any], piece: Strided, out: NDArray[Any]) -> None:
    item = out.dtype.itemsize
    into = as_strided(out[piece.dst :], piece.size, tuple(step * item for step in piece.dst_step))
    into[...] = as_strided(source, piece.size, tuple(step * item for step in piece.src_step))
