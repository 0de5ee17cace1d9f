"""Step 2: what fills each container: boxes of stored tensors, in the dtype that the source has them in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from crossdock.errors import PlanError, Problem
from crossdock.formats.stored import TrainingScales
from crossdock.formats.target import PassThrough, State, Target, TensorSpec
from crossdock.layout.lenses import Container, Lens
from crossdock.layout.maps import Steps, between, factor, shown, sum_alone
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.pairs import products_for
from crossdock.planning.plan import EqualityCheck, MappedRange, Move, PlannedExtent, Product, TargetTensor
from crossdock.planning.steps.containers import TargetContainers
from crossdock.planning.tensors.equality import equality_checks
from crossdock.planning.tensors.extents import Extents, moves_for
from crossdock.planning.tensors.masters import rounding_checks
from crossdock.planning.tensors.resolved import SourceSlice
from crossdock.planning.tensors.training_scales import scales_of
from crossdock.planning.tensors.training_state import carried_moves, order_checks

Numbers = Callable[[str], list[float]]  # name of a small canonical tensor -> its values in all layers


class Fill(NamedTuple):
    """A tensor of the target: as the target sees it, and what fills it. `tensor` has no place in a file yet."""

    spec: TensorSpec
    tensor: TargetTensor


@dataclass(frozen=True)
class Sourced:
    """What fills the target's containers.

    fills            in the target's order, then what goes along of the state of training
    equality_checks  tensors that are stored twice, proofs of an order, and masters against what they were rounded to
    warnings         about scales of fp8 training that could not be read, and values that are not stored bit for bit
    keys             keys of the configuration that hold tensors: (type, numbers)
    """

    places: TargetContainers
    extents: tuple[PlannedExtent, ...]
    fills: tuple[Fill, ...]
    state: State
    equality_checks: tuple[EqualityCheck, ...]
    warnings: tuple[str, ...]
    keys: Mapping[str, tuple[str, Any]]


def sources(checkpoint: Checkpoint, target: Target[Any], places: TargetContainers, numbers: Numbers) -> Sourced:
    """What fills each container of `places`. Raises PlanError for all that has no place or no source."""
    extents = Extents()
    wanted = target.options.quantize in target.needs_training_scales
    training = checkpoint.source.scales() if wanted and checkpoint.source.scales is not None else None
    filler = _Filler(checkpoint, places, extents, training)
    found = [filler.fill(container) for container in places.containers]
    problems = [*places.problems, *(problem for _, unfilled in found for problem in unfilled)]
    if problems:
        raise PlanError(problems)
    state = target.state(checkpoint.source)
    fills = [*(fill for one, _ in found for fill in one), *(_carried(one, extents) for one in state.carried)]
    rounding = rounding_checks(checkpoint.resolved, extents)
    checks = (*equality_checks(checkpoint.resolved, extents), *order_checks(extents, state), *rounding)
    unreadable = training.unreadable[:3] if training else ()
    warnings = (*(f"fp8 training scales cannot be used: {sentence}" for sentence in unreadable), *_inexact(fills))
    keys = _keys(checkpoint, places, numbers)
    return Sourced(places, tuple(extents.planned), tuple(fills), state, checks, warnings, keys)


def _keys(checkpoint: Checkpoint, places: TargetContainers, numbers: Numbers) -> dict[str, tuple[str, Any]]:
    """The keys that hold tensors, which are read now."""
    present = checkpoint.family.present(checkpoint.config)
    held = [(rule.patterns[0].spell(()), *rule.tensors) for rule in places.rules.rules if rule.key]
    return {key: ("ARRAY[FLOAT32]", numbers(name)) for key, name in held if name in present}


@dataclass(frozen=True)
class _Filler:
    checkpoint: Checkpoint
    places: TargetContainers
    extents: Extents
    training: TrainingScales | None

    def fill(self, container: Container) -> tuple[list[Fill], list[Problem]]:
        """What fills one container, or why nothing does."""
        resolved = self.checkpoint.resolved
        moves: list[Move] = []
        used: list[SourceSlice] = []
        ways: dict[Lens, set[Steps]] = {}
        problems: list[Problem] = []
        for lens in container.lenses:
            found, count, slices = moves_for(self.extents, resolved, lens.tensor, lens, container.shape)
            if count != lens.volume:
                what = f"the source provides {count} of {lens.volume} elements of {lens.tensor}"
                problems.append(Problem(what, where=container.name))
            moves += found
            used += slices
            storing = container.rule.storing(lens.tensor, self.places.variables)
            ways[lens] = {between(one.storing, storing) for one in slices}
        add, maps = _mapped(container, ways)
        if add is None and not maps and not problems:
            problems.append(Problem("its parts are stored in different ways", where=container.name))
        if problems:
            return [], problems
        products = self._products(container) if used else ()
        factors = [move for one in products for move in (*one.left, *one.right, *one.magnitudes)]
        experts = _experts(container)
        scales = None if products else scales_of(self.training, resolved, container, experts)
        # a sum fits no smaller type than its float32 terms; the user may ask for one
        dtype = "float32" if products else self._dtype(container, used)
        names = [*(one.shown for one in used), *(self.extents.planned[move.extent].tensor for move in factors)]
        tensor = TargetTensor(
            container.name, 0, 0, 0, container.shape, dtype, tuple(sorted(moves, key=lambda move: move.dst)),
            add or 0.0,
            sum_as_stored=bool(add and self.places.rules.sum_as_stored.evaluate(self.places.variables)),
            zeros=math.prod(container.shape) - sum(lens.volume for lens in container.lenses),
            of=tuple(lens.tensor for lens in container.lenses), sources=tuple(dict.fromkeys(names)),
            part=container.part, experts=experts, products=products, maps=maps,
        )  # fmt: skip
        return [Fill(TensorSpec(container.name, container.shape, dtype, container.part, scales), tensor)], []

    def _products(self, container: Container) -> tuple[Product, ...]:
        """What an adapter adds to one container. Raises PlanError where that depends on the values."""
        addition = self.checkpoint.addition
        if addition is None or self.checkpoint.is_adapter:
            return ()
        factors: dict[Lens, float] = {}
        for lens in container.lenses:
            by = factor(container.rule.storing(lens.tensor, self.places.variables))
            if by is None and lens.tensor in addition:
                raise PlanError("a function of the values is stored, to which nothing is added", where=container.name)
            factors[lens] = 1.0 if by is None else by
        return products_for(self.extents, addition, container.lenses, container.shape, factors)

    def _dtype(self, container: Container, used: list[SourceSlice]) -> str:
        """The dtype that all parts have, else float32. Ranks beyond the end of a padded axis hold zeros alone, in the
        dtype of the rest."""
        resolved = self.checkpoint.resolved
        alike = used or [one for lens in container.lenses for one in resolved.all(lens.tensor)]
        dtypes = {one.stored.meant or one.stored.dtype for one in alike}
        return dtypes.pop() if len(dtypes) == 1 else "float32"


def _carried(carried: PassThrough, extents: Extents) -> Fill:
    """A stored vector that goes along as it is, as if it filled a container of its own."""
    stored = carried.stored
    moves = carried_moves(extents, carried)
    tensor = TargetTensor(carried.name, 0, 0, 0, stored.shape, stored.dtype, moves, sources=(stored.name,))
    return Fill(TensorSpec(carried.name, stored.shape, stored.dtype), tensor)


def _mapped(container: Container, ways: Mapping[Lens, set[Steps]]) -> tuple[float | None, tuple[MappedRange, ...]]:
    """What all values grow by, or else what those of each part go through; (None, ()) where neither can be said."""
    alike = set().union(*ways.values())
    if len(alike) <= 1:
        steps = alike.pop() if alike else ()
        add = sum_alone(steps)
        return add, () if add is not None else (MappedRange(0, math.prod(container.shape), steps),)
    if any(len(found) > 1 for found in ways.values()):
        return None, ()
    row, ranges = math.prod(container.shape[1:]), []
    for lens, found in ways.items():
        rows = math.prod(p.high - p.low for p in lens.axes if p.dim == 0)
        last = sum((p.high - p.low - 1) * p.step for p in lens.axes if p.dim == 0)
        if found and (last != rows - 1 or lens.volume != rows * row):
            return None, ()
        ranges += [MappedRange(lens.starts[0] * row, (lens.starts[0] + rows) * row, steps) for steps in found if steps]
    return None, tuple(ranges)


def _inexact(fills: list[Fill]) -> list[str]:
    """A sentence for each map that rounds, with the tensors that go through it."""
    through: dict[str, list[str]] = {}
    for _, tensor in fills:
        for text in dict.fromkeys(shown(one.steps) for one in tensor.maps):
            through.setdefault(text, []).append(tensor.name)
    return [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {text} of what the source has, in float32: "
        "not bit-exact on the way back"
        for text, names in through.items()
    ]


def _experts(container: Container) -> int:
    """How many experts lie one after another along the first dimension, which nothing else is in."""
    first = [[(p.axis, p.step) for p in lens.axes if p.dim == 0] for lens in container.lenses]
    return container.shape[0] if all(placed == [("expert", 1)] for placed in first) else 1
