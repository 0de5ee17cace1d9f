"""List what the pickles of a checkpoint would do if somebody else's loader ran them. Nothing is run.

Looks into torch.save archives and streams, plain pickles, `.metadata` and the blobs of `.distcp` files; in a folder
also into files of other names that begin like a pickle or are archives of one. Everything odd becomes a finding, and
the scan goes on: hostile archives are also searched byte by byte.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Final

from crossdock import torchfile, unpickle
from crossdock.errors import CrossdockError, FormatError, NotACheckpointError
from crossdock.formats.dcp import metadata as dcp
from crossdock.io.files import read_exact, reading, size_of
from crossdock.torchfile import Archive
from crossdock.unpickle.limits import Limits
from crossdock.unpickle.values import printable
from crossdock.unpickle.walk import Severity, Sighting, walk

SUFFIXES: Final = frozenset({".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".distcp"})
MAYBE_RAW: Final = frozenset({".bin", ".ckpt"})  # also used for files that hold no pickle at all
MAX_PICKLE = Limits().bytes
PEEK = 64 << 10  # bytes at the ends of a file of another name
MAX_STREAM = 64  # pickles one after another in a stream
WINDOW = 8 << 20
RUNS: Final = ("call", "import")  # severities of what a loader does
_LOCAL = b"PK\3\4"
_LENGTHS = Struct("<2H")  # of the name and of the extra field, at byte 26 of a local header


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a pickle would do, or that is wrong with it.

    file      the file
    place     where in the file: a zip entry, a blob, "" for the file itself
    offset    byte of the opcode in the pickle
    name      the global concerned ("posix.system"), "" when there is none
    severity  "call": a loader runs it; "import": a loader imports it; "refused": crossdock would not read it;
              "broken": truncated or malformed
    sentence  all this for a reader
    """

    file: Path
    place: str
    offset: int
    name: str
    severity: Severity
    sentence: str


def scan(path: Path) -> list[Finding]:
    """Findings for a file, or for every file below a folder that may hold pickles. An empty list: only data.

    Of files whose names promise no pickle, only what a loader would run or import is a finding.

    Raises NotACheckpointError when there is nothing at `path`; everything else is a finding.
    """
    if path.is_file():
        return list(_scan_file(path))
    if not path.is_dir():
        raise NotACheckpointError("there is no such file or folder", where=str(path))
    out: list[Finding] = []
    for folder, names in _folders(path):
        described: frozenset[str] = frozenset()
        if ".metadata" in names:
            metadata = Path(folder) / ".metadata"
            out.extend(_scan_file(metadata))
            found, described = _scan_described(metadata)
            out.extend(found)
        for name in sorted(names):
            file = Path(folder) / name
            if name in described or name == ".metadata":
                continue
            if file.suffix.lower() in SUFFIXES:
                out.extend(_scan_file(file))
            elif _holds_pickle(file):
                out.extend(finding for finding in _scan_file(file) if finding.severity in RUNS)
    return out


def looked_at(path: Path) -> int:
    """How many files `scan` looks into for their suffix, as `.metadata`, or since they hold a pickle."""
    if not path.is_dir():
        return 1
    every = (Path(folder) / name for folder, names in _folders(path) for name in names)
    return sum(file.name == ".metadata" or file.suffix.lower() in SUFFIXES or _holds_pickle(file) for file in every)


def _holds_pickle(file: Path) -> bool:
    """Whether a file begins like a pickle, or is an archive of one. Reads its two ends."""
    try:
        with reading(file) as fd:
            head = os.pread(fd, PEEK, 0)
            if head.startswith(_LOCAL):
                return b".pkl" in (head + os.pread(fd, PEEK, max(0, size_of(fd) - PEEK))).lower()
    except (CrossdockError, OSError):
        return False
    if head[:1] == b"\x80":  # a protocol from 2 on says so
        return head[1:2] in (b"\2", b"\3", b"\4", b"\5")
    found, end = walk(head)
    return end is not None and any(sighting.severity in RUNS for sighting in found)


def _folders(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder below `path` and the names in it; a loader follows links to folders, so each is followed, once."""
    seen: set[str] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield folder, names


def _scan_described(metadata: Path) -> tuple[list[Finding], frozenset[str]]:
    """The blobs that a `.metadata` file names, and the data files in its own folder that this covers."""
    out: list[Finding] = []
    try:
        blobs = dcp.read_blobs(metadata)
    except CrossdockError:
        return out, frozenset()  # already reported; the data files are searched on their own
    covered = set()
    for name, spans in blobs.items():
        file = metadata.parent / name
        try:
            with reading(file) as fd:
                for offset, length in spans:
                    if os.pread(fd, 4, offset) == _LOCAL:
                        out.extend(_scan_archive(file, fd, offset, length, f"blob at {offset}"))
                    elif length:
                        out.extend(_scan_bare(file, fd, offset, length))
                for start, end in _between(spans, size_of(fd)):
                    out.extend(_search(file, fd, end, start))
        except CrossdockError as error:
            out.append(_of_error(file, "", error))
        if "/" not in name:
            covered.add(name)
    return out, frozenset(covered)


def _between(spans: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file of `size` bytes that no span (offset, bytes) covers."""
    end = 0
    for offset, length in [*sorted(spans), (size, 0)]:
        if end < offset:
            yield end, min(offset, size)
        end = max(end, offset + length)


def _scan_bare(file: Path, fd: int, offset: int, length: int) -> Iterator[Finding]:
    """A blob that is no archive: safetensors, or a pickle, which torch.load reads as a file of before torch 1.6."""
    data = os.pread(fd, min(length, MAX_PICKLE), offset)
    for sighting in _walk_stream(data, MAX_STREAM, Limits().opcodes)[0]:
        if sighting.severity in RUNS:
            yield _of_sighting(file, f"blob at {offset}", sighting)


def _scan_file(file: Path) -> Iterator[Finding]:
    try:
        with reading(file) as fd:
            size = size_of(fd)
            head = os.pread(fd, 512, 0)
            if file.suffix == ".distcp":
                yield from _search(file, fd, size)
            elif head.startswith(b"PK"):
                yield from _scan_archive(file, fd, 0, size, "")
            elif head[257:262] == b"ustar":
                yield Finding(file, "", 0, "", "refused", "a tar archive of torch 0.1: a loader runs its pickles")
            else:
                yield from _scan_stream(file, fd, size, head)
    except CrossdockError as error:
        yield _of_error(file, "", error)
    except OSError as error:
        yield Finding(file, "", 0, "", "broken", f"cannot be read: {error.strerror}")


def _scan_archive(file: Path, fd: int, offset: int, length: int, place: str) -> Iterator[Finding]:
    """Every `.pkl` of a zip archive; then what the reader itself thinks of the whole."""
    try:
        archive = torchfile.read_archive(fd, offset, length, str(file))
    except CrossdockError as error:
        yield _of_error(file, place, error)
        yield from _search(file, fd, offset + length, offset)
        return
    quiet = True
    names = [name for name in archive.entries if _is_pickle(name)]
    for name in names:
        where = f"{place}: {printable(name)}" if place else printable(name)
        data, problem = _entry(archive, name)
        if problem:
            quiet = False
            yield Finding(file, where, 0, "", "refused", problem)
        for sighting in walk(data)[0] if data else ():
            quiet = False
            yield _of_sighting(file, where, sighting)
    if quiet and any(name.endswith("/data.pkl") for name in names):
        yield from _refusal(file, place, lambda: torchfile.open_torch(fd, offset, length, where=str(file)))


def _is_pickle(name: str) -> bool:
    return name.lower().endswith(".pkl")  # torch finds data.pkl without regard to case (miniz's default)


def _entry(archive: Archive, name: str) -> tuple[bytes, str]:
    """The bytes of an entry, inflated if compressed (a loader would do so), and what is odd about it."""
    entry = archive.entries[name]
    if not entry.method and not entry.encrypted:
        try:
            return archive.read(name, MAX_PICKLE), ""
        except CrossdockError as error:
            return b"", error.problems[0].what
    raw = read_exact(archive.fd, archive.offset + entry.header, 30, archive.where)
    start = entry.header + 30 + sum(_LENGTHS.unpack_from(raw, 26))
    length = max(0, min(entry.stored_size, MAX_PICKLE, archive.directory - start))
    data = _inflate(read_exact(archive.fd, archive.offset + start, length, archive.where))
    return data, "the entry is compressed, which torch.save never does; crossdock refuses it"


def _inflate(data: bytes) -> bytes:
    """At most 64 MiB of a deflated stream, as much as is whole."""
    try:
        return zlib.decompressobj(-15).decompress(data, 1 << 26)
    except zlib.error:
        return b""


def _scan_stream(file: Path, fd: int, size: int, head: bytes) -> Iterator[Finding]:
    """Pickles one after another: a plain pickle, `.metadata`, or a torch.save stream of before torch 1.6."""
    legacy = torchfile.is_legacy(head)
    length = min(size, 1 << 20 if legacy else MAX_PICKLE)
    limits = dcp.LIMITS if file.name == ".metadata" else Limits()
    while True:
        data = read_exact(fd, 0, length, str(file))
        sightings, ends = _walk_stream(data, 5 if legacy else MAX_STREAM, limits.opcodes)
        if ends or length >= min(size, MAX_PICKLE) or not legacy:
            break
        length = min(size, length * 8, MAX_PICKLE)
    calls = [one for one in sightings if one.severity in RUNS]
    raw = file.suffix.lower() in MAYBE_RAW and head[:1] != b"\x80"
    if (raw or _is_safetensors(head, size)) and not ends and not calls:
        return
    for sighting in sightings:
        yield _of_sighting(file, "", sighting)
    if sightings:
        return
    if legacy:
        yield from _refusal(file, "", lambda: torchfile.open_torch(file))
    else:
        yield from _refusal(file, "", lambda: unpickle.load(data, where=str(file), limits=limits))


def _is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes begins as safetensors does: the length of a JSON object, then the object."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def _walk_stream(data: bytes, most: int, opcodes: int) -> tuple[list[Sighting], bool]:
    """Sightings in up to `most` pickles, and whether the last of them came to its end."""
    out: list[Sighting] = []
    at, end = 0, None
    for index in range(most):
        found, end = walk(data, at, opcodes)
        out.extend(found)
        if end is None or end >= len(data):
            break
        if index + 1 < most and data[end : end + 1] != b"\x80":
            break
        at = end
    return out, end is not None


def _search(file: Path, fd: int, end: int, start: int = 0) -> Iterator[Finding]:
    """Pickles in zip entries found by their local headers, whatever the directories say."""
    at = start
    while at < end:
        window = read_exact(fd, at, min(WINDOW + 512, end - at), str(file))
        place = window.find(_LOCAL)
        while 0 <= place < WINDOW:
            yield from _scan_local(file, fd, at + place, end)
            place = window.find(_LOCAL, place + 4)
        at += WINDOW


def _scan_local(file: Path, fd: int, at: int, end: int) -> Iterator[Finding]:
    header = os.pread(fd, 30 + 512, at)
    if len(header) < 30:
        return
    name_length, extra_length = (
        int.from_bytes(header[26:28], "little"),
        int.from_bytes(header[28:30], "little"),
    )
    name = header[30 : 30 + name_length].decode("utf-8", "replace")
    if name_length > 512 or not _is_pickle(name):
        return
    start = at + 30 + name_length + extra_length
    length = 1 << 16
    while True:
        raw = os.pread(fd, max(0, min(length, end - start)), start)
        data = _inflate(raw) if header[8] else raw
        found, stop = walk(data)
        if stop is not None or len(raw) < length or length >= MAX_PICKLE:
            break
        length *= 16
    for sighting in found:
        yield _of_sighting(file, f"blob at {at}: {printable(name)}", sighting)


def _refusal(file: Path, place: str, read: Callable[[], object]) -> Iterator[Finding]:
    """What crossdock's own reader would refuse."""
    try:
        read()
    except CrossdockError as error:
        yield _of_error(file, place, error)


def _of_sighting(file: Path, place: str, sighting: Sighting) -> Finding:
    return Finding(file, place, sighting.offset, sighting.name, sighting.severity, sighting.sentence)


def _of_error(file: Path, place: str, error: CrossdockError) -> Finding:
    severity: Severity = "broken" if isinstance(error, FormatError) else "refused"
    return Finding(file, place, 0, "", severity, "; ".join(problem.what for problem in error.problems[:3]))
