"""Which stored tensor holds which part of which canonical tensor: a source's containers found, checked and indexed.

Every stored tensor must be read by a rule or skipped for a stated reason; every canonical tensor must be provided
exactly once, copies aside. Reads no bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from crossdock.errors import PlanError, Problem
from crossdock.formats.stored import Source, StoredTensor
from crossdock.layout.lenses import Container, Geometry, Lens, Placement, containers, geometry_of
from crossdock.layout.maps import Steps
from crossdock.layout.names import Largest, largest_indices, largest_numbers
from crossdock.layout.notation import Atom, Pattern
from crossdock.layout.rules import Layout, Rule
from crossdock.model.config import ResolvedConfig
from crossdock.model.family import Family, Sizes
from crossdock.planning.tensors.unread import unread_tensors

Key = tuple[int | None, int | None]  # layer and expert that a container is about, None for all


@dataclass(frozen=True, slots=True)
class SourceSlice:
    """A lens on a stored tensor; `storing`: what made its values of the canonical ones."""

    lens: Lens
    stored: StoredTensor
    storing: Steps

    @property
    def shown(self) -> str:
        """The stored tensor's name for people, with its part where names repeat."""
        return f"{self.stored.part}/{self.stored.name}" if self.stored.part else self.stored.name


@dataclass(frozen=True)
class Resolved:
    """Where a source keeps the canonical tensors.

    provisions  canonical tensor -> (layer, expert) -> lenses, copies left out
    equality_checks       stored tensors that must equal a canonical one: (stored, its lens, canonical name)
    unread      stored names that are left out -> reason
    padding     canonical axis -> elements beyond the model's that the source stores
    """

    provisions: Mapping[str, Mapping[Key, tuple[SourceSlice, ...]]]
    equality_checks: tuple[tuple[SourceSlice, str], ...]
    unread: Mapping[str, str]
    padding: Mapping[str, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    def all(self, name: str) -> tuple[SourceSlice, ...]:
        """Every provision of a canonical tensor."""
        return tuple(found for by_key in self.provisions.get(name, {}).values() for found in by_key)


def resolve(
    source: Source, chosen: Family, described: ResolvedConfig, rules: Layout, variables: Mapping[str, Any]
) -> Resolved:
    """Match `source` against `rules`. Raises PlanError with everything that does not fit."""
    config = described.config
    sizes = chosen.sizes(config)
    present = chosen.present(config)
    geometry = geometry_of(chosen, config, source.ranks, source.partitions, rules.numbering(variables))
    problems: list[Problem] = []
    found: dict[str, dict[Key, dict[tuple[Placement, ...], SourceSlice]]] = {}
    equality_checks: list[tuple[SourceSlice, str]] = []
    read: set[tuple[str, str]] = set()
    misshapen: set[str] = set()
    largest = largest_numbers({name for _, name in source.tensors})
    padding: dict[str, int] = {}
    for rule in rules.rules:
        same = {name: chosen.tensors[name].same_as for name in rule.tensors if name not in present}
        if any(not other or other not in present for other in same.values()):
            continue
        if rule.stage == "later":
            same = {name: name for name in rule.tensors}
        if rule.when is not None and not rule.when.evaluate(variables):
            continue
        needed = {a.axis for p in rule.patterns for part in (p.parts or ("",)) for a in p.atoms(part)}
        unsized = needed - geometry.sizes.keys() - geometry.by_layer.keys()
        if unsized:
            geometry = replace(geometry, sizes={**geometry.sizes, **_more_sizes(chosen, described, unsized)})
        storing = {name: rule.storing(name, variables) for name in rule.tensors}
        for container, stored in _stored(rule, geometry, source, largest, rules.padded, padding, problems, described):
            read.add((stored.part, stored.name))
            if stored.shape != container.shape:
                misshapen.update(rule.tensors)
                continue
            for lens in (lens for lens in container.lenses if lens.volume):
                provision = SourceSlice(lens, stored, storing[lens.tensor])
                if same.get(lens.tensor):
                    equality_checks.append((provision, same[lens.tensor]))
                    continue
                key = key_of(lens)
                box = tuple(replace(p, dim=0, step=0) for p in sorted(lens.axes, key=lambda p: p.axis))
                found.setdefault(lens.tensor, {}).setdefault(key, {}).setdefault(box, provision)
    unread, dropped = unread_tensors(source, rules, read)
    problems += dropped
    problems += _incomplete(found, chosen, described, sizes, rules, misshapen)
    if problems:
        raise PlanError(problems)
    provisions = {name: {key: tuple(boxes.values()) for key, boxes in by_key.items()} for name, by_key in found.items()}
    notices = tuple(
        f"{axis}: {extra} padding rows of the source are left out (stored {true + extra}, true {true})"
        for axis, extra in padding.items()
        for true in (sizes.whole[axis],)
    )
    return Resolved(provisions, tuple(equality_checks), unread, padding, notices)


def _more_sizes(chosen: Family, described: ResolvedConfig, axes: set[str]) -> dict[str, int]:
    values = described.config.as_dict()
    return {axis: chosen.axes[axis].evaluate(values) for axis in axes}


def key_of(lens: Lens) -> Key:
    """The layer and the expert that a lens is about, None for several or none."""
    single = {p.axis: p.low for p in lens.axes if p.axis in ("layer", "expert") and p.high - p.low == 1}
    return single.get("layer"), single.get("expert")


def _stored(
    rule: Rule,
    geometry: Geometry,
    source: Source,
    largest: Largest,
    padded: frozenset[str],
    padding: dict[str, int],
    problems: list[Problem],
    described: ResolvedConfig,
) -> list[tuple[Container, StoredTensor]]:
    out = []
    for pattern in rule.patterns:
        numbers = largest_indices(pattern, largest)
        if numbers is None:
            continue
        grown, axis = _grown(pattern, geometry, source, padded)
        try:
            wanted = list(containers(rule, pattern, grown, numbers))
        except PlanError as error:
            if any((part, name) for part, name in source.tensors if name == pattern.spell((0,) * len(pattern.indices))):
                problems.extend(error.problems)
            continue
        for container in wanted:
            stored = source.tensors.get((container.part, container.name))
            if stored is None:
                continue
            if stored.shape != container.shape:
                problems.append(_misshapen(container, stored, described))
            elif axis:
                padding[axis] = grown.sizes[axis] - geometry.sizes[axis]
                container = clipped(container, axis, geometry.sizes[axis])
            out.append((container, stored))
    return out


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


def _misshapen(container: Container, stored: StoredTensor, described: ResolvedConfig) -> Problem:
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


def _incomplete(
    found: Mapping[str, Mapping[Key, Mapping[tuple[Placement, ...], SourceSlice]]],
    chosen: Family,
    described: ResolvedConfig,
    sizes: Sizes,
    rules: Layout,
    misshapen: Set[str],
) -> list[Problem]:
    problems = []
    for name, decl in chosen.present(described.config).items():
        in_layers = chosen.layers_of(decl, described.config)
        want = sizes.elements(decl.axes, in_layers)
        have = sum(p.lens.volume for boxes in found.get(name, {}).values() for p in boxes.values())
        if have == want or name in misshapen:
            continue
        names = [p.text.partition(" : ")[0] for r in rules.rules if name in r.tensors for p in r.patterns]
        if not names:
            problems.append(Problem(f"the {rules.format} layout has no place for {name} of family {chosen.name}"))
        elif have == 0:
            hint = " or --set tie_word_embeddings=true" if name == "head" else ""
            problems.append(
                Problem(
                    f"{name} is missing",
                    expected=" or ".join(names[:3]),
                    cause="a file of the checkpoint is missing, or the configuration asks for what it does not have",
                    fix=f"complete the checkpoint, or correct the configuration with --family{hint}",
                )
            )
        else:
            each = {layer: sizes.elements(decl.axes, (layer,)) for layer in in_layers or ()}
            lacking = _lacking_layers(found[name], each)
            problems.append(
                Problem(
                    f"{name} is {'incomplete' if have < want else 'provided more than once'}{lacking}",
                    expected=f"{want} elements",
                    got=f"{have} in {', '.join(names[:2])}",
                    cause="a rank file or shard is missing, or the configuration has more layers or experts"
                    if have < want
                    else "two names for one tensor, both present",
                    fix="complete the checkpoint, or correct the configuration with --set FIELD=VALUE"
                    if have < want
                    else "remove one of them",
                )
            )
    return problems


def _lacking_layers(by_key: Mapping[Key, Mapping[tuple[Placement, ...], SourceSlice]], each: Mapping[int, int]) -> str:
    """The layers that do not have the elements that they should: `each` layer -> how many."""
    if not each or any(layer is None for layer, _ in by_key):
        return ""
    have = dict.fromkeys(each, 0)
    for (layer, _), boxes in by_key.items():
        if layer in have:
            have[layer] += sum(p.lens.volume for p in boxes.values())
    lacking = [str(layer) for layer, count in have.items() if count != each[layer]]
    return f" in layers {', '.join(lacking[:8])}{'...' if len(lacking) > 8 else ''}" if lacking else ""
