"""DCP metadata against torch's own reader, and everything that can be wrong with it."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from torch.distributed.checkpoint.filesystem import FileSystemWriter, SerializationFormat, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from crossdock import torchfile, unpickle
from crossdock.errors import FormatError, NotACheckpointError, UnsafePickleError
from crossdock.formats.dcp import metadata as dcp
from crossdock.formats.dcp.tiling import tiling_error
from crossdock.formats.safetensors import read_header
from crossdock.formats.stored import Extent

CHECKPOINTS = [
    "gpt2-v019-dist-tp2-fp32/iter_0000010",
    "llama-v016-dist-tp4-perlayer-fp32/iter_0000010",
    "llama-realrun-dist-tp2pp2-bf16/iter_0000002",
    "mixtral-v019-dist-tp2ep2pp2-bf16/iter_0000010",
]


# four boxes round a middle that no straight cut takes apart
PINWHEEL = [((0, 0), (1, 2)), ((0, 2), (2, 1)), ((2, 1), (1, 2)), ((1, 0), (2, 1))]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain DCP checkpoint by torch: three tensors and an object."""
    folder = tmp_path_factory.mktemp("dcp") / "step"
    torch_dcp.save(state(), checkpoint_id=folder, no_dist=True)
    return folder


def state() -> dict[str, Any]:
    return {
        "a.weight": torch.arange(24, dtype=torch.float32).reshape(4, 6),
        "b.weight": torch.arange(10, dtype=torch.bfloat16),
        "scalar": torch.tensor(7),
        "args": {"hidden_size": 6},
    }


def content(folder: Path, name: str, stored: dcp.DcpStored) -> np.ndarray[Any, Any]:
    """A tensor's bytes, one row of uint8 per element, gathered from its extents."""
    tensor = stored.tensors[name]
    size = unpickle.ITEM_SIZES[tensor.dtype]
    out = np.zeros((*tensor.shape, size), np.uint8)
    for extent in tensor.extents:
        file = stored.files[extent.file].path
        box = tuple(slice(at, at + n) for at, n in zip(extent.origin, extent.shape, strict=True))
        offset = place(file, name, extent)
        raw = np.fromfile(file, np.uint8, int(np.prod(extent.shape)) * size, offset=offset)
        out[box] = raw.reshape(*extent.shape, size)
    return out


def place(file: Path, name: str, extent: Extent) -> int:
    if extent.wrapping == "safetensors":
        return read_header(file, extent.offset, extent.nbytes).tensors[name].begin
    fd = os.open(file, os.O_RDONLY)
    try:
        ref = torchfile.locate_single(fd, extent.offset, extent.nbytes, name)
    finally:
        os.close(fd)
    assert ref.shape == extent.shape
    assert ref.contiguous
    return ref.offset


def oracle(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return raw.reshape(*tensor.shape, tensor.dtype.itemsize)


@pytest.mark.parametrize("where", CHECKPOINTS)
def test_real_checkpoints(where: str, megatron_checkpoint: Callable[[str], Path]) -> None:
    """Same names, shapes, dtypes, chunks and places as in torch's object; every chunk is really there."""
    name, iteration = where.split("/")
    folder = megatron_checkpoint(name) / iteration
    meta = dcp.read_metadata(folder)
    theirs = metadata_without_megatron(folder)
    described = theirs.state_dict_metadata
    assert set(meta.tensors) == {n for n, value in described.items() if hasattr(value, "size")}
    assert set(meta.objects) == {n for n, value in described.items() if not hasattr(value, "size")}
    stored = dcp.stored_tensors(meta, folder)
    for name, tensor in meta.tensors.items():
        value = described[name]
        assert tensor.shape == tuple(value.size)
        assert tensor.dtype == str(value.properties.dtype).removeprefix("torch.")
        assert len(tensor.chunks) == len(value.chunks)
        for chunk in tensor.chunks:
            info = theirs.storage_data[MetadataIndex(name, chunk.offsets)]
            assert (chunk.path, chunk.offset, chunk.length) == (info.relative_path, info.offset, info.length)
        assert content(folder, name, stored).any()
    assert stored.skipped_bytes == sum(place.length for place in meta.objects.values())
    assert meta.version == theirs.version


def metadata_without_megatron(folder: Path) -> Any:
    """torch's own object; Megatron's classes, if the file names any, become torch's."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if module.startswith("megatron"):
                return {"MCoreMetadata": Metadata}.get(name, torch_dcp.planner.SavePlan)
            return super().find_class(module, name)

    return Unpickler(io.BytesIO((folder / ".metadata").read_bytes())).load()


def test_plain_dcp_equals_torch(saved: Path) -> None:
    meta = dcp.read_metadata(saved / ".metadata")
    stored = dcp.stored_tensors(meta, saved)
    for name, value in state().items():
        if isinstance(value, torch.Tensor):
            np.testing.assert_array_equal(content(saved, name, stored), oracle(value))
    objects = [name for name in meta.objects if name.startswith("args")]
    assert objects
    place = meta.objects[objects[0]]
    fd = os.open(saved / place.path, os.O_RDONLY)
    try:
        assert torchfile.read_object(fd, place.offset, place.length, "args") in ({"hidden_size": 6}, 6)
    finally:
        os.close(fd)


def test_safetensors_serialisation(tmp_path: Path) -> None:
    writer = FileSystemWriter(tmp_path, serialization_format=SerializationFormat.SAFETENSORS)
    torch_dcp.save(state(), storage_writer=writer, no_dist=True)
    meta = dcp.read_metadata(tmp_path)
    stored = dcp.stored_tensors(meta, tmp_path)
    assert {extent.wrapping for tensor in stored.tensors.values() for extent in tensor.extents} == {"safetensors"}
    for name, value in state().items():
        if isinstance(value, torch.Tensor):
            np.testing.assert_array_equal(content(tmp_path, name, stored), oracle(value))


def test_unwanted_tensors_are_only_counted(saved: Path) -> None:
    whole = dcp.read_metadata(saved)
    some = dcp.read_metadata(saved, keep=lambda name: name.startswith("a."))
    assert list(some.tensors) == ["a.weight"]
    lengths = {name: sum(chunk.length for chunk in tensor.chunks) for name, tensor in whole.tensors.items()}
    assert some.skipped == {name: lengths[name] for name in ("b.weight", "scalar")}
    again = dcp.stored_tensors(whole, saved, keep=lambda name: name.startswith("a."))
    assert again.tensors == dcp.stored_tensors(some, saved).tensors
    assert again.skipped_bytes == dcp.stored_tensors(some, saved).skipped_bytes


def chunked(*boxes: tuple[int, int], size: int = 8, info: dict[str, Any] | None = None) -> Metadata:
    """Metadata of one tensor "w" of `size` float32 in chunks (offset, size), `info` changing every place."""
    chunks = [ChunkStorageMetadata(torch.Size([at]), torch.Size([count])) for at, count in boxes]
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([size]), chunks)
    places = {
        MetadataIndex("w", torch.Size([at])): replace(_StorageInfo("__0_0.distcp", 0, 1000), **(info or {}))
        for at, _ in boxes
    }
    return Metadata({"w": tensor}, None, places)


def write(folder: Path, metadata: object, data: bytes = b"PK\3\4" + bytes(2000)) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata, 4))
    (folder / "__0_0.distcp").write_bytes(data)
    return folder


def test_a_good_one(tmp_path: Path) -> None:
    meta = dcp.read_metadata(write(tmp_path, chunked((0, 4), (4, 4))))
    assert [chunk.offsets for chunk in meta.tensors["w"].chunks] == [(0,), (4,)]
    assert dcp.stored_tensors(meta, tmp_path).tensors["w"].extents[1] == Extent(
        0, 0, 1000, (4,), (4,), wrapping="torch_zip"
    )


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (chunked((0, 4)), "the chunks hold 4 of 8 elements"),
        (chunked((0, 4), (3, 4)), "the chunks hold 8|overlap"),
        (chunked((0, 6), (4, 4)), r"the chunks at \[0\] and \[4\] overlap"),
        (chunked((0, 4), (4, 5)), "lies outside the tensor"),
        (chunked((0, 8), info={"relative_path": "../other/__0_0.distcp"}), "outside the folder"),
        (chunked((0, 8), info={"relative_path": "/etc/passwd"}), "outside the folder"),
        (chunked((0, 8), info={"relative_path": "__9_0.distcp"}), "'__9_0.distcp' is missing"),
        (chunked((0, 8), info={"relative_path": "."}), "missing|outside"),
        (chunked((0, 8), info={"offset": 1500}), "the data file is truncated"),
        (chunked((0, 8), info={"offset": -1}), "does not say where"),
        (chunked((0, 8), info={"length": 31}), "does not fit into its data"),
        (chunked((0, 8), info={"transform_descriptors": ["zstd"]}), "transformed"),
        (chunked((0, 8), info={"offset": 8}), "no tensor starts at byte 8"),
    ],
)
def test_problems(metadata: Metadata, message: str, tmp_path: Path) -> None:
    write(tmp_path, metadata)
    with pytest.raises(FormatError, match=message) as raised:
        dcp.read_metadata(tmp_path)
    assert ".metadata" in raised.value.text()
    assert dcp.read_metadata(write(tmp_path, chunked((0, 8)))).tensors


def test_all_problems_at_once(tmp_path: Path) -> None:
    bad = chunked((0, 4), (4, 4), info={"relative_path": "__7_0.distcp"})
    bad.storage_data.pop(MetadataIndex("w", torch.Size([4])))
    described = bad.state_dict_metadata
    described["v"] = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([2]), [])
    described["i"] = TensorStorageMetadata(TensorProperties(torch.bits8), torch.Size([2]), [])
    with pytest.raises(FormatError) as raised:
        dcp.read_metadata(write(tmp_path, bad))
    text = raised.value.text()
    for part in (
        "chunk at [4] has no data",
        "hold 0 of 2",
        "unknown dtype",
        "'__7_0.distcp' is missing",
    ):
        assert part in text
    assert len(raised.value.problems) == 4


def test_many_problems_are_counted(tmp_path: Path) -> None:
    tensor = TensorStorageMetadata(TensorProperties(torch.float32), torch.Size([2]), [])
    with pytest.raises(FormatError, match="and 60 more problems"):
        dcp.read_metadata(write(tmp_path, Metadata({f"t{n}": tensor for n in range(100)}, None, {})))


def test_empty_chunks_need_no_data(tmp_path: Path) -> None:
    metadata = chunked((0, 8), (8, 0))
    metadata.storage_data.pop(MetadataIndex("w", torch.Size([8])))
    assert len(dcp.read_metadata(write(tmp_path, metadata)).tensors["w"].chunks) == 1


def test_wrong_kinds_of_files(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpointError, match="not DCP metadata"):
        dcp.read_metadata(write(tmp_path, {"a": 1}))
    with pytest.raises(NotACheckpointError, match="file does not exist"):
        dcp.read_metadata(tmp_path / "none" / ".metadata")
    (tmp_path / ".metadata").write_bytes(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02ls\x85R.")
    with pytest.raises(UnsafePickleError, match=r"posix\.system"):
        dcp.read_metadata(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"")
    with pytest.raises(FormatError):
        dcp.read_metadata(tmp_path)


def test_safetensors_blob_of_another_tensor(tmp_path: Path) -> None:
    writer = FileSystemWriter(tmp_path / "a", serialization_format=SerializationFormat.SAFETENSORS)
    torch_dcp.save({"w": torch.ones(8)}, storage_writer=writer, no_dist=True)
    writer = FileSystemWriter(tmp_path / "b", serialization_format=SerializationFormat.SAFETENSORS)
    torch_dcp.save({"w": torch.ones(4, dtype=torch.float64)}, storage_writer=writer, no_dist=True)
    shutil.copy(tmp_path / "b" / "__0_0.distcp", tmp_path / "a" / "__0_0.distcp")
    with pytest.raises(FormatError, match="is another"):
        dcp.read_metadata(tmp_path / "a")


def test_blobs_for_scanning(saved: Path) -> None:
    blobs = dcp.read_blobs(saved / ".metadata")
    assert sum(len(spans) for spans in blobs.values()) == 4
    for path, spans in blobs.items():
        raw = (saved / path).read_bytes()
        assert all(raw[at : at + 4] == b"PK\3\4" for at, _ in spans)


def test_large_metadata_is_fast(tmp_path: Path) -> None:
    """10,000 chunks; 100,000 take 2.5 s and 195 MB here."""
    count = 10_000
    boxes = [(at, 1) for at in range(count)]
    write(tmp_path, chunked(*boxes, size=count))
    start = time.process_time()
    assert len(dcp.read_metadata(tmp_path).tensors["w"].chunks) == count
    assert time.process_time() - start < 2.5


@pytest.mark.parametrize(
    ("shape", "boxes", "message"),
    [
        ((), [((), ())], ""),
        ((2, 2), [((0, 0), (2, 1)), ((0, 1), (2, 1))], ""),
        ((2, 2), [((0, 0), (1, 2)), ((1, 0), (1, 1)), ((1, 1), (1, 1))], ""),
        ((3, 3), [*PINWHEEL, ((1, 1), (1, 1))], ""),
        ((3, 3), [*PINWHEEL, ((0, 1), (1, 1))], "overlap"),
        ((4,), [((0,), (2,)), ((1,), (2,))], "overlap"),
        ((4,), [((0,), (2,)), ((0,), (2,))], "overlap"),
        ((4,), [((0,), (4,)), ((4,), (0,))], ""),
        ((4,), [((0, 0), (2, 2))], "dimensions"),
        ((0, 4), [], ""),
        ((2,), [], "0 of 2"),
    ],
)  # fmt: skip
def test_tiling(shape: tuple[int, ...], boxes: list[Any], message: str) -> None:
    error = tiling_error(shape, boxes)
    assert message in error if message else error == ""


def test_hostile_tilings_end() -> None:
    count = 20_000
    start = time.process_time()
    spiral, low, high = [], [0, 0], [count, count]
    for turn in range(count - 1):  # each box is one row or column: cuts come one at a time
        axis = turn % 2
        sizes = [high[0] - low[0], high[1] - low[1]]
        sizes[axis] = 1
        spiral.append(((low[0], low[1]), (sizes[0], sizes[1])))
        low[axis] += 1
    assert tiling_error((count, count), spiral) != ""
    assert tiling_error((count,), [((0,), (count,))] * count) != ""
    assert time.process_time() - start < 5
