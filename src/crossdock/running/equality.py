"""Two stored tensors that the plan takes for one: compared while others copy; where they differ there is no output.

Reads only; what they are taken for, and what is said if that is wrong, stands in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import Bytes, encoded_size
from crossdock.errors import PlanError
from crossdock.planning.plan import EqualityCheck, Move, Plan, TargetTensor
from crossdock.running.blocks import Block, WorkerBuffers, blocks
from crossdock.running.reader import Reader

_NOTHING: Bytes = np.empty(0, np.uint8)


def check(plan: Plan, reader: Reader, memory: int, stopped: Callable[[], bool]) -> None:
    """Raise PlanError when a tensor that is stored twice holds two different contents. `memory`: bytes for reading.

    Returns early, having proved nothing, when `stopped` says so.
    """
    first, second = WorkerBuffers(memory // 2), WorkerBuffers(memory // 2)
    problems = [
        checked.on_mismatch
        for checked in plan.equality_checks
        if not _equal(plan, checked, reader, (first, second), stopped)
    ]
    if problems:
        raise PlanError(problems)


def _equal(
    plan: Plan,
    checked: EqualityCheck,
    reader: Reader,
    buffers: tuple[WorkerBuffers, WorkerBuffers],
    stopped: Callable[[], bool],
) -> bool:
    sides = (_imaginary(moves, checked) for moves in (checked.one, checked.other))
    one, other = (blocks(plan, tensor, reader, room) for tensor, room in zip(sides, buffers, strict=True))
    mine = like = _NOTHING  # what is left of the current block; the two sides cut theirs at different places
    while not stopped():
        mine = mine if mine.size else _next(one)
        like = like if like.size else _next(other)
        count = min(mine.size, like.size)
        if not count:
            return mine.size == like.size
        if not np.array_equal(mine[:count], like[:count]):
            return False
        mine, like = mine[count:], like[count:]
    return True


def _next(read: Iterator[Block]) -> Bytes:
    block = next(read, None)
    return _NOTHING if block is None else block.encoded


def _imaginary(moves: tuple[Move, ...], checked: EqualityCheck) -> TargetTensor:
    nbytes = encoded_size(codecs.get(checked.dtype), checked.elements)
    return TargetTensor("", 0, 0, nbytes, (checked.elements,), checked.dtype, moves)
