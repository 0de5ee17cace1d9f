"""An adapter whose format names tensors of its base: which canonical tensors its pairs, tensors and rows belong to.

A pair is over the rows and columns of a tensor of the base, so the layout's own line for that tensor says where every
index of both matrices lies; no family and no layout says anything about adapters. Reads no bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from crossdock.errors import PlanError, Problem
from crossdock.formats.adapter import Adapter, StoredPair, StoredRows
from crossdock.formats.stored import StoredTensor
from crossdock.layout.lenses import Container, Lens, Placement, containers, geometry_of
from crossdock.layout.maps import Steps, factor
from crossdock.layout.names import largest_indices, largest_numbers
from crossdock.layout.rules import Layout, layout, unheld
from crossdock.model.family import Family
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.pairs import RANK, Pair
from crossdock.planning.tensors.resolved import SourceSlice

_DTYPES = ("float32", "bfloat16", "float16")
_OTHER_BASE = "--base with the model that the adapter was trained on"


@dataclass(frozen=True)
class Found:
    """What an adapter changes, in canonical tensors: pairs that add, and slices that stand in place of the base's."""

    pairs: tuple[Pair, ...]
    replaced: tuple[SourceSlice, ...]


def found_in(base: Checkpoint, adapter: Adapter, where: str) -> Found:
    """What `adapter` changes in `base`. Raises PlanError with everything that does not fit."""
    problem = unheld(adapter.names_of, base.family)
    if problem is not None:
        raise PlanError(problem)
    names = {name for pair in adapter.pairs for name in pair.names} | adapter.replaced.keys() | adapter.rows.keys()
    finder = _Finder(base, adapter, names, where)
    pairs = [one for pair in adapter.pairs for one in finder.pair(pair)]
    replaced = [one for name, tensor in adapter.replaced.items() for one in finder.replaced(name, tensor)]
    replaced += [one for name, rows in adapter.rows.items() for one in finder.rows(name, rows)]
    if finder.problems:
        raise PlanError(finder.problems)
    return Found(tuple(pairs), tuple(replaced))


def variables_of(base: Checkpoint, rules: Layout) -> dict[str, Any]:
    """What the expressions of a layout that is not the base's own may name."""
    values = base.config.as_dict()
    return values | {name: one.evaluate(values) for name, one in rules.variables.items() if one.names <= values.keys()}


class _Finder:
    """Looks stored tensors of one adapter up by the names of the base's tensors; gathers problems."""

    def __init__(self, base: Checkpoint, adapter: Adapter, names: set[str], where: str) -> None:
        self.problems: list[Problem] = []
        self._family, self._where, self._root = base.family, where, base.source.root
        rules = layout(adapter.names_of, base.family)
        self._variables = variables_of(base, rules)
        present = base.family.present(base.config)
        tied = {
            name: decl.same_as
            for name, decl in base.family.tensors.items()
            if name not in present and decl.same_as in present
        }
        self._tied = {*tied, *tied.values()}
        self._places = _places(base, rules, self._variables, names, present.keys() | tied.keys())

    def pair(self, pair: StoredPair) -> Iterator[Pair]:
        """The pairs of canonical tensors that a stored pair is."""
        places = [place for name in pair.names for place in self._places.get(name, ())]
        fitting = [(one, axes) for one in places if (axes := _axes_of(pair, one, self._family)) is not None]
        at = f"{self._where}: {pair.a.name}"
        if len(fitting) != 1:
            self._unfit(pair.names, places, at, f"A {list(pair.a.shape)} and B {list(pair.b.shape)}", len(fitting))
            return
        if {pair.a.dtype, pair.b.dtype} - set(_DTYPES):
            self.problems.append(Problem("an adapter's pair of another type", at, " or ".join(_DTYPES), pair.a.dtype))
        container, axes = fitting[0]
        for lens in container.lenses:
            storing = self._storing(container, lens)
            by = factor(storing)
            if lens.tensor in self._tied:
                self._refuse_tied(at, lens.tensor)
            if by is None or not by or (pair.magnitudes is not None and storing):
                self.problems.append(Problem(f"{lens.tensor} is stored as a function, to which no pair is added", at))
                continue
            a, b = (
                SourceSlice(factor_lens(lens, dims, Placement(RANK, *place, 0, pair.rank)), stored, ())
                for stored, dims, place in ((pair.a, axes.a, axes.rank_in_a), (pair.b, axes.b, axes.rank_in_b))
            )
            left, right = (a, b) if pair.form == "embedding" else (b, a)
            magnitudes = None
            if pair.magnitudes is not None:
                magnitudes = SourceSlice(factor_lens(lens, axes.magnitudes, None), pair.magnitudes, ())
            yield Pair(lens.tensor, left, right, pair.rank, pair.scale / by, magnitudes)

    def replaced(self, name: str, tensor: StoredTensor) -> Iterator[SourceSlice]:
        """The slices of a tensor that stands in place of the base's."""
        places = self._places.get(name, ())
        fitting = [one for one in places if one.shape == tensor.shape]
        at = f"{self._where}: {tensor.name}"
        if len(fitting) != 1:
            self._unfit((name,), places, at, str(list(tensor.shape)), len(fitting))
            return
        for lens in fitting[0].lenses:
            if lens.tensor in self._tied:
                self._refuse_tied(at, lens.tensor)
            yield SourceSlice(lens, tensor, self._storing(fitting[0], lens))

    def rows(self, name: str, rows: StoredRows) -> Iterator[SourceSlice]:
        """The slices of rows that stand in place of the base's: one for each run of rows that are neighbours."""
        places = self._places.get(name, ())
        at = f"{self._where}: {rows.tensor.name}"
        fitting = [
            one for one in places
            if one.shape[1:] == rows.tensor.shape[1:] and max(rows.numbers) < one.shape[0] and len(one.lenses) == 1
            and len([p for p in one.lenses[0].axes if p.dim == 0]) == 1
        ]  # fmt: skip
        if len(fitting) != 1:
            self._unfit((name,), places, at, f"rows up to {max(rows.numbers)}", len(fitting))
            return
        lens = fitting[0].lenses[0]
        storing = self._storing(fitting[0], lens)
        for first, low, count in _runs(rows.numbers):
            axes = tuple(replace(p, low=low, high=low + count) if p.dim == 0 else p for p in lens.axes)
            yield SourceSlice(Lens(lens.tensor, axes, (first, *lens.starts[1:])), rows.tensor, storing)

    def _storing(self, container: Container, lens: Lens) -> Steps:
        return container.rule.storing(lens.tensor, self._variables)

    def _unfit(self, names: Sequence[str], places: Sequence[Container], at: str, got: str, fitting: int) -> None:
        if fitting:
            what, expected = "several tensors of the base have this shape", " or ".join(names)
        elif places:
            what, expected = "the adapter does not fit its base", f"{places[0].name} {list(places[0].shape)}"
        else:
            what, expected = f"the base has no {' or '.join(names)}, which the adapter changes", ""
        self.problems.append(
            Problem(what, at, expected, got if places else "", f"the base is {self._root}", _OTHER_BASE, "adapter-base")
        )

    def _refuse_tied(self, at: str, tensor: str) -> None:
        self.problems.append(
            Problem(
                f"the adapter changes {tensor}, and the embedding of its base is the output matrix too",
                at,
                cause="merged, both would change, of which only one was trained",
                fix="untie the base first, or train with target modules inside the layers",
            )
        )


def _places(
    base: Checkpoint, rules: Layout, variables: Mapping[str, Any], names: set[str], tensors: Set[str]
) -> dict[str, list[Container]]:
    """The containers of the base's layout that have one of these names, of canonical `tensors` that the model has."""
    geometry = geometry_of(base.family, base.config, None, None, rules.numbering(variables))
    largest = largest_numbers(names)
    known = geometry.sizes.keys() | geometry.by_layer.keys()
    out: dict[str, list[Container]] = {}
    for rule in rules.rules:
        if (
            rule.stage == "later"
            or not set(rule.tensors) <= tensors
            or (rule.when is not None and not rule.when.evaluate(variables))
        ):
            continue
        for pattern in rule.patterns:
            numbers = largest_indices(pattern, largest)
            axes = {atom.axis for part in pattern.parts or ("",) for atom in pattern.atoms(part)}
            if numbers is None or not axes <= known:
                continue
            for container in containers(rule, pattern, geometry, numbers):
                if container.name in names and all(container.shape != one.shape for one in out.get(container.name, ())):
                    out.setdefault(container.name, []).append(container)
    return out


Dims = Mapping[int, tuple[int, int]]  # dimension of the base's tensor -> (dimension of a factor, steps there)


@dataclass(frozen=True, slots=True)
class _Axes:
    """Where the dimensions of the base's tensor, and the rank, lie in the two matrices and in the magnitudes."""

    a: Dims
    b: Dims
    rank_in_a: tuple[int, int]
    rank_in_b: tuple[int, int]
    magnitudes: Dims


def _axes_of(pair: StoredPair, container: Container, family: Family) -> _Axes | None:
    """How `pair` fits `container`, or None: by its form, and by which dimension holds what the matrix gives."""
    shape, a, b, rank = container.shape, pair.a.shape, pair.b.shape, pair.rank
    if pair.form == "embedding":
        fits = len(shape) == 2 and (a, b) == ((rank, shape[0]), (shape[1], rank))
        return _Axes({0: (1, 1)}, {1: (0, 1)}, (0, 1), (1, 1), {}) if fits else None
    lead = len(shape) - 2
    if lead < 0 or (pair.form == "experts" and lead > 1):
        return None
    out, into = (lead + 1, lead) if is_transposed(container.lenses[0], lead, family) else (lead, lead + 1)
    if pair.form == "experts" and lead == 1:
        experts = shape[0]
        if (a, b) != ((experts * rank, shape[into]), (shape[out], rank * experts)):
            return None
        return _Axes({0: (0, rank), into: (1, 1)}, {out: (0, 1), 0: (1, 1)}, (0, 1), (1, experts), {})
    heads = shape[:lead]
    if (a, b) != ((*heads, rank, shape[into]), (*heads, shape[out], rank)):
        return None
    batch = {dim: (dim, 1) for dim in range(lead)}
    return _Axes(
        {**batch, into: (lead + 1, 1)}, {**batch, out: (lead, 1)}, (lead, 1), (lead + 1, 1),
        {**batch, out: (lead, 1)},
    )  # fmt: skip


def is_transposed(lens: Lens, lead: int, family: Family) -> bool:
    """Whether the tensor holds what the matrix takes before what it gives: families declare these the other way."""
    dims = {p.axis: p.dim for p in lens.axes}
    declared = family.tensors[lens.tensor].axes
    return next((dims[axis] == lead + 1 for axis in declared if dims.get(axis, -1) >= lead), False)


def factor_lens(lens: Lens, dims: Dims, rank: Placement | None) -> Lens:
    """The axes of some dimensions of `lens` as they lie in a factor, with the axis of its ranks."""
    axes = [p for p in lens.axes if p.dim < 0]
    size = 1 + max([new for new, _ in dims.values()] + ([rank.dim] if rank else []))
    starts = [0] * size
    for dim, (new, steps) in dims.items():
        axes += [replace(p, dim=new, step=p.step * steps) for p in lens.axes if p.dim == dim]
        starts[new] += lens.starts[dim] * steps
    if rank is not None:
        axes.append(rank)
    return Lens(lens.tensor, tuple(axes), tuple(starts))


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """(first place, first number, how many) of places that hold neighbouring numbers."""
    first = low = count = 0
    for place, number in enumerate(numbers):
        if count and number == low + count:
            count += 1
            continue
        if count:
            yield first, low, count
        first, low, count = place, number, 1
    if count:
        yield first, low, count


def without(slices: Sequence[SourceSlice], gone: Sequence[SourceSlice]) -> list[SourceSlice]:
    """What of `slices` none of `gone` covers, cut along the one axis in which they differ. Raises PlanError."""
    left = list(slices)
    for hole in gone:
        box = {p.axis: (p.low, p.high) for p in hole.lens.axes}
        pieces: list[SourceSlice] = []
        for one in left:
            spans = {p.axis: (max(p.low, box[p.axis][0]), min(p.high, box[p.axis][1])) for p in one.lens.axes}
            if any(low >= high for low, high in spans.values()):
                pieces.append(one)
                continue
            cut = [p for p in one.lens.axes if spans[p.axis] != (p.low, p.high)]
            if len(cut) > 1:
                raise PlanError("the adapter replaces a part of a tensor that cannot be cut out", where=hole.shown)
            for p in cut:
                low, high = spans[p.axis]
                pieces += [_part(one, p, *span) for span in ((p.low, low), (high, p.high)) if span[0] < span[1]]
        left = pieces
    return left


def _part(one: SourceSlice, along: Placement, low: int, high: int) -> SourceSlice:
    axes = tuple(replace(p, low=low, high=high) if p is along else p for p in one.lens.axes)
    starts = tuple(
        start + (low - along.low) * along.step if dim == along.dim else start
        for dim, start in enumerate(one.lens.starts)
    )
    return replace(one, lens=Lens(one.lens.tensor, axes, starts))
