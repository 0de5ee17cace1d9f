"""The directory of a zip archive inside a file: which entry lies where. Reads no entry's data by itself.

Written for torch.save archives, which are never compressed, and for whatever pretends to be one: every count,
size and offset is checked against the bytes that are there, and entries may not overlap.
Facts from APPNOTE.TXT 6.3.10 (PKWARE) and torch 2.13 (`caffe2/serialize/inline_container.cc`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from struct import Struct
from typing import NoReturn

from crossdock.errors import FormatError, UnsafePickleError
from crossdock.io.files import read_exact
from crossdock.unpickle import printable

MAX_ENTRIES = 1 << 18
MAX_DIRECTORY = 1 << 26

_END = Struct("<4s4H2IH")
_END64_LOCATOR = Struct("<4sIQI")
_END64 = Struct("<4sQ2H2I4Q")
_CENTRAL = Struct("<4s6H3I5H2I")
_LOCAL = Struct("<4s5H3I2H")
_U64 = Struct("<Q")
_TAIL = 4096  # holds the directory of a tensor's archive; larger ones take a second read


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: where its local header starts in the archive, its sizes, its method (0 = stored)."""

    header: int
    size: int
    stored_size: int
    method: int
    encrypted: bool


@dataclass(frozen=True, slots=True)
class Archive:
    """The entries of the zip archive in bytes [offset, offset + length) of the open file `fd`.

    directory   where the central directory starts, from `offset` on: no entry may reach beyond it
    """

    fd: int
    offset: int
    length: int
    where: str
    directory: int
    entries: Mapping[str, Entry]

    def locate(self, name: str) -> tuple[int, int]:
        """Absolute offset and size of the data of a stored entry. Raises FormatError."""
        entry = self.entries.get(name)
        if entry is None:
            raise FormatError(f"the archive has no entry {printable(name)!r}", where=self.where)
        where = f"{self.where}: {printable(name)}"
        if entry.method or entry.encrypted or entry.stored_size != entry.size:
            raise FormatError(
                "the entry is compressed or encrypted; torch.save never does that",
                where=where,
                fix="save it again",
            )
        raw = read_exact(self.fd, self.offset + entry.header, _LOCAL.size, where)
        signature, _, flags, method, *_, name_length, extra_length = _LOCAL.unpack(raw)
        start = entry.header + _LOCAL.size + name_length + extra_length
        if signature != b"PK\3\4" or method or flags & 1 or name_length != len(name.encode()):
            raise FormatError("the entry's own header contradicts the directory", where=where)
        if start + entry.size > self.directory:
            raise FormatError("the entry reaches into the directory", where=where)
        return self.offset + start, entry.size

    def read(self, name: str, limit: int) -> bytes:
        """The data of a stored entry of at most `limit` bytes. Raises FormatError, UnsafePickleError."""
        offset, size = self.locate(name)
        where = f"{self.where}: {printable(name)}"
        if size > limit:
            raise UnsafePickleError("the entry is too large", where=where, expected=f"at most {limit}", got=str(size))
        return read_exact(self.fd, offset, size, where)


def read_archive(fd: int, offset: int, length: int, where: str) -> Archive:
    """The directory of the zip archive in bytes [offset, offset + length) of `fd`. Raises FormatError."""
    size = min(length, _TAIL)
    tail = read_exact(fd, offset + length - size, size, where)
    at = len(tail) - _END.size
    if at < 0 or tail[at : at + 4] != b"PK\5\6" or tail[-2:] != b"\0\0":
        size = min(length, _END.size + 65535)  # a comment may follow
        tail = read_exact(fd, offset + length - size, size, where)
        at = _find_end(tail, where)
    base = length - len(tail)  # of `tail`, from the start of the archive
    count, directory, end = _counts(fd, offset, tail, base, at, where)
    if directory >= base:
        raw = tail[directory - base : end - base]
    else:
        raw = read_exact(fd, offset + directory, end - directory, where)
    entries = _entries(raw, count, directory, where)
    return Archive(fd, offset, length, where, directory, entries)


def _find_end(tail: bytes, where: str) -> int:
    at = len(tail)
    while True:
        at = tail.rfind(b"PK\5\6", 0, at)
        if at < 0:
            raise FormatError("the zip end record is missing: truncated, or not an archive", where=where)
        if at + _END.size <= len(tail) and at + _END.size + _END.unpack_from(tail, at)[7] == len(tail):
            return at
        at += 3


def _counts(fd: int, offset: int, tail: bytes, base: int, at: int, where: str) -> tuple[int, int, int]:
    """Number of entries, and where the directory starts and ends, from the start of the archive."""
    _, disk, first_disk, here, count, size, start, _ = _END.unpack_from(tail, at)
    end = base + at
    locator = tail[at - _END64_LOCATOR.size : at] if at >= _END64_LOCATOR.size else b""
    if locator[:4] == b"PK\6\7":  # torch always writes the zip64 record, needed or not
        end64 = _END64_LOCATOR.unpack(locator)[2]
        if end64 > end - _END64_LOCATOR.size - _END64.size:
            _broken(where, "the zip64 record lies outside the archive")
        if end64 >= base:
            raw = tail[end64 - base : end64 - base + _END64.size]
        else:
            raw = read_exact(fd, offset + end64, _END64.size, where)
        narrow = ((here, 0xFFFF), (count, 0xFFFF), (size, 0xFFFFFFFF), (start, 0xFFFFFFFF))
        signature, _, _, _, disk, first_disk, here, count, size, start = _END64.unpack(raw)
        wide = (here, count, size, start)
        if signature != b"PK\6\6" or any(a not in (b, full) for (a, full), b in zip(narrow, wide, strict=True)):
            _broken(where, "the two end records of the archive contradict each other")
        end = end64
    if disk or first_disk or here != count:
        _broken(where, "a zip archive in several parts")
    if start + size != end:
        _broken(where, f"the directory is recorded as {size} bytes at {start}, but ends at {end}")
    if count > MAX_ENTRIES or size > MAX_DIRECTORY:
        raise UnsafePickleError(
            f"the archive has {count} entries, their directory {size} bytes",
            where=where,
            expected=f"at most {MAX_ENTRIES} entries, {MAX_DIRECTORY} bytes",
        )
    if count * _CENTRAL.size > size:
        _broken(where, f"{count} entries do not fit into a directory of {size} bytes")
    return count, start, end


def _entries(raw: bytes, count: int, directory: int, where: str) -> dict[str, Entry]:
    out: dict[str, Entry] = {}
    spans: list[tuple[int, int]] = []
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(raw) or raw[at : at + 4] != b"PK\1\2":
            _broken(where, "the directory does not hold as many entries as it says")
        fields = _CENTRAL.unpack_from(raw, at)
        flags, method, stored_size, size = fields[3], fields[4], fields[8], fields[9]
        name_length, extra_length, comment_length, header = fields[10], fields[11], fields[12], fields[16]
        name_at = at + _CENTRAL.size
        extra_at = name_at + name_length
        at = extra_at + extra_length + comment_length
        if at > len(raw):
            _broken(where, "the directory is truncated")
        if 0xFFFFFFFF in (size, stored_size, header):
            extra = raw[extra_at : extra_at + extra_length]
            size, stored_size, header = _zip64(extra, size, stored_size, header, where)
        name = raw[name_at:extra_at].decode("utf-8", "replace")
        if name in out:
            _broken(where, f"two entries are named {printable(name)!r}")
        out[name] = Entry(header, size, stored_size, method, bool(flags & 1))
        spans.append((header, header + _LOCAL.size + name_length + stored_size))
    if at != len(raw):
        _broken(where, "the directory holds more than its entries")
    spans.sort()
    spans.append((directory, directory))
    for (_, end), (start, _) in pairwise(spans):
        if end > start:
            _broken(where, "two entries overlap, or one reaches into the directory")
    return out


def _zip64(extra: bytes, size: int, stored_size: int, header: int, where: str) -> tuple[int, int, int]:
    """The values that do not fit into 32 bits, from extra field 1."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = extra[at] | extra[at + 1] << 8, extra[at + 2] | extra[at + 3] << 8
        field = extra[at + 4 : at + 4 + length]
        at += 4 + length
        if kind != 1:
            continue
        values = [_U64.unpack_from(field, place)[0] for place in range(0, len(field) - 7, 8)]
        wanted = [value == 0xFFFFFFFF for value in (size, stored_size, header)]
        if sum(wanted) <= len(values):
            taken = iter(values)
            size, stored_size, header = (
                next(taken) if want else value for want, value in zip(wanted, (size, stored_size, header), strict=True)
            )
            return size, stored_size, header
    return _broken(where, "an entry of more than 4 GiB without its zip64 sizes")


def _broken(where: str, what: str) -> NoReturn:
    raise FormatError(what, where=where)
