"""System calls that not every system has, each with what is done without it.

Linux has all of them. macOS lacks posix_fallocate, fdatasync, O_DIRECT, memfd_create, renameat2 and sched_getaffinity
(Python 3.11's `os`, documented under "Availability"). No other module asks `os` for any of these.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from crossdock.errors import EnvironmentProblem

REFUSED: Final = (errno.EINVAL, errno.EOPNOTSUPP)  # how a file system says that it lacks a call
PAGE: Final = 4096  # bytes: what O_DIRECT asks of places in the file and in memory, on every usual disk
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's fcntl.h and fs.h


@contextlib.contextmanager
def documented_errors() -> Iterator[None]:
    """Let an OSError leave as the EnvironmentProblem that library calls document. Also a decorator.

    A broken pipe leaves as it is: it is of who called, whose `progress` writes somewhere.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise EnvironmentProblem(
            f"the machine refused: {error.strerror or error}",
            where=str(error.filename or ""),
            fix="check that the file is there, and the right to read it",
        ) from error


def reserve(fd: int, size: int) -> None:
    """Have the file system set `size` bytes aside for the file, where it can; elsewhere they are found when written.

    Raises OSError when there is no room.
    """
    if not size or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in REFUSED:
            raise


def flush_data(fd: int) -> None:
    """Return when the bytes of the file are on the disk; with its other attributes where they cannot be left out."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def flush_folder(folder: Path) -> None:
    """Return when the names in `folder` are on the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def open_direct(path: Path, flags: int) -> int | None:
    """A descriptor past the page cache (O_DIRECT); None where system or file system has no such thing."""
    if hasattr(os, "O_DIRECT"):
        with contextlib.suppress(OSError):
            return os.open(path, flags | os.O_DIRECT | os.O_NOFOLLOW | os.O_CLOEXEC)
    return None


def read_at(fd: int, buffer: Any, offset: int) -> int:
    """Read into `buffer` from byte `offset`; returns how many bytes came. Raises OSError."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [buffer], offset)
    data = os.pread(fd, memoryview(buffer).nbytes, offset)
    memoryview(buffer).cast("B")[: len(data)] = data
    return len(data)


def resident() -> tuple[int, int]:
    """(bytes of this process that are in memory, the most there have been since `forget_peak`, or else ever).

    Where the system does not tell the first (macOS), both are the most.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        found = {
            line.split(":")[0]: int(line.split()[1]) << 10 for line in lines if line.startswith(("VmRSS", "VmHWM"))
        }
        return found["VmRSS"], found["VmHWM"]
    except (OSError, ValueError, KeyError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        most *= 1 if sys.platform == "darwin" else 1 << 10
        return most, most


def forget_peak() -> None:
    """Have the peak of `resident` begin anew, where the system can (Linux, proc(5): clear_refs)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def cores() -> int:
    """How many cores this process may use; all of the machine's where that cannot be asked."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def file_in_memory(name: str) -> int:
    """A descriptor of a new file that no folder holds: in memory, or where temporary files are. `name`: for tools."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step, so that at no time either is missing; False where that cannot be done.

    Linux's renameat2 with RENAME_EXCHANGE, which most of its file systems have.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return bool(renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)
