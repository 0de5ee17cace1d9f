"""Do boxes cover a tensor, each element exactly once? Pure arithmetic on offsets and sizes."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[tuple[int, ...], tuple[int, ...]]  # offsets, sizes

PAIRWISE = 64  # boxes that no cut separates are compared with each other, if they are this few
MAX_WORK = 64  # visits per box; real checkpoints need one or two per axis


def tiling_error(shape: tuple[int, ...], boxes: Sequence[Box]) -> str:
    """What is wrong with `boxes` as a tiling of a tensor of `shape`: a sentence, "" when nothing is.

    Empty boxes are allowed and ignored. Takes time near linear in the number of boxes, for hostile input too.
    """
    filled = []
    for offsets, sizes in boxes:
        if len(offsets) != len(shape) or len(sizes) != len(shape):
            return f"a chunk has {len(offsets)} offsets and {len(sizes)} sizes for {len(shape)} dimensions"
        if any(at < 0 or size < 0 or at + size > end for at, size, end in zip(offsets, sizes, shape, strict=True)):
            return f"the chunk at {list(offsets)} of size {list(sizes)} lies outside the tensor {list(shape)}"
        if _volume(sizes):
            filled.append((offsets, sizes))
    covered, whole = sum(_volume(sizes) for _, sizes in filled), _volume(shape)
    if covered < whole:
        return f"the chunks hold {covered} of {whole} elements"
    if (overlap := _overlap(filled, len(shape))) != "":
        return overlap
    return "" if covered == whole else f"the chunks hold {covered} elements of {whole}"


def _volume(sizes: Sequence[int]) -> int:
    out = 1
    for size in sizes:
        out *= size
    return out


def _overlap(boxes: list[Box], rank: int) -> str:
    """Cut the boxes apart at planes that none of them crosses, until each is alone."""
    work = MAX_WORK * len(boxes) + PAIRWISE
    groups = [boxes]
    while groups:
        group = groups.pop()
        if len(group) < 2:
            continue
        for axis in range(rank):
            work -= len(group)
            parts = _cut(group, axis)
            if len(parts) > 1:
                groups.extend(parts)
                break
        else:
            if len(group) > PAIRWISE:
                return f"{len(group)} chunks are entangled or overlap near {list(group[0][0])}"
            for index, one in enumerate(group):
                for other in group[:index]:
                    if _meet(one, other):
                        return f"the chunks at {list(other[0])} and {list(one[0])} overlap"
        if work < 0:
            return f"{len(boxes)} chunks are cut too irregularly to be checked"
    return ""


def _cut(group: list[Box], axis: int) -> list[list[Box]]:
    ordered = sorted(group, key=lambda box: box[0][axis])
    parts: list[list[Box]] = []
    reached = -1
    for box in ordered:
        start = box[0][axis]
        if start >= reached:
            parts.append([])
        parts[-1].append(box)
        reached = max(reached, start + box[1][axis])
    return parts


def _meet(one: Box, other: Box) -> bool:
    return all(a < b + m and b < a + n for a, n, b, m in zip(one[0], one[1], other[0], other[1], strict=True))
