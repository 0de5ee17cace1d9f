"""An array in a .npy file that somebody else wrote: mapped, never unpickled, and any damage is one error."""

from __future__ import annotations

import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdock.errors import NotACheckpointError, UsageError
from crossdock.io.files import reading

# numpy reads the header as Python source: what its tokenizer and parser raise comes through
_BROKEN = (
    NotACheckpointError, OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError, OverflowError, TypeError,
)  # fmt: skip


def load(path: Path, what: str) -> NDArray[Any]:
    """The array, mapped read-only from the file, so that its memory is the kernel's.

    Raises UsageError ("no {what} can be read"), EnvironmentProblem.
    """
    try:
        with reading(path):  # a pipe or a folder is refused before numpy waits for it
            pass
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _BROKEN as error:
        why = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(f"no {what} can be read: {why}", where=str(path)) from None
    if not isinstance(array, np.ndarray):
        raise UsageError(f"no {what} can be read: an archive, not an array", where=str(path), expected="a .npy file")
    return array
