"""One target tensor as a stream of encoded blocks, in order, within one worker's share of the memory.

`run` writes the blocks, `verify` compares them: the same replay with another sink.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import Bytes, Codec, Values, encoded_size
from crossdock.codecs.conversion import Conversion, Workspace, convert
from crossdock.codecs.mapping import apply_steps
from crossdock.codecs.scale_blocks import ScaleBlocks, grow, scales_of
from crossdock.codecs.value_counts import ValueCounts, count
from crossdock.errors import MemoryPlanError
from crossdock.io.system import PAGE
from crossdock.planning.plan import MappedRange, Plan, TargetTensor
from crossdock.running.low_rank import Adders, Factor, row_factors, undirected
from crossdock.running.memory import BufferSizes
from crossdock.running.output import aligned
from crossdock.running.reader import Gatherer, Reader, units_for
from crossdock.running.scaling import Divide, Scales, by_blocks, by_rows


@dataclass(frozen=True, slots=True)
class Block:
    """Encoded bytes at `offset` of the tensor's data; `raw` are the values they encode, in codec `source`.

    Values are as gathered, or float32 where they were computed with. scales: what they were divided by
    """

    offset: int
    encoded: Bytes
    raw: Bytes
    source: Codec
    census: ValueCounts
    scales: Scales | None = None


class WorkerBuffers:
    """One worker's memory: buffers that are reused for every block. Never shared between threads.

    gil_lock  held by the one worker that does what is better not done by several at once; one for all workers
    """

    def __init__(self, nbytes: int, gil_lock: AbstractContextManager[Any] | None = None) -> None:
        self.gil_lock = gil_lock or nullcontext()
        sizes = BufferSizes.of(nbytes)
        self.block, self.strip = sizes.block, sizes.strip
        self.gathered = aligned(self.strip + PAGE)  # a block begins anywhere in the first page
        self.encoded = aligned(self.block + PAGE)
        self.hull = np.empty(sizes.hull, np.uint8)
        self.workspace = Workspace()
        self._values: Values = np.empty(0, np.float32)

    def values(self, elements: int) -> Values:
        """Return room for `elements` float32 values, reused by the next call."""
        if self._values.size < elements:
            self._values = np.empty(elements, np.float32)
        return self._values[:elements]


def blocks(
    plan: Plan,
    tensor: TargetTensor,
    reader: Reader,
    share: WorkerBuffers,
    compiled: bool | None = False,
    most: int | None = None,
    counting: bool = False,
    claim: Callable[[int], bool] | None = None,
) -> Iterator[Block]:
    """The encoded bytes of `tensor`, block by block. A block is valid until the next one is asked for.

    Its bytes lie within pages of memory as they will in pages of the file, and end where one of these ends if they
    can: so the output goes from here to the disk as it is.

    most      elements of a block at most, in whole blocks of both codecs; what the share has room for otherwise
    counting  fill in each block's census
    claim     whether the blocks of strip n are to be made here: asked for every strip, in order, so that several
              workers can share one tensor (see `shareable`)
    """
    target = codecs.get(tensor.dtype)
    if tensor.data is not None:
        data: NDArray[np.uint8] = np.frombuffer(tensor.data, np.uint8)
        yield Block(0, data, data, target, count(data, target) if counting else ValueCounts())
        return
    if not tensor.moves:
        yield from _padding(tensor, target, share)
        return
    if tensor.is_scale_tensor and tensor.scale_blocks is not None:
        scales = _found(plan, tensor, tensor.scale_blocks, reader, share).view(np.uint8)
        yield Block(0, scales, scales, target, count(scales, target) if counting else ValueCounts())
        return
    units, name = units_for(plan, tensor.moves)
    adders = adders_for(plan, tensor, reader, share)
    stored = codecs.get(name)
    whole = most or math.lcm(stored.block, target.block)
    division: Divide | None = None
    if tensor.scale_blocks is not None and tensor.static_scales:
        division = by_blocks(tensor.scale_blocks, np.array(tensor.static_scales, np.float32))
    elif tensor.scale_blocks is not None:
        row = math.lcm(whole, tensor.scale_blocks.width)
        if tensor.scale_blocks.by_row and row * 4 <= share.block:
            whole, division = row, by_rows(tensor.scale_blocks)
        else:
            division = by_blocks(tensor.scale_blocks, _found(plan, tensor, tensor.scale_blocks, reader, share))
    coding = _coding(stored, target, tensor, adders, division, compiled, counting)
    gatherer = Gatherer(plan, reader, tensor.moves, units, share.hull, share.gil_lock)
    elements, rows = tensor.elements, whole
    per_strip = per_block = int(share.block / coding.widest)
    if transposed(tensor):
        per_strip = int(share.strip / coding.widest)
        rows = math.lcm(whole, tensor.shape[-1])
    per_block = min(per_block, most or per_block)
    strips = _cuts(0, elements, per_strip, rows if rows <= per_strip else whole, target, tensor.offset)
    for number, (low, high) in enumerate(strips):
        if claim is not None and not claim(number):
            continue
        page = (tensor.offset + encoded_size(target, low)) % PAGE
        strip = share.gathered[0 if coding.changes else page :][: encoded_size(coding.source, high - low)]
        if tensor.zeros:
            strip[:] = 0
        gatherer.fill(low // units.block, high // units.block, strip.view(units.dtype))
        for start, stop in _cuts(low, high, per_block, whole, target, tensor.offset):
            raw = strip[encoded_size(coding.source, start - low) : encoded_size(coding.source, stop - low)]
            at = encoded_size(target, start)
            page = (tensor.offset + at) % PAGE
            encoded = share.encoded[page:][: encoded_size(target, stop - start)] if coding.changes else raw
            yield coding(raw, encoded, share, start, at)


def shareable(tensor: TargetTensor, share: WorkerBuffers) -> bool:
    """Whether several workers may make the blocks of `tensor`: large, of strips that can be made by themselves, and
    whose encoding takes little, since a strip's blocks pass in order."""
    alone = tensor.data is not None or not tensor.moves or bool(tensor.products) or tensor.scale_blocks is not None
    return (
        not alone
        and tensor.nbytes > 2 * share.block
        and (codecs.get(tensor.dtype).block == 1 or not transposed(tensor))
    )


def transposed(tensor: TargetTensor) -> bool:
    """Whether columns of what is stored become rows: then a strip of every row is gathered at once."""
    return any(move.src_step and move.src_step[-1] != 1 for move in tensor.moves)


def _padding(tensor: TargetTensor, target: Codec, share: WorkerBuffers) -> Iterator[Block]:
    """The blocks of a tensor that holds padding alone. Nothing in them is counted: no value of the model is there."""
    for low, high in _cuts(0, tensor.zeros, int(share.block / target.block_bytes), 1, target, tensor.offset):
        zeros = share.encoded[: encoded_size(target, high - low)]
        zeros[:] = 0
        yield Block(encoded_size(target, low), zeros, zeros, target, ValueCounts())


def _found(plan: Plan, tensor: TargetTensor, scale_blocks: ScaleBlocks, reader: Reader, share: WorkerBuffers) -> Values:
    """The scales of a tensor's blocks, for which its values are gone through once."""
    shape = (scale_blocks.height, scale_blocks.width)
    plain = replace(tensor, dtype="float32", shape=shape, offset=0, scale_blocks=None, is_scale_tensor=False)
    largest = np.zeros(scale_blocks.count, np.float32)
    for block in blocks(plan, plain, reader, share):
        grow(largest, block.encoded.view(np.float32), block.offset // 4, scale_blocks)
    return scales_of(largest)


def adders_for(plan: Plan, tensor: TargetTensor, reader: Reader, share: WorkerBuffers) -> Adders | None:
    """What adds the tensor's products to its values; None without any. Lengths of rows are measured here."""
    if not tensor.products:
        return None
    factors: tuple[Factor | None, ...] = ()
    if any(product.magnitudes for product in tensor.products):
        plain = blocks(plan, undirected(tensor), reader, share)
        factors = row_factors(plan, tensor, reader, ((b.offset // 4, b.encoded.view(np.float32)) for b in plain))
    return Adders(plan, tensor, reader, share.block, factors)


@dataclass(frozen=True, slots=True)
class _Coding:
    """How the elements of one tensor get from what is stored to what is written."""

    source: Codec
    target: Codec
    add: float
    maps: tuple[MappedRange, ...]
    sum_as_stored: bool
    adders: Adders | None
    division: Divide | None
    direct: Conversion
    to_values: Conversion
    from_values: Conversion
    to_stored: Conversion
    counting: bool

    @property
    def changes(self) -> bool:
        return self.computes or self.source.name != self.target.name

    @property
    def computes(self) -> bool:
        """Whether values are changed, not only their encoding."""
        return bool(self.add or self.maps) or self.division is not None or self.adders is not None

    @property
    def widest(self) -> float:
        """Bytes of an element in the buffer where it takes most."""
        sizes = (codec.block_bytes / codec.block for codec in (self.source, self.target))
        return max(*sizes, 4 if self.computes else 0)

    def __call__(self, raw: Bytes, encoded: Bytes, share: WorkerBuffers, first: int, at: int) -> Block:
        """Fill `encoded`, unless it is `raw`: the elements from `first` on, at byte `at`."""
        with share.gil_lock if self.direct.holds_gil else nullcontext():
            source, scales = self.source, None
            if self.computes:
                values = share.values(raw.size // self.source.block_bytes * self.source.block)
                self.to_values(raw, values.view(np.uint8), share.workspace)
                values += np.float32(self.add)
                for one in self.maps:
                    _all_at_hand(one, first, values.size)
                    apply_steps(values[max(0, one.start - first) : max(0, one.stop - first)], one.steps)
                if self.sum_as_stored:
                    self.to_stored(values.view(np.uint8), raw, share.workspace)
                    self.to_values(raw, values.view(np.uint8), share.workspace)
                if self.adders is not None:
                    self.adders(values, first)
                if self.division is not None:
                    scales = self.division(values, first)
                # what is added, too large or too small shows only now
                raw, source = values.view(np.uint8), codecs.get("float32")
                self.from_values(raw, encoded, share.workspace)
            elif self.changes:
                self.direct(raw, encoded, share.workspace)
            census = ValueCounts()
            if self.counting:
                census = count(raw, source, None if source.name == self.target.name else self.target)
            return Block(at, encoded, raw, source, census, scales)


def _coding(
    source: Codec,
    target: Codec,
    tensor: TargetTensor,
    adders: Adders | None,
    division: Divide | None,
    compiled: bool | None,
    counting: bool,
) -> _Coding:
    float32 = codecs.get("float32")
    return _Coding(
        source, target, tensor.add, tensor.maps, tensor.sum_as_stored, adders, division,
        convert(source, target, compiled), convert(source, float32), convert(float32, target, compiled),
        convert(float32, source), counting,
    )  # fmt: skip


def _all_at_hand(one: MappedRange, first: int, count: int) -> None:
    """Raise MemoryPlanError where a tensor is less its mean, of which a block holds a part: these are vectors."""
    if any(step.kind == "centre" for step in one.steps) and (first > one.start or first + count < one.stop):
        raise MemoryPlanError("a tensor that is stored less its mean does not fit a block", fix="more --memory")


def _cuts(low: int, end: int, most: int, whole: int, target: Codec, offset: int) -> Iterator[tuple[int, int]]:
    """Runs of about `most` elements in multiples of `whole`, from `low` to `end`.

    They end on pages of a file in which element 0 is at byte `offset`, where that can be.
    """
    nbytes = encoded_size(target, whole)
    at = offset + encoded_size(target, low)
    period = PAGE // math.gcd(nbytes, PAGE)
    wholes = max(1, most // whole)
    wholes -= wholes % period if wholes > period else 0
    ending = (n for n in range(wholes, max(0, wholes - period), -1) if (at + n * nbytes) % PAGE == 0)
    high = min(end, low + next(ending, wholes) * whole)
    while low < end:
        yield low, high
        low, high = high, min(end, high + wholes * whole)
