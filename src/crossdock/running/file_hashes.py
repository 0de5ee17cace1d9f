"""sha256 of output files, computed while they are written: in the order of the file, whatever order the bytes come in.

Bytes that come when all before them have been hashed are hashed from memory. A writer that is a little ahead waits for
its turn; one that is far ahead leaves its bytes, and they are read back from the file when their turn has come. Header
and the zeros between tensors are known and never read.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from crossdock.codecs.codec import Bytes
from crossdock.planning.plan import Plan, TargetTensor
from crossdock.running.output import WrittenFile

Read = Callable[[int, int], Bytes]  # (offset, bytes) -> those bytes of the file, valid until the next call

_NEAR: Final = 16 << 20  # bytes between a writer and its turn for which waiting costs less than reading back
_SMALL: Final = 64 << 10  # bytes that are sooner read back than waited for
_PATIENCE: Final = 0.02  # seconds in which the turn must have come nearer
_PIECE: Final = 1 << 20
_ZEROS: Final = bytes(64 << 10)


class FileHash:
    """sha256 of one file of `size` bytes: `header`, then `tensors` ((first byte, byte beyond), sorted), zeros between.

    Any number of threads may call `wrote`.
    """

    def __init__(self, size: int, header: bytes, tensors: Sequence[tuple[int, int]]) -> None:
        self._size, self._header = size, header
        self._gaps: dict[int, int] = {}  # first byte -> byte beyond: zeros
        end = len(header)
        for begin, beyond in (*tensors, (size, size)):
            if begin > end:
                self._gaps[end] = begin
            end = max(end, beyond)
        self._sha = hashlib.sha256()
        self._position = 0
        self._left: dict[int, int] = {}  # first byte -> byte beyond: on the disk, to be read back
        self._reading = False
        self._turn = threading.Condition()
        self._skip_known()

    def wrote(self, data: Bytes, offset: int, read: Read) -> None:
        """Take `data`, which is in the file at byte `offset` by now. `read`: of the file."""
        with self._turn:
            if self._comes_to(offset, data.size):
                self._take(data)
                return
            self._left[offset] = offset + data.size
        self.catch_up(read)

    def leave(self, begin: int, end: int) -> None:
        """Note that these bytes are in the file, written by somebody else."""
        with self._turn:
            self._left[begin] = end

    def catch_up(self, read: Read) -> None:
        """Read back what is in the file where hashing has come to, unless another thread does."""
        with self._turn:
            if self._reading or self._position not in self._left:
                return
            self._reading = True
        try:
            while True:
                with self._turn:
                    end = self._left.pop(self._position, None)
                    if end is None:
                        return
                self._read(end, read)
        finally:
            with self._turn:
                self._reading = False
                self._turn.notify_all()

    def finish(self, read: Read) -> str:
        """The hash in hexadecimal; what has not been hashed is read. Only when no thread writes any more."""
        self._read(self._size, read)
        return self._sha.hexdigest()

    def _comes_to(self, offset: int, nbytes: int) -> bool:
        """Whether the turn of these bytes has come, after waiting for it while it is near and comes nearer."""
        before, since = self._position, time.monotonic()
        while self._reading or self._position != offset:
            if self._position != before:
                before, since = self._position, time.monotonic()
            left = since + _PATIENCE - time.monotonic()
            near = self._position < offset <= self._position + _NEAR and self._position not in self._left
            if nbytes < _SMALL or left <= 0 or not (near or self._reading):
                return False
            self._turn.wait(left)
        return True

    def _take(self, data: Bytes) -> None:
        self._sha.update(data.data)
        self._position += data.size
        self._skip_known()
        self._turn.notify_all()

    def _read(self, end: int, read: Read) -> None:
        while self._position < end:
            data = read(self._position, min(_PIECE, end - self._position))
            self._sha.update(data.data)
            with self._turn:
                self._position += data.size
                if self._position >= end:
                    self._skip_known()
                self._turn.notify_all()

    def _skip_known(self) -> None:
        """Hash what follows and needs no reading."""
        if self._position == 0:
            self._sha.update(self._header)
            self._position = len(self._header)
        end = self._gaps.get(self._position, self._position)
        while self._position < end:
            zeros = _ZEROS[: end - self._position]
            self._sha.update(zeros)
            self._position += len(zeros)


class FileHashes:
    """sha256 of the files of a plan. In another process, where nobody would ask for them, `None`.

    tensors  whether files that hold tensors get one: all others are in memory, and cost nothing
    """

    def __init__(self, plan: Plan, *, tensors: bool = True) -> None:
        places: dict[int, list[tuple[int, int]]] = {i: [] for i in range(len(plan.files))}
        for tensor in plan.tensors:
            if tensor.nbytes:
                places[tensor.file].append((tensor.offset, tensor.offset + tensor.nbytes))
        self.files = {
            i: FileHash(file.size, file.header, sorted(places[i]))
            for i, file in enumerate(plan.files)
            if file.copy_of is None and (tensors or not places[i])
        }

    def leave(self, tensor: TargetTensor) -> None:
        """Note that a tensor is in its file already."""
        if tensor.nbytes and tensor.file in self.files:
            self.files[tensor.file].leave(tensor.offset, tensor.offset + tensor.nbytes)

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()

    def finish(self, plan: Plan, folder: Path) -> dict[int, str]:
        """Index of a file -> its hash. Raises OSError."""
        out = {}
        for index, one in self.files.items():
            with contextlib.closing(LazyFile(folder / plan.files[index].name)) as written:
                out[index] = one.finish(written.read)
        return out


class LazyFile:
    """A file of the output for reading back, opened when it is first read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: WrittenFile | None = None

    def read(self, offset: int, nbytes: int) -> Bytes:
        """Read as `WrittenFile.read` does."""
        if self._opened is None:
            self._opened = WrittenFile(self._path)
        return self._opened.read(offset, nbytes)

    def close(self) -> None:
        """Close it, if it was opened."""
        if self._opened is not None:
            self._opened.close()


def _nothing() -> None:
    return None
