"""Where an output may go: what its path means, and what of an existing folder `--force` may replace.

Nothing is removed here. What a manifest, the plan or the target's own file names do not cover is never replaced.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from crossdock.errors import InputError, UsageError
from crossdock.planning.plan import Plan
from crossdock.running.journal import MANIFEST, NAME
from crossdock.running.manifest import manifest_path, read_manifest

REPLACED: Final = ".crossdock-replaced"  # ends the name of what is being replaced; no longer name is ever made of OUT's
_STORE: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_ITERATION: Final = re.compile(r"iter_\d+|release")
_OTHER: Final = "choose another --output"
_SHOWN: Final = 10


def local_path(text: str | os.PathLike[str]) -> str:
    """`text` where it names a place on this machine. Raises UsageError with one sentence for what does not."""
    path = os.fspath(text)
    if path == "-":
        raise UsageError(
            "'-' (standard output) cannot be the output: files are not written from front to back",
            fix="name a file or a folder; ./- is a file of that name",
        )
    if not path or "\0" in path:
        raise UsageError("the output's path is empty" if not path else "the output's path holds a null byte")
    store = _STORE.match(path)
    if store:
        local = "pass the path alone" if store[1] == "file" else "export to a local path, and upload what was written"
        raise UsageError(f"{store[1]}:// is an address, and outputs are written to local paths: {path}", fix=local)
    return path


def destination(plan: Plan, output: str | os.PathLike[str]) -> Path:
    """The path of the output that `output` means: in an existing folder, or before a slash, one file gets a name.

    Raises UsageError.
    """
    text = local_path(output)
    path = Path(text)
    if plan.single_file and (os.path.isdir(path) or text.endswith(os.sep)):
        return path / f"{_source_name(plan)}{PurePosixPath(plan.files[0].name).suffix}"
    if text.endswith(os.sep) and os.path.isfile(path):
        raise UsageError("this is a file, not a folder", where=text, fix=_OTHER)
    return path


def default_output(plan: Plan, label: str) -> Path:
    """Where the output goes if nothing is said: the working folder, named after the source.

    label  what distinguishes it from other outputs of the source, such as its type ("q8_0")
    """
    suffix = PurePosixPath(plan.files[0].name).suffix if plan.single_file else ""
    return Path(f"{_source_name(plan)}-{label}{suffix}")


def _source_name(plan: Plan) -> str:
    """What people call the source: its file or folder, or the run's folder of an iteration."""
    root = Path(os.path.abspath(plan.source_root))
    named = root.parent if _ITERATION.fullmatch(root.name) and root.is_dir() else root
    return (named.stem if root.is_file() else named.name) or "model"


def check_destination(plan: Plan, output: Path, *, force: bool) -> tuple[str, ...]:
    """What of an existing folder stays, below `output`. Raises UsageError where the output must not go.

    That is where it is, holds or would replace what is read, and where something is that nobody can mean to be
    replaced.
    """
    _check_inputs(plan, output)
    if not output.is_symlink() and not output.exists():
        return ()
    if output.is_dir() and not plan.single_file:
        return _check_folder(plan, output, force=force)
    if not force:
        raise UsageError("the output exists", where=str(output), fix=f"{_OTHER}, or --force to replace it when done")
    if output.exists() and not output.is_dir() and not output.is_file():
        raise UsageError("the output is a device or a pipe, which a file cannot replace", where=str(output), fix=_OTHER)
    if output.exists() and output.is_dir() == plan.single_file:
        here, made = ("a folder", "a file") if output.is_dir() else ("a file", "a folder")
        raise UsageError(f"this is {here}, which --force does not replace with {made}", where=str(output), fix=_OTHER)
    return ()


def _check_inputs(plan: Plan, output: Path) -> None:
    read = [plan.source_root, *(f.path for f in plan.sources), *(f.copy_of.path for f in plan.files if f.copy_of)]
    inputs = {Path(at(path)) for path in read for at in (os.path.abspath, os.path.realpath)}
    holds = not plan.single_file and any({output, output.resolve()} & set(path.parents) for path in inputs)
    if holds or {output, output.resolve()} & inputs:
        raise UsageError("the output would overwrite the source", where=str(output), fix=_OTHER)
    root = Path(os.path.realpath(plan.source_root))
    if root.is_dir() and root in Path(os.path.realpath(output)).parents:
        raise UsageError(
            "the output would lie inside the source", where=str(output), got=f"a source of {root}", fix=_OTHER
        )


def check_name(output: Path) -> None:
    """Raise UsageError unless every name that is made of the output's fits the file system."""
    parent = next(path for path in output.parents if os.path.isdir(path))
    try:
        longest = os.pathconf(parent, "PC_NAME_MAX")
    except (AttributeError, OSError, ValueError):
        longest = 255
    most, length = longest - len(REPLACED), len(os.fsencode(output.name))
    if length > most:
        raise UsageError(
            "the output's name is too long for the names of its manifest and of the unfinished output beside it",
            where=str(output), expected=f"at most {most} bytes", got=f"{length}", fix="choose a shorter name",
        )  # fmt: skip


def _check_folder(plan: Plan, output: Path, *, force: bool) -> tuple[str, ...]:
    there = Path(os.path.realpath(output))
    here = Path(os.path.realpath(os.curdir))
    if there == here or there in here.parents:
        raise UsageError(
            "the output would replace the folder that this command runs in",
            where=str(output), fix="name a new folder in it, for example ./model",
        )  # fmt: skip
    if output.is_symlink():
        raise UsageError("the output is a link to a folder", where=str(output), got=str(there), fix="name that folder")
    if next(output.iterdir(), None) is None:
        return ()
    if not force:
        raise UsageError("the output exists", where=str(output), fix=f"{_OTHER}, or --force to replace it when done")
    found = Contents.of(output, Owned.by(plan, output))
    names = {file.name for file in plan.files}
    folders = {str(parent) for name in names for parent in PurePosixPath(name).parents}
    blocking = [name for name in found.kept if name in names | folders]
    if blocking:
        raise UsageError(
            "something else has the name of a file of the output", where=str(output / blocking[0]), fix=_OTHER
        )
    if not found.own:
        more = f" and {len(found.kept) - _SHOWN} more" if len(found.kept) > _SHOWN else ""
        raise UsageError(
            "--force would delete what is not an exported model: nothing in this folder is a file of one",
            where=str(output), expected=f"a config.json in it, or {manifest_path(output).name} beside it",
            got=", ".join(found.kept[:_SHOWN]) + more, fix=f"{_OTHER}, or a new folder in this one",
        )  # fmt: skip
    return found.kept


@dataclass(frozen=True)
class Owned:
    """Which files of a folder are an exported model's: by the manifest beside it, the plan, the target's own names."""

    names: frozenset[str]
    globs: tuple[str, ...]

    @classmethod
    def by(cls, plan: Plan, output: Path) -> Owned:
        """For the folder of an output that `plan` replaces. A manifest that cannot be read covers nothing."""
        names = {NAME, MANIFEST, *(file.name for file in plan.files)}
        with contextlib.suppress(InputError):
            names |= {file.name for file in read_manifest(manifest_path(output)).files}
        return cls(frozenset(names), plan.own_names)

    def file(self, name: str) -> bool:
        """Whether the file `name`, below the folder, is."""
        return name in self.names or any(fnmatch.fnmatchcase(name, glob) for glob in self.globs)

    def folder(self, name: str) -> bool:
        """Whether files of it are in the folder `name`."""
        return any(one.startswith(name + "/") for one in (*self.names, *self.globs))


@dataclass(frozen=True)
class Contents:
    """What a folder holds: files of a model, and everything else, a folder with nothing of a model in it as one."""

    own: tuple[str, ...]
    kept: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, owned: Owned) -> Contents:
        """Look into `folder`; links are not followed. Raises OSError."""
        found = sorted(_entries(folder, "", owned))
        return cls(tuple(name for name, own in found if own), tuple(name for name, own in found if not own))


def _entries(folder: Path, prefix: str, owned: Owned) -> Iterator[tuple[str, bool]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = prefix + entry.name
            if not entry.is_dir(follow_symlinks=False):
                yield name, owned.file(name)
            elif owned.folder(name):
                yield from _entries(Path(entry.path), name + "/", owned)
            else:
                yield name, False
