"""torch.save streams of before torch 1.6: five pickles one after another, then the bytes of each storage.

Reads the pickles only; storages become places in the file. Facts from torch 2.13 (`torch/serialization.py`:
`_legacy_load`, `_legacy_save`; `THPStorage_writeFileRaw` in `torch/csrc/serialization.cpp`).
"""

from __future__ import annotations

from crossdock import unpickle
from crossdock.errors import FormatError
from crossdock.io.files import read_exact
from crossdock.torchfile.storages import storage_id
from crossdock.unpickle import ITEM_SIZES, Limits, StorageRef, TruncatedPickleError, printable

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_MAGIC_BYTES = b"\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
_FIRST_READ = 1 << 20


def is_legacy(head: bytes) -> bool:
    """True when `head` starts with the pickled magic number."""
    return _MAGIC_BYTES in head[:32]


def load_legacy(fd: int, offset: int, length: int, where: str, limits: Limits | None) -> object:
    """The object saved in the stream in bytes [offset, offset + length) of `fd`.

    How long the pickles are is not written anywhere: the file is read up to a guess, which grows.
    Raises FormatError, UnsafePickleError.
    """
    limits = limits or Limits()
    guess = _FIRST_READ
    while True:
        data = read_exact(fd, offset, min(guess, length, limits.bytes), where)
        try:
            return _load(fd, offset, length, data, where, limits)
        except TruncatedPickleError:
            if len(data) >= min(length, limits.bytes):
                raise
            guess *= 8


def _load(fd: int, offset: int, length: int, data: bytes, where: str, limits: Limits) -> object:
    found: dict[str, StorageRef] = {}

    def note(pid: object) -> StorageRef:
        key, dtype, nbytes, view = storage_id(pid)
        found.setdefault(key, StorageRef(key, dtype, 0, nbytes))
        return StorageRef(key, dtype, 0, view[1] if view else nbytes)

    start = _header(data, where, limits)
    # First only to learn the storages; their places follow from the sizes of those before them.
    _, middle = unpickle.load_at(data, start, where=where, limits=limits, persistent=note)
    keys, end = unpickle.load_at(data, middle, where=where, limits=limits)
    placed = _places(fd, offset, length, end, keys, found, where)

    def resolve(pid: object) -> StorageRef:
        key, dtype, nbytes, view = storage_id(pid)
        if key not in placed or nbytes > placed[key].nbytes:
            raise ValueError(f"storage {printable(key)!r} is not in the file, or is smaller there")
        first, nbytes = view or (0, nbytes)
        return StorageRef(key, dtype, placed[key].offset + first, nbytes)

    return unpickle.load_at(data, start, where=where, limits=limits, persistent=resolve)[0]


def _header(data: bytes, where: str, limits: Limits) -> int:
    magic, at = unpickle.load_at(data, 0, where=where, limits=limits)
    version, at = unpickle.load_at(data, at, where=where, limits=limits)
    system, at = unpickle.load_at(data, at, where=where, limits=limits)
    if magic != MAGIC or version != PROTOCOL:
        raise FormatError("not a torch.save stream that is known", where=where)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise FormatError("the tensors are big-endian; crossdock reads little-endian files", where=where)
    return at


def _places(
    fd: int, offset: int, length: int, end: int, keys: object, found: dict[str, StorageRef], where: str
) -> dict[str, StorageRef]:
    """Each storage: a count of elements (int64), then its bytes, in the order of `keys`."""
    if type(keys) is not list or any(type(key) is not str for key in keys) or len(set(keys)) != len(keys):
        raise FormatError("the stream does not list its storages", where=where)
    placed: dict[str, StorageRef] = {}
    for key in keys:
        ref = found.get(key)
        if ref is None:
            raise FormatError(f"storage {printable(key)!r} belongs to no tensor", where=where)
        if end + 8 + ref.nbytes > length:
            raise FormatError(
                f"the file is truncated in storage {printable(key)!r}",
                where=where,
                expected=f"{end + 8 + ref.nbytes} bytes",
                got=str(length),
            )
        count = int.from_bytes(read_exact(fd, offset + end, 8, where), "little", signed=True)
        if count * ITEM_SIZES[ref.dtype] != ref.nbytes:
            raise FormatError(
                f"storage {printable(key)!r} has {count} elements; its tensors say {ref.nbytes} bytes",
                where=where,
            )
        placed[key] = StorageRef(key, ref.dtype, offset + end + 8, ref.nbytes)
        end += 8 + ref.nbytes
    return placed
