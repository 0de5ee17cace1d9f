"""What training left beside the weights, in a plan: stored vectors as moves, pieces of them in another order.

Reads nothing; which state goes along, and in which order, is the target's to say.
"""

from __future__ import annotations

import math

from crossdock.errors import Problem
from crossdock.formats.stored import StoredTensor
from crossdock.formats.target import PassThrough, State
from crossdock.layout.boxes import steps_of
from crossdock.planning.plan import EqualityCheck, Move
from crossdock.planning.tensors.extents import Extents


def carried_moves(extents: Extents, carried: PassThrough) -> tuple[Move, ...]:
    """The moves that fill `carried`: its pieces one behind the other, the same in every row."""
    stored = carried.stored
    number, steps = extents.number(stored, stored.extents[0]), steps_of(stored.shape)
    rows, row_steps = stored.shape[:-1], steps[:-1]
    moves, at = [], 0
    for first, count in carried.pieces:
        moves.append(Move(number, first, at, (*rows, count), (*row_steps, 1), (*row_steps, 1)))
        at += count
    return tuple(moves)


def order_checks(extents: Extents, state: State) -> tuple[EqualityCheck, ...]:
    """The comparison that proves an order: a vector in the new order against the tensors that it is made of."""
    if state.same is None:
        return ()
    carried, tensors = state.same
    other = tuple(_whole(extents, tensors))
    on_mismatch = Problem(
        "is not the parameters in the order that their first and last values suggest",
        where=carried.stored.name,
        cause="a damaged file",
        fix="--keep-order copies the optimizer's vectors as they are",
    )
    moves = carried_moves(extents, carried)
    return (EqualityCheck(carried.stored.name, "the parameters", carried.stored.shape[-1], moves, other, on_mismatch),)


def _whole(extents: Extents, tensors: tuple[StoredTensor, ...]) -> list[Move]:
    moves, at = [], 0
    for stored in tensors:
        size = math.prod(stored.shape)
        moves.append(Move(extents.number(stored, stored.extents[0]), 0, at, (size,), (1,), (1,)))
        at += size
    return moves
