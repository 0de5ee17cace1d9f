"""Putting a whole output under its final name, by renames that a kill between any two of them leaves recoverable.

A journal without its files, or one inside the output, says that a placement was cut short: the next run ends it.
Nothing here reads or writes tensor bytes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from crossdock.io.system import exchange, flush_folder
from crossdock.planning.plan import Plan
from crossdock.running.destination import REPLACED, Contents, Owned
from crossdock.running.journal import MANIFEST, NAME, Done, Journal
from crossdock.running.manifest import SUFFIX, manifest_path
from crossdock.running.partial import write_new
from crossdock.running.recheck import demand_intact


def put_in_place(plan: Plan, partial: Path, output: Path, manifest: bytes) -> None:
    """Rename the whole, flushed `partial` to `output`, its manifest beside it. A model that was there goes when it is;
    what else was in its folder is moved into the new one.

    Raises OSError. What can fail for want of room is done before the first rename.
    """
    write_new(partial / MANIFEST, manifest)
    write_new(_staged(output), manifest)
    flush_folder(partial)
    if plan.single_file:
        os.replace(partial / plan.files[0].name, output)
    elif not output.exists():
        os.rename(partial, output)
    else:
        old = _replaced(output)
        _clear(plan, old, output)  # left by a kill after its successor was in place
        if not exchange(partial, output):
            os.rename(output, old)
            os.rename(partial, output)
    flush_folder(output.parent)
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


def _tidy(plan: Plan, partial: Path, output: Path) -> None:
    """What follows the rename. The private copy of the manifest goes last, so that a kill in between is seen."""
    folder, staged = partial if plan.single_file else output, _staged(output)
    if not plan.single_file:
        if partial.exists() and not (partial / NAME).exists():
            os.rename(partial, _replaced(output))  # what was there, exchanged for the new one
        _clear(plan, _replaced(output), output)  # while the old manifest is there, which says what was the model's
    if not staged.exists():  # a kill came after it was put in its place, or somebody removed it
        write_new(staged, (folder / MANIFEST).read_bytes())
    os.replace(staged, manifest_path(output))
    flush_folder(output.parent)
    (folder / MANIFEST).unlink()
    if plan.single_file:
        shutil.rmtree(partial)
    else:
        (folder / NAME).unlink()
    flush_folder(output.parent)


def _clear(plan: Plan, old: Path, output: Path) -> None:
    """Remove the model in the folder `old`, and move what else is in it to `output`; what cannot be moved stays."""
    if not old.is_dir() or old.is_symlink():
        return
    found = Contents.of(old, Owned.by(plan, output))
    for name in found.kept:
        to = output / name
        if not to.exists() and not to.is_symlink():
            to.parent.mkdir(parents=True, exist_ok=True)
            os.rename(old / name, to)
    for name in found.own:
        (old / name).unlink()
    for folder, _, _ in os.walk(old, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            os.rmdir(folder)


def _staged(output: Path) -> Path:
    return output.with_name(f"{output.name}{SUFFIX}.new")


def _replaced(output: Path) -> Path:
    return output.with_name(output.name + REPLACED)
