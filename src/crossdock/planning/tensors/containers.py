"""Which containers a target has for a model, on which ranks, and whether they place every canonical tensor.

Integers only: nothing here knows what fills a container, or its dtype.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from crossdock.errors import PlanError, Problem
from crossdock.layout.lenses import Container, Geometry, containers
from crossdock.layout.notation import Atom, Pattern
from crossdock.layout.rules import Layout, Rule
from crossdock.model.config import ModelConfig
from crossdock.model.family import Family
from crossdock.planning.tensors.resolve import clipped


def wanted_containers(
    rules: Layout, geometry: Geometry, family: Family, config: ModelConfig, variables: Mapping[str, Any]
) -> tuple[list[Container], list[Problem]]:
    """Every container of the target: what lies outside the layers first, then layer by layer, rank beside rank.

    A copy of a tensor (a tied head that is written all the same) is a container whose lens names that tensor.
    """
    keyed: list[tuple[tuple[int, int], Container]] = []
    problems: list[Problem] = []
    present = family.present(config)
    lengths = {axis: int(length.evaluate(variables)) for axis, length in rules.lengths.items()}
    for number, rule in enumerate(rules.rules):
        if rule.read_only or rule.key or (rule.when is not None and not rule.when.evaluate(variables)):
            continue
        like = {name: name for name in rule.tensors} if all(name in present for name in rule.tensors) else {}
        if rule.copy is not None and not like and rule.copy.evaluate(variables):
            same = {name: family.tensors[name].same_as for name in rule.tensors}
            like = same if all(other in present for other in same.values()) else {}
        if not like:
            continue
        try:
            for container in _containers(rule, geometry, rules.padded, lengths):
                layer = next((p.low for p in container.lenses[0].axes if p.axis == "layer" and p.dim < 0), -1)
                if any(name != other for name, other in like.items()):
                    lenses = tuple(replace(lens, tensor=like[lens.tensor]) for lens in container.lenses)
                    container = replace(container, lenses=lenses)
                keyed.append(((layer, number), container))
        except PlanError as error:
            problems.extend(error.problems)
    keyed.sort(key=lambda item: item[0])
    names = [(container.part, container.name) for _, container in keyed]
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})[:5]
        problems.append(Problem(f"the {rules.format} layout writes {', '.join(n for _, n in twice)} twice"))
    return [container for _, container in keyed], problems


def unplaced(
    wanted: Sequence[Container], family: Family, config: ModelConfig, target: str, rules: Layout
) -> list[Problem]:
    """A problem for every canonical tensor that has no place, those aside for which the layout says so.

    The same box in several rank files counts once.
    """
    boxes: dict[str, dict[tuple[tuple[str, int, int], ...], dict[str, int]]] = {}
    for container in wanted:
        for lens in container.lenses:
            if lens.tensor not in container.rule.tensors:
                continue  # a copy
            times = boxes.setdefault(lens.tensor, {}).setdefault(lens.box, {})
            times[container.part] = times.get(container.part, 0) + 1
    problems = []
    sizes = family.sizes(config)
    in_keys = {name for rule in rules.rules if rule.key for name in rule.tensors}
    for name, decl in family.present(config).items():
        if name in in_keys:
            continue
        if name not in boxes and any(fnmatch.fnmatchcase(name, glob) for glob in rules.unsupported):
            continue
        want = sizes.elements(decl.axes, family.layers_of(decl, config))
        placed = sum(
            math.prod(high - low for _, low, high in box) * max(times.values())
            for box, times in boxes.get(name, {}).items()
        )
        if placed != want:
            problems.append(
                Problem(
                    f"{target} has no place for {name} of this {family.name} model"
                    if not placed
                    else f"the {target} layout does not place {name} exactly once",
                    expected=f"{want} elements",
                    got=str(placed),
                    cause="the target's loader does not know such a tensor for this family",
                )
            )
    return problems


def _containers(
    rule: Rule, geometry: Geometry, padded: frozenset[str], lengths: Mapping[str, int]
) -> Iterator[Container]:
    """The containers of a rule's first pattern, in which an axis of `lengths` is as long as this says.

    Where ranks do not divide a padded axis, it is stored longer.
    """
    pattern = rule.patterns[0]
    grown = {
        dim[0].axis: length
        for dim in pattern.dims
        if len(dim) == 1
        and isinstance(dim[0], Atom)
        and (length := lengths.get(dim[0].axis, 0)) > geometry.sizes.get(dim[0].axis, length)
    } | {
        atom.axis: -(-geometry.sizes[atom.axis] // ways) * ways
        for atom in _padded_atoms(pattern, padded)
        if geometry.sizes[atom.axis] % (ways := math.prod(geometry.ranks.get(rank, 1) for rank in atom.ranks))
    }
    if not grown:
        yield from containers(rule, pattern, geometry)
        return
    for container in containers(rule, pattern, replace(geometry, sizes={**geometry.sizes, **grown})):
        for axis in grown:
            container = clipped(container, axis, geometry.sizes[axis])
        yield container


def _padded_atoms(pattern: Pattern, padded: frozenset[str]) -> Iterator[Atom]:
    for dim in pattern.dims:
        if len(dim) == 1 and isinstance(dim[0], Atom) and dim[0].axis in padded and dim[0].ranks:
            yield dim[0]
