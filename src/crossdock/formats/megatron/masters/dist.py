"""Masters in Megatron's torch_dist folders, in every form of its optimizers' states.

    optimizer.state.{fp32_param,param,master_param}.KEY  of KEY's shape (plain optimizer, fully_reshardable), or of
        [grid of KEY's chunks..., elements of a chunk] (fully_sharded_model_space, up to 0.14)
    optimizer.distributed.dp_group_idx_N....bucket_idx_M.param  flat (dp_reshardable, the default since 0.15)
    optimizer.distributed.dp_group_idx_N.param_state  a pickled dict of flat vectors (dp_zero_gather_scatter)

Facts from Megatron-LM core_v0.13.1 to d98e8a6 (`core/optimizer/distrib_optimizer.py`), run and read back.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

from crossdock.errors import FormatError
from crossdock.formats.dcp import metadata as dcp
from crossdock.formats.megatron.args import is_weight
from crossdock.formats.megatron.masters.collected import Collected
from crossdock.formats.megatron.masters.matching import Index, walk, weights_in
from crossdock.formats.megatron.masters.samples import Samples, boxes, run_of
from crossdock.formats.megatron.masters.vectors import flat_vectors
from crossdock.formats.stored import Extent, Masters, SourceFile, StoredTensor
from crossdock.io.files import reading
from crossdock.torchfile import read_object

_CHAINED = r"(?:chained_\d+\.)?optimizer\."
_STATE = re.compile(_CHAINED + r"state\.(?:fp32_param|master_param|param)\.(.+)\Z")
_BUCKET = re.compile(_CHAINED + r"distributed\.dp_group_idx_\d+\.gbuf_idx_\d+\.dtype_\((.+)\)\.bucket_idx_\d+\.param\Z")
_OBJECT = re.compile(_CHAINED + r"distributed\.dp_group_idx_\d+\.param_state/shard_")
_NUMBERED = re.compile(r"(?:chained_\d+\.)?optimizer\.fp32_from_fp16_params\.")


def of_dist(path: Path, prefix: str) -> Masters:
    """The masters in folder `path`, by names without `prefix`.

    Reads a few values of each weight where vectors are flat.
    Raises FormatError where there are none, or they do not make up the weights.
    """
    meta = dcp.read_metadata(path, lambda name: is_weight(name) or bool(_STATE.match(name) or _BUCKET.match(name)))
    stored = dcp.stored_tensors(meta, path)
    weights = {("", name.removeprefix(prefix)): tensor for name, tensor in stored.tensors.items() if is_weight(name)}
    found = Collected(weights)
    for name, tensor in stored.tensors.items():
        if (state := _STATE.match(name)) and (key := ("", state[1].removeprefix(prefix))) in weights:
            for origin, shape, extent in _of_state(name, tensor, weights[key]):
                found.add(key, origin, shape, [extent])
    buckets = [
        tensor
        for name, tensor in stored.tensors.items()
        if (bucket := _BUCKET.match(name)) and not bucket[1].startswith("torch.float32") and tensor.dtype == "float32"
    ]
    files = list(stored.files)
    vectors = [*map(_ascending, buckets), *_pickled(path, meta, files)]
    if vectors:
        with Samples(files) as samples:
            index = Index(weights_in(weights, samples))
            for extents in vectors:
                borders = [extent.origin[0] + extent.shape[0] for extent in extents]
                found.take(walk(extents, borders if borders[1:] else (), index, samples, found.places), extents)
    masters = found.masters(tuple(files), str(path))
    if not masters.of and any(tensor.dtype != "float32" for tensor in weights.values()):
        _refuse(path, meta)
    return masters


def _of_state(
    name: str, tensor: StoredTensor, weight: StoredTensor
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], Extent]]:
    """The boxes that a tensor with the name of a weight holds of it: the same ones, or runs of the weight's chunks."""
    if tensor.dtype != "float32":
        raise FormatError("a master in another type than float32", where=name, got=tensor.dtype)
    if tensor.shape == weight.shape:
        for extent in tensor.extents:
            yield extent.origin, extent.shape, extent
        return
    *grid, count = tensor.shape
    chunk = tuple(size // cut if cut else 0 for size, cut in zip(weight.shape, grid, strict=False))
    fits = len(grid) == len(weight.shape) and math.prod(chunk) == count
    if not fits or any(size != one * cut for size, one, cut in zip(weight.shape, chunk, grid, strict=True)):
        raise FormatError(
            "a master in a shape that does not follow from its weight's",
            where=name,
            expected=f"{list(weight.shape)}, or the grid of its chunks and their elements",
            got=str(list(tensor.shape)),
        )
    for extent in tensor.extents:
        if math.prod(extent.shape[:-1]) != 1:
            raise FormatError("a run of a master that goes beyond one chunk", where=name, got=str(list(extent.shape)))
        corner = tuple(at * size for at, size in zip(extent.origin, chunk, strict=False))
        start = extent.origin[-1]
        for at, shape, first in boxes(chunk, start, start + extent.shape[-1]):
            origin = tuple(a + b for a, b in zip(corner, at, strict=True))
            yield origin, shape, run_of(extent, first - start, origin, shape)


def _ascending(tensor: StoredTensor) -> tuple[Extent, ...]:
    return tuple(sorted(tensor.extents, key=lambda extent: extent.origin))


def _pickled(path: Path, meta: dcp.DcpMetadata, files: list[SourceFile]) -> Iterator[tuple[Extent, ...]]:
    """The flat vectors in pickled states. Adds files to `files` that they lie in."""
    for name, place in meta.objects.items():
        if not _OBJECT.match(name):
            continue
        number = next((i for i, file in enumerate(files) if file.path == path / place.path), len(files))
        if number == len(files):
            files.append(SourceFile.of(path / place.path))
        with reading(path / place.path) as fd:
            root = read_object(fd, place.offset, place.length, f"{path / place.path}: {name}")
        yield from flat_vectors(root, number)


def _refuse(path: Path, meta: dcp.DcpMetadata) -> None:
    """Raise FormatError that says what the folder has instead of masters."""
    numbered = any(_NUMBERED.match(name) for name in (*meta.skipped, *meta.objects))
    raise FormatError(
        "the optimizer's float32 weights go by number (torch_dcp), not by name, which crossdock does not read"
        if numbered
        else "the save holds no float32 weights of an optimizer",
        where=str(path),
        cause="" if numbered else "--no-save-optim, or a converted model that was not trained on",
        fix="--weights model takes the model's own",
    )
