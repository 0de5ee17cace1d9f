"""Writing a small file whole or not at all: flushed under a name of its own, then renamed.

Never replaces what is no file: a device or a pipe that a user names would be gone, not written to.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from crossdock.errors import EnvironmentProblem, UsageError


def write_whole(path: Path, parts: Iterable[bytes], what: str = "file") -> int:
    """Write `parts` one after another, or leave what was there; returns the bytes written.

    what  the file's part in an error
    Raises UsageError (a device, a pipe), EnvironmentProblem.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UsageError("the output is a device or a pipe, which a file cannot replace", where=str(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("xb") as file:
                file.writelines(parts)
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or error
        raise EnvironmentProblem(f"the {what} cannot be written: {reason}", where=str(path)) from error
    return size
