"""The journal of an unfinished output: which tensors are safely in the files, and with which hash.

`OUT.partial/` holds the files being written, the journal, and a lock. A line is added only after the tensor's bytes
were flushed to the disk, so a crash of the program or of the machine loses at most the work since the last flush.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from crossdock.codecs.error_stats import ErrorStats
from crossdock.codecs.value_counts import ValueCounts
from crossdock.errors import EnvironmentProblem, Problem, UsageError
from crossdock.io.system import flush_data
from crossdock.planning.plan import Plan
from crossdock.running.partial import check_own, make_folder, open_own

NAME = ".crossdock-journal"
_LARGEST = 1 << 30
MANIFEST = NAME + "-manifest"  # the manifest of an output that is whole, until it is in its place


@dataclass(frozen=True, slots=True)
class Done:
    """A finished tensor: its index in the plan, the hash of its bytes, what was counted in it, which of its experts
    have equal bytes, and how far its values lie from the source's, where that was measured."""

    tensor: int
    hash: str
    census: ValueCounts
    alike: tuple[tuple[int, ...], ...] = ()
    figures: ErrorStats | None = None


def identity(plan: Plan, hash_name: str) -> dict[str, Any]:
    """What must be the same for a run to go on where another stopped."""
    return {
        "plan": plan.digest,
        "hash": hash_name,
        "files": [file.name for file in plan.files],
        "sources": [[str(f.path), f.size, f.mtime_ns] for f in plan.sources],
    }


class Journal:
    """The open journal of one output, locked against a second run."""

    def __init__(self, folder: Path, fd: int, finished: Mapping[int, Done]) -> None:
        self.folder = folder
        self.finished = finished
        self._fd = fd

    @classmethod
    def open(cls, folder: Path, plan: Plan, hash_name: str, restart: bool) -> Journal:
        """Start or continue in `folder`. Raises UsageError when it belongs to another plan or source,
        or holds what is not of this run, EnvironmentProblem when another run holds it."""
        try:
            make_folder(folder)
            fd = open_own(folder / NAME, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise EnvironmentProblem(f"cannot write here: {error.strerror}", where=str(folder)) from None
        try:
            _lock(fd, folder)
            wanted = identity(plan, hash_name)
            header, finished, good = _read(fd)
            os.ftruncate(fd, good)
            if header is not None and header != wanted:
                if not restart:
                    raise UsageError(_mismatch(header, wanted, folder))
                own = _files(header) or wanted["files"]
                check_own(folder, (NAME, MANIFEST, *own))
                for name in (*own, MANIFEST):
                    (folder / name).unlink(missing_ok=True)
                header, finished = None, {}
            check_own(folder, (NAME, *(() if header is None else (MANIFEST, *wanted["files"]))))
            if header is None:
                os.ftruncate(fd, 0)
                _append(fd, [wanted])
            there = {i: done for i, done in finished.items() if _holds(folder, plan, i)}
            if len(there) != len(finished):
                # a file that is gone will be made anew, full of zeros: what was journaled of it must go before
                os.ftruncate(fd, 0)
                _append(fd, [wanted, *map(_record, there.values())])
                finished = there
            return cls(folder, fd, finished)
        except BaseException:
            os.close(fd)
            raise

    @staticmethod
    def peek(folder: Path, plan: Plan, hash_name: str) -> Mapping[int, Done] | None:
        """The finished tensors in a journal of this very plan; None without one. Changes nothing.

        Raises EnvironmentProblem when another run holds it.
        """
        try:
            fd = open_own(folder / NAME, os.O_RDONLY)
        except (OSError, UsageError):
            return None
        try:
            _lock(fd, folder)
            header, finished, _ = _read(fd)
        finally:
            os.close(fd)
        return finished if header == identity(plan, hash_name) else None

    def add(self, done: Iterable[Done]) -> None:
        """Record finished tensors whose bytes are already flushed."""
        _append(self._fd, map(_record, done))

    def close(self) -> None:
        """Release the lock and close the journal."""
        os.close(self._fd)


def _files(header: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the files of the run that wrote this header; none when they are not plain names below the folder."""
    names = header.get("files")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return ()
    plain = all(name and not name.startswith("/") and ".." not in name.split("/") for name in names)
    return tuple(names) if plain else ()


def _lock(fd: int, folder: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if not isinstance(error, BlockingIOError):
            raise EnvironmentProblem(
                f"the file system cannot lock files: {error.strerror or error}", where=str(folder),
                fix="choose an --output on another disk",
            ) from error  # fmt: skip
        raise EnvironmentProblem(
            "another run is writing this output", where=str(folder), fix="wait for it, or choose another --output"
        ) from None


def _holds(folder: Path, plan: Plan, tensor: int) -> bool:
    """Whether `tensor` is in the plan, and its file in the folder at full size."""
    if not 0 <= tensor < len(plan.tensors):
        return False
    file = plan.files[plan.tensors[tensor].file]
    try:
        return (folder / file.name).stat().st_size == file.size
    except OSError:
        return False


def _record(done: Done) -> dict[str, Any]:
    """The line of a finished tensor, with a check of its own text: what was changed on the disk is not believed."""
    record = asdict(done)
    return record | {"check": _check(record)}


def _check(record: Mapping[str, Any]) -> str:
    return str(xxhash.xxh3_64_hexdigest(_text(record).encode("utf-8", "replace")))


def _text(record: Mapping[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":"))


def _append(fd: int, records: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(f"{_text(record)}\n" for record in records).encode()
    end = os.lseek(fd, 0, os.SEEK_END)
    while text:
        count = os.pwrite(fd, text, end)
        text, end = text[count:], end + count
    flush_data(fd)


def _read(fd: int) -> tuple[dict[str, Any] | None, dict[int, Done], int]:
    """Header, finished tensors, and the bytes that are whole lines: a torn last line is not believed."""
    size = os.fstat(fd).st_size
    if size > _LARGEST:
        raise UsageError("too large for the journal of an unfinished output", expected=f"at most {_LARGEST:,} bytes",
                         fix="move the unfinished output away, or choose another --output")  # fmt: skip
    lines = os.pread(fd, size, 0).split(b"\n")
    header: dict[str, Any] | None = None
    finished: dict[int, Done] = {}
    good = 0
    for line in lines[:-1]:
        try:
            record = json.loads(line)
            if header is None:
                if not isinstance(record, dict):
                    break
                header = record
            else:
                if record.pop("check", None) != _check(record):
                    break
                alike = tuple(map(tuple, record["alike"]))
                census = ValueCounts(**record["census"])
                found = record["figures"]
                figures = None if found is None else ErrorStats(**found)
                finished[record["tensor"]] = Done(record["tensor"], record["hash"], census, alike, figures)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            break
        good += len(line) + 1
    return header, finished, good


def _sources(header: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Path -> (size, time) of the sources of the run that wrote this header; none when it was damaged."""
    try:
        return {str(path): (int(size), int(mtime)) for path, size, mtime in header.get("sources", [])}
    except (TypeError, ValueError):
        return {}


def _mismatch(header: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> list[Problem]:
    fix = "run with the old settings to go on, or with --force to start again"
    problems = []
    if header.get("plan") != wanted["plan"] or header.get("hash") != wanted["hash"]:
        problems.append(
            Problem(
                "the unfinished output here belongs to another plan",
                where=str(folder),
                expected=f"plan {str(wanted['plan'])[:12]} with {wanted['hash']} hashes",
                got=f"plan {str(header.get('plan'))[:12]} with {header.get('hash')} hashes",
                cause="other flags, another source, or another version of crossdock",
                fix=fix,
                check="resume-mismatch",
            )
        )
    old = _sources(header)
    for path, size, mtime in wanted["sources"]:
        if path in old and old[path] != (size, mtime):
            problems.append(
                Problem(
                    "the source changed since the unfinished run",
                    where=path,
                    expected=f"{old[path][0]:,} bytes, modified {old[path][1]}",
                    got=f"{size:,} bytes, modified {mtime}",
                    fix=fix,
                    check="resume-mismatch",
                )
            )
    return problems or [Problem("the unfinished output here belongs to other sources", where=str(folder), fix=fix)]
