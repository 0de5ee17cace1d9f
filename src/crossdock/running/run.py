"""Running a plan: blocks are read, converted, hashed and written at known places, and the output appears whole or not.

Files grow in `OUT.partial/`; finished tensors are journaled; at the end everything is flushed and renamed once. Running
again after a crash goes on where it stopped and gives the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from crossdock.errors import CheckFailed, EnvironmentProblem, InputError, PlanError, Problem
from crossdock.formats.stored import SourceFile
from crossdock.planning.plan import Plan
from crossdock.running import low_rank
from crossdock.running.copying import EQUALITY, CopyJob, opened_files
from crossdock.running.destination import check_destination, check_name, destination
from crossdock.running.engines.registry import engine
from crossdock.running.file_hashes import FileHashes
from crossdock.running.journal import Done, Journal
from crossdock.running.manifest import manifest_bytes, manifest_path
from crossdock.running.memory import compiled_for, share_of, workers_for
from crossdock.running.options import WriteOptions
from crossdock.running.publish import end_placement, put_in_place
from crossdock.running.reader import Reader
from crossdock.running.recheck import intact
from crossdock.running.results import FileResult, RunReport, TensorResult, clamped, repeated


def run(
    plan: Plan,
    output: str | os.PathLike[str],
    options: WriteOptions | None = None,
) -> RunReport:
    """Write `plan` to `output`; see `running.destination` for what the path means and what is replaced.

    Raises UsageError (output exists, unfinished output of another plan), MemoryPlanError, EnvironmentProblem (disk),
    PlanError (what is stored twice differs), FormatError (a blob is not what its index said), CheckFailed (`fail_on`),
    InputError (the source changed meanwhile).
    """
    started = time.monotonic()
    options = options or WriteOptions()
    share_of(options.memory, options.workers or workers_for(options.memory))
    output = Path(os.path.abspath(destination(plan, output)))
    partial = output.with_name(output.name + ".partial")
    place = output
    check_name(output)
    try:
        placed = end_placement(plan, partial, output, options.hash)
        if placed is not None:
            return _report(plan, output, placed, len(plan.tensors), started)
        check_destination(plan, output, force=options.force)
        _check_disk(plan, output, partial)
        place = partial
        with contextlib.closing(Journal.open(partial, plan, options.hash, options.force)) as journal:
            return _run(plan, output, journal, options, started)
    except PlanError:
        shutil.rmtree(partial)  # tensors assumed tied differ: the partial output is worthless
        raise
    except BrokenPipeError:
        raise  # of who called: `progress` writes somewhere
    except OSError as error:
        raise _disk_problem(error, place if os.path.exists(place) else output) from error


def check_place(plan: Plan, output: str | os.PathLike[str]) -> Path:
    """Where `run` would write, after what it checks of the place before it writes. Raises what `run` raises of it."""
    place = Path(os.path.abspath(destination(plan, output)))
    check_name(place)
    check_destination(plan, place, force=False)
    _check_disk(plan, place, place.with_name(place.name + ".partial"))
    return place


def _run(plan: Plan, output: Path, journal: Journal, options: WriteOptions, started: float) -> RunReport:
    partial = journal.folder
    intact_tensors, rewritten = intact(plan, partial, journal.finished, options.hash)
    finished, hashes = _written(plan, journal, intact_tensors, options)
    _check_sources(plan)
    report = _report(plan, output, finished, len(intact_tensors), started, rewritten)
    report = replace(report, files=_files(plan, output, hashes))
    _check_findings(plan, report.tensors, options.fail_on)
    kept = check_destination(plan, output, force=options.force)  # again: it may have come meanwhile
    put_in_place(plan, partial, output, manifest_bytes(plan, report, options))
    return replace(report, kept=kept, seconds=time.monotonic() - started)


def _files(plan: Plan, output: Path, hashes: Mapping[int, str]) -> tuple[FileResult, ...]:
    return tuple(
        FileResult(_final_name(plan, index, output), file.size, hashes.get(index, ""))
        for index, file in enumerate(plan.files)
    )


def _final_name(plan: Plan, file: int, output: Path) -> str:
    return output.name if plan.single_file else plan.files[file].name


def _report(
    plan: Plan,
    output: Path,
    finished: Mapping[int, Done],
    resumed: int,
    started: float,
    rewritten: Sequence[str] = (),
) -> RunReport:
    tensors = tuple(_result(plan, finished[i], output) for i in range(len(plan.tensors)))
    return RunReport(
        output, manifest_path(output), plan.nbytes, time.monotonic() - started, len(tensors) - resumed, resumed,
        tensors, (*plan.warnings, *rewritten, *clamped(plan, tensors), *repeated(plan, tensors)),
    )  # fmt: skip


def _written(
    plan: Plan,
    journal: Journal,
    intact_tensors: Mapping[int, Done],
    options: WriteOptions,
) -> tuple[Mapping[int, Done], Mapping[int, str]]:
    """Fill the files of the output: headers and copies here, tensors by the engine; what is done is journaled.

    Returns the tensors, and the sha256 of every file that is to have one.
    """
    finished = dict(intact_tensors)
    hashes, file_hashes = {}, FileHashes(plan, tensors=options.file_hashes != "none")
    with contextlib.ExitStack() as stack:
        for index, out in enumerate(opened_files(stack, plan, journal.folder, make=True)):
            file = plan.files[index]
            if file.copy_of is not None:
                hashes[index] = out.copy(file.copy_of)
            else:
                out.write(np.frombuffer(file.header, np.uint8), 0)
    with Reader(plan) as reader:
        low_rank.check(plan, reader)
    tasks: Sequence[int] = [i for i in range(len(plan.tensors)) if i not in finished]
    if plan.equality_checks:
        tasks = [EQUALITY, *tasks]  # compared while others copy: the disk is mostly waited for
    before = sum(f.size for f in plan.files if f.copy_of) + sum(plan.tensors[i].nbytes for i in finished)
    total = sum(t.nbytes for t in plan.tensors) + sum(f.size for f in plan.files if f.copy_of)
    report = options.progress or (lambda done, total, what: None)

    def done(results: Sequence[Done]) -> None:
        journal.add(results)
        finished.update((result.tensor, result) for result in results)

    workers = options.workers or workers_for(options.memory)
    share = share_of(options.memory, workers)
    job = CopyJob(plan, journal.folder, share, compiled_for(plan, options.memory), options.hash, file_hashes)
    for number in intact_tensors:
        file_hashes.leave(plan.tensors[number])
    engine(options.engine).work(
        job, tasks, workers=workers, done=done, progress=lambda units: report(before + units, total, "")
    )
    with contextlib.ExitStack() as stack:
        for out in opened_files(stack, plan, journal.folder):
            out.flush()
    return finished, hashes | file_hashes.finish(plan, journal.folder)


def _check_disk(plan: Plan, output: Path, partial: Path) -> None:
    parent = next(p for p in output.parents if p.exists())
    have = shutil.disk_usage(parent).free
    reserved = sum(f.stat().st_blocks * 512 for f in partial.rglob("*") if f.is_file()) if partial.is_dir() else 0
    need = plan.nbytes - reserved
    if need > have:
        raise EnvironmentProblem(
            "not enough disk space", where=str(parent), expected=f"{need:,} bytes free", got=f"{have:,}",
            fix="free some, or choose an --output on another disk",
        )  # fmt: skip


def _check_sources(plan: Plan) -> None:
    changed = []
    for file in plan.sources:
        try:
            now = SourceFile.of(file.path)
        except OSError as error:
            changed.append(Problem(f"the source vanished while it was read: {error.strerror}", where=str(file.path)))
            continue
        if now != file:
            changed.append(Problem("the source changed while it was read", where=str(file.path)))
    if changed:
        raise InputError(changed)


def _result(plan: Plan, done: Done, output: Path) -> TensorResult:
    tensor = plan.tensors[done.tensor]
    file = _final_name(plan, tensor.file, output)
    return TensorResult(
        tensor.name, file, tensor.dtype, tensor.shape, tensor.nbytes, done.hash, done.census, done.alike, done.figures
    )


def _check_findings(plan: Plan, tensors: Sequence[TensorResult], fail_on: frozenset[str]) -> None:
    problems = []
    fix = "choose another --dtype, or --allow-overflow" if "overflow" in plan.fail_on else ""
    for tensor, planned in zip(tensors, plan.tensors, strict=True):
        census = tensor.census
        if "nonfinite" in fail_on | plan.fail_on and census.nonfinite:
            problems.append(
                Problem(
                    f"{census.nan} NaN and {census.inf} infinite values",
                    where=plan.shown(planned),
                    fix="export without --fail-on nonfinite if these values are intended"
                    if "nonfinite" in fail_on
                    else "export without -q: this type has no place for them",
                    check="nonfinite",
                )
            )
        # what a stale scale cuts off stays a number
        minds = "overflow" in fail_on or ("overflow" in plan.fail_on and not planned.static_scales)
        if minds and census.overflow:
            what = f"{census.overflow} values overflow {tensor.dtype}"
            problems.append(Problem(what, where=plan.shown(planned), fix=fix))
    if problems:
        raise CheckFailed(problems)


def _disk_problem(error: OSError, where: Path) -> EnvironmentProblem:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return EnvironmentProblem(
            "the disk is full", where=str(where), fix="free some and run the same command again: it continues from here"
        )
    return EnvironmentProblem(
        f"{error.strerror or error}",
        where=str(error.filename or where),
        fix="check the output's location and its permissions",
    )
