"""A file of the output while it grows: its room is reserved, bytes go to known places, and are flushed when asked;
and the file read back from the disk.

Whole pages of large blocks go past the page cache (O_DIRECT) where the file system lets them: copying an output
through the cache costs more time than converting it, and pushes out what the machine needs. All else, and every
byte where O_DIRECT is refused, goes through the cache. Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from pathlib import Path

import numpy as np

from crossdock.codecs.codec import Bytes
from crossdock.errors import InputError
from crossdock.formats.stored import SourceFile
from crossdock.io.files import read_into, reading
from crossdock.io.system import PAGE, REFUSED, flush_data, open_direct, read_at, reserve
from crossdock.running.partial import open_own

_LARGE = 128 << 10  # bytes from which going to the disk at once pays
_COPY = 1 << 20


def aligned(nbytes: int) -> Bytes:
    """An array that begins on a page of memory."""
    room = np.empty(nbytes + PAGE, np.uint8)
    first = -room.ctypes.data % PAGE
    return room[first : first + nbytes]


class OutputFile:
    """One file of exactly `size` bytes. Any number of threads may write to it.

    make  make it where it is not there yet, and reserve its room; else it must be there

    Raises OSError as the file system does: no room, no right to write; UsageError when a link or a pipe is there.
    """

    def __init__(self, path: Path, size: int, *, make: bool = True) -> None:
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        # the kernel lets one writer at a time into the cached file and lets others spin: waiting costs less
        self._alone = threading.Lock()
        self._direct: int | None = None
        self._fd = open_own(path, os.O_RDWR | (os.O_CREAT if make else 0))
        try:
            if make:
                os.ftruncate(self._fd, size)
                reserve(self._fd, size)
            if size >= _LARGE:
                self._direct = open_direct(path, os.O_WRONLY)
        except BaseException:
            self.close()
            raise

    def write(self, data: Bytes, offset: int) -> None:
        """Put flat `data` at byte `offset`. Past the cache when its pages are pages of the file and of memory."""
        view = data.data
        low = -offset % PAGE
        high = low + (data.size - low) // PAGE * PAGE
        if self._direct is not None and high - low >= _LARGE and (data.ctypes.data + low) % PAGE == 0:
            self._write_cached(view[:low], offset)
            low += self._write_direct(self._direct, view[low:high], offset + low)
            view, offset = view[low:], offset + low
        self._write_cached(view, offset)

    def copy(self, source: SourceFile) -> str:
        """Fill the file from another one; returns the sha256 of its bytes.

        Raises InputError when that is no longer what it was.
        """
        offset, digest = 0, hashlib.sha256()
        fd = source.open()
        try:
            while chunk := os.pread(fd, _COPY, offset):
                digest.update(chunk)
                self.write(np.frombuffer(chunk, np.uint8), offset)
                offset += len(chunk)
        finally:
            os.close(fd)
        if offset != source.size:
            raise InputError("the file changed while it was copied", where=str(source.path))
        return digest.hexdigest()

    def flush(self) -> None:
        """Return when all that was written is on the disk."""
        flush_data(self._fd)

    def close(self) -> None:
        """Close it. Does not flush."""
        os.close(self._fd)
        if self._direct is not None:
            os.close(self._direct)

    def _write_cached(self, view: memoryview, offset: int) -> None:
        with self._alone:
            while view.nbytes:
                count = os.pwrite(self._fd, view, offset)
                view, offset = view[count:], offset + count

    def _write_direct(self, fd: int, view: memoryview, offset: int) -> int:
        """How many bytes were written; the cache takes the rest where the file system refuses."""
        done = 0
        while done < view.nbytes and done % PAGE == 0:
            try:
                done += os.pwrite(fd, view[done:], offset + done)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                break
        return done


class WrittenFile:
    """An output as it is on the disk: large blocks are read past the page cache where the file system lets them.

    One for each thread. Raises NotACheckpointError, EnvironmentProblem.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened = contextlib.ExitStack()
        self._fd = self._opened.enter_context(reading(path))
        self._direct = open_direct(path, os.O_RDONLY)
        if self._direct is not None:
            self._opened.callback(os.close, self._direct)
        self._pages = aligned(0)

    def close(self) -> None:
        """Close the files of the output."""
        self._opened.close()

    def read(self, offset: int, nbytes: int) -> Bytes:
        """`nbytes` bytes from `offset`, valid until the next call. FormatError when the file is shorter."""
        low = offset % PAGE
        end = low + nbytes
        if self._pages.size < end:
            self._pages = aligned(-(-end // PAGE) * PAGE)
        pages, there = self._pages[: -(-end // PAGE) * PAGE], low
        if self._direct is not None and nbytes >= _LARGE:
            with contextlib.suppress(OSError):  # refused, or broken, which reading the usual way will tell
                there = max(low, read_at(self._direct, pages.data, offset - low))
        if there < end:
            read_into(self._fd, offset - low + there, pages[there:end], str(self._path))
        return pages[low:end]
