"""Where crossdock's data lies, and what other packages register with it by entry points, in groups such as
`crossdock.sources`. Nothing is loaded here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final

DATA: Final = Path(__file__).parent / "data"


def folders(kind: str) -> Iterator[Any]:
    """Where data files of this kind ("families") lie: crossdock's own folder, then those of other packages."""
    yield DATA / kind
    for entry in registered(f"crossdock.{kind}"):
        yield entry.load()


def registered(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of `group` in every package on the path, which is read once."""
    return _registered(group, tuple(sys.path))


@cache
def _registered(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))
