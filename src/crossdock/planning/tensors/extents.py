"""The source side of a plan: provisions looked up by box, extents numbered as they are used, boxes cut to chunks."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Mapping

from crossdock.formats.stored import Extent, StoredTensor
from crossdock.layout.boxes import inside_extent, intersect, steps_of, strided, volume
from crossdock.layout.lenses import Lens, Range
from crossdock.planning.plan import Move, PlannedExtent
from crossdock.planning.tensors.resolved import Key, Resolved, SourceSlice


class Extents:
    """Numbers the extents that a plan uses, each once, and finds those of a tensor that meet a box."""

    def __init__(self) -> None:
        self.planned: list[PlannedExtent] = []
        self._numbers: dict[int, int] = {}
        self._grids: dict[int, _Grid] = {}

    def number(self, stored: StoredTensor, extent: Extent) -> int:
        """The index of `extent` in the plan."""
        key = id(extent)
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self.planned)
            self.planned.append(PlannedExtent(extent, stored.name, stored.part, stored.dtype, stored.scaling))
        return found

    def meeting(self, stored: StoredTensor, ranges: list[Range]) -> Iterator[Extent]:
        """The extents of `stored` that meet the ranges, one per dimension."""
        if len(stored.extents) == 1:
            yield stored.extents[0]
            return
        grid = self._grids.get(id(stored))
        if grid is None:
            grid = self._grids[id(stored)] = _Grid(stored.extents)
        yield from grid.meeting(ranges)


class _Grid:
    """Extents of a regular grid found by bisection; an irregular set is searched whole."""

    def __init__(self, extents: tuple[Extent, ...]) -> None:
        self._extents = extents
        self._at = {extent.origin: extent for extent in extents}
        self._cuts = [sorted(set(along)) for along in zip(*self._at, strict=True)]
        regular = len(self._at) == len(extents)
        for extent in extents:
            for cuts, first, size in zip(self._cuts, extent.origin, extent.shape, strict=True):
                place = bisect.bisect_right(cuts, first)
                regular = regular and (place == len(cuts) or first + size <= cuts[place])
        self._regular = regular

    def meeting(self, ranges: list[Range]) -> Iterator[Extent]:
        if not self._regular:
            yield from self._extents
            return
        along = [
            cuts[max(0, bisect.bisect_right(cuts, low) - 1) : bisect.bisect_left(cuts, high)]
            for cuts, (low, high) in zip(self._cuts, ranges, strict=True)
        ]
        for origin in itertools.product(*along):
            extent = self._at.get(origin)
            if extent is not None:
                yield extent


def candidates(resolved: Resolved, tensor: str, lens: Lens) -> Iterator[SourceSlice]:
    """The provisions of `tensor` that may meet `lens`."""
    by_key: Mapping[Key, tuple[SourceSlice, ...]] = resolved.provisions.get(tensor, {})
    single = {p.axis: p.low for p in lens.axes if p.axis in ("layer", "expert") and p.high - p.low == 1}
    layer, expert = single.get("layer"), single.get("expert")
    if layer is not None and (expert is not None or not any(p.axis == "expert" for p in lens.axes)):
        for key in {(layer, expert), (layer, None), (None, expert), (None, None)}:
            yield from by_key.get(key, ())
        return
    for (its_layer, its_expert), provisions in by_key.items():
        right_layer = layer is None or its_layer is None or layer == its_layer
        if right_layer and (expert is None or its_expert is None or expert == its_expert):
            yield from provisions


def moves_for(
    extents: Extents, resolved: Resolved, tensor: str, lens: Lens, shape: tuple[int, ...]
) -> tuple[list[Move], int, list[SourceSlice]]:
    """What fills canonical `tensor` in a container: the moves, how many elements they fill, the provisions used."""
    moves: list[Move] = []
    used: list[SourceSlice] = []
    filled = 0
    dst_steps = steps_of(shape)
    for provision in candidates(resolved, tensor, lens):
        box = intersect(provision.lens, lens)
        if box is None:
            continue
        filled += volume(box)
        used.append(provision)
        moves.extend(_moves(extents, provision, box, lens, dst_steps))
    return moves, filled, used


def moves_from(extents: Extents, provision: SourceSlice, lens: Lens, shape: tuple[int, ...]) -> tuple[list[Move], int]:
    """What `provision` alone fills of a container that has `lens`: the moves, and how many elements they fill."""
    box = intersect(provision.lens, lens)
    return ([], 0) if box is None else (list(_moves(extents, provision, box, lens, steps_of(shape))), volume(box))


def ranges_of(box: dict[str, Range], lens: Lens) -> list[Range]:
    """Between which indices of each dimension of the container `box` lies."""
    ranges = []
    for dim, start in enumerate(lens.starts):
        low = high = start
        for p in lens.axes:
            if p.dim == dim:
                low += (box[p.axis][0] - p.low) * p.step
                high += (box[p.axis][1] - 1 - p.low) * p.step
        ranges.append((low, high + 1))
    return ranges


def _moves(
    extents: Extents, provision: SourceSlice, box: dict[str, Range], lens: Lens, dst_steps: tuple[int, ...]
) -> Iterator[Move]:
    stored, source = provision.stored, provision.lens
    if len(stored.extents) == 1 and stored.extents[0].shape == stored.shape:
        extent = stored.extents[0]
        steps = extent.strides if extent.strides is not None else steps_of(extent.shape)
        yield Move(extents.number(stored, extent), *strided(box, source, steps, lens, dst_steps))
        return
    for extent in extents.meeting(stored, ranges_of(box, source)):
        steps = extent.strides if extent.strides is not None else steps_of(extent.shape)
        number = -1
        for part, shifted in inside_extent(box, source, extent.origin, extent.shape):
            if number < 0:
                number = extents.number(stored, extent)
            yield Move(number, *strided(part, shifted, steps, lens, dst_steps))
