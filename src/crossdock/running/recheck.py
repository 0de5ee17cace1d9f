"""What an earlier run finished, read back from the disk and held against the hashes that it recorded.

The journal says what was written, not what is there now: a disk, another program or a person may have changed it. A
tensor whose bytes differ is made again. Bytes between the tensors are zeros in every output, and are made so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from crossdock.errors import CheckFailed, CrossdockError, Problem
from crossdock.planning.plan import Plan
from crossdock.running import hashing
from crossdock.running.journal import Done
from crossdock.running.output import WrittenFile
from crossdock.running.partial import open_own

_CHUNK = 4 << 20


def damaged(plan: Plan, paths: Mapping[int, Path], finished: Mapping[int, Done], hash_name: str) -> set[int]:
    """The finished tensors whose bytes in `paths` (by index of the plan's files) do not have their recorded hash."""
    found: set[int] = set()
    by_file: dict[int, list[int]] = {}
    for number in finished:
        by_file.setdefault(plan.tensors[number].file, []).append(number)
    for file, numbers in by_file.items():
        try:
            written = WrittenFile(paths[file])
        except CrossdockError:
            found.update(numbers)
            continue
        try:
            for number in sorted(numbers, key=lambda one: plan.tensors[one].offset):
                if _hash(written, plan.tensors[number].offset, plan.tensors[number].nbytes, hash_name) != (
                    finished[number].hash
                ):
                    found.add(number)
        finally:
            written.close()
    return found


def intact(
    plan: Plan, folder: Path, finished: Mapping[int, Done], hash_name: str
) -> tuple[dict[int, Done], tuple[str, ...]]:
    """What of `finished` is in `folder` as it was written, and a warning for each tensor that must be made again.

    Raises UsageError (a link in the folder), OSError.
    """
    if not finished:
        return {}, ()
    paths = {index: folder / file.name for index, file in enumerate(plan.files)}
    changed = damaged(plan, paths, finished, hash_name)
    for file in {plan.tensors[number].file for number in finished}:
        _clear_gaps(plan, file, paths[file])
    warnings = tuple(
        f"{plan.tensors[number].name}: its bytes in the unfinished output were changed after they were written; "
        "it was written again"
        for number in sorted(changed)
    )
    return {number: done for number, done in finished.items() if number not in changed}, warnings


def demand_intact(plan: Plan, output: Path, finished: Mapping[int, Done], hash_name: str) -> None:
    """Raise CheckFailed when an output that is in its place already is not what the journal says was written."""
    paths = {i: output if plan.single_file else output / file.name for i, file in enumerate(plan.files)}
    changed = damaged(plan, paths, finished, hash_name)
    if changed:
        raise CheckFailed(
            [
                Problem(
                    "the bytes on the disk are not those that were written",
                    where=f"{output}: {plan.tensors[number].name}",
                    cause="the file was changed, or the disk failed, after an earlier run was cut short",
                    fix="remove this output and export again",
                )
                for number in sorted(changed)[:20]
            ]
        )


def _hash(written: WrittenFile, offset: int, nbytes: int, hash_name: str) -> str:
    digest = hashing.new(hash_name)
    try:
        for at in range(0, nbytes, _CHUNK):
            digest.update(written.read(offset + at, min(_CHUNK, nbytes - at)).data)
    except CrossdockError:  # shorter than it was, or unreadable: not what was written
        return ""
    return digest.hexdigest()


def _gaps(plan: Plan, file: int) -> Iterator[tuple[int, int]]:
    """The (begin, end) of what lies between header and tensors."""
    taken = [(0, len(plan.files[file].header))]
    taken += [(tensor.offset, tensor.offset + tensor.nbytes) for tensor in plan.tensors if tensor.file == file]
    end = 0
    for begin, after in [*sorted(taken), (plan.files[file].size, plan.files[file].size)]:
        if begin > end:
            yield end, begin
        end = max(end, after)


def _clear_gaps(plan: Plan, file: int, path: Path) -> None:
    if plan.files[file].copy_of is not None:
        return
    fd = open_own(path, os.O_RDWR)
    try:
        for begin, end in _gaps(plan, file):
            for at in range(begin, end, _CHUNK):
                there = os.pread(fd, min(_CHUNK, end - at), at)
                if there.strip(b"\0"):
                    os.pwrite(fd, bytes(len(there)), at)
    finally:
        os.close(fd)
