"""Reading a GGUF header forward. Every size is checked against the file before it is believed.

Only the header is read, through a window of a megabyte; strings are UTF-8, numbers little-endian.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from crossdock.errors import FormatError
from crossdock.formats.gguf.types import VALUES
from crossdock.io.files import read_exact, size_of

# Ours: far above real headers (a vocabulary of 262 144 with merges takes 15 MB), far below what would hurt.
MAX_HEADER = 128 << 20
WINDOW = 1 << 20

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class Cursor:
    """A place in the header of an open file. All methods step forward and raise FormatError."""

    __slots__ = ("_base", "_fd", "_position", "_window", "size", "where")

    def __init__(self, fd: int, where: str) -> None:
        self._fd, self.where, self.size = fd, where, size_of(fd)
        self._base, self._position, self._window = 0, 0, b""

    @property
    def at(self) -> int:
        """Byte of the file that is read next."""
        return self._base + self._position

    def error(self, what: str, at: int | None = None, **fields: str) -> FormatError:
        """A FormatError at byte `at` of the file, or where the cursor is."""
        return FormatError(what, where=f"{self.where} at byte {self.at if at is None else at:,}", **fields)

    def expect_room(self, count: int, least: int, what: str) -> None:
        """Refuse a count of things of at least `least` bytes each that the rest of the header cannot hold."""
        room = max(min(self.size, MAX_HEADER) - self.at, 0)
        if count * least > room:
            raise self.error(
                f"the header cannot hold so many {what}",
                expected=f"at most {room // least:,}",
                got=f"{count:,}",
                cause="a damaged or truncated file",
            )

    def take(self, nbytes: int, what: str) -> bytes:
        """Return the next `nbytes` bytes and move behind them."""
        self._fill(nbytes, what)
        begin = self._position
        self._position += nbytes
        return self._window[begin : self._position]

    def u32(self, what: str) -> int:
        return int(_U32.unpack(self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack(self.take(8, what))[0])

    def string(self, what: str) -> str:
        """A length of 64 bits and that many bytes of UTF-8."""
        at, length = self.at, self.u64(what)
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8: {error.reason}", at) from error

    def strings(self, count: int, what: str) -> list[str]:
        """An array of strings: a tight loop over what the window holds, refilled in between."""
        self.expect_room(count, 8, f"strings in {what}")
        out: list[str] = []
        append, length_at = out.append, _U64.unpack_from
        while len(out) < count:
            window, begin = self._window, self._position
            last = len(window) - 8
            try:
                for _ in range(count - len(out)):
                    if begin > last:
                        break
                    end = begin + 8 + length_at(window, begin)[0]
                    if end > len(window):
                        break
                    append(window[begin + 8 : end].decode())
                    begin = end
            except UnicodeDecodeError as error:
                raise self.error(
                    f"{what}: string {len(out)} is not UTF-8: {error.reason}", self._base + begin
                ) from error
            self._position = begin
            if len(out) < count:
                append(self.string(f"string {len(out)} of {what}"))
        return out

    def value(self, number: int, what: str) -> tuple[str, Any]:
        """A metadata value of type `number`: the type's name and the value."""
        name, code = VALUES.get(number, ("", ""))
        if code:
            value = struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]
            return name, self._truths(what, value) if name == "BOOL" else value
        if name == "STRING":
            return name, self.string(what)
        if name == "ARRAY":
            return self._array(what)
        raise self.error(f"{what} has a type that GGUF does not define", self.at - 4, got=str(number))

    def _array(self, what: str) -> tuple[str, Any]:
        number, count = self.u32(what), self.u64(what)
        name, code = VALUES.get(number, ("", ""))
        if name == "STRING":
            return "ARRAY[STRING]", self.strings(count, what)
        if not code:
            kind = "an array of arrays" if name else f"an array of the undefined type {number}"
            raise self.error(f"{what} is {kind}", self.at - 12)
        dtype = np.dtype("<" + code)
        self.expect_room(count, dtype.itemsize, f"values in {what}")
        values = np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        return f"ARRAY[{name}]", self._truths(what, values) if name == "BOOL" else values

    def _truths(self, what: str, values: Any) -> Any:
        """Bytes 0 and 1 as booleans."""
        if np.any(np.asarray(values) > 1):
            raise self.error(f"{what} is neither true nor false", expected="bytes 0 or 1")
        return values.astype(np.bool_) if isinstance(values, np.ndarray) else bool(values)

    def _fill(self, nbytes: int, what: str) -> None:
        """Make sure that the window holds the next `nbytes` bytes."""
        if self._position + nbytes <= len(self._window):
            return
        left = self.size - self.at
        if nbytes > left:
            raise self.error(
                f"the file ends inside {what}",
                expected=f"{nbytes:,} more bytes",
                got=f"{left:,}",
                cause="an interrupted download or copy, or a damaged file",
            )
        if self.at + nbytes > MAX_HEADER:
            raise self.error(f"the header is larger than {MAX_HEADER >> 20} MiB", cause="a damaged file")
        self._base, self._position = self.at, 0
        self._window = read_exact(self._fd, self._base, min(max(nbytes, WINDOW), left), self.where)
