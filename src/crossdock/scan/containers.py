"""What holds files inside a file: zip, tar, compressed streams, numpy's arrays; which part of it lies where.

Nothing is trusted that a container says of itself. A part is a region of an open file; what is compressed is unpacked
into a temporary file, within a budget. Facts from APPNOTE.TXT 6.3.10, RFC 1952, POSIX 1003.1 (ustar and pax) and numpy
2.4 (`numpy/lib/_format_impl.py`).
"""

from __future__ import annotations

import bz2
import lzma
import os
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from crossdock.errors import CrossdockError
from crossdock.io.files import read_exact
from crossdock.scan.walk import Budget
from crossdock.torchfile.archive import Archive, Entry
from crossdock.unpickle.values import printable

PEEK = 64 << 10  # bytes at the end of a region: where readers of zip look
HEAD = 4 << 10  # bytes by which a region is told
_PIECE = 1 << 20
_STORED, _DEFLATED, _BZIP2, _LZMA = 0, 8, 12, 14
_LOCAL_SIZE = 30

# the first bytes of containers that are not read
_CLOSED: Final = (
    (b"7z\xbc\xaf\x27\x1c", "7z"),
    (b"Rar!\x1a\x07", "rar"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"LZIP", "lzip"),
    (b"\x89LZO", "lzop"),
    (b"MSCF", "cab"),
    (b"\x89HDF\r\n\x1a\n", "HDF5"),
)
_OBJECTS = re.compile(rb"""['"][|<>=]?O\d*['"]|object""")


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes [offset, offset + size) of the open file `fd`."""

    fd: int
    offset: int
    size: int

    def read(self, at: int, count: int) -> bytes:
        """At most `count` bytes from `at` on, from the start of the region."""
        return os.pread(self.fd, max(0, min(count, self.size - at)), self.offset + at)


class _Unpacker(Protocol):
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def closed_kind(head: bytes) -> str:
    """The kind of container that begins like `head` and is not read; "" for none."""
    return next((kind for magic, kind in _CLOSED if head.startswith(magic)), "")


def compression(head: bytes) -> str:
    """How the bytes are compressed: "gzip", "bzip2", "xz", "zlib", or ""."""
    if head.startswith(b"\x1f\x8b\x08"):
        return "gzip"
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    if head[:1] == b"\x78" and len(head) > 2 and int.from_bytes(head[:2], "big") % 31 == 0 and not head[1] & 32:
        try:
            zlib.decompressobj().decompress(head[:4096], 4096)
        except zlib.error:
            return ""
        return "zlib"
    return ""


def is_tar(head: bytes) -> bool:
    """Whether a tar archive begins so: its first header has the sum that it says."""
    return len(head) >= 512 and _tar_sum(head[:512])


def _tar_sum(header: bytes) -> bool:
    stated = _octal(header[148:156])
    return stated is not None and any(header) and sum(header[:148]) + sum(header[156:]) + 8 * 32 == stated


def _octal(field: bytes) -> int | None:
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    return int(text, 8) if text and all(48 <= one < 56 for one in text) else None


def tar_members(region: Region) -> Iterator[tuple[str, int, int, str]]:
    """(name, offset, size, problem) of each member; a problem ends it: the rest was not read."""
    at = 0
    while at + 512 <= region.size:
        header = region.read(at, 512)
        if not any(header):
            at += 512
            continue
        size = _octal(header[124:136]) if _tar_sum(header) else None
        if size is None or at + 512 + size > region.size:
            yield "", at, 0, "the tar archive is damaged; the rest was not scanned"
            return
        name, kind = header[:100].rstrip(b"\0").decode("utf-8", "replace"), header[156:157]
        if (kind in (b"x", b"g") and b"size=" in region.read(at + 512, min(size, PEEK))) or kind == b"S":
            yield name, at, 0, "a tar archive with sizes outside its headers; not scanned"
            return
        yield name, at + 512, size, ""
        at += 512 + -(-size // 512) * 512


def npy_data(region: Region, head: bytes) -> tuple[int, bool]:
    """Where the data of a .npy file begins, and whether its header speaks of objects, which are pickled."""
    wide = head[6:7] != b"\1"
    length = int.from_bytes(head[8:12] if wide else head[8:10], "little")
    start = (12 if wide else 10) + length
    return start, bool(_OBJECTS.search(region.read(0, min(start, PEEK))))


def zip_begin(region: Region) -> int | None:
    """Where a zip archive begins that ends with the region, as its end record says; None without one."""
    tail = region.read(max(0, region.size - PEEK - 22), PEEK + 22)
    at = tail.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(tail):
        return None
    size, start = int.from_bytes(tail[at + 12 : at + 16], "little"), int.from_bytes(tail[at + 16 : at + 20], "little")
    return max(0, region.size - len(tail) + at - size - start)


class Unpacked:
    """Bytes unpacked into a temporary file, which is gone when it is closed. problem: why it is not all of them."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        self.size = 0
        self.problem = ""

    @property
    def region(self) -> Region:
        """The bytes that were unpacked so far, as one region."""
        self._file.flush()
        return Region(self._file.fileno(), 0, self.size)

    def close(self) -> None:
        """Remove the temporary file."""
        self._file.close()

    def add(self, data: bytes) -> None:
        """Append bytes that were unpacked."""
        self._file.write(data)
        self.size += len(data)


def _unpacker(kind: str) -> _Unpacker:
    if kind == "bzip2":
        return bz2.BZ2Decompressor()
    if kind == "xz":
        return lzma.LZMADecompressor(memlimit=256 << 20)
    return zlib.decompressobj({"gzip": 31, "zlib": 15, "deflate": -15}[kind])


def unpack(region: Region, kind: str, budget: Budget) -> Unpacked:
    """Unpack `region`; several streams one after another are read as their programs read them."""
    out = Unpacked()
    unpacker: _Unpacker | None = _unpacker(kind)
    at = 0
    pending = b""
    try:
        while unpacker is not None:
            if not pending and at < region.size:
                pending = region.read(at, _PIECE)
                at += len(pending)
            made = unpacker.decompress(pending, _PIECE)
            out.add(made)
            budget.unpacked -= len(made) + len(pending) // 8
            ended = bool(getattr(unpacker, "eof", False))
            pending = getattr(unpacker, "unconsumed_tail", b"")
            if budget.unpacked < 0:
                out.problem = "it unpacks to far more than its size; the rest was not scanned"
                break
            if ended:
                rest = getattr(unpacker, "unused_data", b"")
                following = (rest + region.read(at, PEEK))[:PEEK]
                again = kind in ("gzip", "bzip2", "xz") and compression(following) == kind
                if not again and following.strip(b"\0"):
                    out.problem = "bytes after the compressed stream were not scanned"
                unpacker, pending = (_unpacker(kind), rest) if again else (None, b"")
            elif not made and not pending and at >= region.size and getattr(unpacker, "needs_input", True):
                out.problem = "the compressed stream is cut off"
                break
    except (zlib.error, OSError, EOFError, ValueError, lzma.LZMAError, MemoryError):
        out.problem = "the compressed stream is damaged"
    return out


def entry_region(archive: Archive, name: str, budget: Budget) -> tuple[Region, Unpacked | None, str]:
    """The bytes of an entry of a zip archive, unpacked where they are compressed; and why they are not all of it."""
    entry: Entry = archive.entries[name]
    nothing = Region(archive.fd, 0, 0)
    if entry.encrypted:
        return nothing, None, "the entry is encrypted; not scanned"
    try:
        raw = read_exact(archive.fd, archive.offset + entry.header, _LOCAL_SIZE, archive.where)
    except CrossdockError as error:
        return nothing, None, error.problems[0].what
    name_length, extra_length = int.from_bytes(raw[26:28], "little"), int.from_bytes(raw[28:30], "little")
    method, flags = int.from_bytes(raw[8:10], "little"), raw[6]
    start = entry.header + _LOCAL_SIZE + name_length + extra_length
    if raw[:4] != b"PK\3\4" or method != entry.method or flags & 1 or start + entry.stored_size > archive.directory:
        return nothing, None, "the entry's own header contradicts the directory; not scanned"
    region = Region(archive.fd, archive.offset + start, entry.stored_size)
    if method == _STORED:
        same = entry.size == entry.stored_size
        return region, None, "" if same else "the entry's two sizes differ"
    kinds = {_DEFLATED: "deflate", _BZIP2: "bzip2"}
    if method not in kinds:
        return nothing, None, f"the entry is compressed by method {method}; not scanned"
    unpacked = unpack(region, kinds[method], budget)
    problem = unpacked.problem
    if not problem and unpacked.size != entry.size:
        problem = "the entry has another size than the directory says"
    return unpacked.region, unpacked, problem


def shown(place: str, name: str) -> str:
    """A place inside a place."""
    return f"{place}: {printable(name)}" if place else printable(name)
