"""The containers of an adapter that stays one: for each tensor that its pairs change, the two matrices of one pair.

Where they lie follows from the layout in which the target names the model's tensors: a pair is over the rows and
columns of such a tensor. Pairs that share a tensor of the target become one, their ranks one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from crossdock.errors import PlanError, Problem
from crossdock.formats.target import PairForm, Ranks, Target
from crossdock.layout.lenses import Container, Lens, Placement, geometry_of
from crossdock.layout.maps import factor
from crossdock.layout.rules import Layout, Rule, layout
from crossdock.model.expressions import expression
from crossdock.model.family import Family
from crossdock.planning.adapters import factor_lens, is_transposed, variables_of
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.pairs import RANK, Addition, Pair, meeting
from crossdock.planning.tensors.containers import wanted_containers
from crossdock.planning.tensors.resolved import Key, Resolved, SourceSlice, key_of

A, B = "_lora_a", "_lora_b"


@dataclass(frozen=True)
class AdapterContainers:
    """The containers of an adapter, and what its target is told about them.

    alphas  name of the tensor that a pair changes -> scale * rank; one number for all where the target has one
    """

    rules: Layout
    ranks: Ranks
    variables: Mapping[str, Any]
    containers: tuple[Container, ...]
    alphas: Mapping[str, float]


def alone(addition: Addition) -> Resolved:
    """Where the matrices of `addition` lie, as canonical tensors T_lora_a (columns) and T_lora_b (rows)."""
    provisions: dict[str, dict[Key, tuple[SourceSlice, ...]]] = {}
    for pair in (pair for by_key in addition.values() for pairs in by_key.values() for pair in pairs):
        for end, side in ((A, pair.right), (B, pair.left)):
            by_key = provisions.setdefault(pair.tensor + end, {})
            by_key[key_of(side.lens)] = (*by_key.get(key_of(side.lens), ()), side)
    return Resolved(provisions, (), {})


def adapter_containers(checkpoint: Checkpoint, target: type[Target[Any]]) -> AdapterContainers:
    """The containers of `target` for the pairs of `checkpoint`. Raises PlanError for all that has no place."""
    family, config, addition = checkpoint.family, checkpoint.config, checkpoint.addition or {}
    rules = layout(target.pairs_in, family)
    variables = variables_of(checkpoint, rules)
    geometry = geometry_of(family, config, None, None, rules.numbering(variables))
    wanted, problems = wanted_containers(rules, geometry, family, config, variables)
    scaled: list[_Scaled] = []
    placed: dict[str, int] = {}
    for container in wanted:
        try:
            one = _scaled(container, addition, variables)
            if one is not None:
                target.demand_place(container.name)
                scaled.append(one)
                for pair, _ in one.pairs:
                    placed[pair.left.shown] = placed.get(pair.left.shown, 0) + 1
        except PlanError as error:
            problems += error.problems
    pairs = [pair for by_key in addition.values() for pairs in by_key.values() for pair in pairs]
    problems += [
        Problem(f"{target.name} has no tensor for {pair.tensor}, which the adapter changes", where=pair.left.shown)
        for pair in pairs
        if pair.left.shown not in placed and not problems
    ]
    problems += [
        Problem(f"{target.name} has no magnitudes of DoRA", where=pair.left.shown, fix="--base MODEL --merge")
        for pair in pairs
        if pair.magnitudes is not None
    ][:1]
    if problems:
        raise PlanError(problems)
    alphas = {one.container.name: one.scale * one.rank for one in scaled}
    folded = target.one_alpha and len(set(alphas.values())) > 1
    made = [two for one in scaled for two in _two(one, target, family, one.scale if folded else 1.0)]
    kept = dict.fromkeys(alphas, 0.0) if folded else alphas
    return AdapterContainers(rules, Ranks(), variables, tuple(made), MappingProxyType(kept))


@dataclass(frozen=True)
class _Scaled:
    """A container of the model with its pairs, each with its lens; `scale` is that of all of them."""

    container: Container
    pairs: tuple[tuple[Pair, Lens], ...]
    scale: float

    @property
    def shared(self) -> bool:
        """Whether all tensors in it have one matrix A."""
        sides = {(id(pair.right.stored), pair.rank) for pair, _ in self.pairs}
        lenses = {tuple(p for p in pair.right.lens.axes if p.axis != "expert") for pair, _ in self.pairs}
        return len(sides) == len(lenses) == 1

    @property
    def rank(self) -> int:
        """The rank of the one pair that they become."""
        by_tensor = {pair.tensor: pair.rank for pair, _ in self.pairs}
        return next(iter(by_tensor.values())) if self.shared else sum(by_tensor.values())


def _scaled(container: Container, addition: Addition, variables: Mapping[str, Any]) -> _Scaled | None:
    found: list[tuple[Pair, Lens]] = []
    scales = set()
    for lens in container.lenses:
        mine = [pair for pair in meeting(addition, lens) if _meets(pair, lens)]
        by = factor(container.rule.storing(lens.tensor, variables))
        if mine and by is None:
            raise PlanError("a function of the values is stored, to which nothing is added", where=container.name)
        if len({pair.rank for pair in mine}) > 1:
            raise PlanError("experts whose pairs have different ranks have no place here", where=container.name)
        scales |= {pair.scale * (by or 0.0) for pair in mine}
        found += [(pair, lens) for pair in mine]
    if len(scales) > 1:
        raise PlanError("one pair here stands for several, whose scales differ", where=container.name)
    return _Scaled(container, tuple(found), scales.pop()) if found else None


def _meets(pair: Pair, lens: Lens) -> bool:
    spans = {p.axis: (p.low, p.high) for side in (pair.left, pair.right) for p in side.lens.axes}
    return all(max(p.low, spans[p.axis][0]) < min(p.high, spans[p.axis][1]) for p in lens.axes)


def _two(one: _Scaled, target: type[Target[Any]], family: Family, scale: float) -> Iterator[Container]:
    """The containers of A and B: [..., rank, in] and [..., out, rank]; of an embedding as the target has them."""
    container = one.container
    shape, lead = container.shape, len(container.shape) - 2
    if lead < 0:
        raise PlanError(
            f"{target.name} holds pairs of matrices alone", where=container.name, fix="--base MODEL --merge"
        )
    embedding = target.pair_form(container.name)
    out, into = (lead + 1, lead) if is_transposed(container.lenses[0], lead, family) else (lead, lead + 1)
    batch = {dim: (dim, 1) for dim in range(lead)}
    # of each side: which canonical matrix, the dimension of the model's tensor, where it and the rank lie
    sides = {
        PairForm.LINEAR: ((A, into, lead + 1, lead), (B, out, lead, lead + 1)),
        PairForm.ROWS_FIRST: ((B, out, lead, lead + 1), (A, into, lead, lead + 1)),
        PairForm.RANK_FIRST: ((B, out, lead + 1, lead), (A, into, lead, lead + 1)),
    }[embedding]
    names = target.pair_names(container.name)
    for name, (end, dim, at, ranks_at) in zip(names, sides, strict=True):
        lenses: list[Lens] = []
        first = 0
        seen: set[str] = set()
        for pair, lens in one.pairs:
            if pair.tensor in seen or (end == A and one.shared and seen):
                continue
            seen.add(pair.tensor)
            ranks = Placement(RANK, ranks_at, 1, 0, pair.rank)
            own = factor_lens(lens, {**batch, dim: (at, 1)}, ranks)
            starts = list(own.starts)
            starts[ranks_at] += first
            lenses.append(Lens(pair.tensor + end, own.axes, tuple(starts)))
            first += 0 if one.shared else pair.rank
        sizes = [*shape[:lead], 0, 0]
        sizes[at], sizes[ranks_at] = shape[dim], one.rank
        by = (expression(repr(scale), name),) if end == B and scale != 1 else ()
        rule = Rule(tuple(lens.tensor for lens in lenses), (), "", scale=by)
        yield replace(container, name=name, shape=tuple(sizes), lenses=tuple(lenses), rule=rule)
