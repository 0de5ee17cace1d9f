"""Canonical tensors of any checkpoint as float32, read when they are asked for, in blocks that fit the memory.

Only the rows and experts that are asked for are read. Knows no formats: the plan of canonical tensors does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import Values, encoded_size
from crossdock.codecs.conversion import Workspace, convert
from crossdock.codecs.mapping import apply_steps
from crossdock.planning.canonical import canonical_plan, slots
from crossdock.planning.checkpoint import Checkpoint
from crossdock.running.blocks import WorkerBuffers, adders_for
from crossdock.running.low_rank import Adders
from crossdock.running.memory import share_of
from crossdock.running.reader import Gatherer, Reader, units_for

LARGEST = 4 << 20  # bytes of one block of float32: matrix products do not get faster with more


def numbers_of(checkpoint: Checkpoint) -> Callable[[str], list[float]]:
    """Reads a small tensor when it is asked for: name -> its values in all layers, which are as many as that."""

    def read(name: str) -> list[float]:
        layers = checkpoint.family.layers_of(checkpoint.family.tensors[name], checkpoint.config)
        with CheckpointWeights(checkpoint, 2 * LARGEST) as weights:
            return [float(weights.whole(name, layer).reshape(())) for layer in layers or (None,)]

    return read


class CheckpointWeights:
    """The tensors of a checkpoint for `model.forward`. Close it (or leave its `with`) when done.

    memory  bytes for reading: half for buffers, at most half for the float32 values of one block
    Raises MemoryPlanError, PlanError, and what reading a broken file raises.
    """

    def __init__(self, checkpoint: Checkpoint, memory: int) -> None:
        self._slots = slots(checkpoint)
        self._plan = canonical_plan(checkpoint, {name: tuple(slot.sizes) for name, slot in self._slots.items()})
        self._tensors = {tensor.name: tensor for tensor in self._plan.tensors}
        self._share = WorkerBuffers(share_of(memory // 2, 1))
        self._most = min(memory // 2, LARGEST) // 4
        self._workspace = Workspace()
        self._reader = Reader(self._plan)
        self._adders: dict[str, Adders | None] = {}  # of the tensor that was read last

    def close(self) -> None:
        """Close every file that was opened."""
        self._reader.close()

    def __enter__(self) -> CheckpointWeights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def whole(self, name: str, layer: int | None = None) -> Values:
        """A small tensor, float32 in its canonical axes."""
        full = _name(name, layer)
        shape = self._tensors[full].shape
        return self._read(full, 0, math.prod(shape)).reshape(shape)

    def blocks(self, name: str, layer: int | None = None, expert: int | None = None) -> Iterator[Values]:
        """A tensor (or one expert of it) in blocks along its first axis, in order."""
        full = _name(name, layer)
        shape = self._tensors[full].shape
        first = 0
        if expert is not None:
            shape = shape[1:]
            first = expert * math.prod(shape)
        row = math.prod(shape[1:])
        step = max(1, self._most // row)
        for low in range(0, shape[0], step):
            high = min(shape[0], low + step)
            yield self._read(full, first + low * row, first + high * row).reshape(high - low, *shape[1:])

    def rows(self, name: str, numbers: NDArray[np.int64]) -> Values:
        """The rows `numbers` of a tensor outside the layers."""
        row = math.prod(self._tensors[name].shape[1:])
        return np.stack([self._read(name, n * row, (n + 1) * row) for n in numbers.tolist()])

    def _read(self, name: str, start: int, stop: int) -> Values:
        """Elements start to stop of a tensor, in C order of its canonical axes."""
        tensor = self._tensors[name]
        units, stored = units_for(self._plan, tensor.moves)
        codec = codecs.get(stored)
        decode = convert(codec, codecs.get("float32"))
        gatherer = Gatherer(self._plan, self._reader, tensor.moves, units, self._share.hull, self._share.gil_lock)
        out = np.empty(stop - start, np.float32)
        step = max(1, self._share.strip // codec.block_bytes) * codec.block
        for low in range(start, stop, step):
            high = min(stop, low + step)
            raw = self._share.gathered[: encoded_size(codec, high - low)]
            gatherer.fill(low // units.block, -(-high // units.block), raw.view(units.dtype))
            decode(raw, out[low - start : high - start].view(np.uint8), self._workspace)
        if tensor.add:
            out += np.float32(tensor.add)
        for one in tensor.maps:
            apply_steps(out[max(0, one.start - start) : max(0, one.stop - start)], one.steps)
        if tensor.products:
            if name not in self._adders:
                self._adders = {name: adders_for(self._plan, tensor, self._reader, self._share)}
            adders = self._adders[name]
            if adders is not None:
                adders(out, start)
        return out


def _name(tensor: str, layer: int | None) -> str:
    return tensor if layer is None else f"layers.{layer}.{tensor}"
