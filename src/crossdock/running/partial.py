"""The folder `OUT.partial` of an unfinished output: only files of its own run are in it, and none of them is a link.

A link, a pipe, a device, or a file that another name refers to could make a run write elsewhere; a file that is not
of the run would become part of the output. All of them are refused by name, and nothing is removed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from crossdock.errors import Problem, UsageError

_SHOWN = 10


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a regular file that only `path` names; links are not followed, and pipes not waited for.

    Raises UsageError for anything else, OSError as the file system does.
    """
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError:
        if path.is_symlink():
            raise _foreign([path], "a link") from None
        raise
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return fd
    os.close(fd)
    raise _foreign([path], "a file with a second name" if stat.S_ISREG(found.st_mode) else "not a regular file")


def write_new(path: Path, data: bytes) -> None:
    """Write and flush `data` to a new file at `path`, in place of what was there. Raises OSError."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def make_folder(folder: Path) -> None:
    """Make `folder`, where it is not there yet. Raises UsageError when it is a link or a file, OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise _foreign([folder], "not a folder") from None
    if folder.is_symlink():
        raise _foreign([folder], "a link")


def check_own(folder: Path, names: Iterable[str]) -> None:
    """Raise UsageError, with their names, when something in `folder` is not one of `names` or of their folders."""
    known = {PurePosixPath(name) for name in names}
    folders = {parent for name in known for parent in name.parents}
    strays = []
    waiting = [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                name = PurePosixPath(Path(entry.path).relative_to(folder).as_posix())
                if entry.is_dir(follow_symlinks=False) and name in folders:
                    waiting.append(Path(entry.path))
                elif not entry.is_file(follow_symlinks=False) or name not in known:
                    strays.append(Path(entry.path))
    if strays:
        raise _foreign(sorted(strays), "not a file of this run")


def _foreign(paths: list[Path], what: str) -> UsageError:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return UsageError(
        [
            Problem(
                f"in the folder of an unfinished output: {what}{more if path is paths[0] else ''}",
                where=str(path),
                cause="somebody else put it there, or another program uses this folder",
                fix="move it away, or choose another --output",
                check="stray",
            )
            for path in paths[:_SHOWN]
        ]
    )
