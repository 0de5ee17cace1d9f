"""JSON of files that nobody vouches for: measured before anything is built of it, and no key given twice.

Python's parser builds some twenty times the size of a file that is made for it, and follows nesting on its own stack.
Here a document is refused when it nests deeper, or holds more values, than any real one; both are counted without
building a value. Readers silently keep the last value of a key given twice: two different ones are an error.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from crossdock.errors import FormatError
from crossdock.io.files import read_exact, reading, size_of

_PIECE = 256 << 10


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """How much one document may hold: a value is what a comma or an opening bracket begins.

    values   any document
    density  a document of so many bytes may hold one value more for each `density` of them
    most     no document
    depth    lists and objects inside each other
    largest  bytes of a file that is read
    """

    values: int
    density: int
    most: int
    depth: int = 64
    largest: int = 16 << 20


# Real ones: 32,000 values in the configuration of a pruned model of 162 layers; 92,000 in the index of DeepSeek V3,
# 80 bytes each; 1.8 million in Gemma 3's tokenizer.json, 3.3 bytes each where it is written without spaces.
CONFIGURATION: Final = JsonLimits(65_536, 24, 2_000_000)
TOKENIZER: Final = JsonLimits(200_000, 3, 3_000_000)


def parse_json(data: bytes, limits: JsonLimits, number: Callable[[str], Any] | None = None) -> Any:
    """The value of a document in UTF-8 (a byte order mark is dropped). `number`: of floats, NaN and Infinity.

    Raises ValueError with a sentence: not UTF-8, not JSON, a key given twice with different values, over the limits.
    """
    values, depth = measured(data, limits.most)
    allowed = min(limits.most, limits.values + len(data) // limits.density)
    if values > allowed:
        raise ValueError(f"it holds {values:,} values or more; the limit for {len(data):,} bytes is {allowed:,}")
    if depth > limits.depth:
        raise ValueError(f"it is nested {depth} deep; the limit is {limits.depth}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error.reason} at byte {error.start}") from None
    return json.loads(text, object_pairs_hook=unique, parse_float=number, parse_constant=number)


def json_object(data: bytes, limits: JsonLimits, where: str) -> dict[str, Any]:
    """The object that a document is. Raises FormatError for what `parse_json` refuses, and for any other value."""
    try:
        value = parse_json(data, limits)
    except ValueError as error:
        raise FormatError(f"not valid JSON: {error}", where=where, cause="a truncated or edited file") from None
    if not isinstance(value, dict):
        raise FormatError("not a JSON object", where=where, got=type(value).__name__)
    return value


def read_object(path: Path, limits: JsonLimits) -> dict[str, Any]:
    """The object in a file, of which no more than the limit is read. Raises FormatError, and what opening it raises."""
    with reading(path) as fd:
        size = size_of(fd)
        if size > limits.largest:
            raise FormatError(
                "too large for this kind of file",
                where=str(path),
                expected=f"at most {limits.largest:,} bytes",
                got=f"{size:,} bytes",
            )
        data = read_exact(fd, 0, size, str(path))
    return json_object(data, limits, str(path))


def measured(data: bytes, enough: int) -> tuple[int, int]:
    """How many values a document holds, and how deep it nests: counted to the end, or until there are over `enough`."""
    # without escaped backslashes and quotes, every quote begins or ends a string
    bare = np.frombuffer(data.replace(b"\\\\", b"").replace(b'\\"', b""), np.uint8)
    values = depth = deepest = quotes = 0
    for begin in range(0, bare.size, _PIECE):
        piece = bare[begin : begin + _PIECE]
        parity = np.cumsum(piece == ord('"'), dtype=np.uint8) + np.uint8(quotes)  # wraps round, and stays even or odd
        outside = piece[(parity & 1) == 0]
        opened = (outside == ord("[")) | (outside == ord("{"))
        closed = (outside == ord("]")) | (outside == ord("}"))
        levels = np.cumsum(opened[opened | closed] * 2 - 1) + depth
        if levels.size:
            deepest, depth = max(deepest, int(levels.max())), int(levels[-1])
        values += int(np.count_nonzero(opened)) + int(np.count_nonzero(outside == ord(",")))
        if values > enough:
            break
        quotes = int(parity[-1]) & 1
    return values, deepest


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError when two values of one key differ."""
    out = dict(pairs)
    if len(out) != len(pairs):
        for key, value in pairs:
            if out[key] != value:
                raise ValueError(f"key {key[:100]!r} occurs twice, with different values")
    return out
