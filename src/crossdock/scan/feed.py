"""The bytes of a pickle one after another, through one buffer of bounded size."""

from __future__ import annotations

from collections.abc import Callable

MAX_TEXT = 4096  # bytes of a text that are looked at; no name is longer
_CHUNK = 1 << 20

Read = Callable[[int, int], bytes]  # (offset, bytes) -> at most so many bytes


class Broken(Exception):
    """The bytes are not a pickle any more: a loader stops here."""


class Feed:
    """Bytes from `start` to `size`: `data[pos]` is the next one, at offset `base + pos`."""

    def __init__(self, read: Read, start: int, size: int) -> None:
        self._read, self.size = read, size
        self.data, self.base, self.pos = b"", start, 0

    @property
    def at(self) -> int:
        """The offset of the next byte."""
        return self.base + self.pos

    def have(self, wanted: int) -> bool:
        """Have at least `wanted` bytes in the buffer from the position on."""
        while len(self.data) - self.pos < wanted:
            here = self.base + len(self.data)
            part = self._read(here, min(max(_CHUNK, wanted), self.size - here)) if here < self.size else b""
            if not part:
                return False
            self.base += self.pos
            self.data, self.pos = self.data[self.pos :] + part, 0
        return True

    def take(self, count: int, op: str) -> bytes:
        """The next `count` bytes. Raises Broken when there are fewer, as the following do."""
        if not self.have(count):
            raise Broken(f"the pickle is truncated in {op}")
        self.pos += count
        return self.data[self.pos - count : self.pos]

    def skip(self, count: int, op: str) -> None:
        """Go on after `count` bytes, without reading those that are not in the buffer."""
        if self.base + self.pos + count > self.size:
            raise Broken(f"the pickle is truncated in {op}")
        if self.pos + count <= len(self.data):
            self.pos += count
        else:
            self.base, self.data, self.pos = self.base + self.pos + count, b"", 0

    def line(self, op: str) -> bytes:
        """The bytes up to a newline, which is skipped; of a long line the first MAX_TEXT and one more."""
        kept = b""
        while True:
            end = self.data.find(b"\n", self.pos)
            part = self.data[self.pos : end if end >= 0 else None]
            if len(kept) <= MAX_TEXT:
                kept += part[: MAX_TEXT + 1]
            self.pos += len(part)
            if end >= 0:
                self.pos += 1
                return kept[: MAX_TEXT + 1]
            if not self.have(1):
                raise Broken(f"the pickle is truncated in {op}")
