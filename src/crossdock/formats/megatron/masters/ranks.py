"""Masters in Megatron's per-rank files: named by nothing, in each rank's own order.

A plain optimizer keeps a list of tensors for each group of parameters (`fp32_from_fp16_params` in model_optim_rng.pt;
a list of such optimizers with experts), a distributed one flat vectors in distrib_optim.pt beside it. Facts from
Megatron-LM core_v0.13.1 to d98e8a6 (`core/optimizer/optimizer.py`, `distrib_optimizer.py`), run and read back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from crossdock.errors import FormatError
from crossdock.formats.megatron.masters.collected import Collected
from crossdock.formats.megatron.masters.matching import Index, Key, Weight, in_order, walk, weights_in
from crossdock.formats.megatron.masters.samples import Samples
from crossdock.formats.megatron.masters.vectors import flat_vectors
from crossdock.formats.stored import Extent, Masters, SourceFile, StoredTensor
from crossdock.torchfile import open_torch
from crossdock.unpickle import TensorRef

BESIDE = "distrib_optim.pt"
_GROUPS = "fp32_from_fp16_params"
_DEEPEST = 4


class RankFile(NamedTuple):
    """A rank's file, its number in the source, and the parts of the model that it holds."""

    path: Path
    number: int
    parts: frozenset[str]


def of_rank_files(
    tensors: Mapping[Key, StoredTensor], files: Sequence[SourceFile], ranks: Sequence[RankFile], root: Path
) -> Masters:
    """The masters of `tensors`, which index into `files`.

    Raises FormatError where there are none, or they do not fit.
    """
    found, every = Collected(tensors), list(files)
    with Samples(every) as samples:
        weights = weights_in(tensors, samples)
        by_part: dict[str, list[Weight]] = {}
        for weight in weights:
            by_part.setdefault(weight.key[0], []).append(weight)
        for rank in ranks:
            index = Index(weight for part in rank.parts for weight in by_part.get(part, ()))
            groups, vectors = _states(rank, every)
            for group in groups:
                for one, extent in in_order(group, index, samples, found.places):
                    found.take([one], (extent,))
            for extents in vectors:
                found.take(walk(extents, (), index, samples, found.places), extents)
    if not found.vectors and weights:
        raise FormatError(
            "the save holds no float32 weights of an optimizer",
            where=str(root),
            cause="--no-save-optim, or a converted model that was not trained on",
            fix="--weights model takes the model's own",
        )
    return found.masters(tuple(every), str(root))


Vector = tuple[Extent, ...]


def _states(rank: RankFile, files: list[SourceFile]) -> tuple[list[list[Extent]], list[Vector]]:
    """(groups of a plain optimizer's tensors, vectors of a distributed one). Adds the file beside to `files`."""
    state = open_torch(rank.path).root
    groups = [
        [Extent(rank.number, ref.offset, ref.nbytes, (0,), (ref.elements,)) for ref in group]
        for group in _groups(state.get("optimizer") if isinstance(state, dict) else None)
    ]
    beside = rank.path.parent / BESIDE
    if not beside.is_file():
        return groups, []
    files.append(SourceFile.of(beside))
    return groups, list(flat_vectors(open_torch(beside).root, len(files) - 1))


def _groups(state: object, depth: int = 0) -> Iterator[list[TensorRef]]:
    """The float32 tensors of plain optimizers, by group: of one, or of several in a list or a dict."""
    if depth > _DEEPEST:
        return
    if isinstance(state, dict) and isinstance(state.get(_GROUPS), list):
        for group in state[_GROUPS]:
            refs = [ref for ref in group if type(ref) is TensorRef] if isinstance(group, list) else []
            yield [ref for ref in refs if ref.dtype == "float32" and ref.contiguous and ref.elements]
        return
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list) else ()
    for value in inner:
        yield from _groups(value, depth + 1)
