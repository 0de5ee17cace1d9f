"""What a region of a file holds, at every level: pickles, containers of them, or nothing that a loader would run.

Two ways of looking: `sure` when the name promises a pickle, so that everything odd is a finding; otherwise only what
a loader would run, and what could not be read to its end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crossdock import torchfile
from crossdock.errors import CrossdockError
from crossdock.scan import containers
from crossdock.scan.containers import HEAD, Region, shown
from crossdock.scan.values import Sighting
from crossdock.scan.walk import Budget, Walked, walk
from crossdock.unpickle.values import printable

MAX_LEVELS = 6  # of containers inside containers
RUNS: Final = ("call", "import")  # severities of what a loader does
_LOCAL = b"PK\3\4"
_END = b"PK\5\6"
_LEGACY = 5  # pickles of a torch.save stream of before torch 1.6, before its storages
PROTOCOLS: Final = (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")
_WINDOW = 8 << 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a pickle would do, or that is wrong with it.

    file      the file
    place     where in the file: a zip entry, a blob, "" for the file itself
    offset    byte of the opcode in the pickle
    name      the global concerned ("posix.system"), "" when there is none
    severity  "call": a loader runs it; "import": a loader imports it; "refused": not looked at to the end, or of a
              cost without bounds; "broken": truncated or malformed
    sentence  all this for a reader
    """

    file: Path
    place: str
    offset: int
    name: str
    severity: str
    sentence: str


class Looking:
    """The look into one file: its budget, and whether anything in it was a pickle or a container."""

    def __init__(self, file: Path, size: int) -> None:
        self.file = file
        self.budget = Budget.of(size)
        self.held = False

    def region(self, region: Region, place: str = "", *, sure: bool, level: int = 0) -> Iterator[Finding]:
        """Findings in `region`, whatever it is."""
        head = region.read(0, HEAD)
        closed = containers.closed_kind(head)
        if level > MAX_LEVELS:
            yield self.finding(place, "refused", f"containers nested deeper than {MAX_LEVELS}; not scanned")
        elif closed:
            self.held = True
            yield self.finding(place, "refused", f"a {closed} file was not scanned")
        elif kind := containers.compression(head):
            yield from self.compressed(region, kind, place, sure, level)
        elif head.startswith((_LOCAL, _END)):
            yield from self.archive(region, place, sure, level)
        elif containers.is_tar(head):
            yield from self.tar(region, place, sure, level)
        elif head.startswith(b"\x93NUMPY"):
            yield from self.array(region, head, place, sure, level)
        else:
            yield from self.stream(region, head, place, sure, level)
            yield from self.hidden_archive(region, place, level)

    def finding(self, place: str, severity: str, sentence: str, offset: int = 0, name: str = "") -> Finding:
        """A finding of this file."""
        return Finding(self.file, place, offset, name, severity, sentence)

    def of_sighting(self, place: str, sighting: Sighting) -> Finding:
        """A finding of what a walk saw."""
        return self.finding(place, sighting.severity, sighting.sentence, sighting.offset, sighting.name)

    # --- containers

    def compressed(self, region: Region, kind: str, place: str, sure: bool, level: int) -> Iterator[Finding]:
        """Unpack a compressed stream and look into it."""
        unpacked = containers.unpack(region, kind, self.budget)
        try:
            inner = shown(place, f"{kind} data")
            found = list(self.region(unpacked.region, inner, sure=sure, level=level + 1))
            yield from found
            if unpacked.problem and (sure or self.held or kind != "zlib"):
                yield self.finding(place, "refused", unpacked.problem)
        finally:
            unpacked.close()

    def archive(self, region: Region, place: str, sure: bool, level: int) -> Iterator[Finding]:
        """Every entry of a zip archive."""
        self.held = True
        try:
            archive = torchfile.read_archive(region.fd, region.offset, region.size, str(self.file))
        except CrossdockError as error:
            yield self.finding(place, "broken", "; ".join(problem.what for problem in error.problems[:3]))
            yield from self.search(region, place, level)
            return
        if any(name.endswith("/constants.pkl") and name.count("/") == 1 for name in archive.entries):
            yield self.finding(place, "refused", "a TorchScript program: its code was not analysed")
        first = min((entry.header for entry in archive.entries.values()), default=0)
        if first:
            yield from self.region(Region(region.fd, region.offset, first), place, sure=False, level=level + 1)
        for name in archive.entries:
            yield from self.entry(archive, name, shown(place, name), sure, level)

    def entry(self, archive: torchfile.Archive, name: str, place: str, sure: bool, level: int) -> Iterator[Finding]:
        """One entry of a zip archive."""
        inner, unpacked, problem = containers.entry_region(archive, name, self.budget)
        try:
            if problem:
                yield self.finding(place, "refused", problem)
            if inner.size or is_pickle_name(name):
                yield from self.region(inner, place, sure=is_pickle_name(name), level=level + 1)
        finally:
            if unpacked is not None:
                unpacked.close()

    def hidden_archive(self, region: Region, place: str, level: int) -> Iterator[Finding]:
        """What ends like a zip archive after something else: programs find its entries from the end."""
        begin = containers.zip_begin(region)
        if begin is not None:
            inner = Region(region.fd, region.offset + begin, region.size - begin)
            yield from self.archive(inner, shown(place, f"zip at {begin}"), False, level + 1)

    def tar(self, region: Region, place: str, sure: bool, level: int) -> Iterator[Finding]:
        """Every member of a tar archive."""
        self.held = True
        names = set()
        for name, offset, size, problem in containers.tar_members(region):
            if problem:
                yield self.finding(place, "refused", problem)
                continue
            names.add(name.removeprefix("./"))
            member = Region(region.fd, region.offset + offset, size)
            if size:
                yield from self.region(member, shown(place, name), sure=is_pickle_name(name), level=level + 1)
        if {"pickle", "storages"} <= names:
            yield self.finding(place, "refused", "a tar archive of torch 0.1: pickles lie between its storages")

    def array(self, region: Region, head: bytes, place: str, sure: bool, level: int) -> Iterator[Finding]:
        """A .npy file: a pickle where it holds objects."""
        start, objects = containers.npy_data(region, head)
        self.held = True
        if start >= region.size:
            if sure or objects:
                yield self.finding(place, "broken", "the array has no data")
            return
        data = Region(region.fd, region.offset + start, region.size - start)
        if objects:
            yield from self.stream(data, data.read(0, HEAD), shown(place, "objects"), True, level + 1)

    def search(self, region: Region, place: str, level: int) -> Iterator[Finding]:
        """Pickles in zip entries found by their local headers, whatever the directories say."""
        at = 0
        while at < region.size:
            window = region.read(at, _WINDOW + 512)
            if not window:
                return
            found = window.find(_LOCAL)
            while 0 <= found < _WINDOW:
                yield from self.local(region, at + found, place, level)
                found = window.find(_LOCAL, found + 4)
            at += _WINDOW

    def local(self, region: Region, at: int, place: str, level: int) -> Iterator[Finding]:
        """The entry whose local header is at `at`, up to where its pickle ends."""
        header = region.read(at, 30 + 512)
        if len(header) < 30:
            return
        name_length, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        name = header[30 : 30 + name_length].decode("utf-8", "replace")
        start = at + 30 + name_length + extra
        if name_length > 512 or not is_pickle_name(name) or start >= region.size:
            return
        where = shown(place, f"blob at {region.offset + at}: {printable(name)}")
        self.budget.steps -= 1000
        if self.budget.steps <= 0:
            yield self.finding(where, "refused", "more entries than a file of this size needs; not scanned")
            return
        inner = Region(region.fd, region.offset + start, region.size - start)
        if header[8]:
            unpacked = containers.unpack(inner, "deflate", self.budget)
            try:
                done = walk(unpacked.region.read, 0, unpacked.size, self.budget)
            finally:
                unpacked.close()
        else:
            done = walk(inner.read, 0, inner.size, self.budget)
        for sighting in done.found:
            yield self.of_sighting(where, sighting)

    # --- pickles

    def stream(self, region: Region, head: bytes, place: str, sure: bool, level: int) -> Iterator[Finding]:
        """Pickles one after another to the end of the region; or torch.save streams of before torch 1.6."""
        at = 0
        first, whole = True, sure or head.startswith(PROTOCOLS)
        if sure and not region.size:
            yield self.finding(place, "broken", "the file is empty")
        while at < region.size:
            end, found = self.one(region, at, place, level)
            definite = sure if first else region.read(at, 2) in PROTOCOLS
            runs = any(one.severity == "call" and "." in one.name for one in found) or (
                end is not None and any(one.severity in RUNS for one in found)
            )
            if first and (end is not None or runs):
                self.held = True
            for one in found:
                limit = end is None and one is found[-1] and one.severity == "refused"
                if definite or runs or limit:
                    yield one
            if end is None:
                if not first and not definite and not runs and whole and not _is_padding(region, at):
                    left = region.size - at
                    yield self.finding(place, "refused", f"{left} bytes after the pickle are of an unknown kind", at)
                return
            at, first = end, False

    def one(self, region: Region, at: int, place: str, level: int) -> tuple[int | None, list[Finding]]:
        """The pickle at `at`, or the torch.save stream there: where it ends, and what is found in it."""
        if not torchfile.is_legacy(region.read(at, 32)):
            only, found = self.walk(region, at, place, level)
            return only.end, found
        found = []
        storages: dict[str, int | None] = {}
        end: int | None = at
        for _ in range(_LEGACY):
            walked, more = self.walk(region, end or 0, place, level)
            found += more
            storages |= walked.storages
            end = walked.end
            if end is None:
                return None, found
        sizes = list(storages.values())
        if any(size is None for size in sizes):
            found.append(self.finding(place, "refused", "storages of an unknown type: their ends are unknown"))
            return None, found
        assert end is not None
        end += sum(8 + size for size in sizes if size is not None)
        if end > region.size:
            found.append(
                self.finding(place, "broken", f"the storages are truncated: {end - region.size} bytes are missing")
            )
            return None, found
        return end, found

    def walk(self, region: Region, at: int, place: str, level: int) -> tuple[Walked, list[Finding]]:
        """One pickle, and the bytes in it that a loader would unpickle in turn."""
        walked = walk(region.read, at, region.size, self.budget)
        found = [self.of_sighting(place, one) for one in walked.found]
        for offset, length in walked.inner:
            inner = Region(region.fd, region.offset + offset, length)
            self.budget.steps -= 100
            found += self.region(inner, shown(place, f"bytes at {offset}"), sure=True, level=level + 1)
        return walked, found


def is_pickle_name(name: str) -> bool:
    """Whether the name of an entry promises a pickle: torch finds data.pkl without regard to case (miniz's default)."""
    return name.lower().endswith((".pkl", ".pickle", ".metadata"))


def holds_no_pickle(head: bytes, size: int) -> bool:
    """Whether a file begins as safetensors or GGUF does, or as a document of text."""
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8:
        return True
    return head.startswith((b"GGUF", b"{", b"#", b"<"))


def _is_padding(region: Region, at: int) -> bool:
    while at < region.size:
        part = region.read(at, 1 << 20)
        if not part or part.strip(b"\0"):
            return False
        at += len(part)
    return True
