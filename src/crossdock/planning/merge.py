"""An adapter added to its model: a checkpoint whose tensors grow by products of small rank on the way to the target.

The adapter is a checkpoint of a family of its own, whose tensors T_lora_a and T_lora_b belong to the canonical tensor
T, or names tensors of its base (`planning.adapters`). Knows no formats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from crossdock.errors import PlanError, Problem
from crossdock.formats.adapter import Adapter
from crossdock.formats.stored import Source, SourceFile, StoredTensor
from crossdock.planning.adapter_containers import alone
from crossdock.planning.adapters import found_in, without
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.pairs import Pair, by_tensor, ranked
from crossdock.planning.tensors.resolved import Key, Resolved, SourceSlice, key_of

_ALIKE = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size",
    "vocab_size", "tie_word_embeddings", "partial_rotary_factor",
)  # fmt: skip
_MOST_RANK = 1 << 16


def merged(base: Checkpoint, adapter: Checkpoint) -> Checkpoint:
    """`base` with the adapter's products added to its tensors. Raises PlanError with everything that does not fit."""
    where = str(adapter.source.root)
    pairs = _pairs(adapter.resolved)
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
        for name in sorted({pair.tensor for pair in pairs} - base.resolved.provisions.keys())
    ]
    problems += [
        Problem("implausible rank of an adapter", where=pair.left.shown, got=f"{pair.rank:,}")
        for pair in pairs
        if pair.rank > _MOST_RANK
    ]
    if adapter.addition is not None or base.addition is not None:
        problems.append(Problem("one adapter at a time", where=where))
    if problems:
        raise PlanError(problems)
    return added(base, adapter.source.files, pairs)


def merged_by_name(base: Checkpoint, source: Source, adapter: Adapter) -> Checkpoint:
    """The same for an adapter that names tensors of its base. Raises PlanError with everything that does not fit."""
    if base.addition is not None:
        raise PlanError("one adapter at a time", where=str(source.root))
    found = found_in(base, adapter, str(source.root))
    return added(base, source.files, found.pairs, found.replaced, changes=bool(adapter.changed))


def kept_apart(base: Checkpoint, source: Source, adapter: Adapter) -> Checkpoint:
    """The adapter alone, with the meaning that its base gives it. Raises PlanError with all that does not fit."""
    found = found_in(base, adapter, str(source.root))
    if adapter.changed:
        raise PlanError(
            "the adapter has whole tensors or rows beside its pairs, for which no adapter of a target has a place",
            where=str(source.root),
            got=", ".join(sorted(adapter.changed)[:4]),
            fix="--base MODEL --merge",
        )
    addition = by_tensor(found.pairs)
    return replace(base, source=source, resolved=alone(addition), addition=addition, is_adapter=True)


def added(
    base: Checkpoint,
    files: tuple[SourceFile, ...],
    pairs: Sequence[Pair],
    replaced: Sequence[SourceSlice] = (),
    *,
    changes: bool = False,
) -> Checkpoint:
    """`base` with `pairs` and `replaced`, whose tensors lie in `files`, which come behind its own."""
    behind = _Behind(len(base.source.files))
    moved = [
        replace(
            pair,
            left=behind(pair.left),
            right=behind(pair.right),
            magnitudes=None if pair.magnitudes is None else behind(pair.magnitudes),
        )
        for pair in pairs
    ]
    source = replace(base.source, files=(*base.source.files, *files))
    resolved = _with_replaced(base.resolved, list(map(behind, replaced)))
    return replace(base, source=source, resolved=resolved, addition=by_tensor(moved), replaces=changes)


def _with_replaced(resolved: Resolved, replaced: Sequence[SourceSlice]) -> Resolved:
    """`resolved` where `replaced` stand in place of what it has in the same boxes."""
    provisions = dict(resolved.provisions)
    names = dict.fromkeys(one.lens.tensor for one in replaced)
    for name in names:
        mine = [one for one in replaced if one.lens.tensor == name]
        by_key: dict[Key, tuple[SourceSlice, ...]] = {}
        for one in (*without(resolved.all(name), mine), *mine):
            key = key_of(one.lens)
            by_key[key] = (*by_key.get(key, ()), one)
        provisions[name] = by_key
    checks = tuple(check for check in resolved.equality_checks if check[1] not in names)
    return replace(resolved, provisions=provisions, equality_checks=checks)


def _pairs(resolved: Resolved) -> list[Pair]:
    """The pairs of an adapter's family: T_lora_a is over the columns of T, T_lora_b over its rows."""
    out = []
    for name in (name for name in resolved.provisions if name.endswith("_lora_a")):
        tensor = name.removesuffix("_lora_a")
        for key, slices in resolved.provisions[name].items():
            for right, left in zip(slices, resolved.provisions[f"{tensor}_lora_b"][key], strict=True):
                shared = {p.axis for p in left.lens.axes} & {p.axis for p in right.lens.axes} - {"layer"}
                axis = next(iter(shared))
                rank = next(p.high - p.low for p in right.lens.axes if p.axis == axis)
                out.append(Pair(tensor, ranked(left, axis), ranked(right, axis), rank))
    return out


class _Behind:
    """Slices of a source as they are in one that has `files` more files before its own."""

    def __init__(self, files: int) -> None:
        self._files = files
        self._known: dict[int, tuple[StoredTensor, StoredTensor]] = {}  # the old ones are kept alive with their ids

    def __call__(self, one: SourceSlice) -> SourceSlice:
        stored = one.stored
        if id(stored) not in self._known:
            extents = tuple(replace(extent, file=extent.file + self._files) for extent in stored.extents)
            self._known[id(stored)] = stored, replace(stored, extents=extents)
        return replace(one, stored=self._known[id(stored)][1])
