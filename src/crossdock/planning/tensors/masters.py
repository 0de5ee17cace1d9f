"""`--weights master`: the optimizer's float32 weights in the place of the model's rounded ones, and how that is proved.

Their shapes are held against the model's when they are put there; that each rounds to what the model has is a
comparison in the plan, made while others copy. Reads no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from crossdock.errors import FormatError, PlanError, Problem, UsageError
from crossdock.formats.stored import Source, StoredTensor
from crossdock.layout.boxes import steps_of
from crossdock.planning.plan import EqualityCheck, Move
from crossdock.planning.tensors.extents import Extents
from crossdock.planning.tensors.resolved import Resolved, SourceSlice

_FIX = "--weights model takes the model's own"


def with_masters(source: Source) -> Source:
    """`source` with the optimizer's weights for the model's. Raises UsageError, FormatError where it has none."""
    rounded = {key: tensor for key, tensor in source.tensors.items() if tensor.dtype in ("bfloat16", "float16")}
    if not rounded and source.masters is not None:
        already = "--weights master: the checkpoint's own weights are float32 already"
        return replace(source, notices=(*source.notices, already))
    if source.masters is None:
        raise UsageError(
            f"{source.format} has no float32 weights of an optimizer beside the model's",
            where=str(source.root),
            expected="a Megatron checkpoint with its optimizer (torch_dist, or rank files)",
            fix=_FIX,
        )
    masters = source.masters()
    files, numbers = list(source.files), {file.path: number for number, file in enumerate(source.files)}
    for file in masters.files:
        if numbers.setdefault(file.path, len(files)) == len(files):
            files.append(file)
    tensors, problems = dict(source.tensors), []
    for key, master in masters.of.items():
        own = rounded.get(key)
        if own is None:
            continue
        if master.shape != own.shape or master.dtype != "float32":
            what = "the optimizer's float32 weight has another form than the model's"
            expected, got = f"float32 {list(own.shape)}", f"{master.dtype} {list(master.shape)}"
            problems.append(Problem(what, where=_shown(own), expected=expected, got=got, fix=_FIX))
            continue
        at = tuple(replace(extent, file=numbers[masters.files[extent.file].path]) for extent in master.extents)
        tensors[key] = replace(master, extents=at, rounds_to=own)
    if problems:
        raise FormatError(problems)
    notes = {**source.notes, "weights": "the optimizer's float32 ones"}
    return replace(
        source,
        files=tuple(files),
        tensors=tensors,
        notes=notes,
        notices=(*source.notices, *masters.notices),
    )


def demand_masters(source: Source, resolved: Resolved) -> None:
    """Raise PlanError that names the weights of the model that have no master."""
    read = {one.shown: one.stored for one in _read(resolved)}
    missing = {shown: one for shown, one in read.items() if one.dtype in ("bfloat16", "float16")}
    if missing:
        names = list(missing)
        raise PlanError(
            f"{len(names)} tensors of the model have no float32 master in the optimizer's state",
            where=str(source.root),
            got=", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else ""),
            cause="weights that were frozen, a rank's optimizer that is missing, or parameters in an unknown order",
            fix=_FIX,
        )


def rounding_checks(resolved: Resolved, extents: Extents) -> tuple[EqualityCheck, ...]:
    """For every master that is read: rounded to the dtype of the model's own weight, it must be that."""
    masters = {one.shown: one.stored for one in _read(resolved) if one.stored.rounds_to is not None}
    return tuple(
        EqualityCheck(
            f"the master of {_shown(own)}",
            f"{_shown(own)}, after rounding",
            math.prod(own.shape),
            tuple(_whole(extents, master)),
            tuple(_whole(extents, own)),
            Problem(
                f"the optimizer's float32 weight, rounded to {own.dtype}, is not the model's",
                where=_shown(own),
                cause="an optimizer of another iteration, weights that were changed after the last step, or parameters"
                " in an order that crossdock does not know",
                fix=_FIX,
            ),
            own.dtype,
        )
        for master in masters.values()
        if (own := master.rounds_to) is not None
    )


def _read(resolved: Resolved) -> Iterator[SourceSlice]:
    for name in resolved.provisions:
        yield from resolved.all(name)
    for one, _ in resolved.equality_checks:
        yield one


def _whole(extents: Extents, stored: StoredTensor) -> Iterator[Move]:
    """The moves that fill a tensor of the stored shape."""
    steps = steps_of(stored.shape)
    for extent in stored.extents:
        own = extent.strides if extent.strides is not None else steps_of(extent.shape)
        first = sum(at * step for at, step in zip(extent.origin, steps, strict=True))
        yield Move(extents.number(stored, extent), 0, first, extent.shape, own, steps)


def _shown(stored: StoredTensor) -> str:
    return f"{stored.part}/{stored.name}" if stored.part else stored.name
