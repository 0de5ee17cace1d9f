"""Which folder a user means, and what kind of Megatron checkpoint lies in it.

Lists folders and reads files of a few bytes; opens no pickle. The order of detection is Megatron's own
(Megatron-LM d98e8a6, `megatron/training/checkpointing.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NoReturn

from crossdock.errors import CrossdockError, EnvironmentProblem, FormatError, NotACheckpointError, UsageError
from crossdock.io.files import read_exact, reading, size_of
from crossdock.io.json import CONFIGURATION, read_object
from crossdock.unpickle import printable

TRACKER = "latest_checkpointed_iteration.txt"
MAX_ENTRIES = 200_000
ITERATION = re.compile(r"iter_(\d{1,12})\Z")
RANK = re.compile(r"mp_rank_\d+(_\d+){0,2}\Z")


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of one saved iteration. `described`: its metadata.json, {} where it has none.

    kind  "dcp": --ckpt-format fsdp_dtensor or torch_dcp, a DCP folder with a key for each layer
    """

    path: Path
    kind: Literal["torch_dist", "ranks", "dcp"]
    described: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def looks_like_megatron(path: Path) -> bool:
    """True for a checkpoint root or the folder of one iteration. Never raises."""
    try:
        if not path.is_dir():
            return False
        names = _names(path)
        if any(name in (TRACKER, "common.pt") or ITERATION.match(name) or RANK.match(name) for name in names):
            return True
        if (path / "weights" / "metadata.json").is_file():
            return True
        return "metadata.json" in names and "sharded_backend" in read_object(path / "metadata.json", CONFIGURATION)
    except (OSError, ValueError, CrossdockError):
        return False


def find_folder(path: Path, iteration: int | None) -> Folder:
    """The folder that `path` (a root, or an iteration's folder) and `--iteration` mean.

    Raises NotACheckpointError (nothing there, unfinished save, a kind that is not read), UsageError (several
    iterations, or one that is not there), FormatError (broken tracker or metadata.json).
    """
    if not path.is_dir():
        raise NotACheckpointError("folder does not exist", where=str(path))
    names = _names(path)
    if _is_saved(path, names):
        number = ITERATION.match(path.name)
        if iteration is not None and number and int(number[1]) != iteration:
            raise UsageError(
                f"--iteration {iteration} contradicts the folder in the path",
                where=str(path),
                fix="pass the folder above it, or leave --iteration out",
            )
        return _kind(path, names, {})
    chosen, notes = _choose(path, names, iteration)
    inner = _names(chosen)
    if not _is_saved(chosen, inner) and (chosen / "weights" / "metadata.json").is_file():
        return find_folder(chosen / "weights", None)
    return _kind(chosen, inner, notes)


def _is_saved(path: Path, names: list[str]) -> bool:
    return (
        any(RANK.match(name) for name in names)
        or any(name in ("metadata.json", ".metadata", "common.pt", ".zmetadata") for name in names)
        or any(name.endswith(".distcp") for name in names)
    )


def _choose(path: Path, names: list[str], iteration: int | None) -> tuple[Path, dict[str, str]]:
    """The iteration's folder inside a root."""
    saved = sorted((int(m[1]), name) for name in names if (m := ITERATION.match(name)))
    listed = ", ".join(str(number) for number, _ in saved[-20:]) or "none"
    if iteration is not None:
        for number, name in saved:
            if number == iteration:
                return path / name, {}
        raise UsageError(
            f"iteration {iteration} does not exist", where=str(path), expected=f"one of {listed}", fix="--iteration N"
        )
    if TRACKER in names:
        return _tracked(path, names, saved, listed)
    if "weights" in names and (path / "weights" / "metadata.json").is_file():
        return path / "weights", {"layout": "NeMo (weights/, context/)"}
    if len(saved) == 1:
        return path / saved[0][1], {"chosen": f"{saved[0][1]}, the only iteration ({TRACKER} is missing)"}
    if not saved and "release" in names:
        return path / "release", {"chosen": f"release ({TRACKER} is missing)"}
    if saved:
        raise UsageError(
            f"there are {len(saved)} iterations and no {TRACKER} that names one",
            where=str(path),
            expected=f"one of {listed}",
            fix=f"--iteration {saved[-1][0]}",
        )
    raise NotACheckpointError("no Megatron checkpoint found in this folder", where=str(path))


def _tracked(path: Path, names: list[str], saved: list[tuple[int, str]], listed: str) -> tuple[Path, dict[str, str]]:
    where = str(path / TRACKER)
    with reading(path / TRACKER) as fd:
        text = read_exact(fd, 0, min(size_of(fd), 64), where).decode("utf-8", "replace").strip()
    if text == "release":
        name = "release"
    elif re.fullmatch(r"[0-9]{1,12}", text):
        name = next((name for number, name in saved if number == int(text)), f"iter_{int(text):07d}")
    else:
        raise FormatError(
            "the file does not name an iteration",
            where=where,
            expected="a decimal number or the word release",
            got=repr(printable(text)),
            fix=f"--iteration N, with one of {listed}",
        )
    if name not in names:
        raise NotACheckpointError(
            f"{name}, which {TRACKER} names, does not exist",
            where=str(path),
            expected=f"one of {listed}",
            cause="an unfinished copy",
            fix="copy that folder too, or choose another with --iteration N",
        )
    return path / name, {}


def _kind(path: Path, names: list[str], notes: dict[str, str]) -> Folder:
    if "metadata.json" in names:
        described = read_object(path / "metadata.json", CONFIGURATION)
        backend = described.get("sharded_backend")
        if backend == "torch_dist":
            if ".metadata" not in names:
                _unfinished(path, ".metadata")
            return Folder(path, "torch_dist", described, notes)
        if backend == "zarr":
            raise NotACheckpointError(
                "a zarr checkpoint of megatron-core 0.15 or older, which crossdock does not read",
                where=str(path),
                fix="load it with that version and save it with --ckpt-format torch_dist (or torch)",
            )
        raise NotACheckpointError(
            "unsupported backend in metadata.json",
            where=str(path / "metadata.json"),
            expected="torch_dist",
            got=printable(repr(backend)),
        )
    if any(RANK.match(name) for name in names):
        return Folder(path, "ranks", {}, notes)
    if ".metadata" in names:
        return Folder(path, "dcp", {}, notes)
    if any(name.endswith(".distcp") for name in names) or "common.pt" in names:
        _unfinished(path, ".metadata and metadata.json")
    raise NotACheckpointError(
        "no checkpoint found in this folder",
        where=str(path),
        expected="metadata.json and .metadata, or mp_rank_* folders",
        got=", ".join(map(printable, names[:6])) or "an empty folder",
    )


def _unfinished(path: Path, missing: str) -> NoReturn:
    raise NotACheckpointError(
        f"{missing} is missing",
        where=str(path),
        cause="an unfinished save or copy (hidden files are easily left behind)",
        fix="copy the whole folder again, or use an earlier iteration",
    )


def _names(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in islice(path.iterdir(), MAX_ENTRIES))
    except OSError as error:
        raise EnvironmentProblem(f"cannot be listed: {error.strerror}", where=str(path)) from None
