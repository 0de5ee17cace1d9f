"""Hashes of tensors, computed on the way while blocks pass in order. `xxh3` (128 bits) or `sha256`."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import xxhash

from crossdock.errors import UsageError


class Hash(Protocol):
    """The methods that hashes of both libraries have."""

    def update(self, data: Any, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


def new(name: str) -> Hash:
    """A fresh hash. Raises UsageError for an unknown name."""
    if name == "xxh3":
        return xxhash.xxh3_128()
    if name == "sha256":
        return hashlib.sha256()
    raise UsageError(f"--hash {name}: unknown hash", expected="xxh3 or sha256")


class Parts:
    """Tells which of the parts of `nbytes` bytes that pass one after another have equal bytes."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = self._missing = nbytes
        self._hash = new("xxh3")
        self._seen: dict[bytes, list[int]] = {}
        self._count = 0

    def update(self, data: memoryview) -> None:
        """The next bytes, as many as there are."""
        while data.nbytes:
            part = data[: self._missing]
            self._hash.update(part)
            self._missing -= part.nbytes
            data = data[part.nbytes :]
            if not self._missing:
                self._seen.setdefault(self._hash.digest(), []).append(self._count)
                self._count += 1
                self._hash, self._missing = new("xxh3"), self._nbytes

    def alike(self) -> tuple[tuple[int, ...], ...]:
        """The groups of whole parts with equal bytes, by number."""
        return tuple(tuple(numbers) for numbers in self._seen.values() if len(numbers) > 1)
