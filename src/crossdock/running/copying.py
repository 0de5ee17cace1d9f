"""The job of writing a plan's tensors: read, convert, hash, write at known places. What an engine gets done.

Nothing here makes or publishes an output; the files are there, at their full size, before a task begins.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdock.codecs import registry as codecs
from crossdock.codecs.error_stats import ErrorStats
from crossdock.codecs.value_counts import ValueCounts
from crossdock.planning.plan import Plan
from crossdock.running import equality, hashing
from crossdock.running.blocks import WorkerBuffers, blocks
from crossdock.running.engines.engine import Watch
from crossdock.running.journal import Done
from crossdock.running.output import OutputFile
from crossdock.running.reader import Reader
from crossdock.running.scaling import distance

EQUALITY = -1  # the task of comparing what is stored twice; all others are numbers of tensors


@dataclass(frozen=True)
class CopyJob:
    """Writing tensors of `plan` into the files of `folder`.

    share     bytes of memory for each worker; compiled: as for `codecs.conversion.convert`
    hash      the name of the hash over each tensor's bytes
    """

    plan: Plan
    folder: Path
    share: int
    compiled: bool | None
    hash: str

    @contextlib.contextmanager
    def open(self) -> Iterator[Copying]:
        """Open sources and outputs in this process."""
        with contextlib.ExitStack() as stack:
            reader = stack.enter_context(Reader(self.plan))
            yield Copying(self, reader, opened_files(stack, self.plan, self.folder))


def opened_files(stack: contextlib.ExitStack, plan: Plan, folder: Path, *, make: bool = False) -> list[OutputFile]:
    """Every file of the plan in `folder`, at its full size, made if wanted; `stack` closes them."""
    files = []
    for file in plan.files:
        out = OutputFile(folder / file.name, file.size, make=make)
        stack.callback(out.close)
        files.append(out)
    return files


class Copying:
    """The job in one process."""

    def __init__(self, job: CopyJob, reader: Reader, files: Sequence[OutputFile]) -> None:
        self.job, self.reader, self.files = job, reader, files
        self._gil_lock = threading.Lock()

    def worker(self) -> Copier:
        """One thread's."""
        return Copier(self, WorkerBuffers(self.job.share, self._gil_lock))

    def settle(self, results: Sequence[Done]) -> None:
        """Flush the files that hold these tensors."""
        for file in {self.job.plan.tensors[done.tensor].file for done in results}:
            self.files[file].flush()


class Copier:
    """One thread of it."""

    def __init__(self, copying: Copying, share: WorkerBuffers) -> None:
        self._copying, self._share = copying, share

    def __call__(self, task: int, watch: Watch) -> Done | None:
        """Copy tensor `task`, or compare what is stored twice."""
        job, reader, share = self._copying.job, self._copying.reader, self._share
        if task == EQUALITY:
            equality.check(job.plan, reader, job.share, watch.stopped)
            return None
        tensor = job.plan.tensors[task]
        target, out = codecs.get(tensor.dtype), self._copying.files[tensor.file]
        digest = hashing.new(job.hash)
        experts = hashing.Parts(tensor.nbytes // tensor.experts) if tensor.experts > 1 else None
        census = ValueCounts()
        figures = ErrorStats() if tensor.scaled else None
        for block in blocks(job.plan, tensor, reader, share, job.compiled, counting=True):
            if watch.stopped():
                return None
            digest.update(block.encoded.data)
            if experts is not None:
                experts.update(block.encoded.data)
            out.write(block.encoded, tensor.offset + block.offset)
            census += block.census
            if figures is not None:
                with share.gil_lock:
                    figures += distance(block.raw, block.source, block.encoded, target, block.scales, precise=True)
            watch.reached(block.offset + block.encoded.size)
        return Done(task, digest.hexdigest(), census, () if experts is None else experts.alike(), figures)
