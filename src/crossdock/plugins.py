"""Where crossdock's data lies, and what other packages register with it by entry points, in groups such as
`crossdock.sources`.

Importing `importlib.metadata` and letting it read about every package takes longer than exporting many a file, so the
packages' `entry_points.txt` are searched for a group of ours first. Nothing is loaded here.
Where they lie: PyPA specifications, "Recording installed projects" and "Entry points".
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

DATA: Final = Path(__file__).parent / "data"
_OURS = b"[crossdock."


def folders(kind: str) -> Iterator[Any]:
    """Where data files of this kind ("families") lie: crossdock's own folder, then those of other packages."""
    yield DATA / kind
    for entry in registered(f"crossdock.{kind}"):
        yield entry.load()


def registered(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of `group` in every package on the path."""
    return _registered(group, tuple(sys.path))


@functools.cache
def _registered(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    if not _any_of_ours(path):
        return ()
    from importlib.metadata import entry_points

    return tuple(entry_points(group=group))


@functools.cache
def _any_of_ours(path: tuple[str, ...]) -> bool:
    """False when no package on the path has a group of ours; True where that cannot be seen at once."""
    others = (finder for finder in sys.meta_path if finder is not PathFinder)
    return any(hasattr(finder, "find_distributions") for finder in others) or any(map(_may_hold_ours, path))


def _may_hold_ours(place: str) -> bool:
    try:
        with os.scandir(place or ".") as entries:
            about = [entry.path for entry in entries if entry.name.lower().endswith((".dist-info", "egg-info"))]
    except NotADirectoryError:
        return True  # an archive
    except OSError:
        return False
    return any(map(_names_ours, about))


def _names_ours(about: str) -> bool:
    try:
        with open(os.path.join(about, "entry_points.txt"), "rb") as file:
            return _OURS in file.read()
    except OSError:
        return False
