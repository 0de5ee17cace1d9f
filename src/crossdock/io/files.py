"""Reading bytes of a file at an offset, all of them or an error that says where the file ends.

Nothing is mapped and nothing is allocated before the size asked for is known to be in the file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdock.errors import EnvironmentProblem, FormatError, NotACheckpointError
from crossdock.io.system import read_at


def open_regular(path: Path) -> int:
    """A descriptor of a regular file, for reading; pipes and devices are never waited for.

    Raises NotACheckpointError, EnvironmentProblem.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotACheckpointError("file does not exist", where=str(path)) from error
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise NotACheckpointError("this is not a regular file", where=str(path)) from error
        raise EnvironmentProblem(f"the file cannot be opened: {error.strerror or error}", where=str(path)) from error
    if not os.path.isfile(fd):
        os.close(fd)
        raise NotACheckpointError("this is not a regular file", where=str(path))
    return fd


@contextmanager
def reading(path: Path) -> Iterator[int]:
    """A descriptor of a regular file, closed at the end. Raises NotACheckpointError, EnvironmentProblem."""
    fd = open_regular(path)
    try:
        yield fd
    finally:
        os.close(fd)


def head_of(path: Path, nbytes: int) -> bytes:
    """At most the first `nbytes` bytes. Raises NotACheckpointError, EnvironmentProblem."""
    with reading(path) as fd:
        return _pread(fd, nbytes, 0, str(path))


def size_of(fd: int) -> int:
    """Bytes in the file behind a descriptor."""
    return os.fstat(fd).st_size


def read_exact(fd: int, offset: int, nbytes: int, where: str) -> bytes:
    """`nbytes` bytes from `offset`. FormatError when the file is shorter, before anything is allocated."""
    size = size_of(fd)
    if offset < 0 or nbytes < 0 or offset + nbytes > size:
        raise _truncated(where, offset, nbytes, size)
    parts = []
    while nbytes:
        part = _pread(fd, nbytes, offset, where)
        if not part:
            raise _truncated(where, offset, nbytes, size_of(fd))
        parts.append(part)
        offset += len(part)
        nbytes -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_into(fd: int, offset: int, buffer: NDArray[np.uint8], where: str) -> None:
    """Fill `buffer` (uint8, C-contiguous) from `offset`; for the hot path, releases the GIL."""
    view = buffer.data
    while view.nbytes:
        try:
            count = read_at(fd, view, offset)
        except OSError as error:
            raise _unreadable(where, offset, error) from error
        if not count:
            raise _truncated(where, offset, view.nbytes, size_of(fd))
        view = view[count:]
        offset += count


def read_runs(fd: int, offsets: Sequence[int], size: int, buffer: NDArray[np.uint8], where: str) -> None:
    """Fill `buffer` with the `size` bytes at each of `offsets`, one after another."""
    view = buffer.data
    for index, offset in enumerate(offsets):
        part = view[index * size : (index + 1) * size]
        try:
            count = read_at(fd, part, offset)
        except OSError as error:
            raise _unreadable(where, offset, error) from error
        if count != size:
            read_into(fd, offset + count, buffer[index * size + count : (index + 1) * size], where)


def _pread(fd: int, nbytes: int, offset: int, where: str) -> bytes:
    try:
        return os.pread(fd, nbytes, offset)
    except OSError as error:
        raise _unreadable(where, offset, error) from error


def _unreadable(where: str, offset: int, error: OSError) -> EnvironmentProblem:
    return EnvironmentProblem(f"reading failed: {error.strerror or error}", where=f"{where} at byte {offset:,}")


def _truncated(where: str, offset: int, nbytes: int, size: int) -> FormatError:
    return FormatError(
        "the file is too short",
        where=f"{where} at byte {offset:,}",
        expected=f"{nbytes:,} bytes there",
        got=f"a file of {size:,} bytes",
        cause="an interrupted download or copy",
        fix="fetch the file again",
    )
