"""Two stored tensors that the plan takes for one: compared while others copy; where they differ there is no output.

Reads only; what they are taken for, and what is said if that is wrong, stands in the plan.
"""

from __future__ import annotations

import threading

import numpy as np

from crossdock.errors import PlanError
from crossdock.planning.plan import EqualityCheck, Move, Plan, TargetTensor
from crossdock.running.blocks import WorkerBuffers, blocks
from crossdock.running.reader import Reader


def check(plan: Plan, reader: Reader, memory: int, stop: threading.Event) -> None:
    """Raise PlanError when a tensor that is stored twice holds two different contents. `memory`: bytes for reading.

    Returns early, having proved nothing, when `stop` is set.
    """
    first, second = WorkerBuffers(memory // 2), WorkerBuffers(memory // 2)
    problems = [
        checked.on_mismatch
        for checked in plan.equality_checks
        if not _equal(plan, checked, reader, first, second, stop)
    ]
    if problems:
        raise PlanError(problems)


def _equal(
    plan: Plan,
    checked: EqualityCheck,
    reader: Reader,
    first: WorkerBuffers,
    second: WorkerBuffers,
    stop: threading.Event,
) -> bool:
    one, other = (_imaginary(moves, checked.elements) for moves in (checked.one, checked.other))
    pairs = zip(blocks(plan, one, reader, first), blocks(plan, other, reader, second), strict=True)
    for mine, like in pairs:
        if stop.is_set():
            return True
        if not np.array_equal(mine.encoded, like.encoded):
            return False
    return True


def _imaginary(moves: tuple[Move, ...], elements: int) -> TargetTensor:
    nbytes = 4 * elements
    return TargetTensor("", 0, 0, nbytes, (elements,), "float32", moves)
