"""PyTorch distributed checkpoints (DCP): `.metadata` says which chunk of which tensor lies in which file.

Reads `.metadata` and the first bytes of each data file, never tensor data. Facts from torch 2.13
(`torch/distributed/checkpoint/metadata.py`, `filesystem.py`) and megatron-core 0.11 to 0.19, whose root
object may be `MCoreMetadata`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

from crossdock import unpickle
from crossdock.errors import FormatError, NotACheckpointError
from crossdock.formats.dcp.data_files import (
    Chunk,
    DcpTensor,
    Place,
    Problems,
    check_files,
    check_wrappings,
    is_inside,
)
from crossdock.formats.dcp.tiling import tiling_error
from crossdock.formats.stored import Extent, SourceFile, StoredTensor, Wrapping
from crossdock.io.files import read_exact, reading, size_of
from crossdock.unpickle import ITEM_SIZES, Instance, Limits, printable

LIMITS: Final = Limits(opcodes=64_000_000)  # 1,000,000 chunks take about 50 million


@dataclass(frozen=True, slots=True)
class DcpMetadata:
    """What a `.metadata` file says.

    tensors   by fully qualified name
    objects   pickled objects by key ("common_state/shard_0_1"), each a torch.save blob of a list
    skipped   tensors that were not wanted: name -> bytes of their blobs
    ends      (file, offset) -> offset after the blob, of safetensors blobs; all others are torch zips
    version   of the DCP writer ("1.0.0"), "" when not given
    """

    tensors: Mapping[str, DcpTensor]
    objects: Mapping[str, Place]
    skipped: Mapping[str, int]
    ends: Mapping[tuple[str, int], int]
    version: str


@dataclass(frozen=True, slots=True)
class DcpStored:
    """`DcpMetadata` as stored tensors; extents index into `files`. `skipped`: name -> bytes not taken."""

    files: tuple[SourceFile, ...]
    tensors: dict[str, StoredTensor]
    skipped: dict[str, int]

    @property
    def skipped_bytes(self) -> int:
        """Bytes of all blobs that no stored tensor uses."""
        return sum(self.skipped.values())


def everything(name: str) -> bool:
    """Keep every tensor, whatever its name."""
    return True


def read_metadata(path: Path, keep: Callable[[str], bool] = everything) -> DcpMetadata:
    """Read a checkpoint folder's `.metadata` (or that file itself) and check it against the data files.

    keep   which tensors are wanted, by name; of the others only the sizes are added up

    Raises NotACheckpointError, UnsafePickleError, and one FormatError with everything that is wrong: chunks
    without data, outside their tensor, overlapping or leaving gaps; files missing, too short or outside the
    folder; transformed (compressed) data; unknown dtypes.
    """
    file = path / ".metadata" if path.is_dir() else path
    folder, where = file.parent, str(file)
    described, stored, version = _read_fields(file, where)
    problems = Problems(where)
    places = _read_places(stored, problems)
    tensors, objects, skipped = _read_tensors(described, places, keep, problems)
    sizes = check_files(folder, _blobs(tensors, objects), problems)
    problems.raise_all()
    ends = check_wrappings(folder, tensors, sizes, problems)
    problems.raise_all()
    return DcpMetadata(tensors, objects, skipped, ends, version)


def read_blobs(file: Path) -> dict[str, list[tuple[int, int]]]:
    """Every blob that the `.metadata` file names, wanted or not: data file -> (offset, bytes), for scanning.

    Raises as `read_metadata` does, but does not look at the data files.
    """
    problems = Problems(str(file))
    places = _read_places(_read_fields(file, str(file))[1], problems)
    problems.raise_all()
    out: dict[str, set[tuple[int, int]]] = {}
    for of_name in places.values():
        for place in of_name.values():
            out.setdefault(place.path, set()).add((place.offset, place.length))
    return {path: sorted(blobs) for path, blobs in out.items()}


def _read_fields(file: Path, where: str) -> tuple[dict[object, object], dict[object, object], str]:
    """state_dict_metadata, storage_data and version of the one object in the file."""
    with reading(file) as fd:
        size = size_of(fd)
        if size > LIMITS.bytes:
            raise FormatError("the file is too large", where=where, expected=f"at most {LIMITS.bytes} bytes")
        data = read_exact(fd, 0, size, where)
    # all_local_plans repeats the rest of the file: half of what Megatron writes, and not needed.
    root = unpickle.load(data, where=where, limits=LIMITS, stop_before="all_local_plans")
    if type(root) is not Instance or root.cls.name not in ("Metadata", "MCoreMetadata"):
        raise NotACheckpointError(f"not DCP metadata: it holds {unpickle.describe(root)}", where=where)
    fields = unpickle.attributes(root)
    described, stored = fields.pop("state_dict_metadata", None), fields.pop("storage_data", None)
    if not isinstance(described, dict) or not isinstance(stored, dict):
        raise FormatError("state_dict_metadata or storage_data is missing", where=where)
    version = fields.get("version")
    return described, stored, version if isinstance(version, str) else ""


def _blobs(tensors: Mapping[str, DcpTensor], objects: Mapping[str, Place]) -> Iterator[Chunk | Place]:
    for tensor in tensors.values():
        yield from tensor.chunks
    yield from objects.values()


def stored_tensors(meta: DcpMetadata, root: Path, keep: Callable[[str], bool] = everything) -> DcpStored:
    """`meta` as stored tensors over the files of folder `root`, for the names that `keep` wants.

    Extents are whole blobs: "torch_zip" (`torchfile.locate_single` finds the tensor in it) or "safetensors"
    (`safetensors.read_header` with the extent's offset and size does).
    Raises FormatError when a file has gone.
    """
    files: dict[str, int] = {}
    sources: list[SourceFile] = []
    tensors: dict[str, StoredTensor] = {}
    skipped = dict(meta.skipped)
    for name, place in meta.objects.items():
        skipped[name] = place.length
    for name, tensor in meta.tensors.items():
        if not keep(name):
            skipped[name] = sum(chunk.length for chunk in tensor.chunks)
            continue
        extents = []
        for chunk in tensor.chunks:
            index = files.get(chunk.path)
            if index is None:
                index = files[chunk.path] = len(sources)
                try:
                    sources.append(SourceFile.of(root / chunk.path))
                except OSError as error:
                    raise FormatError(f"cannot be read: {error.strerror}", where=str(root / chunk.path)) from None
            end = meta.ends.get((chunk.path, chunk.offset))
            wrapping: Wrapping = "torch_zip" if end is None else "safetensors"
            nbytes = chunk.length if end is None else end - chunk.offset
            extents.append(Extent(index, chunk.offset, nbytes, chunk.offsets, chunk.sizes, wrapping=wrapping))
        tensors[name] = StoredTensor(name, tensor.shape, tensor.dtype, tuple(extents))
    return DcpStored(tuple(sources), tensors, skipped)


Places = dict[str, dict[tuple[int, ...] | None, Place]]


def _read_places(stored: dict[object, object], problems: Problems) -> Places:
    """storage_data: MetadataIndex(fqn, offset) -> _StorageInfo. Empties `stored` while reading it."""
    places: Places = {}
    paths: dict[str, bool] = {}
    while stored:
        key, info = stored.popitem()
        index, blob = _state(key), _state(info)
        name, at = index.get("fqn"), index.get("offset")
        path, offset, length = blob.get("relative_path"), blob.get("offset"), blob.get("length")
        if type(name) is not str or not (at is None or is_shape(at)):
            problems.add("storage_data has an entry whose key is not a MetadataIndex")
            continue
        if type(path) is not str or not is_count(offset) or not is_count(length):
            problems.add("storage_data does not say where the data is", at=name)
            continue
        if blob.get("transform_descriptors") is not None:
            problems.add(
                "the data is transformed (compressed or encrypted), which is not supported",
                at=name,
                fix="save the checkpoint without stream transforms",
            )
            continue
        inside = paths.get(path)
        if inside is None:
            inside = paths[path] = is_inside(path)
            if not inside:
                problems.add(f"the metadata places the data outside the folder, in {printable(path)!r}", at=name)
        if inside:
            of_name = places.setdefault(name, {})
            if at in of_name:
                problems.add(f"two locations for the chunk at {_show(at)}", at=name)
            of_name[at] = Place(path, offset, length)
    return places


def _read_tensors(
    described: dict[object, object], places: Places, keep: Callable[[str], bool], problems: Problems
) -> tuple[dict[str, DcpTensor], dict[str, Place], dict[str, int]]:
    """state_dict_metadata, matched with `places`. Drops what it has read from `described`."""
    tensors: dict[str, DcpTensor] = {}
    objects: dict[str, Place] = {}
    skipped: dict[str, int] = {}
    for name in list(described):
        value = described.pop(name)
        if type(name) is not str or type(value) is not Instance:
            problems.add("state_dict_metadata has an entry that is not a name and its description")
            continue
        of_name = places.pop(name, {})
        if value.cls.name == "BytesStorageMetadata":
            if None in of_name:
                objects[name] = of_name[None]
            else:
                problems.add("the object has no data", at=name)
        elif value.cls.name != "TensorStorageMetadata":
            problems.add(f"neither a tensor nor an object, but {value.cls.qualified}", at=name)
        elif not keep(name):
            skipped[name] = sum(place.length for place in of_name.values())
        elif (tensor := _read_tensor(name, value, of_name, problems)) is not None:
            tensors[name] = tensor
    return tensors, objects, skipped


def _read_tensor(
    name: str, value: Instance, of_name: Mapping[tuple[int, ...] | None, Place], problems: Problems
) -> DcpTensor | None:
    state = _state(value)
    shape, chunks, properties = state.get("size"), state.get("chunks"), state.get("properties")
    arguments = properties.state if type(properties) is Instance else None
    first = arguments[0] if type(arguments) is tuple and arguments else _state(properties).get("dtype")
    dtype = unpickle.dtype_of(first)
    if dtype is None:
        problems.add("unknown dtype", at=name, got=unpickle.describe(first))
        return None
    if not is_shape(shape) or type(chunks) is not list:
        problems.add("the tensor has no size or no list of chunks", at=name)
        return None
    itemsize, out, before = ITEM_SIZES[dtype], [], len(problems.found) + problems.more
    for chunk in chunks:
        box = _state(chunk)
        offsets, sizes = box.get("offsets"), box.get("sizes")
        if not is_shape(offsets) or not is_shape(sizes) or len(sizes) != len(shape):
            problems.add("a chunk without offsets or sizes", at=name)
            continue
        nbytes = itemsize
        for size in sizes:
            nbytes *= size
        if not nbytes:
            continue  # ranks without a part of an unevenly cut tensor
        place = of_name.get(offsets)
        if place is None:
            problems.add(f"the chunk at {_show(offsets)} has no data", at=name)
        elif place.length < nbytes:
            problems.add(
                f"the chunk at {_show(offsets)} does not fit into its data",
                at=name,
                expected=f"{nbytes} bytes",
                got=str(place.length),
            )
        else:
            out.append(Chunk(offsets, sizes, *place))
    if len(problems.found) + problems.more == before:
        error = tiling_error(shape, [(chunk.offsets, chunk.sizes) for chunk in out])
        if error:
            problems.add(error, at=name)
    return DcpTensor(dtype, shape, tuple(out))


def _state(value: object) -> dict[str, Any]:
    """The attributes of a stand-in, {} when it has none."""
    state = value.state if type(value) is Instance else None
    return state if type(state) is dict else {}


def is_count(value: object) -> TypeGuard[int]:
    """A size or an offset."""
    return type(value) is int and 0 <= value < 1 << 62


def is_shape(value: object) -> TypeGuard[tuple[int, ...]]:
    """Sizes or offsets, one per dimension."""
    return type(value) is tuple and len(value) <= 64 and all(map(is_count, value))


def _show(offsets: tuple[int, ...] | None) -> str:
    return str(list(offsets)) if offsets is not None else "none"
