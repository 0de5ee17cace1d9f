"""Putting a whole output under its final name, by renames that a kill between any two of them leaves recoverable.

A journal without its files, or one inside the output, says that a placement was cut short: the next run ends it.
Nothing here reads or writes tensor bytes.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from crossdock.planning.plan import Plan
from crossdock.running.journal import MANIFEST, NAME, Done, Journal
from crossdock.running.manifest import manifest_path
from crossdock.running.partial import write_new
from crossdock.running.recheck import demand_intact

_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux's fcntl.h and fs.h


def put_in_place(plan: Plan, partial: Path, output: Path, manifest: bytes) -> None:
    """Rename the whole, flushed `partial` to `output`, its manifest beside it. What was there goes when it is."""
    write_new(partial / MANIFEST, manifest)
    _flush(partial)
    if plan.single_file:
        os.replace(partial / plan.files[0].name, output)
    else:
        old = _replaced(output)
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)  # left by a kill after its successor was in place
            if not exchange(partial, output):
                os.rename(output, old)
                os.rename(partial, output)
        else:
            os.rename(partial, output)
    _flush(output.parent)
    _tidy(plan, partial, output)


def end_placement(plan: Plan, partial: Path, output: Path, hash_name: str) -> Mapping[int, Done] | None:
    """End the placement of this very plan that a kill cut short; None when there is none.

    Raises EnvironmentProblem when another run is at it, CheckFailed when what was placed is not what was written.
    """
    if plan.single_file:
        # the file left the folder only by being renamed: nothing else leaves a manifest and every tensor journaled
        file = plan.files[0]
        cut = (
            (partial / MANIFEST).exists()
            and not (partial / file.name).exists()
            and output.is_file()
            and output.stat().st_size == file.size
        )
        folder = partial
    else:
        cut = (output / NAME).exists() and (output / MANIFEST).exists()
        folder = output
    if not cut:
        if not plan.single_file and (output / NAME).exists():
            (output / NAME).unlink()  # the last step but one was the last
        return None
    journal = Journal.peek(folder, plan, hash_name)
    if journal is None or len(journal) != len(plan.tensors):
        return None
    demand_intact(plan, output, journal, hash_name)
    _tidy(plan, partial, output)
    return journal


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step, so that at no time either is missing; False where that cannot be done.

    Linux's renameat2 with RENAME_EXCHANGE, which most of its file systems have.
    """
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _tidy(plan: Plan, partial: Path, output: Path) -> None:
    """What follows the rename. The private copy of the manifest goes last, so that a kill in between is seen."""
    folder = partial if plan.single_file else output
    staged = output.with_name(f"{output.name}.manifest.json.new")
    write_new(staged, (folder / MANIFEST).read_bytes())
    os.replace(staged, manifest_path(output))
    if plan.single_file:
        _flush(output.parent)
        (folder / MANIFEST).unlink()
        shutil.rmtree(partial)
    else:
        if partial.exists() and not (partial / NAME).exists():
            os.rename(partial, _replaced(output))  # what was there, exchanged for the new one
        shutil.rmtree(_replaced(output), ignore_errors=True)
        _flush(output.parent)
        (folder / MANIFEST).unlink()
        (folder / NAME).unlink()
    _flush(output.parent)


def _replaced(output: Path) -> Path:
    return output.with_name(f"{output.name}.crossdock-replaced")


def _flush(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
