"""torch.save files without torch: the object graph, with tensors as places in the file. Reads no tensor.

Both forms are read: the zip archive (torch 1.6 and later, also as a blob inside a `.distcp` file) and the
older stream. Facts from torch 2.13 (`torch/serialization.py`, `torch/_utils.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from crossdock import unpickle
from crossdock.errors import FormatError
from crossdock.io.files import read_exact, reading, size_of
from crossdock.torchfile.archive import Archive, read_archive
from crossdock.torchfile.legacy import is_legacy, load_legacy
from crossdock.torchfile.storages import storage_id
from crossdock.unpickle import Instance, Limits, StorageRef, TensorRef, describe, printable

MAX_DEPTH = 64  # of nested dicts of tensors
MAX_STEPS = 2_000_000  # values looked at; dicts shared many times over would multiply


@dataclass(frozen=True, slots=True)
class TorchFile:
    """What torch.save wrote: `root` is the saved object, its tensors are `TensorRef`s."""

    root: object
    form: Literal["zip", "legacy"]
    where: str


def open_torch(
    path_or_fd: Path | int,
    offset: int = 0,
    length: int | None = None,
    *,
    where: str = "",
    limits: Limits | None = None,
) -> TorchFile:
    """Read the object graph in bytes [offset, offset + length) of a file; to its end when `length` is None.

    Raises FormatError (broken, TorchScript, tar, big-endian), UnsafePickleError, NotACheckpointError.
    """
    with nullcontext(path_or_fd) if isinstance(path_or_fd, int) else reading(path_or_fd) as fd:
        where = where or (str(path_or_fd) if isinstance(path_or_fd, Path) else "file")
        size = size_of(fd)
        length = size - offset if length is None else length
        if offset < 0 or length < 0 or offset + length > size:
            raise FormatError(
                "the blob lies outside the file",
                where=where,
                expected=f"at most {size} bytes",
                got=f"{length} bytes at {offset}",
            )
        head = read_exact(fd, offset, min(length, 512), where)
        if head.startswith(b"PK"):
            return TorchFile(_load_zip(fd, offset, length, where, limits), "zip", where)
        if is_legacy(head):
            return TorchFile(load_legacy(fd, offset, length, where, limits), "legacy", where)
        return _refuse(head, where)


def read_object(fd: int, offset: int, length: int, where: str) -> object:
    """The object in a torch.save blob of a `.distcp` file (for bytes entries: a list of objects)."""
    return open_torch(fd, offset, length, where=where).root


def locate_single(fd: int, offset: int, length: int, where: str) -> TensorRef:
    """The one tensor in a torch.save blob of a `.distcp` file. Raises FormatError for anything else."""
    root = _load_zip(fd, offset, length, where, None)
    if type(root) is not TensorRef:
        raise FormatError(f"the blob holds {describe(root)}, not a tensor that can be read", where=where)
    return root


def state_tensors(
    root: object, prefix: str = "", *, keep: Callable[[str], bool] = lambda name: True, where: str = ""
) -> Iterator[tuple[str, TensorRef]]:
    """Every tensor in nested dicts, with its keys joined by dots, in the order of the file.

    Only names for which `keep` is true. Raises FormatError for a kept tensor of a kind without plain bytes
    (quantized, sparse, a subclass) and for dicts that hold themselves or each other many times over.
    """
    stack: list[tuple[str, Iterator[tuple[object, object]]]] = [("", iter([(prefix, root)]))]
    steps = 0
    while stack:
        above, items = stack[-1]
        for key, value in items:
            steps += 1
            if steps > MAX_STEPS or len(stack) > MAX_DEPTH:
                raise FormatError("dicts inside dicts without end", where=where)
            if not isinstance(key, str | int):
                continue
            name = f"{above}.{key}" if above else str(key)
            if type(value) is TensorRef:
                if keep(name):
                    yield name, value
            elif isinstance(value, dict):
                stack.append((name, iter(value.items())))
                break
            elif type(value) is Instance and is_tensor_like(value) and keep(name):
                raise FormatError(
                    f"{printable(name)!r} is a tensor without plain values ({value.cls.qualified})",
                    where=where,
                    fix="convert it to a dense tensor before saving",
                )
        else:
            stack.pop()


def is_tensor_like(value: Instance) -> bool:
    """True for stand-ins of tensors that are not plain: quantized, sparse, nested, meta, subclasses."""
    cls = value.cls
    return (cls.module in ("torch._utils", "torch._tensor") and cls.name.startswith("_rebuild")) or (
        cls.name in ("Float8Tensor", "DTensor") or cls.name.endswith("QuantizedTensor")
    )


def _load_zip(fd: int, offset: int, length: int, where: str, limits: Limits | None) -> object:
    limits = limits or Limits()
    archive = read_archive(fd, offset, length, where)
    names = [name for name in archive.entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(name.endswith("/constants.pkl") and name.count("/") == 1 for name in archive.entries):
        raise FormatError(
            "this is a TorchScript program, not a checkpoint",
            where=where,
            fix="save the model's state_dict instead",
        )
    if len(names) != 1:
        raise FormatError("not a torch.save archive: it has no data.pkl, or several", where=where)
    folder = names[0][: -len("data.pkl")]
    if f"{folder}byteorder" in archive.entries and archive.read(f"{folder}byteorder", 16) != b"little":
        raise FormatError("the tensors are big-endian; crossdock reads little-endian files", where=where)
    data = archive.read(names[0], limits.bytes)
    storages: dict[str, StorageRef] = {}

    def storage(pid: object) -> StorageRef:
        key, dtype, nbytes, view = storage_id(pid)
        if view is not None:
            raise ValueError("a view of a storage, which only older files have")
        known = storages.get(key)
        if known is None:
            known = storages[key] = _storage(archive, folder, key, dtype, nbytes)
        elif known.dtype != dtype:
            known = StorageRef(key, dtype, known.offset, known.nbytes)
        if nbytes > known.nbytes:
            raise ValueError(f"storage {key!r} is recorded as larger than it is")
        return known

    return unpickle.load(data, where=where + ": " + printable(names[0]), limits=limits, persistent=storage)


def _storage(archive: Archive, folder: str, key: str, dtype: str, nbytes: int) -> StorageRef:
    at, size = archive.locate(f"{folder}data/{key}")
    if size != nbytes:
        raise ValueError(f"storage {printable(key)!r} has {size} bytes; its tensors need {nbytes}")
    return StorageRef(key, dtype, at, size)


def _refuse(head: bytes, where: str) -> NoReturn:
    if head[257:262] == b"ustar":
        raise FormatError(
            "a tar archive of torch 0.1, a format last written in 2017",
            where=where,
            fix="load it with an old torch and save it again",
        )
    if not head:
        raise FormatError("the file is empty", where=where)
    raise FormatError("neither a torch.save archive nor a torch.save stream", where=where, got=repr(head[:8]))
