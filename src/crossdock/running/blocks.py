"""One target tensor as a stream of encoded blocks, in order, within one worker's share of the memory.

`run` writes the blocks, `verify` compares them: the same replay with another sink.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdock.codecs import registry as codecs
from crossdock.codecs.census import Census, count
from crossdock.codecs.codec import Bytes, Codec, Values, encoded_size
from crossdock.codecs.conversion import Workspace, convert
from crossdock.errors import MemoryPlanError
from crossdock.planning.plan import Plan, TargetTensor
from crossdock.running.output import PAGE, aligned
from crossdock.running.reader import Gatherer, Reader, units_for

LARGEST = 1 << 20  # bytes of one block: more does not get faster, less stays in the cache
TRANSPOSED = 8 << 20  # the same where source rows become target columns: each block reads a strip of every row
SMALLEST = 64 << 10
_BUFFERS = 6  # gathered, encoded, float32 values (2x), hull, scratch of the codec


@dataclass(frozen=True, slots=True)
class Block:
    """Encoded bytes at `offset` of the tensor's data; `raw` is what was gathered for them, in codec `source`."""

    offset: int
    encoded: Bytes
    raw: Bytes
    source: Codec
    census: Census


class Share:
    """One worker's memory: buffers that are reused for every block. Never shared between threads.

    turn  held by the one worker that does what is better not done by several at once; one for all workers
    """

    def __init__(self, nbytes: int, turn: AbstractContextManager[Any] | None = None) -> None:
        self.turn = turn or nullcontext()
        self.block = min(TRANSPOSED, nbytes // _BUFFERS // PAGE * PAGE - PAGE)
        self.gathered = aligned(self.block + PAGE)  # a block begins anywhere in the first page
        self.encoded = aligned(self.block + PAGE)
        self.hull = np.empty(min(max(4 * LARGEST, self.block), max(self.block, nbytes - 5 * self.block)), np.uint8)
        self.workspace = Workspace()
        self._values: Values = np.empty(0, np.float32)

    def values(self, elements: int) -> Values:
        """Room for float32 values."""
        if self._values.size < elements:
            self._values = np.empty(elements, np.float32)
        return self._values[:elements]


def share_of(memory: int, workers: int) -> int:
    """Bytes for each worker. Raises MemoryPlanError when a block does not fit."""
    share = memory // workers
    need = _BUFFERS * SMALLEST
    if share < need:
        most = max(1, memory // need)
        raise MemoryPlanError(
            f"one block needs {need >> 10} KiB, --memory is {memory >> 10} KiB over {workers} workers",
            fix=f"use --memory {-(-need * workers >> 20)}MiB" + (f" or --workers {most}" if memory >= need else ""),
        )
    return share


def workers_for(memory: int) -> int:
    """How many workers to have when nobody says: one a core, or two where blocks stay large, since half of the time
    is spent waiting for disks; fewer where the memory has no room for them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = max(cores, min(2 * cores, memory // (_BUFFERS * TRANSPOSED)))
    return max(1, min(wanted, memory // (_BUFFERS * SMALLEST)))


def blocks(
    plan: Plan,
    tensor: TargetTensor,
    reader: Reader,
    share: Share,
    compiled: bool | None = False,
    most: int | None = None,
) -> Iterator[Block]:
    """The encoded bytes of `tensor`, block by block. A block is valid until the next one is asked for.

    Its bytes lie within pages of memory as they will in pages of the file, and end where one of these ends if they
    can: so the output goes from here to the disk as it is.

    most  elements of a block at most, in whole blocks of both codecs; what the share has room for otherwise
    """
    target = codecs.get(tensor.dtype)
    if tensor.data is not None:
        data: NDArray[np.uint8] = np.frombuffer(tensor.data, np.uint8)
        yield Block(0, data, data, target, count(data, target))
        return
    elements = math.prod(tensor.shape)
    if not tensor.moves:
        return
    units, name = units_for(plan, tensor.moves)
    source = codecs.get(name)
    adding = tensor.add != 0.0
    converting = adding or source.name != target.name
    convert_all = convert(source, target, compiled)
    to_values = convert(source, codecs.get("float32"))
    from_values = convert(codecs.get("float32"), target, compiled)
    whole = math.lcm(source.block, target.block)
    widest = max(source.block_bytes / source.block, target.block_bytes / target.block, 4 if adding else 0)
    transposed = any(move.src_step and move.src_step[-1] != 1 for move in tensor.moves)
    room = share.block if transposed else min(share.block, LARGEST)
    per_block = int(room / widest)
    if most is None:
        cuts = _cuts(elements, per_block, whole, encoded_size(target, whole), tensor.offset)
    else:
        cuts = _cuts(elements, min(per_block, most), whole, PAGE, 0)
    gatherer = Gatherer(plan, reader, tensor.moves, units, share.hull)
    for start, stop in cuts:
        page = (tensor.offset + encoded_size(target, start)) % PAGE
        raw = share.gathered[0 if converting else page :][: encoded_size(source, stop - start)]
        if tensor.zeros:
            raw[:] = 0
        gatherer.fill(start // units.block, stop // units.block, raw.view(units.dtype))
        encoded = share.encoded[page:][: encoded_size(target, stop - start)] if converting else raw
        with share.turn if convert_all.chatty else nullcontext():
            if adding:
                values = share.values(stop - start)
                to_values(raw, values.view(np.uint8), share.workspace)
                values += np.float32(tensor.add)
                from_values(values.view(np.uint8), encoded, share.workspace)
            elif converting:
                convert_all(raw, encoded, share.workspace)
            census = count(raw, source, target if converting else None)
        yield Block(encoded_size(target, start), encoded, raw, source, census)


def _cuts(elements: int, most: int, whole: int, nbytes: int, offset: int) -> Iterator[tuple[int, int]]:
    """Runs of about `most` elements, in multiples of `whole` elements that take `nbytes` bytes each.

    They end on pages of a file in which the first element is at byte `offset`, where that can be.
    """
    period = PAGE // math.gcd(nbytes, PAGE)
    wholes = max(1, most // whole)
    wholes -= wholes % period if wholes > period else 0
    ending = (n for n in range(wholes, max(0, wholes - period), -1) if (offset + n * nbytes) % PAGE == 0)
    low, high = 0, min(elements, next(ending, wholes) * whole)
    while low < elements:
        yield low, high
        low, high = high, min(elements, high + wholes * whole)
