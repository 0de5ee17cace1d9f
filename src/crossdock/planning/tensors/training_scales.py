"""Scales of fp8 training, as tensors of a target share them: the largest of all parts, or none. Reads no files.

What a target stores as one tensor, or an engine loads as one, has one scale: vLLM and TensorRT-LLM take the largest.
Where a target stacks experts, each has its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from crossdock.formats.stored import Pair, TrainingScales
from crossdock.formats.target import TensorSpec
from crossdock.layout.boxes import intersect
from crossdock.layout.lenses import Container, Lens
from crossdock.planning.tensors.extents import candidates, ranges_of
from crossdock.planning.tensors.resolved import Resolved


def scales_of(
    found: TrainingScales | None, resolved: Resolved, container: Container, experts: int
) -> tuple[Pair, ...] | None:
    """Scales of a container of the target, one pair for each of its `experts`; None where a part has none."""
    if found is None or not found.of:
        return None
    out = []
    for expert in range(experts):
        lenses = [_narrowed(lens, expert, experts) for lens in container.lenses]
        pair = of_parts([pair for lens in lenses for pair in _met(found, resolved, lens)])
        if pair is None:
            return None
        out.append(pair)
    return tuple(out)


def _narrowed(lens: Lens, expert: int, experts: int) -> Lens:
    """The part of a lens on stacked experts that is one of them."""
    if experts == 1:
        return lens
    axes = tuple(
        replace(p, low=p.low + expert, high=p.low + expert + 1) if p.axis == "expert" else p for p in lens.axes
    )
    return replace(lens, axes=axes)


def _met(found: TrainingScales, resolved: Resolved, lens: Lens) -> Iterator[Pair | None]:
    """The scales of every stored part that `lens` meets."""
    for provision in candidates(resolved, lens.tensor, lens):
        box = intersect(provision.lens, lens)
        if box is None:
            continue
        pairs = found.of.get((provision.stored.part, provision.stored.name), {})
        depth = len(next(iter(pairs), ()))
        for index in itertools.product(*(range(*span) for span in ranges_of(box, provision.lens)[:depth])):
            yield pairs.get(index)


def of_parts(parts: Sequence[Pair | None]) -> Pair | None:
    """Scales of the input and of the weight that hold for all parts; None where one has none."""
    known = [part for part in parts if part is not None]
    if not known or len(known) != len(parts):
        return None
    return max(one for one, _ in known), max(other for _, other in known)


def shared(tensors: Sequence[TensorSpec], groups: Sequence[str]) -> list[TensorSpec]:
    """`tensors` with one pair of scales for those that belong together: "q_proj k_proj v_proj" of one layer."""
    together: dict[tuple[str, str, str], list[int]] = {}
    for number, tensor in enumerate(tensors):
        for group in groups:
            for word in group.split():
                if tensor.name.endswith(f".{word}.weight"):
                    key = (group, tensor.part, tensor.name.removesuffix(f"{word}.weight"))
                    together.setdefault(key, []).append(number)
    out = list(tensors)
    for numbers in together.values():
        columns = [tensors[number].scales for number in numbers]
        known = [scales for scales in columns if scales is not None]
        pair = of_parts([scales[0] for scales in known]) if len(known) == len(columns) else None
        for number in numbers:
            out[number] = tensors[number]._replace(scales=None if pair is None else (pair,))
    return out
