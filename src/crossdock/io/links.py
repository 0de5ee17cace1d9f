"""Which symbolic links inside a folder are followed: those that stay in it, and those of a model's own hub cache.

A downloaded folder may hold a link to anything on the machine. A link is followed when what it leads to, with every
link on the way resolved, lies in the folder that the user named; or when the folder is a snapshot of the Hugging Face
hub's cache (`models--ORG--NAME/snapshots/REVISION/...`) and it leads into that model's own `blobs` folder. The path
that the user names may itself be a link: it is resolved first.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from crossdock.errors import InputError, Problem


def stays_inside(path: Path, root: Path) -> bool:
    """Whether `path`, which lies below `root` by its name, leads to something in `root` or in its hub cache's blobs."""
    real, home = os.path.realpath(path), os.path.realpath(root)
    return any(_within(real, allowed) for allowed in (home, *_blobs(home)))


def check_links(paths: Iterable[Path], root: Path) -> None:
    """Raise InputError, with all of them by name, when a path leads out of `root`. Paths need not exist."""
    out = sorted({path for path in paths if not stays_inside(path, root)})
    if out:
        raise InputError(
            [
                Problem(
                    "a link out of the folder was not followed",
                    where=str(path),
                    expected=f"a target in {root}",
                    got=os.path.realpath(path),
                    fix="put the file itself there, if it belongs to the model",
                    check="link-out",
                )
                for path in out[:_SHOWN]
            ]
        )


def links_in(folder: Path) -> list[Path]:
    """The symbolic links to files directly in `folder`; none when it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for entry in entries if entry.is_symlink() and entry.is_file()]
    except OSError:
        return []


_SHOWN = 20


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _blobs(root: str) -> list[str]:
    """The `blobs` folder of the hub cache that `root` is a snapshot of, or a part of one."""
    parts = Path(root).parts
    return [
        os.path.join(*parts[:index], "blobs")
        for index in range(2, len(parts))
        if parts[index] == "snapshots" and parts[index - 1].startswith(("models--", "datasets--", "spaces--"))
    ]
