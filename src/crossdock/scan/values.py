"""The values that the walk of a pickle tells apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from crossdock.scan.feed import MAX_TEXT
from crossdock.scan.harmless import Name

_KEPT = 64  # items of a tuple that are looked at; longer ones are not arguments of anything


@dataclass(frozen=True, slots=True)
class Sighting:
    """Something in a pickle that deserves a look: at which byte, which name, how bad, in a sentence.

    severity  "call": a loader runs it; "import": a loader imports it; "refused": not looked at to the end, or of a
              cost without bounds; "broken": truncated or malformed
    """

    offset: int
    name: str
    severity: str
    sentence: str


class _Kind:
    """A value of which only the type counts."""

    __slots__ = ()


MARK: Final = _Kind()


class Items:
    """A list, dict or set that the pickle makes itself: its kind, and how many values were put into it."""

    __slots__ = ("count", "kind")

    def __init__(self, kind: str, count: int = 0) -> None:
        self.kind = kind
        self.count = count


@dataclass(frozen=True, slots=True)
class Text:
    """A long text, or bytes, of which only the length is kept, and for bytes the offset where they are."""

    length: int
    place: int = -1


@dataclass(frozen=True, slots=True)
class Tuple:
    """A tuple: its items (of a long one the first), how many values it holds at all levels, and how deep it nests."""

    items: tuple[object, ...]
    weight: int
    depth: int
    whole: bool = True

    @property
    def copies(self) -> int:
        """Bytes that a call with these arguments may copy."""
        total = 0
        for one in self.items:
            if isinstance(one, str):
                total += len(one)
            elif isinstance(one, Text):
                total += one.length
            elif isinstance(one, Items):
                total += 8 * one.count
        return total


@dataclass(frozen=True, slots=True)
class Result:
    """What a call of a known name gave; calling it again runs whatever it is."""

    of: Name


def tuple_of(items: list[object]) -> Tuple:
    """The tuple of these values."""
    weight, depth = 1 + len(items), 0
    for item in items:
        if isinstance(item, Tuple):
            weight += item.weight
            depth = max(depth, item.depth)
    return Tuple(tuple(items[:_KEPT]), weight, depth + 1, len(items) <= _KEPT)


def made_by(name: Name) -> Result:
    """What a call of `name` gives."""
    return Result(name)


def unescaped(line: bytes, encoding: str) -> object:
    """A text of protocol 0; only what is needed of a long one."""
    if len(line) > MAX_TEXT:
        return Text(len(line))
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        return Text(len(line))
