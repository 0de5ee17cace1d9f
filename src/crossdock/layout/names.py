"""Which numbers the names of a checkpoint hold, so that a configuration that lies spells out no names without end.

Knows names only, no shapes and no bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from crossdock.layout.notation import Pattern

_DIGITS = re.compile(r"\d+", re.ASCII)
_LONGEST = 18  # digits of a number that is an index

Largest = Mapping[str, tuple[int, ...]]


def largest_numbers(names: Iterable[str]) -> Largest:
    """Name with "#" for every number in it -> the largest number at each of these places."""
    out: dict[str, tuple[int, ...]] = {}
    for name in names:
        digits = _DIGITS.findall(name)
        if any(len(number) > _LONGEST for number in digits):
            continue
        form, numbers = _DIGITS.sub("#", name), tuple(map(int, digits))
        before = out.get(form, numbers)
        out[form] = numbers if before is numbers else tuple(map(max, before, numbers))
    return out


def largest_indices(pattern: Pattern, largest: Largest) -> tuple[int, ...] | None:
    """The largest number at each index of `pattern`'s name; None when no name is spelled like it."""
    numbers = largest.get(_DIGITS.sub("#", pattern.spell((0,) * len(pattern.indices))))
    if numbers is None:
        return None
    out, place = [], 0
    for literal in pattern.literals[:-1]:
        place += len(_DIGITS.findall(literal))
        out.append(numbers[place])
        place += 1
    return tuple(out)
