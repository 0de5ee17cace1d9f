"""Two stored tensors that the plan takes for one: compared while others copy; where they differ there is no output.

Reads only; what they are taken for, and what is said if that is wrong, stands in the plan.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from crossdock.errors import PlanError
from crossdock.planning.plan import EqualityCheck, Move, Plan, TargetTensor
from crossdock.running.blocks import WorkerBuffers, blocks
from crossdock.running.reader import Reader


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
    sides = (_imaginary(moves, checked.elements) for moves in (checked.one, checked.other))
    read = (blocks(plan, tensor, reader, room) for tensor, room in zip(sides, buffers, strict=True))
    for mine, like in zip(*read, strict=True):
        if stopped():
            return True
        if not np.array_equal(mine.encoded, like.encoded):
            return False
    return True


def _imaginary(moves: tuple[Move, ...], elements: int) -> TargetTensor:
    nbytes = 4 * elements
    return TargetTensor("", 0, 0, nbytes, (elements,), "float32", moves)
