"""An output held against its manifest alone, without the source: every file, and which tensor a damaged file lost.

Proves that the bytes are those that were written. What they mean, and whether they are what was trained, is for
`running.verify`, which needs the source.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from crossdock.errors import CrossdockError, NotACheckpointError, UsageError
from crossdock.formats import registry
from crossdock.io.links import stays_inside
from crossdock.running import hashing
from crossdock.running.destination import Contents, Owned
from crossdock.running.manifest import (
    SUFFIX,
    Manifest,
    ManifestFile,
    ManifestTensor,
    is_manifest,
    manifest_path,
    read_manifest,
)
from crossdock.running.output import WrittenFile
from crossdock.wording import counted

_PIECE: Final = 1 << 20

Status = Literal["equal", "different", "missing", "unexpected"]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class FileCheck:
    """One file. nbytes and sha256: of the manifest; got_nbytes and got_sha256: of the file, where they differ.

    tensors  whose bytes are not those of the manifest
    why      what else there is to say about it
    """

    name: str
    status: Status
    nbytes: int = 0
    sha256: str = ""
    got_nbytes: int | None = None
    got_sha256: str = ""
    tensors: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class CheckReport:
    """What `check` found.

    ok           every file is there with its size and hash, and nothing else
    output       path of the output
    manifest     path of the manifest
    version      of the manifest's form
    files        every file of the manifest or the output, with its status
    tensors      how many tensors the manifest lists
    checked      sentences: what was compared
    not_checked  sentences: what the manifest does not let one compare
    nbytes       bytes read
    seconds      wall-clock time
    """

    ok: bool
    output: Path
    manifest: Path
    version: int
    files: tuple[FileCheck, ...]
    tensors: int
    checked: tuple[str, ...]
    not_checked: tuple[str, ...]
    nbytes: int
    seconds: float


def find_manifest(output: Path, manifest: Path | None) -> tuple[Path, Path]:
    """The output and its manifest, either of which may be named. Raises NotACheckpointError, UsageError."""
    if manifest is None and is_manifest(output):
        output, manifest = output.with_name(output.name.removesuffix(SUFFIX)), output
    if not output.is_file() and not output.is_dir():
        raise NotACheckpointError("the output does not exist", where=str(output), fix="check the spelling")
    beside = manifest_path(Path(output.absolute()))
    if manifest is None and not beside.exists():
        raise UsageError(
            "no manifest lies beside this output", where=str(output), expected=str(beside.name),
            fix="--manifest FILE names it; with the source, `crossdock verify` needs none",
        )  # fmt: skip
    return output, manifest or beside


def check_output(output: Path, manifest: Path | None = None, progress: Progress | None = None) -> CheckReport:
    """Hold `output` against its manifest. Memory: a few MiB besides the manifest.

    Raises NotACheckpointError, UsageError (no manifest), FormatError (a broken one), EnvironmentProblem.
    """
    started = time.monotonic()
    output, at = find_manifest(output, manifest)
    wanted = read_manifest(at)
    if wanted.single_file != output.is_file():
        what = "a file" if wanted.single_file else "a folder"
        raise UsageError("the manifest is of another output", where=str(at), expected=f"{what}, {wanted.format}")
    total, before = sum(file.nbytes for file in wanted.files), 0
    places = _places_of_old(output, wanted) if wanted.version == 1 else None
    files = []
    for file in wanted.files:
        report = _Reported(progress, before, total, file.name)
        files.append(_check_file(output, wanted, file, _tensors(wanted, file, places), report))
        before += file.nbytes
    files += _unexpected(output, wanted)
    ok = all(file.status == "equal" for file in files)
    checked, not_checked = _sentences(wanted, output)
    return CheckReport(
        ok, output, at, wanted.version, tuple(files), len(wanted.tensors), checked, not_checked, total,
        time.monotonic() - started,
    )  # fmt: skip


@dataclass(frozen=True)
class _Reported:
    """Progress within one file as progress of all."""

    to: Progress | None
    before: int
    total: int
    name: str

    def __call__(self, nbytes: int) -> None:
        if self.to is not None:
            self.to(self.before + nbytes, self.total, self.name)


def _sentences(wanted: Manifest, output: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    if wanted.version == 1:
        checked = ["the size of every file", f"the {wanted.hash} of every tensor"]
        left = ["headers, configuration and tokenizer beyond their sizes: a manifest of version 1 has no hash of files"]
    else:
        checked, left = ["the size and the sha256 of every file"], []
        if without := [file for file in wanted.files if not file.sha256]:
            checked = [
                f"the size of every file, the {wanted.hash} of every tensor, the sha256 of files without tensors"
            ]
            left = [
                f"the headers of {counted(len(without), 'file')} beyond their sizes: the manifest was written with "
                "--file-hashes none"
            ]
    if output.is_dir():
        checked.append("that nothing else is in the folder")
    left += [f"not proven when it was written: {sentence}" for sentence in wanted.unproven]
    left += [
        "whether this is what was trained: `crossdock verify OUT --against SRC` holds it against the source",
        "who wrote the manifest: it is not signed",
    ]
    return tuple(checked), tuple(left)


def _path_of(output: Path, wanted: Manifest, name: str) -> Path:
    return output if wanted.single_file else output / name


def _check_file(
    output: Path, wanted: Manifest, file: ManifestFile, tensors: list[ManifestTensor], report: Callable[[int], None]
) -> FileCheck:
    path = _path_of(output, wanted, file.name)
    if not path.is_file():
        why = "a folder, a pipe or a device has its name" if path.exists() else ""
        return FileCheck(file.name, "missing", file.nbytes, file.sha256, why=why)
    if output.is_dir() and not stays_inside(path, output):
        return FileCheck(file.name, "different", file.nbytes, file.sha256, why="a link that leads out of the folder")
    size = path.stat().st_size
    with contextlib.closing(WrittenFile(path)) as there:
        digest = ""
        if size == file.nbytes and file.sha256:
            digest = _hash_of(there, 0, size, hashlib.sha256(), report)
            if digest == file.sha256:
                return FileCheck(file.name, "equal", file.nbytes, file.sha256)
        damaged = tuple(one.name for one in tensors if not _same(there, one, size, wanted.hash))
    if size == file.nbytes and not file.sha256 and not damaged:
        return FileCheck(file.name, "equal", file.nbytes)
    why = "" if damaged or not tensors else "every tensor is as it was written: the header differs, or what follows"
    return FileCheck(
        file.name, "different", file.nbytes, file.sha256, size if size != file.nbytes else None, digest, damaged, why
    )


def _same(there: WrittenFile, tensor: ManifestTensor, size: int, hash_name: str) -> bool:
    if tensor.offset is None or tensor.offset + tensor.nbytes > size:
        return False
    return _hash_of(there, tensor.offset, tensor.nbytes, hashing.new(hash_name)) == tensor.hash


def _hash_of(
    there: WrittenFile, begin: int, nbytes: int, digest: hashing.Hash, report: Callable[[int], None] | None = None
) -> str:
    for at in range(0, nbytes, _PIECE):
        digest.update(there.read(begin + at, min(_PIECE, nbytes - at)).data)
        if report is not None:
            report(at)
    return digest.hexdigest()


def _tensors(
    wanted: Manifest, file: ManifestFile, places: Mapping[tuple[str, str], int] | None
) -> list[ManifestTensor]:
    found = [one for one in wanted.tensors if one.file == file.name]
    if places is None:
        return found
    return [ManifestTensor(one.name, one.file, places.get((one.file, one.name)), one.nbytes, one.hash) for one in found]


def _places_of_old(output: Path, wanted: Manifest) -> dict[tuple[str, str], int]:
    """(file, tensor) -> the byte where its data starts, by the output's own headers; nothing where they are broken."""
    try:
        opened = registry.open_output(output)
    except CrossdockError:
        return {}
    out = {}
    for tensor in opened.tensors.values():
        extent = tensor.extents[0]
        path = opened.files[extent.file].path
        file = wanted.files[0].name if wanted.single_file else path.relative_to(output).as_posix()
        out[file, tensor.name] = extent.offset
    return out


def _unexpected(output: Path, wanted: Manifest) -> Iterator[FileCheck]:
    if wanted.single_file:
        return
    names = frozenset(file.name for file in wanted.files)
    for name in Contents.of(output, Owned(names, ())).kept:
        if name in names:
            continue  # a folder in the place of a file, which is missing
        yield FileCheck(name, "unexpected", why="a folder" if (output / name).is_dir() else "")
