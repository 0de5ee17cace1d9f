"""Running a plan: blocks are read, converted, hashed and written at known places, and the output appears whole or not.

Files grow in `OUT.partial/`; finished tensors are journaled; at the end everything is flushed and renamed once. Running
again after a crash goes on where it stopped and gives the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from crossdock.codecs import registry as codecs
from crossdock.codecs.error_stats import ErrorStats
from crossdock.codecs.value_counts import ValueCounts
from crossdock.errors import CheckFailed, EnvironmentProblem, InputError, PlanError, Problem, UsageError
from crossdock.formats.stored import SourceFile
from crossdock.planning.plan import Plan
from crossdock.running import equality, hashing, low_rank
from crossdock.running.blocks import WorkerBuffers, blocks
from crossdock.running.engines.threads import work
from crossdock.running.journal import Done, Journal
from crossdock.running.manifest import manifest_bytes, manifest_path
from crossdock.running.memory import share_of, workers_for
from crossdock.running.output import OutputFile
from crossdock.running.publish import end_placement, put_in_place
from crossdock.running.reader import Reader
from crossdock.running.recheck import intact
from crossdock.running.results import RunReport, TensorResult, clamped, repeated
from crossdock.running.scaling import distance

Progress = Callable[[int, int, str], None]
_FLUSH_SECONDS = 1.0
_TWINS = -1  # the task of comparing what is stored twice
_COMPILED_FROM = 512 << 20  # bytes to quantise from which numba's start-up (0.5 s, 110 MB) pays
_SEARCHED = 16  # times as many seconds go into a byte of a K-quant


def run(
    plan: Plan,
    output: Path,
    *,
    memory: int = 256 << 20,
    workers: int | None = None,
    force: bool = False,
    hash: str = "xxh3",
    fail_on: frozenset[str] = frozenset(),
    progress: Progress | None = None,
    order: Callable[[Sequence[int]], Sequence[int]] | None = None,
) -> RunReport:
    """Write `plan` to `output`. `memory`: bytes for all workers' buffers together; `order`: of the tasks, for tests.

    Raises UsageError (output exists, unfinished output of another plan), MemoryPlanError, EnvironmentProblem (disk),
    PlanError (what is stored twice differs), FormatError (a blob is not what its index said), CheckFailed (`fail_on`),
    InputError (the source changed meanwhile).
    """
    started = time.monotonic()
    workers = workers or workers_for(memory)
    share = share_of(memory, workers)
    hashing.new(hash)
    output = Path(os.path.abspath(output))
    partial = output.with_name(output.name + ".partial")
    manifest = manifest_path(output)
    try:
        placed = end_placement(plan, partial, output, hash)
        if placed is None:
            _check_output(plan, output, force)
            _check_disk(plan, output, partial)
    except OSError as error:
        raise _disk_problem(error, output) from error
    if placed is not None:
        tensors = tuple(_result(plan, placed[i]) for i in range(len(plan.tensors)))
        seconds = time.monotonic() - started
        warnings = (*plan.warnings, *clamped(plan, tensors), *repeated(plan, tensors))
        return RunReport(output, manifest, plan.nbytes, seconds, 0, len(tensors), tensors, warnings)
    journal = Journal.open(partial, plan, hash, force)
    try:
        finished, rewritten = intact(plan, partial, journal.finished, hash)
        resumed = len(finished)
        _Copying(plan, journal, share, workers, compiled_for(plan, memory), hash, progress, order).go(finished)
        _check_sources(plan)
        tensors = tuple(_result(plan, finished[i]) for i in range(len(plan.tensors)))
        _check_findings(plan, tensors, fail_on)
        _check_output(plan, output, force)  # again: it may have come meanwhile
        put_in_place(plan, partial, output, manifest_bytes(plan, tensors, hash))
    except PlanError:
        shutil.rmtree(partial)  # the plan took for one what is two: nothing that was written is of use
        raise
    except OSError as error:
        raise _disk_problem(error, partial) from error
    finally:
        journal.close()
    return RunReport(
        output, manifest, plan.nbytes, time.monotonic() - started, len(tensors) - resumed, resumed, tensors,
        (*plan.warnings, *rewritten, *clamped(plan, tensors), *repeated(plan, tensors)),
    )  # fmt: skip


def compiled_for(plan: Plan, memory: int) -> bool | None:
    """Whether compiled encoders pay: None for wherever they are available, False for numpy."""
    quantised = sum(
        tensor.nbytes * (_SEARCHED if tensor.dtype.endswith("_k") else 1)
        for tensor in plan.tensors
        if tensor.dtype.startswith("q")
    )
    return None if quantised > _COMPILED_FROM and memory >= 256 << 20 else False


class _Copying:
    """The copying itself: target files open, tasks handed to the engine, results flushed and journaled."""

    def __init__(
        self,
        plan: Plan,
        journal: Journal,
        share: int,
        workers: int,
        compiled: bool | None,
        hash_name: str,
        progress: Progress | None,
        order: Callable[[Sequence[int]], Sequence[int]] | None,
    ) -> None:
        self.plan, self.journal, self.share, self.workers = plan, journal, share, workers
        self.hash_name, self.order = hash_name, order
        self.report = progress or (lambda done, total, what: None)
        self.total = sum(t.nbytes for t in plan.tensors) + sum(f.size for f in plan.files if f.copy_of)
        self.counts = [0] * len(plan.tensors)
        self.compiled = compiled

    def go(self, finished: dict[int, Done]) -> None:
        plan = self.plan
        for number in finished:
            self.counts[number] = plan.tensors[number].nbytes
        with contextlib.ExitStack() as opened:
            files = []
            for file in plan.files:
                out = OutputFile(self.journal.folder / file.name, file.size)
                opened.callback(out.close)
                files.append(out)
            for out, file in zip(files, plan.files, strict=True):
                if file.copy_of is not None:
                    out.copy(file.copy_of)
                else:
                    out.write(np.frombuffer(file.header, np.uint8), 0)
            self._copy_tensors(files, finished)
            for out in files:
                out.flush()

    def _copy_tensors(self, files: list[OutputFile], finished: dict[int, Done]) -> None:
        tasks: Sequence[int] = [i for i in range(len(self.plan.tensors)) if i not in finished]
        if self.order is not None:
            tasks = self.order(tasks)
        if self.plan.equality_checks:
            tasks = [_TWINS, *tasks]  # compared while others copy: the disk is mostly waited for
        copied = sum(f.size for f in self.plan.files if f.copy_of)
        with Reader(self.plan) as reader:
            low_rank.check(self.plan, reader)

            def do(task: int, share: WorkerBuffers, stop: threading.Event) -> Done | None:
                if task == _TWINS:
                    equality.check(self.plan, reader, self.share, stop)
                    return None
                return self._copy_tensor(task, reader, share, files, stop)

            waiting: list[Done] = []
            gil_lock = threading.Lock()
            flushed = time.monotonic()
            results = work(tasks, do, self.workers, lambda: WorkerBuffers(self.share, gil_lock))
            try:
                for result in results:
                    if result is not None:
                        waiting.append(result)
                        finished[result.tensor] = result
                    if waiting and time.monotonic() - flushed > _FLUSH_SECONDS:
                        self._flush(files, waiting)
                        flushed = time.monotonic()
                    self.report(copied + sum(self.counts), self.total, "")
            finally:
                results.close()  # type: ignore[attr-defined]
                if waiting:
                    self._flush(files, waiting)

    def _flush(self, files: list[OutputFile], waiting: list[Done]) -> None:
        for file in {self.plan.tensors[done.tensor].file for done in waiting}:
            files[file].flush()
        self.journal.add(waiting)
        waiting.clear()

    def _copy_tensor(
        self, task: int, reader: Reader, share: WorkerBuffers, files: list[OutputFile], stop: threading.Event
    ) -> Done | None:
        tensor = self.plan.tensors[task]
        digest = hashing.new(self.hash_name)
        experts = hashing.Parts(tensor.nbytes // tensor.experts) if tensor.experts > 1 else None
        census = ValueCounts()
        figures = ErrorStats() if tensor.scaled else None
        target = codecs.get(tensor.dtype)
        for block in blocks(self.plan, tensor, reader, share, self.compiled, counting=True):
            if stop.is_set():
                return None
            digest.update(block.encoded.data)
            if experts is not None:
                experts.update(block.encoded.data)
            files[tensor.file].write(block.encoded, tensor.offset + block.offset)
            census += block.census
            if figures is not None:
                with share.gil_lock:
                    figures += distance(block.raw, block.source, block.encoded, target, block.scales, precise=True)
            self.counts[task] = block.offset + block.encoded.size
        return Done(task, digest.hexdigest(), census, () if experts is None else experts.alike(), figures)


def _check_output(plan: Plan, output: Path, force: bool) -> None:
    """Refuse an output that is, holds or would replace what is read, or that nobody can mean to be replaced."""
    read = [plan.source_root, *(f.path for f in plan.sources), *(f.copy_of.path for f in plan.files if f.copy_of)]
    inputs = {Path(at(path)) for path in read for at in (os.path.abspath, os.path.realpath)}
    holds = not plan.single_file and any({output, output.resolve()} & set(path.parents) for path in inputs)
    if holds or {output, output.resolve()} & inputs:
        raise UsageError("the output would overwrite the source", where=str(output), fix="choose another --output")
    other = "choose another --output"
    root = Path(os.path.realpath(plan.source_root))
    if root.is_dir() and root in Path(os.path.realpath(output)).parents:
        raise UsageError(
            "the output would lie inside the source", where=str(output), got=f"a source of {root}", fix=other
        )
    if not output.is_symlink() and not output.exists():
        return
    if not force:
        raise UsageError("the output exists", where=str(output), fix=f"{other}, or --force to replace it when done")
    if output.exists() and not output.is_dir() and not output.is_file():
        raise UsageError("the output is a device or a pipe, which no file replaces", where=str(output), fix=other)
    if output.is_dir() == plan.single_file:
        here, made = ("a folder", "a file") if output.is_dir() else ("a file", "a folder")
        raise UsageError(f"this is {here}, which --force does not replace with {made}", where=str(output), fix=other)
    if output.is_dir() and next(output.iterdir(), None) and not _is_a_models(output):
        raise UsageError(
            "--force would delete this folder, which is no exported model's", where=str(output),
            expected=f"a config.json in it, or {manifest_path(output).name} beside it",
            fix=f"{other}, or remove the folder yourself",
        )  # fmt: skip


def _is_a_models(folder: Path) -> bool:
    return (folder / "config.json").exists() or manifest_path(folder).exists()


def _check_disk(plan: Plan, output: Path, partial: Path) -> None:
    parent = next(p for p in output.parents if p.exists())
    have = shutil.disk_usage(parent).free
    reserved = sum(f.stat().st_blocks * 512 for f in partial.rglob("*") if f.is_file()) if partial.is_dir() else 0
    need = plan.nbytes - reserved
    if need > have:
        raise EnvironmentProblem(
            "not enough free disk", where=str(parent), expected=f"{need:,} bytes free", got=f"{have:,}",
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


def _result(plan: Plan, done: Done) -> TensorResult:
    tensor = plan.tensors[done.tensor]
    file = plan.files[tensor.file].name
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
                    fix="export without --fail-on nonfinite if the model is meant so"
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
            "the disk is full", where=str(where), fix="free some and run the same command again: it goes on from here"
        )
    return EnvironmentProblem(
        f"{error.strerror or error}",
        where=str(error.filename or where),
        fix="check the place of the output and its rights",
    )
