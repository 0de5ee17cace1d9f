"""Lenses: the notation with sizes filled in, as an affine map from canonical indices to places in a container.

A `Container` is one stored or wanted tensor: its part, name and shape, and one lens per canonical tensor in it. A lens
knows for every axis which range the container holds, in which dimension it lies and how many places one step is.
Knows no bytes and opens no file.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from crossdock.errors import PlanError
from crossdock.layout.notation import Atom, Bracket, Dim, Pattern
from crossdock.layout.partitions import Partitions
from crossdock.layout.rules import Rule
from crossdock.model.config import ModelConfig
from crossdock.model.family import Family

Range = tuple[int, int]
Box = Mapping[str, Range]
_RANK = re.compile(r"{(\w+)}")


@dataclass(frozen=True, slots=True)
class Placement:
    """Axis `axis`, indices low to high (exclusive), lies in dimension `dim` with `step` places between neighbours.

    dim is -1 for an axis that the container's name fixes.
    """

    axis: str
    dim: int
    step: int
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Lens:
    """Canonical tensor `tensor` in a container: index along dimension d = starts[d] + sum((i - low) * step)."""

    tensor: str
    axes: tuple[Placement, ...]
    starts: tuple[int, ...]

    @property
    def volume(self) -> int:
        """Canonical elements that the container holds."""
        return math.prod(p.high - p.low for p in self.axes)

    @property
    def box(self) -> tuple[tuple[str, int, int], ...]:
        """What of the tensor lies here: axis, first index and the one beyond the last, in alphabetical order."""
        return tuple(sorted((p.axis, p.low, p.high) for p in self.axes))


@dataclass(frozen=True, slots=True)
class Container:
    """A tensor of a format. Its `lenses` tile it exactly once, up to padding."""

    part: str
    name: str
    shape: tuple[int, ...]
    lenses: tuple[Lens, ...]
    rule: Rule


@dataclass(frozen=True)
class Geometry:
    """Numbers that turn patterns into containers: axis sizes, rank counts, uneven cuts, layers per tensor.

    sizes       axis -> elements as this format stores it (a padded vocabulary is larger than the model's)
    ranks       rank name -> how many; partitions: axis -> {ranks: range} where the cut is not even
    layers      canonical tensor -> the layers in which it exists
    by_layer    axis -> layer -> elements, for the axes that differ from layer to layer; `sizes` lacks them
    numbers     table of numbers -> index of an axis -> the number that stands in names for it
    """

    sizes: Mapping[str, int]
    ranks: Mapping[str, int]
    partitions: Partitions
    layers: Mapping[str, tuple[int, ...]]
    by_layer: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def inside(self, layer: int) -> Geometry:
        """The same within one layer."""
        own = {axis: sizes[layer] for axis, sizes in self.by_layer.items() if layer in sizes}
        return replace(self, sizes={**self.sizes, **own}, by_layer={})


def geometry_of(
    family: Family,
    config: ModelConfig,
    ranks: Mapping[str, int] | None = None,
    partitions: Partitions | None = None,
    numbers: Mapping[str, Mapping[int, int]] | None = None,
) -> Geometry:
    """The geometry of a model, whole or cut over `ranks`. Raises ConfigError when an axis has no size."""
    layers = {name: ls for name, decl in family.tensors.items() if (ls := family.layers_of(decl, config)) is not None}
    sizes = family.sizes(config)
    return Geometry(sizes.whole, ranks or {}, partitions or {}, layers, sizes.by_layer, numbers or {})


def containers(
    rule: Rule, pattern: Pattern, geometry: Geometry, largest: tuple[int, ...] | None = None
) -> Iterator[Container]:
    """Every container that `pattern` describes, parts and name indices in ascending order.

    largest  the largest number that any name has, for each index of the name: no container beyond is looked at

    Raises PlanError when an axis cannot be split over its ranks.
    """
    part_ranks = _RANK.findall(rule.part)
    cut_by = {rank for name in pattern.parts or ("",) for atom in pattern.atoms(name) for rank in atom.ranks}
    ranks = [*part_ranks, *sorted(cut_by - set(part_ranks))]
    for numbers in itertools.product(*(range(geometry.ranks.get(rank, 1)) for rank in ranks)):
        env = dict(zip(ranks, numbers, strict=True))
        if not _on_stage(rule.stage, env, geometry.ranks):
            continue
        part = rule.part.format(**env)
        yield from _of_part(rule, pattern, geometry, env, part, largest)


def _on_stage(stage: str, env: Mapping[str, int], ranks: Mapping[str, int]) -> bool:
    if stage == "later":
        return env.get("pp", 0) > 0
    wanted = {"first": 0, "last": ranks.get("pp", 1) - 1}.get(stage)
    return wanted is None or env.get("pp", wanted) == wanted


def _of_part(
    rule: Rule,
    pattern: Pattern,
    geometry: Geometry,
    env: Mapping[str, int],
    part: str,
    largest: tuple[int, ...] | None,
) -> Iterator[Container]:
    held = pattern.parts or rule.tensors
    exists = _common_layers(held, geometry.layers)
    spans = [_span(atom, env, geometry, {}) for atom in pattern.indices]
    axes = {atom.axis for name in pattern.parts or ("",) for atom in pattern.atoms(name)}
    differs = bool(axes & geometry.by_layer.keys())
    stacked = "layer" not in (atom.axis for atom in pattern.indices)
    if exists is not None and stacked and (differs or len(exists) != geometry.sizes.get("layer", 0)):
        return  # such a container needs every layer, all of one shape
    built = None if differs else _template(rule, pattern, geometry, env)
    most = largest if largest is not None else [None] * len(spans)
    named = [_named(atom, span, geometry, last) for atom, span, last in zip(pattern.indices, spans, most, strict=True)]
    for numbers in itertools.product(*named):
        fixed = tuple(
            Placement(atom.axis, -1, 0, number, number + 1)
            for atom, number in zip(pattern.indices, numbers, strict=True)
        )
        layer = next((p.low for p in fixed if p.axis == "layer"), None)
        if exists is not None and layer is not None and layer not in exists:
            continue
        if differs and layer is not None:
            built = _template(rule, pattern, geometry.inside(layer), env)
        if built is None:
            continue
        shape, shaped = built
        local = tuple(indices[number] for indices, number in zip(named, numbers, strict=True))
        lenses = tuple(Lens(lens.tensor, (*fixed, *lens.axes), lens.starts) for lens in shaped)
        yield Container(part, pattern.spell(local), shape, lenses, rule)


def _named(atom: Atom, span: Range, geometry: Geometry, largest: int | None) -> Mapping[int, int]:
    """Index of the axis -> the number that stands in a name for it, for the numbers up to `largest`."""
    low, high = span
    if atom.numbers:
        numbers = geometry.numbers[atom.numbers]
        return {
            index: number
            for index, number in numbers.items()
            if low <= index < high and (largest is None or number <= largest)
        }
    first = low if atom.ranks else 0
    end = high if largest is None else min(high, first + largest + 1)
    return {index: index - first for index in range(low, end)}


def _common_layers(tensors: Sequence[str], layers: Mapping[str, tuple[int, ...]]) -> frozenset[int] | None:
    sets = [frozenset(layers[name]) for name in tensors if name in layers]
    return frozenset.intersection(*sets) if sets else None


def _template(
    rule: Rule, pattern: Pattern, geometry: Geometry, env: Mapping[str, int]
) -> tuple[tuple[int, ...], tuple[Lens, ...]] | None:
    """Shape and lenses without the axes of the name. None when some axis has nothing on these ranks."""
    lenses = []
    shape: tuple[int, ...] = ()
    for part in pattern.parts or ("",):
        left: dict[str, tuple[int, int]] = {}
        placed: list[Placement] = []
        starts: list[int] = []
        sizes: list[int] = []
        for number, dim in enumerate(pattern.dims):
            size, start = _place(dim, number, part, geometry, env, left, placed)
            sizes.append(size)
            starts.append(start)
        shape = tuple(sizes)
        lenses.append(Lens(part or rule.tensors[0], tuple(placed), tuple(starts)))
    return (shape, tuple(lenses)) if all(shape) else None


def _place(
    dim: Dim,
    number: int,
    part: str,
    geometry: Geometry,
    env: Mapping[str, int],
    left: dict[str, tuple[int, int]],
    placed: list[Placement],
) -> tuple[int, int]:
    """Place the axes of one dimension for `part`: the dimension's size, and where `part` starts in it."""
    extents: list[tuple[int, int, list[tuple[Atom, Range]]]] = []  # whole size, start of part, its axes
    for item in dim:
        if isinstance(item, Atom):
            span = _span(item, env, geometry, left)
            extents.append((span[1] - span[0], 0, [(item, span)]))
            continue
        whole, start, mine = _bracket(item, part, geometry, env, left)
        extents.append((whole, start, mine))
    size, first = 1, 0
    fresh: list[Placement] = []
    for whole, start, atoms in reversed(extents):
        step = size
        for atom, (low, high) in reversed(atoms):
            fresh.append(Placement(atom.axis, number, step, low, high))
            step *= high - low
        first += start * size
        size *= whole
    placed.extend(reversed(fresh))
    return size, first


def _bracket(
    bracket: Bracket, part: str, geometry: Geometry, env: Mapping[str, int], left: dict[str, tuple[int, int]]
) -> tuple[int, int, list[tuple[Atom, Range]]]:
    whole, start, mine = 0, 0, []
    after = dict(left)
    for name, atoms in bracket.parts:
        remaining = dict(left)
        spans = [(atom, _span(atom, env, geometry, remaining)) for atom in atoms]
        if name == part:
            start, mine, after = whole, spans, remaining
        whole += math.prod(high - low for _, (low, high) in spans)
    left.update(after)
    return whole, start, mine


def _span(atom: Atom, env: Mapping[str, int], geometry: Geometry, left: dict[str, tuple[int, int]]) -> Range:
    """The range of `atom.axis` on the ranks of `env`.

    `left` remembers, per rank, how many-fold and where a shorter axis before left it: query heads go on being cut
    where KV heads have run out and are replicated.
    """
    low, high = 0, geometry.sizes[atom.axis]
    if not atom.ranks:
        return low, high
    uneven = geometry.partitions.get(atom.axis)
    if uneven is not None:
        key = tuple(sorted((rank, env.get(rank, 0)) for rank in atom.ranks))
        if key not in uneven:
            raise PlanError(f"the range of {atom.axis!r} is unknown for {dict(key)}")
        return uneven[key]
    for rank in atom.ranks:
        count, index = left.get(rank, (geometry.ranks.get(rank, 1), env.get(rank, 0)))
        size = high - low
        ways = min(size, count)
        if size % ways or count % ways:
            raise PlanError(
                f"{size} of axis {atom.axis!r} cannot be split over {count} ranks of {rank!r}",
                fix="check the parallel sizes of the run against the model's sizes",
            )
        left[rank] = (count // ways, index % (count // ways))
        mine = index // (count // ways)
        low, high = low + mine * size // ways, low + (mine + 1) * size // ways
    return low, high
