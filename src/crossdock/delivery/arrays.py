"""`tensors` and `read`: a checkpoint's weights as arrays, each made when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from crossdock.codecs.codec import Values
from crossdock.errors import UsageError
from crossdock.formats import registry
from crossdock.options import size
from crossdock.planning.canonical import canonical_plan, slots
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.plan import Plan, TargetTensor
from crossdock.planning.steps.containers import containers
from crossdock.planning.steps.sources import sources
from crossdock.planning.tensors.decodable import demand_decodable
from crossdock.running.blocks import WorkerBuffers, blocks
from crossdock.running.memory import share_of
from crossdock.running.reader import Reader
from crossdock.running.weights import numbers_of
from crossdock.wording import nearest


def tensors(
    checkpoint: Checkpoint, layout: str = "canonical", memory: str | int = "256MiB"
) -> Iterator[tuple[str, Values]]:
    """Every tensor of a checkpoint, one after another: its name, and a new array of float32.

    checkpoint  from `open`; with an adapter merged into it, the sums
    layout      "canonical" for the names of docs/canonical.md ("embed", "layers.3.attn_q"), axes as the family has
                them; or a target ("hf", "gguf", "trtllm"), for its names and shapes, after the rank's file and a slash
    memory      bytes for reading, or a text such as "64MiB"; an array comes on top of it

    Raises MemoryPlanError, PlanError for a model that the layout does not hold, FormatError for a damaged file,
    UsageError for an unknown layout.
    """
    plan = _plan(checkpoint, layout)
    with Reader(plan) as reader:
        buffers = WorkerBuffers(share_of(size(memory), 1))
        for tensor in plan.tensors:
            yield _name(tensor), _array(plan, tensor, reader, buffers)


def read(checkpoint: Checkpoint, name: str, layout: str = "canonical", memory: str | int = "256MiB") -> Values:
    """One tensor of a checkpoint as an array of float32.

    checkpoint  from `open`; with an adapter merged into it, the sum
    name        as `tensors` has it
    layout      as for `tensors`
    memory      as for `tensors`

    Raises UsageError for a name that is not one of the checkpoint's, MemoryPlanError, PlanError, FormatError.
    """
    plan = _plan(checkpoint, layout)
    found = {_name(tensor): tensor for tensor in plan.tensors}
    if name not in found:
        raise UsageError(f"unknown tensor {name!r}", expected=" or ".join(nearest(name, found, 3)))
    with Reader(plan) as reader:
        return _array(plan, found[name], reader, WorkerBuffers(share_of(size(memory), 1)))


def _plan(checkpoint: Checkpoint, layout: str) -> Plan:
    """A plan of float32 tensors that has no files. Raises PlanError, UsageError."""
    demand_decodable(checkpoint.source.tensors.values(), str(checkpoint.source.root))
    if layout == "canonical":
        plan = canonical_plan(checkpoint, {name: tuple(slot.sizes) for name, slot in slots(checkpoint).items()})
    else:
        target = registry.made_target(layout, {})
        sourced = sources(checkpoint, target, containers(checkpoint, target), numbers_of(checkpoint))
        filled = tuple(fill.tensor for fill in sourced.fills)
        plan = replace(canonical_plan(checkpoint, {}), extents=sourced.extents, tensors=filled)
    floats = tuple(replace(one, dtype="float32", nbytes=4 * one.elements) for one in plan.tensors)
    return replace(plan, tensors=floats)


def _name(tensor: TargetTensor) -> str:
    return f"{tensor.part}/{tensor.name}" if tensor.part else tensor.name


def _array(plan: Plan, tensor: TargetTensor, reader: Reader, buffers: WorkerBuffers) -> Values:
    out = np.empty(tensor.elements, np.float32)
    for block in blocks(plan, tensor, reader, buffers):
        values = block.encoded.view(np.float32)
        out[block.offset // 4 : block.offset // 4 + values.size] = values
    return out.reshape(tensor.shape)
