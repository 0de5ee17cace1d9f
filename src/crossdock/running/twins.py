"""Two stored tensors that the configuration calls one: compared before anything is written [tied-head]."""

from __future__ import annotations

import numpy as np

from crossdock.errors import PlanError, Problem
from crossdock.planning.plan import Move, Plan, TargetTensor
from crossdock.running.blocks import Share, blocks
from crossdock.running.output import PAGE
from crossdock.running.reader import Reader


def check(plan: Plan, reader: Reader, share: Share) -> None:
    """Raise PlanError when a tensor that is stored twice holds two different contents."""
    problems = []
    for twin in plan.twins:
        one, other = (_imaginary(moves, twin.elements) for moves in (twin.one, twin.other))
        second = Share((share.block + PAGE) * 6)
        for mine, like in zip(blocks(plan, one, reader, share), blocks(plan, other, reader, second), strict=True):
            if not np.array_equal(mine.encoded, like.encoded):
                problems.append(
                    Problem(
                        f"differs from {twin.like}, to which the configuration ties it [tied-head]",
                        where=twin.name,
                        cause="the run was trained with untied embeddings",
                        fix="--set tie_word_embeddings=false keeps both",
                    )
                )
                break
    if problems:
        raise PlanError(problems)


def _imaginary(moves: tuple[Move, ...], elements: int) -> TargetTensor:
    nbytes = 4 * elements
    return TargetTensor("", 0, 0, nbytes, (elements,), "float32", moves)
