"""An adapter added to its model: a checkpoint whose tensors grow by products of small rank on the way to the target.

Knows no formats: an adapter is a checkpoint whose tensors T_lora_a and T_lora_b belong to the canonical tensor T. The
products are planned, not computed; see docs/decisions/0006-merge-is-a-product-in-the-plan.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from crossdock.errors import PlanError, Problem
from crossdock.formats.stored import StoredTensor
from crossdock.layout.boxes import steps_of
from crossdock.layout.lenses import Lens, Placement
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.plan import Move, Product
from crossdock.planning.tensors.extents import Extents, moves_for
from crossdock.planning.tensors.resolved import Resolved, SourceSlice

_ALIKE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "tie_word_embeddings", "partial_rotary_factor",
)  # fmt: skip
_MOST_RANK = 1 << 16


def merged(base: Checkpoint, adapter: Checkpoint) -> Checkpoint:
    """`base` with the adapter's products added to its tensors. Raises PlanError with everything that does not fit."""
    where = str(adapter.source.root)
    pairs = {name.removesuffix("_lora_a") for name in adapter.resolved.provisions if name.endswith("_lora_a")}
    if not pairs:
        raise PlanError("the source is not an adapter, so --merge does not apply", where=where, got=adapter.family.name)
    problems = [
        Problem(
            f"the adapter was trained on another model than {base.source.root}",
            where=f"{where}: {field}",
            expected=repr(getattr(adapter.config, field)),
            got=repr(getattr(base.config, field)),
            fix="--base with the model that it was trained on",
        )
        for field in _ALIKE
        if getattr(base.config, field) != getattr(adapter.config, field)
    ]
    problems += [
        Problem(f"the model has no {name}, for which the adapter has a pair", where=str(base.source.root))
        for name in sorted(pairs - base.resolved.provisions.keys())
    ]
    if adapter.addition is not None or base.addition is not None:
        problems.append(Problem("one adapter at a time", where=where))
    if problems:
        raise PlanError(problems)
    source = replace(base.source, files=(*base.source.files, *adapter.source.files))
    addition = _shifted(adapter.resolved, len(base.source.files))
    return replace(base, source=source, addition=addition)


def product_for(extents: Extents, addition: Resolved, lenses: Sequence[Lens], shape: tuple[int, ...]) -> Product | None:
    """What an adapter adds to a tensor of `shape`, which is taken for a matrix: some dimensions, then the others.

    Several canonical tensors in one get one product: the sum of their ranks, each with zeros where the others lie. None
    when the adapter has no pair for any of them. Raises PlanError.
    """
    pairs = [(lens, ranks[0]) for lens in lenses if (ranks := _ranks(addition, lens.tensor))]
    if not pairs:
        return None
    total = sum(rank for _, (_, rank) in pairs)
    if total > _MOST_RANK:
        raise PlanError("implausible rank of an adapter", where=pairs[0][0].tensor, got=f"{total:,}")
    for cut in range(len(shape) + 1):
        for left, right in ("ba", "ab"):
            halves = tuple(zip(_halves(shape, cut), (left, right), strict=True))
            if not all(_lies(addition, lens, axis, dims, half) for lens, (axis, _) in pairs for dims, half in halves):
                continue
            sides: tuple[list[Move], list[Move]] = ([], [])
            first = 0
            for lens, (axis, rank) in pairs:
                for side, (dims, half) in zip(sides, halves, strict=True):
                    ranked = _Ranks(axis, rank, first, total)
                    side += _moves(extents, addition, lens, shape, dims, half, ranked)
                first += rank
            rows, columns = (math.prod(shape[d] for d in dims) for dims, _ in halves)
            return Product(total, rows, columns, *(tuple(sorted(side, key=lambda move: move.dst)) for side in sides))
    raise PlanError("the axes of the adapter's pair lie mixed in the target", where=pairs[0][0].tensor)


def _ranks(addition: Resolved, tensor: str) -> list[tuple[str, int]]:
    """The axis that the two factors of `tensor` share beside the layer, and its size; nothing where it has no pair."""
    one, other = (_axes(addition, f"{tensor}_lora_{half}") for half in "ab")
    return [(axis, size) for axis, size in one.items() if axis in other and axis != "layer"]


def _lies(addition: Resolved, lens: Lens, rank_axis: str, dims: range, half: str) -> bool:
    """Whether dimensions `dims` of `lens` hold the axes of this factor, the rank aside."""
    own = _axes(addition, f"{lens.tensor}_lora_{half}").keys() - {rank_axis, "layer", "one"}
    return {p.axis for p in lens.axes if p.dim in dims} == own


def _halves(shape: tuple[int, ...], cut: int) -> tuple[range, range]:
    return range(cut), range(cut, len(shape))


class _Ranks(NamedTuple):
    """The ranks of one pair among those of all: `size` along `axis`, from `first` of `total`."""

    axis: str
    size: int
    first: int
    total: int


def _moves(
    extents: Extents, addition: Resolved, lens: Lens, shape: tuple[int, ...], dims: range, half: str, ranks: _Ranks
) -> list[Move]:
    """What fills one factor: the axes of dimensions `dims` of `lens`, flat, then the ranks."""
    name = f"{lens.tensor}_lora_{half}"
    steps = dict(zip(dims, steps_of(shape[dims.start : dims.stop]), strict=True))
    placed = [replace(p, dim=0, step=p.step * steps[p.dim]) for p in lens.axes if p.dim in dims]
    placed = placed or [Placement("one", 0, 1, 0, 1)]  # a vector is a matrix of one row
    fixed = [p for p in lens.axes if p.dim < 0]
    start = sum(lens.starts[dim] * step for dim, step in steps.items())
    side = Lens(name, (*fixed, *placed, Placement(ranks.axis, 1, 1, 0, ranks.size)), (start, ranks.first))
    size = math.prod(shape[dim] for dim in dims)
    moves, count, used = moves_for(extents, addition, name, side, (size, ranks.total))
    if count != side.volume or {p.stored.values for p in used} != {"float32"}:
        raise PlanError("the adapter's pair does not fit its tensor", where=name, got=f"{count} elements")
    return moves


def _axes(addition: Resolved, name: str) -> dict[str, int]:
    """The axes of a factor and their sizes; nothing when the adapter has no such factor."""
    for by_key in addition.provisions.get(name, {}).values():
        return {p.axis: p.high - p.low for p in by_key[0].lens.axes}
    return {}


def _shifted(resolved: Resolved, files: int) -> Resolved:
    """The same in a source that has `files` more files before these."""
    known: dict[int, StoredTensor] = {}

    def moved(provision: SourceSlice) -> SourceSlice:
        stored = provision.stored
        if id(stored) not in known:
            extents = tuple(replace(extent, file=extent.file + files) for extent in stored.extents)
            known[id(stored)] = replace(stored, extents=extents)
        return replace(provision, stored=known[id(stored)])

    provisions = {
        name: {key: tuple(map(moved, found)) for key, found in by_key.items()}
        for name, by_key in resolved.provisions.items()
    }
    return Resolved(provisions, (), {})
