"""Two checkpoints of any formats held against each other, canonical tensor by canonical tensor. Writes nothing.

Values are compared as float32, bit for bit. Where they differ, each side's values are encoded as the other stores them,
by the other's scales where it has some: what a conversion made differs from its source in nothing else.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import Bytes, Codec, Values, encoded_size
from crossdock.codecs.conversion import Workspace, convert
from crossdock.codecs.error_stats import ErrorStats, compare
from crossdock.codecs.mapping import apply_steps
from crossdock.layout.maps import Step, Steps, inverse, shown
from crossdock.model.config import FIELDS, ModelConfig
from crossdock.planning.canonical import Slot, canonical_plan, codec_of, slots, stored_as, stored_order
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.plan import Plan
from crossdock.planning.tensors.decodable import demand_decodable
from crossdock.running.blocks import WorkerBuffers, blocks
from crossdock.running.engines.engine import Watch
from crossdock.running.engines.registry import engine
from crossdock.running.memory import share_of, workers_for
from crossdock.running.options import RunOptions
from crossdock.running.reader import Reader, units_for

Status = Literal["equal", "equal after cast", "different", "other shape", "only in A", "only in B"]
# what a model is called, how it is stored, which token ids it names: no value that its tensors compute depends on them
LABELS = frozenset({"family", "dtype", "bos_token_id", "eos_token_id", "pad_token_id"})


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """One canonical tensor in one layer (None outside the layers), all experts together.

    dtype_a    how each side stores it, "" where it is missing; `cast`: "float32 → q8_0" for "equal after cast"
    shape_a    sizes of its canonical axes on each side
    different  values that are not the same; `figures`: those of B against those of A
    """

    name: str
    tensor: str
    layer: int | None
    status: Status
    dtype_a: str = ""
    dtype_b: str = ""
    shape_a: tuple[int, ...] = ()
    shape_b: tuple[int, ...] = ()
    cast: str = ""
    different: int = 0
    figures: ErrorStats | None = None

    @property
    def same(self) -> bool:
        """Equal, if need be after the cast."""
        return self.status in ("equal", "equal after cast")


@dataclass(frozen=True, slots=True)
class FieldDiff:
    """A field of the canonical configuration that differs, and where each side's value came from.

    label  a name, dtype or token id, or nothing that these models compute with: shown, but no difference
    """

    field: str
    a: Any
    b: Any
    origin_a: str
    origin_b: str
    label: bool = False


@dataclass(frozen=True)
class DiffReport:
    """What `diff` found.

    same      every tensor is equal or equal after a cast, and so is every field that the model computes with
    tensors   every canonical tensor by layer, with its status and how far the sides lie apart
    fields    configuration fields that differ
    elements  values compared
    seconds   wall-clock time
    """

    same: bool
    tensors: tuple[TensorDiff, ...]
    fields: tuple[FieldDiff, ...]
    elements: int
    seconds: float


def diff_checkpoints(a: Checkpoint, b: Checkpoint, options: RunOptions) -> DiffReport:
    """Compare two checkpoints. Raises MemoryPlanError, PlanError, and what reading a broken file raises."""
    started = time.monotonic()
    for side in (a, b):
        demand_decodable(side.source.tensors.values(), str(side.source.root))
    ours, theirs = slots(a), slots(b)
    found = {name: _unpaired(a, b, ours.get(name), theirs.get(name)) for name in _in_order(ours, theirs)}
    orders = {name: _order(a, b, ours[name], theirs[name]) for name, diff in found.items() if diff is None}
    plans = canonical_plan(a, orders), canonical_plan(b, orders)
    workers = options.workers or workers_for(options.memory)
    job = DiffJob(plans, share_of(options.memory, workers))
    total = sum(ours[name].elements for name in orders)
    report = options.progress or (lambda done, total, what: None)

    def done(results: Sequence[TensorDiff]) -> None:
        for diff in results:
            slot, other = ours[diff.name], theirs[diff.name]
            found[diff.name] = replace(diff, tensor=slot.tensor, layer=slot.layer,
                                       dtype_a=stored_as(a, slot), dtype_b=stored_as(b, other))  # fmt: skip

    engine(options.engine).work(
        job, range(len(orders)), workers=workers, done=done, progress=lambda units: report(units, total, "")
    )
    tensors = tuple(diff for diff in found.values() if diff is not None)
    fields = tuple(_fields(a, b))
    same = all(diff.same for diff in tensors) and all(diff.label for diff in fields)
    return DiffReport(same, tensors, fields, total, time.monotonic() - started)


@dataclass(frozen=True)
class DiffJob:
    """Comparing the tensors of two plans of the same tensors, one by one. share: bytes of memory for each worker."""

    plans: tuple[Plan, Plan]
    share: int

    @contextlib.contextmanager
    def open(self) -> Iterator[_Diffing]:
        """Open both sources in this process."""
        with contextlib.ExitStack() as stack:
            readers = [
                (stack.enter_context(Reader(plan)), stack.enter_context(Reader(plan, scales_alone=True)))
                for plan in self.plans
            ]  # fmt: skip
            yield _Diffing(self, readers)


class _Diffing:
    """The job in one process."""

    def __init__(self, job: DiffJob, readers: Sequence[tuple[Reader, Reader]]) -> None:
        self._job, self._readers = job, readers
        self._scaled = [any(extent.scaling for extent in plan.extents) for plan in job.plans]

    def worker(self) -> Callable[[int, Watch], TensorDiff | None]:
        """One thread's: of its share a part for each side and its scales, and one for comparing."""
        desk = _Desk(self._job.share // (3 + sum(self._scaled)), self._scaled)

        def work(task: int, watch: Watch) -> TensorDiff | None:
            pairs = zip(self._job.plans, self._readers, strict=True)
            one, other = (_Side.of(plan, task, *readers) for plan, readers in pairs)
            return _compare(one, other, desk, watch)

        return work

    def settle(self, results: Sequence[TensorDiff]) -> None:
        """Do nothing: comparing writes nothing."""


def _in_order(ours: Mapping[str, Slot], theirs: Mapping[str, Slot]) -> list[str]:
    """Names of both sides; a tensor that is only another's name on both (a tied head) is none of its own."""
    both = {**ours, **theirs}
    held = [
        name for name in both
        if any(side[name].held == side[name].tensor for side in (ours, theirs) if name in side)
    ]  # fmt: skip
    return sorted(held, key=lambda name: -1 if (layer := both[name].layer) is None else layer)


def _unpaired(a: Checkpoint, b: Checkpoint, one: Slot | None, other: Slot | None) -> TensorDiff | None:
    """The finding for a tensor that cannot be compared, None for one that can."""
    slot = one or other
    assert slot is not None
    dtype_a, shape_a = (stored_as(a, one), tuple(one.sizes.values())) if one else ("", ())
    dtype_b, shape_b = (stored_as(b, other), tuple(other.sizes.values())) if other else ("", ())
    status: Status = "other shape" if one and other else "only in A" if one else "only in B"
    if one and other and dict(one.sizes) == dict(other.sizes):
        return None
    return TensorDiff(slot.name, slot.tensor, slot.layer, status, dtype_a, dtype_b, shape_a, shape_b)


def _order(a: Checkpoint, b: Checkpoint, one: Slot, other: Slot) -> tuple[str, ...]:
    """Axes as the side stores them whose codec has the larger blocks: those can only be compared whole."""
    block_a, block_b = codecs.get(codec_of(a, one)).block, codecs.get(codec_of(b, other)).block
    return stored_order(b, other) if block_b >= block_a else stored_order(a, one)


class _Desk:
    """One worker's memory: shares for reading each side and its scales, and room for the values of both and a cast."""

    def __init__(self, nbytes: int, scaled: Sequence[bool]) -> None:
        self.sides = WorkerBuffers(nbytes), WorkerBuffers(nbytes)
        self.scales = tuple(WorkerBuffers(nbytes) if has else None for has in scaled)
        self.most = self.sides[0].block // 8  # elements compared at a time: a float64 each fits in a block
        self.values = np.empty((3, self.most), np.float32)  # of both sides, and after a cast
        self.encoded = np.empty(8 * self.most, np.uint8)
        self.workspace = Workspace()


@dataclass(frozen=True, slots=True)
class _Side:
    """One tensor of one plan, and the codec that its blocks come in.

    stored  the codec that its values were encoded in, where that is known; `scales` reads what they were divided by
    steps   from what is stored to the canonical values
    """

    plan: Plan
    number: int
    reader: Reader
    codec: Codec
    stored: Codec
    scales: Reader | None = None
    steps: Steps = ()

    @classmethod
    def of(cls, plan: Plan, number: int, reader: Reader, scales: Reader) -> _Side:
        tensor = plan.tensors[number]
        gathered = units_for(plan, tensor.moves)[1]  # float32 where the blocks of a codec cannot stay whole
        codec = codecs.get("float32" if tensor.sums else gathered)
        used = [plan.extents[move.extent] for move in tensor.moves]
        names = {extent.dtype for extent in used}
        if len(names) == 1 and all(extent.scaling for extent in used) and not tensor.sums:
            return cls(plan, number, reader, codec, codecs.get(names.pop()), scales)
        if tensor.products or len(names) > 1:
            return cls(plan, number, reader, codec, codec)
        steps = (Step("add", tensor.add),) if tensor.add else tensor.maps[0].steps if tensor.maps else ()
        return cls(plan, number, reader, codec, codecs.get(gathered), None, steps)

    @property
    def name(self) -> str:
        return self.plan.tensors[self.number].name

    @property
    def kind(self) -> str:
        """How its values are stored, for people."""
        how = f" {shown(inverse(self.steps))}" if self.steps else ""
        return self.stored.name + (" × scales" if self.scales else "") + how

    def blocks(self, share: WorkerBuffers, most: int) -> Any:
        tensor = replace(self.plan.tensors[self.number], dtype=self.codec.name)
        return blocks(self.plan, tensor, self.reader, share, most=most)

    def scale_blocks(self, share: WorkerBuffers | None, most: int) -> Iterator[Values | None]:
        """The scale of each of its values, block by block; nothing where they have none."""
        if self.scales is None or share is None:
            return itertools.repeat(None)
        found = blocks(self.plan, self.plan.tensors[self.number], self.scales, share, most=most)
        return (block.encoded.view(np.float32) for block in found)


def _compare(one: _Side, other: _Side, desk: _Desk, watch: Watch) -> TensorDiff | None:
    casts = _casts(one, other)
    whole = max(one.codec.block, other.codec.block)
    most = max(whole, desk.most // whole * whole)
    different, figures, done = 0, ErrorStats(), 0
    values_of = (side.blocks(share, most) for side, share in zip((one, other), desk.sides, strict=True))
    scales_of = (side.scale_blocks(share, most) for side, share in zip((one, other), desk.scales, strict=True))
    for (mine, theirs), scales in zip(zip(*values_of, strict=True), zip(*scales_of, strict=False), strict=False):
        if watch.stopped():
            return None
        size = mine.encoded.size // one.codec.block_bytes * one.codec.block
        if one.codec.name != other.codec.name or not np.array_equal(mine.encoded, theirs.encoded):
            values = [
                _decoded(side.codec, block.encoded, desk.values[row, :size], desk.workspace)
                for row, (side, block) in enumerate(((one, mine), (other, theirs)))
            ]
            wrong = int(np.count_nonzero(values[0].view(np.uint32) != values[1].view(np.uint32)))
            if wrong:
                different += wrong
                figures += compare(*values)
                casts = tuple(
                    cast for cast in casts
                    if _casts_to(values[1 - cast.into], cast, values[cast.into], scales[cast.into], desk)
                )  # fmt: skip
        done += size
        watch.reached(done)
    shape = one.plan.tensors[one.number].shape
    status: Status = "equal" if not different else "equal after cast" if casts else "different"
    cast = casts[0].text if different and casts else ""
    return TensorDiff(
        one.name, "", None, status, shape_a=shape, shape_b=shape, cast=cast, different=different,
        figures=figures if different else None,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Cast:
    """A cast that may explain a difference: the other side's values as side `into` (0 or 1) stores them.

    codec  its codec; steps: from its stored values to the canonical ones
    """

    into: int
    codec: Codec
    steps: Steps
    text: str


def _casts(a: _Side, b: _Side) -> tuple[_Cast, ...]:
    """Each into the other's, unless both are of one kind."""
    if a.kind == b.kind and a.scales is None:
        return ()
    ways = (
        _Cast(1, b.stored, b.steps, f"{a.kind} → {b.kind}"),
        _Cast(0, a.stored, a.steps, f"{b.kind} → {a.kind}"),
    )
    return tuple(cast for cast in ways if cast.codec.encodes)


def _casts_to(values: Values, how: _Cast, wanted: Values, scales: Values | None, desk: _Desk) -> bool:
    """Whether `values`, mapped, divided by `scales`, encoded, and all that back, are `wanted`, bit for bit."""
    codec = how.codec
    room, cast = desk.encoded[: encoded_size(codec, values.size)], desk.values[2, : values.size]
    with np.errstate(all="ignore"):
        if how.steps:
            cast[:] = values
            apply_steps(cast, inverse(how.steps))
            values = cast
        if scales is not None:
            values = np.divide(values, scales, out=cast)
        convert(codecs.get("float32"), codec, compiled=False)(values.view(np.uint8), room, desk.workspace)
        _decoded(codec, room, cast, desk.workspace)
        if scales is not None:
            cast *= scales
        apply_steps(cast, how.steps)
    return np.array_equal(cast.view(np.uint32), wanted.view(np.uint32))


def _decoded(codec: Codec, raw: Bytes, out: Values, workspace: Workspace) -> Values:
    convert(codec, codecs.get("float32"))(raw, out.view(np.uint8), workspace)
    return out


def _fields(a: Checkpoint, b: Checkpoint) -> list[FieldDiff]:
    out = []
    for name in FIELDS:
        one, other = getattr(a.config, name), getattr(b.config, name)
        if not _alike(one, other):
            origins = a.described.origins.get(name, ""), b.described.origins.get(name, "")
            label = name in LABELS | (_idle(a.config) & _idle(b.config))
            out.append(FieldDiff(name, one, other, *origins, label=label))
    return out


def _idle(config: ModelConfig) -> set[str]:
    """Fields that nothing computes with in this model, and that formats fill in as they like."""
    idle: set[str] = set()
    if not config.num_experts:
        idle |= {"num_experts_per_tok", "moe_intermediate_size", "router_scoring", "norm_topk_prob"}
    if len(config.moe_layers) == config.num_hidden_layers:
        idle.add("intermediate_size")
    if config.position_embedding != "rope":
        idle |= {"rope_theta", "rope_type", "rope_scaling", "partial_rotary_factor"}
    return idle


def _alike(one: Any, other: Any) -> bool:
    """Numbers are equal as float32, which is what GGUF keeps of them."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, float) or isinstance(other, float):
        numbers = isinstance(one, int | float) and isinstance(other, int | float)
        return numbers and (one == other or bool(np.float32(one) == np.float32(other)))
    return bool(one == other)
