"""JSON objects in which a key is given twice: readers silently keep the last value, so two different ones are an error.

A hook for `json.loads(..., object_pairs_hook=unique)`. Knows nothing else of JSON.
"""

from __future__ import annotations

from typing import Any


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Raises ValueError when two values of one key differ."""
    out = dict(pairs)
    if len(out) != len(pairs):
        for key, value in pairs:
            if out[key] != value:
                raise ValueError(f"key {key[:100]!r} is given twice, with different values")
    return out
