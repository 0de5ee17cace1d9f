"""Two stored tensors that the plan takes for one: compared while others copy; where they differ there is no output.

Reads only; what they are taken for, and what is said if that is wrong, stands in the plan.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from crossdock.errors import PlanError
from crossdock.planning.plan import Move, Plan, TargetTensor, Twin
from crossdock.running.blocks import Share, blocks
from crossdock.running.reader import Reader


def check(plan: Plan, reader: Reader, memory: int, stopped: Callable[[], bool]) -> None:
    """Raise PlanError when a tensor that is stored twice holds two different contents. `memory`: bytes for reading.

    Returns early, having proved nothing, when `stopped` says so.
    """
    first, second = Share(memory // 2), Share(memory // 2)
    problems = [twin.otherwise for twin in plan.twins if not _equal(plan, twin, reader, first, second, stopped)]
    if problems:
        raise PlanError(problems)


def _equal(plan: Plan, twin: Twin, reader: Reader, first: Share, second: Share, stopped: Callable[[], bool]) -> bool:
    one, other = (_imaginary(moves, twin.elements) for moves in (twin.one, twin.other))
    pairs = zip(blocks(plan, one, reader, first), blocks(plan, other, reader, second), strict=True)
    for mine, like in pairs:
        if stopped():
            return True
        if not np.array_equal(mine.encoded, like.encoded):
            return False
    return True


def _imaginary(moves: tuple[Move, ...], elements: int) -> TargetTensor:
    nbytes = 4 * elements
    return TargetTensor("", 0, 0, nbytes, (elements,), "float32", moves)
