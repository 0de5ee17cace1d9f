"""Hashes of tensors, computed on the way while blocks pass in order. `xxh3` (128 bits) or `sha256`."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

from crossdock.errors import UsageError


class Hash(Protocol):
    """What both libraries offer."""

    def update(self, data: Any, /) -> None: ...
    def hexdigest(self) -> str: ...


def new(name: str) -> Hash:
    """A fresh hash. Raises UsageError for an unknown name."""
    if name == "xxh3":
        import xxhash

        return xxhash.xxh3_128()
    if name == "sha256":
        return hashlib.sha256()
    raise UsageError(f"--hash {name}: not a hash that is offered", expected="xxh3 or sha256")
