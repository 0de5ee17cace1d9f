"""Which files below a folder are looked into, and the blobs of a DCP checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from crossdock.errors import CrossdockError, NotACheckpointError
from crossdock.formats.dcp import metadata as dcp
from crossdock.io.files import reading, size_of
from crossdock.io.links import stays_inside
from crossdock.scan.containers import Region
from crossdock.scan.contents import PROTOCOLS, RUNS, Finding, Looking, holds_no_pickle

SUFFIXES: Final = frozenset(
    {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".p", ".pk", ".pck", ".dill", ".joblib", ".distcp", ".npz"}
)
MAYBE_RAW: Final = frozenset({".bin", ".ckpt", ".p", ".pk", ".npz"})  # also used for files that hold no pickle at all


@dataclass(frozen=True, slots=True)
class Report:
    """What a scan found: findings in the order of the files, and how many files were looked into.

    A file counts for its name (`.pt`, `.bin`, `.metadata`, ...), or since it holds a pickle or files.
    """

    findings: tuple[Finding, ...]
    files: int

    @property
    def clean(self) -> bool:
        """Whether all was read to its end, and nothing but data was in it."""
        return not self.findings

    @property
    def exit_code(self) -> int:
        """0 clean; 1 when a loader would run or import something; 3 when something could not be read to its end."""
        if any(finding.severity in RUNS for finding in self.findings):
            return 1
        return 3 if self.findings else 0


def scan(path: Path) -> Report:
    """Look into a file, or into every file below a folder that may hold pickles.

    Of files in a folder whose names promise no pickle, only what a loader would run is a finding, and what could not
    be read to its end. Links that lead out of the folder are findings and are not followed.

    Raises NotACheckpointError when there is no file or folder at `path`; everything else is a finding.
    """
    if not path.is_dir():
        if not path.is_file():
            what = "this is not a regular file" if path.exists() else "path does not exist"
            raise NotACheckpointError(what, where=str(path))
        found, _ = _file(path, sure=True)
        return Report(tuple(found), 1)
    findings: list[Finding] = []
    files = 0
    for folder, names, problems in _folders(path):
        findings += problems
        covered: frozenset[str] = frozenset()
        if ".metadata" in names:
            found, covered = _described(Path(folder) / ".metadata", path)
            findings += found
        for name in names:
            file = Path(folder) / name
            if name in covered:
                files += file.suffix == ".distcp"
                continue
            if not stays_inside(file, path):
                findings.append(_unread(file, "a link out of the folder was not followed"))
                continue
            sure = _promises_pickle(file)
            found, held = _file(file, sure=sure)
            findings += found
            files += sure or held
    return Report(tuple(findings), files)


def _promises_pickle(file: Path) -> bool:
    return file.name == ".metadata" or file.suffix.lower() in SUFFIXES


def _unread(file: Path, sentence: str, severity: str = "refused") -> Finding:
    return Finding(file, "", 0, "", severity, sentence)


def _folders(path: Path) -> Iterator[tuple[str, list[str], list[Finding]]]:
    """Every folder below `path`, the names in it, and what could not be listed. Links inside are followed, once."""
    seen: set[str] = set()
    problems: list[Finding] = []

    def unlisted(error: OSError) -> None:
        problems.append(_unread(Path(error.filename or path), f"the folder cannot be listed: {error.strerror}"))

    for folder, folders, names in os.walk(path, followlinks=True, onerror=unlisted):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in list(folders):
            if not stays_inside(Path(folder) / name, path):
                folders.remove(name)
                sentence = "a link out of the folder was not followed: scan its target"
                problems.append(_unread(Path(folder) / name, sentence))
        folders.sort()
        yield folder, sorted(names), problems
        problems = []
    if problems:
        yield str(path), [], problems


def _file(file: Path, *, sure: bool) -> tuple[list[Finding], bool]:
    """Findings in one file, and whether it holds a pickle or files."""
    try:
        with reading(file) as fd:
            size = size_of(fd)
            looking = Looking(file, size)
            whole = Region(fd, 0, size)
            head = whole.read(0, 512)
            if file.suffix == ".distcp":
                return list(looking.search(whole, "", 0)), True
            if holds_no_pickle(head, size) or (file.suffix.lower() in MAYBE_RAW and head[:2] not in PROTOCOLS):
                sure = False
            return list(looking.region(whole, sure=sure)), looking.held
    except CrossdockError as error:
        reason = error.problems[0].what
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    return [_unread(file, reason)], False


def _described(metadata: Path, root: Path) -> tuple[list[Finding], frozenset[str]]:
    """The blobs that a `.metadata` file names, and the data files in its own folder that this covers."""
    out: list[Finding] = []
    try:
        blobs = dcp.read_blobs(metadata)
    except CrossdockError as error:
        what = f"the contents of its data files are unknown: {error.problems[0].what}"
        return [_unread(metadata, what)], frozenset()  # the data files are searched on their own
    covered = set()
    for name, spans in blobs.items():
        file = metadata.parent / name
        if not stays_inside(file, root):
            out.append(_unread(file, "a link out of the folder was not followed"))
            covered.add(name)
            continue
        try:
            with reading(file) as fd:
                out += _blobs(file, fd, spans)
        except CrossdockError as error:
            out.append(_unread(file, error.problems[0].what, "broken"))
        except OSError as error:
            out.append(_unread(file, f"cannot be read: {error.strerror}"))
        if "/" not in name:
            covered.add(name)
    return out, frozenset(covered)


def _blobs(file: Path, fd: int, spans: list[tuple[int, int]]) -> Iterator[Finding]:
    """The blobs of a data file, and what lies between them."""
    size = size_of(fd)
    looking = Looking(file, size)
    for offset, length in spans:
        if offset + length > size:
            yield _unread(file, f"the blob at {offset} reaches beyond the end of the file", "broken")
            continue
        head = os.pread(fd, 2, offset)
        sure = head in PROTOCOLS
        yield from looking.region(Region(fd, offset, length), f"blob at {offset}", sure=sure)
    for start, end in _between(spans, size):
        yield from looking.search(Region(fd, start, end - start), "", 0)


def _between(spans: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file of `size` bytes that no span (offset, bytes) covers."""
    end = 0
    for offset, length in [*sorted(spans), (size, 0)]:
        if end < offset:
            yield end, min(offset, size)
        end = max(end, offset + length)
