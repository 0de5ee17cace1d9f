"""The words and tensor records of llama.cpp's legacy training files, read forward; every size is held against the file
before it is believed.

Reads record headers only, never tensor data. A record: n_dims, name length, type, ne[n_dims], name, zeros up to a
multiple of 32 of the file offset, data (llama.cpp e32089b to 43033b7, train-text-from-scratch.cpp, write_tensor).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod

from crossdock.errors import FormatError
from crossdock.io.files import read_exact, size_of

FLOAT32 = 0  # ggml_type
MAX_NAME = 64  # GGML_MAX_NAME, and what an unterminated copy of 32 characters may drag along
_ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Record:
    """A tensor's header. ne: sizes, the fastest first, none for a NULL tensor; data: first byte of its float32."""

    at: int
    name: bytes
    ne: tuple[int, ...]
    data: int

    @property
    def nbytes(self) -> int:
        """Bytes of data; a NULL tensor has none."""
        return 4 * prod(self.ne) if self.ne else 0


class Words:
    """A place in an open file. All methods step forward and raise FormatError that names the byte."""

    __slots__ = ("_fd", "at", "size", "where")

    def __init__(self, fd: int, where: str, at: int = 0) -> None:
        self._fd, self.where, self.at, self.size = fd, where, at, size_of(fd)

    def error(self, what: str, at: int | None = None, **fields: str) -> FormatError:
        """A FormatError at byte `at` of the file, or where this is."""
        return FormatError(what, where=f"{self.where} at byte {self.at if at is None else at:,}", **fields)

    def moved(self, at: int) -> Words:
        """The same file at byte `at`."""
        return Words(self._fd, self.where, at)

    def take(self, nbytes: int, what: str) -> bytes:
        """Return the next bytes and move behind them."""
        left = self.size - self.at
        if nbytes > left:
            raise self.error(
                f"the file ends inside {what}",
                expected=f"{nbytes:,} more bytes",
                got=f"{max(left, 0):,}",
                cause="an interrupted copy, or a trainer that was killed while it saved",
            )
        found = read_exact(self._fd, self.at, nbytes, self.where)
        self.at += nbytes
        return found

    def unpack(self, code: str, what: str) -> tuple[int | float, ...]:
        """Little-endian numbers by their struct codes."""
        entry = struct.Struct("<" + code)
        return entry.unpack(self.take(entry.size, what))

    def integers(self, code: str, what: str) -> tuple[int, ...]:
        """Whole numbers by their struct codes."""
        return tuple(int(number) for number in self.unpack(code, what))

    def record(self, what: str, ne: tuple[int, ...] | None) -> Record:
        """The next tensor record, its data skipped. `ne`: the sizes that it must have; (): a NULL tensor; None: any.

        Sizes of 1 at the end do not count: ggml leaves them out or not.
        """
        begin = self.at
        dimensions, length, kind = self.integers("III", what)
        if dimensions > 2 or length > MAX_NAME or kind != FLOAT32:
            raise self.error(
                f"not a valid record of {what}",
                begin,
                expected=f"at most 2 dimensions, a name of at most {MAX_NAME} bytes, type 0 (float32)",
                got=f"{dimensions:,}, {length:,} and {kind:,}",
                cause="a damaged file, or another variant of the format than its header says",
            )
        found = self.integers("I" * dimensions, what)
        name = self.take(length, what)
        if ne is not None and (bool(ne) != bool(found) or _trimmed(found) != _trimmed(ne)):
            raise self.error(
                f"{what} has another shape than the header says",
                begin,
                expected=_shape_text(ne),
                got=_shape_text(found),
                cause="a damaged file",
            )
        data = -(-self.at // _ALIGNMENT) * _ALIGNMENT
        record = Record(begin, name, found, data)
        if data + record.nbytes > self.size:
            raise self.error(
                f"the file ends inside {what}",
                data,
                expected=f"{record.nbytes:,} bytes there",
                got=f"{max(self.size - data, 0):,}",
                cause="an interrupted copy, or a trainer that was killed while it saved",
            )
        self.at = data + record.nbytes
        return record


def _trimmed(ne: tuple[int, ...]) -> tuple[int, ...]:
    while ne and ne[-1] == 1:
        ne = ne[:-1]
    return ne


def _shape_text(ne: tuple[int, ...]) -> str:
    return f"ne = [{', '.join(map(str, ne))}]" if ne else "a NULL tensor"
