"""Writes the files of a Megatron torch_dist checkpoint: `__{rank}_{part}.distcp`, `.metadata`, metadata.json.

As megatron-core 0.19.2 with torch 2.13 writes them, `all_local_plans` included. Needs no torch; for
benchmarks and tests.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from torch_files import Call, Instance, Name, pickled, tensor, write_archive

META = "torch.distributed.checkpoint.metadata"
PLANNER = "torch.distributed.checkpoint.planner"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A box of a global tensor and the rank that saves it."""

    rank: int
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A global tensor as torch_dist stores it."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


class Saving:
    """The data files of all ranks while they grow, and what `.metadata` must say about them.

    data_of   the bytes of a chunk; None writes nothing and leaves holes of about the right size
    parts     files per rank, filled in turn
    """

    def __init__(self, folder: Path, data_of: Callable[[Tensor, Chunk], bytes] | None, parts: int = 1) -> None:
        self._folder, self._data_of, self._parts = folder, data_of, parts
        self._files: dict[str, BinaryIO] = {}
        self._sizes: dict[str, int] = defaultdict(int)
        self._described: dict[str, Instance] = {}
        self._places: dict[Instance, Instance] = {}
        self._plans: dict[int, list[Instance]] = defaultdict(list)
        self._chunks = 0

    def save(self, one: Tensor) -> None:
        """Write the chunks of a tensor."""
        strided = Call(Name("torch.serialization", "_get_layout"), ("torch.strided",))
        encoding = Call(Name(META, "_MEM_FORMAT_ENCODING"), (0,))
        properties = (Name("torch", one.dtype), strided, False, encoding, False)
        described = Instance(Name(META, "TensorProperties"), properties)
        boxes = []
        for chunk in one.chunks:
            sizes = {"offsets": torch_size(chunk.offsets), "sizes": torch_size(chunk.sizes)}
            box = Instance(Name(META, "ChunkStorageMetadata"), sizes)
            boxes.append(box)
            key = {"fqn": one.key, "index": None, "offset": torch_size(chunk.offsets)}
            index = Instance(Name(META, "MetadataIndex"), key)
            self._record(index, chunk.rank, partial(self._write_chunk, one, chunk))
            written = {"chunk": box, "properties": described, "size": torch_size(one.shape)}
            self._planned(chunk.rank, index, 2, Instance(Name(PLANNER, "TensorWriteData"), written))
            self._chunks += 1
        state = {"properties": described, "size": torch_size(one.shape), "chunks": boxes}
        self._described[one.key] = Instance(Name(META, "TensorStorageMetadata"), state)

    def _write_chunk(self, one: Tensor, chunk: Chunk, file: BinaryIO) -> int:
        if self._data_of is None:
            file.write(b"PK\x03\x04")  # where an archive would begin; it adds about as much
            return math.prod(chunk.sizes) * (2 if one.dtype == "bfloat16" else 4) + 1536
        return write_archive(file, tensor(one.dtype, chunk.sizes), [self._data_of(one, chunk)])

    def save_bytes(self, key: str, value: Any, rank: int) -> None:
        """Write a non-tensor entry: a torch.save archive of a list with one object."""
        index = Instance(Name(META, "MetadataIndex"), {"fqn": key, "index": None})
        self._record(index, rank, partial(_write_list, value))
        self._planned(rank, index, 1, None)
        self._described[key] = Instance(Name(META, "BytesStorageMetadata"), None)

    def save_blob(self, key: str, data: bytes, rank: int) -> None:
        """Write a non-tensor entry that is a torch.save archive already."""
        index = Instance(Name(META, "MetadataIndex"), {"fqn": key, "index": None})
        self._record(index, rank, lambda file: file.write(data))
        self._planned(rank, index, 1, None)
        self._described[key] = Instance(Name(META, "BytesStorageMetadata"), None)

    def _record(self, index: Instance, rank: int, write: Callable[[BinaryIO], int]) -> None:
        """Append to the rank's next file what `write` writes, and note where it is."""
        name = f"__{rank}_{len(self._plans[rank]) % self._parts}.distcp"
        if name not in self._files:
            self._files[name] = (self._folder / name).open("wb")
        self._files[name].seek(self._sizes[name])
        length = write(self._files[name])
        state = {"relative_path": name, "offset": self._sizes[name], "length": length}
        self._places[index] = Instance(Name("torch.distributed.checkpoint.filesystem", "_StorageInfo"), state)
        self._sizes[name] += length

    def _planned(self, rank: int, index: Instance, kind: int, data: Instance | None) -> None:
        form = Call(Name(PLANNER, "WriteItemType"), (kind,))
        state = {"index": index, "type": form, "bytes_io_data": None, "tensor_data": data}
        self._plans[rank].append(Instance(Name(PLANNER, "WriteItem"), state))

    def finish(self) -> int:
        """Close the data files, write `.metadata` and metadata.json; returns the number of tensor chunks."""
        for name, file in self._files.items():
            file.truncate(self._sizes[name])
            file.close()
        plans = [
            Instance(
                Name(PLANNER, "SavePlan"),
                {"items": items, "storage_data": None, "planner_data": {}, "usable": True},
            )
            for _, items in sorted(self._plans.items())
        ]
        meta: dict[str, Any] = {"checkpoint_id": "out", "save_id": "0", "load_id": None, "modules": []}
        state = {
            "state_dict_metadata": self._described,
            "planner_data": None,
            "storage_data": self._places,
            "storage_meta": Instance(Name(META, "StorageMeta"), meta),
            "version": "1.0.0",
            "all_local_plans": plans,
        }
        (self._folder / ".metadata").write_bytes(pickled(Instance(Name(META, "Metadata"), state), 4))
        backend = '{"sharded_backend": "torch_dist", "sharded_backend_version": 1}'
        (self._folder / "metadata.json").write_text(backend)
        return self._chunks


def _write_list(value: Any, file: BinaryIO) -> int:
    return write_archive(file, [value])


def torch_size(sizes: tuple[int, ...]) -> Call:
    """torch.Size((...)), as it is pickled."""
    return Call(Name("torch", "Size"), (tuple(sizes),))
