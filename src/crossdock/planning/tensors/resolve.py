"""Which stored tensor holds which part of which canonical tensor: a source's containers found, checked and indexed.

Every stored tensor must be read by a rule or skipped for a stated reason; every canonical tensor must be provided
exactly once, copies aside. Reads no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from crossdock.errors import PlanError, Problem
from crossdock.formats.stored import Source
from crossdock.layout.lenses import Container, Geometry, containers, geometry_of
from crossdock.layout.names import Largest, largest_indices, largest_numbers
from crossdock.layout.notation import Atom, Pattern
from crossdock.layout.rules import Layout, Rule
from crossdock.model.config import ModelConfig, ResolvedConfig
from crossdock.model.family import Family
from crossdock.planning.tensors.complete import incomplete
from crossdock.planning.tensors.likeness import names_of_others
from crossdock.planning.tensors.resolved import Key, Match, Resolved, SourceSlice, key_of
from crossdock.planning.tensors.unread import unread_tensors


def resolve(
    source: Source, chosen: Family, described: ResolvedConfig, rules: Layout, variables: Mapping[str, Any]
) -> Resolved:
    """Match `source` against `rules`. Raises PlanError with everything that does not fit."""
    config = described.config
    sizes, present = chosen.sizes(config), chosen.present(config)
    geometry = geometry_of(chosen, config, source.ranks, source.partitions, rules.numbering(variables))
    largest = largest_numbers({name for _, name in source.tensors})
    problems: list[Problem] = []
    matches: list[Match] = []
    slices: list[SourceSlice] = []
    equality_checks: list[tuple[SourceSlice, str]] = []
    for rule in rules.rules:
        same = _copies(rule, chosen, present)
        if same is None or (rule.when is not None and not rule.when.evaluate(variables)):
            continue
        geometry = _with_sizes(geometry, rule, chosen, config)
        storing = {name: rule.storing(name, variables) for name in rule.tensors}
        found, wrong = _matched(rule, geometry, source, largest, rules.padded)
        matches += found
        problems += [*wrong, *(_misshapen(match, described) for match in found if not match.fits)]
        lenses = ((lens, match.stored) for match in found if match.fits for lens in match.container.lenses)
        for lens, stored in lenses:
            if lens.volume:
                provision = SourceSlice(lens, stored, storing[lens.tensor])
                if other := same.get(lens.tensor):
                    equality_checks.append((provision, other))
                else:
                    slices.append(provision)
    unread, dropped = unread_tensors(source, rules, {(match.stored.part, match.stored.name) for match in matches})
    misshapen = {name for match in matches if not match.fits for name in match.container.rule.tensors}
    provisions = _indexed(slices)
    lacking = incomplete(provisions, chosen, config, rules, misshapen)
    others = names_of_others(source, chosen, len(source.tensors) - len(matches)) if dropped and lacking else None
    problems += [*dropped, *lacking] if others is None else [others]
    if problems:
        raise PlanError(problems)
    padding = dict(match.padding for match in matches if match.padding is not None)
    notices = tuple(
        f"{axis}: {extra} padding rows of the source are left out (stored {true + extra}, true {true})"
        for axis, extra in padding.items()
        for true in (sizes.whole[axis],)
    )
    return Resolved(provisions, tuple(equality_checks), unread, padding, notices)


def _copies(rule: Rule, chosen: Family, present: Mapping[str, Any]) -> dict[str, str] | None:
    """Tensor of the rule -> the one that it is a copy of; None where the model has neither."""
    same = {name: chosen.tensors[name].same_as for name in rule.tensors if name not in present}
    if any(not other or other not in present for other in same.values()):
        return None
    return {name: name for name in rule.tensors} if rule.stage == "later" else same


def _with_sizes(geometry: Geometry, rule: Rule, chosen: Family, config: ModelConfig) -> Geometry:
    """`geometry` with the axes that only tensors have which the model keeps as copies."""
    needed = {atom.axis for one in rule.patterns for part in (one.parts or ("",)) for atom in one.atoms(part)}
    unsized = needed - geometry.sizes.keys() - geometry.by_layer.keys()
    if not unsized:
        return geometry
    values = config.as_dict()
    return replace(geometry, sizes={**geometry.sizes, **{axis: chosen.axes[axis].evaluate(values) for axis in unsized}})


def _indexed(slices: Iterable[SourceSlice]) -> dict[str, dict[Key, tuple[SourceSlice, ...]]]:
    """Canonical tensor -> (layer, expert) -> its slices; of several for one box the first, which ranks replicate."""
    found: dict[tuple[str, Key], dict[tuple[tuple[str, int, int], ...], SourceSlice]] = {}
    for one in slices:
        found.setdefault((one.lens.tensor, key_of(one.lens)), {}).setdefault(one.lens.box, one)
    out: dict[str, dict[Key, tuple[SourceSlice, ...]]] = {}
    for (tensor, key), boxes in found.items():
        out.setdefault(tensor, {})[key] = tuple(boxes.values())
    return out


def _matched(
    rule: Rule, geometry: Geometry, source: Source, largest: Largest, padded: frozenset[str]
) -> tuple[list[Match], list[Problem]]:
    """The stored tensors that a rule reads, and why a name that is stored cannot be what the rule says."""
    matches: list[Match] = []
    problems: list[Problem] = []
    for pattern in rule.patterns:
        numbers = largest_indices(pattern, largest)
        if numbers is None:
            continue
        grown, axis = _grown(pattern, geometry, source, padded)
        try:
            wanted = list(containers(rule, pattern, grown, numbers))
        except PlanError as error:
            if any((part, name) for part, name in source.tensors if name == pattern.spell((0,) * len(pattern.indices))):
                problems += error.problems
            continue
        for container in wanted:
            stored = source.tensors.get((container.part, container.name))
            if stored is None:
                continue
            if not axis or stored.shape != container.shape:
                matches.append(Match(container, stored))
            else:
                size = geometry.sizes[axis]
                matches.append(Match(clipped(container, axis, size), stored, (axis, grown.sizes[axis] - size)))
    return matches, problems


def _grown(pattern: Pattern, geometry: Geometry, source: Source, padded: frozenset[str]) -> tuple[Geometry, str]:
    """The geometry in which a padded axis is as long as this source stores it, and the axis; ("" if none is padded)."""
    for number, dim in enumerate(pattern.dims):
        if len(dim) != 1:
            continue
        atom = dim[0]
        if not isinstance(atom, Atom) or atom.axis not in padded:
            continue
        name = pattern.spell((0,) * len(pattern.indices))
        stored = next(
            (t for (_, n), t in source.tensors.items() if n == name and len(t.shape) == len(pattern.dims)), None
        )
        if stored is None:
            continue
        whole = stored.shape[number] * math.prod(geometry.ranks.get(rank, 1) for rank in atom.ranks)
        if whole > geometry.sizes[atom.axis]:
            return replace(geometry, sizes={**geometry.sizes, atom.axis: whole}), atom.axis
    return geometry, ""


def clipped(container: Container, axis: str, size: int) -> Container:
    """`container` with lenses that end where the model's axis does; empty ones where they lie beyond."""
    lenses = []
    for lens in container.lenses:
        axes = tuple(
            replace(p, low=min(p.low, size), high=min(p.high, size)) if p.axis == axis else p for p in lens.axes
        )
        lenses.append(replace(lens, axes=axes))
    return replace(container, lenses=tuple(lenses))


def _misshapen(match: Match, described: ResolvedConfig) -> Problem:
    container, stored = match.container, match.stored
    config, origins = described.config, described.origins
    telling = [
        f"{name}={getattr(config, name)} ({origins.get(name, 'default')})"
        for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
                     "vocab_size", "num_experts", "moe_intermediate_size")
        if getattr(config, name)
    ]  # fmt: skip
    pattern = container.rule.patterns[0].text.partition(" : ")[2]
    return Problem(
        f"the shape does not fit {' and '.join(container.rule.tensors)} = {pattern}",
        where=f"{stored.part}/{stored.name}" if stored.part else stored.name,
        expected=str(list(container.shape)),
        got=str(list(stored.shape)),
        cause="one of these is wrong: " + ", ".join(telling),
        fix="correct it with --set FIELD=VALUE or --config",
    )
