"""The data files of a DCP checkpoint: are they there, long enough, and what are the blobs in them.

Reads the first bytes of one tensor per file and, where a file holds a safetensors blob, that blob's header.
Facts from torch 2.13 (`torch/distributed/checkpoint/filesystem.py`, `SerializationFormat`).
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from crossdock.errors import FormatError, Problem
from crossdock.formats.safetensors import SafetensorsHeader, read_header
from crossdock.io.files import read_exact, reading
from crossdock.unpickle import printable

MAX_PROBLEMS: Final = 40


class Place(NamedTuple):
    """A blob: file relative to the checkpoint folder, byte offset, bytes."""

    path: str
    offset: int
    length: int


class Chunk(NamedTuple):
    """A box of a tensor and the blob that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    path: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class DcpTensor:
    """A tensor as `.metadata` describes it: codec name, global shape, chunks that tile it."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(slots=True)
class Problems:
    """Problems found so far, of which only the first `MAX_PROBLEMS` are kept."""

    where: str
    found: list[Problem] = field(default_factory=list)
    more: int = 0

    def add(self, what: str, *, at: str = "", expected: str = "", got: str = "", fix: str = "") -> None:
        if len(self.found) < MAX_PROBLEMS:
            where = f"{self.where}: {printable(at)}" if at else self.where
            self.found.append(Problem(what, where, expected, got, fix=fix))
        else:
            self.more += 1

    def raise_all(self) -> None:
        if self.more:
            self.found.append(Problem(f"and {self.more} more problems of this kind", self.where))
        if self.found:
            raise FormatError(self.found)


def check_files(folder: Path, blobs: Iterable[Chunk | Place], problems: Problems) -> dict[str, int]:
    """Every blob lies inside its file. Returns the sizes of the files."""
    sizes: dict[str, int] = {}
    short: set[str] = set()
    for place in blobs:
        path = place.path
        if path not in sizes:
            sizes[path] = _file_size(folder / path)
            if sizes[path] < 0:
                problems.add(f"the data file {printable(path)!r} is missing or is not a file")
        end = place.offset + place.length
        if 0 <= sizes[path] < end and path not in short:
            short.add(path)
            problems.add(
                "the data file is truncated",
                at=path,
                expected=f"at least {end} bytes",
                got=str(sizes[path]),
                fix="copy the file again; was the save interrupted?",
            )
    return sizes


def check_wrappings(
    folder: Path, tensors: Mapping[str, DcpTensor], sizes: Mapping[str, int], problems: Problems
) -> dict[tuple[str, int], int]:
    """Look at the first tensor blob of each file: a torch zip, or the one safetensors blob at the file's end.

    Returns (file, offset) -> end for the safetensors blobs, after checking that they hold the tensors.
    """
    forms: dict[str, bool] = {}
    headers: dict[tuple[str, int], SafetensorsHeader] = {}
    blobs: set[str] = set()
    for name, tensor in tensors.items():
        seen: set[tuple[str, int]] = set()
        for chunk in tensor.chunks:
            path, where = folder / chunk.path, (chunk.path, chunk.offset)
            if chunk.path not in forms:
                with reading(path) as fd:
                    head = read_exact(fd, chunk.offset, min(9, sizes[chunk.path] - chunk.offset), str(path))
                forms[chunk.path] = head[8:] == b"{"
                if head[8:] != b"{" and not head.startswith(b"PK\3\4"):
                    problems.add(f"no tensor starts at byte {chunk.offset}", at=chunk.path, got=repr(head[:8]))
            if not forms[chunk.path]:
                continue
            if where not in headers:
                if chunk.path in blobs:
                    problems.add("more than one safetensors blob in a file", at=chunk.path)
                    continue
                blobs.add(chunk.path)
                headers[where] = read_header(path, chunk.offset)
            if where in seen:
                problems.add("several chunks in one safetensors blob, which can hold only the last", at=name)
            seen.add(where)
            _check_named(name, tensor, chunk, headers[where], problems)
    return {where: header.end for where, header in headers.items()}


def _check_named(name: str, tensor: DcpTensor, chunk: Chunk, header: SafetensorsHeader, problems: Problems) -> None:
    found = header.tensors.get(name)
    if found is None:
        problems.add(f"the tensor is not in the safetensors blob of {printable(chunk.path)}", at=name)
    elif (found.codec, found.shape) != (tensor.dtype, chunk.sizes):
        problems.add(
            "the tensor in the safetensors blob is another",
            at=name,
            expected=f"{tensor.dtype} {list(chunk.sizes)}",
            got=f"{found.codec} {list(found.shape)}",
        )


def is_inside(path: str) -> bool:
    """True for a path that stays inside the folder that it is relative to."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path and "\\" not in path


def _file_size(path: Path) -> int:
    """Bytes of a regular file, -1 for anything else."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1
