"""Two stored tensors that the plan takes for one: compared before anything is written."""

from __future__ import annotations

import numpy as np

from crossdock.errors import PlanError
from crossdock.planning.plan import Move, Plan, TargetTensor, Twin
from crossdock.running.blocks import Share, blocks, share_of
from crossdock.running.reader import Reader


def check(plan: Plan, memory: int) -> None:
    """Raise PlanError when a tensor that is stored twice holds two different contents. `memory`: bytes for reading."""
    if not plan.twins:
        return
    first, second = (Share(share_of(memory, 2)) for _ in range(2))
    with Reader(plan) as reader:
        problems = [twin.otherwise for twin in plan.twins if not _equal(plan, twin, reader, first, second)]
    if problems:
        raise PlanError(problems)


def _equal(plan: Plan, twin: Twin, reader: Reader, first: Share, second: Share) -> bool:
    one, other = (_imaginary(moves, twin.elements) for moves in (twin.one, twin.other))
    pairs = zip(blocks(plan, one, reader, first), blocks(plan, other, reader, second), strict=True)
    return all(np.array_equal(mine.encoded, like.encoded) for mine, like in pairs)


def _imaginary(moves: tuple[Move, ...], elements: int) -> TargetTensor:
    nbytes = 4 * elements
    return TargetTensor("", 0, 0, nbytes, (elements,), "float32", moves)
