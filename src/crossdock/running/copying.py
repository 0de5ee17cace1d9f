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
from crossdock.planning.plan import Plan, TargetTensor
from crossdock.running import equality, hashing
from crossdock.running.blocks import Block, WorkerBuffers, blocks, shareable
from crossdock.running.engines.engine import Watch
from crossdock.running.file_hashes import FileHash, FileHashes, LazyFile
from crossdock.running.journal import Done
from crossdock.running.output import OutputFile
from crossdock.running.reader import Reader
from crossdock.running.scaling import distance

_PATIENCE = 0.1  # seconds between two looks at whether the run was stopped
EQUALITY = -1  # the task of comparing what is stored twice; all others are numbers of tensors


@dataclass(frozen=True)
class CopyJob:
    """Writing tensors of `plan` into the files of `folder`.

    share     bytes of memory for each worker; compiled: as for `codecs.conversion.convert`
    hash      the name of the hash over each tensor's bytes
    file_hashes  takes every byte that is written in this process, for the hashes of whole files
    """

    plan: Plan
    folder: Path
    share: int
    compiled: bool | None
    hash: str
    file_hashes: FileHashes | None = None

    def hash_of(self, tensor: TargetTensor) -> FileHash | None:
        """What takes the bytes of the tensor's file; None where nobody wants that file's hash in this process."""
        return None if self.file_hashes is None else self.file_hashes.files.get(tensor.file)

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
        self._lock = threading.Lock()
        self._begun: dict[int, _Begun] = {}

    def worker(self) -> Copier:
        """Return what one worker needs."""
        return Copier(self, WorkerBuffers(self.job.share, self._gil_lock))

    def settle(self, results: Sequence[Done]) -> None:
        """Flush the files that hold these tensors."""
        for file in {self.job.plan.tensors[done.tensor].file for done in results}:
            self.files[file].flush()

    def begin(self, task: int, share: WorkerBuffers) -> _Begun:
        """Note that a worker makes tensor `task`."""
        tensor = self.job.plan.tensors[task]
        begun = _Begun(task, tensor, self.job.hash, shareable(tensor, share) and self.job.hash_of(tensor) is not None)
        with self._lock:
            self._begun[task] = begun
        return begun

    def end(self, task: int) -> None:
        """Note that it is made, or given up."""
        with self._lock:
            self._begun.pop(task, None)

    def open_for_all(self) -> _Begun | None:
        """The first tensor, in the order of the files, of which any worker may make the next strip."""
        with self._lock:
            found = [one for one in self._begun.values() if one.shared and not one.claimed]
        return min(found, key=lambda one: (one.tensor.file, one.tensor.offset), default=None)


class _Begun:
    """A tensor at work: what is gathered about it, block after block in order, whichever worker made the block."""

    def __init__(self, task: int, tensor: TargetTensor, hash_name: str, shared: bool) -> None:
        self.task, self.tensor = task, tensor
        self.shared = shared
        self.claimed = False  # all of its strips
        self.position = 0  # bytes that have passed
        self.digest = hashing.new(hash_name)
        self.experts = hashing.Parts(tensor.nbytes // tensor.experts) if tensor.experts > 1 else None
        self.census = ValueCounts()
        self.figures = ErrorStats() if tensor.scaled else None
        self.passed = threading.Condition()
        self._next = 0

    def claim(self, strip: int) -> bool:
        """Take the strip, if nobody has."""
        with self.passed:
            if strip != self._next:
                return False
            self._next += 1
            return True

    def take(self, block: Block, figures: ErrorStats | None) -> None:
        """Add a block whose turn it is."""
        self.digest.update(block.encoded.data)
        if self.experts is not None:
            self.experts.update(block.encoded.data)
        self.census += block.census
        if self.figures is not None and figures is not None:
            self.figures += figures

    def await_turn(self, offset: int, watch: Watch) -> bool:
        """Return when all before byte `offset` has passed; False when the run was stopped."""
        with self.passed:
            while self.position != offset:
                if watch.stopped():
                    return False
                self.passed.wait(_PATIENCE)
        return not watch.stopped()

    def pass_to(self, offset: int) -> None:
        """Let the block at byte `offset` have its turn."""
        with self.passed:
            self.position = offset
            self.passed.notify_all()

    def done(self) -> Done:
        """What is known when all has passed."""
        alike = () if self.experts is None else self.experts.alike()
        return Done(self.task, self.digest.hexdigest(), self.census, alike, self.figures)


class Copier:
    """What one worker does: copy or compare one tensor after another."""

    def __init__(self, copying: Copying, share: WorkerBuffers) -> None:
        self._copying, self._share = copying, share

    def __call__(self, task: int, watch: Watch) -> Done | None:
        """Copy tensor `task`, or compare what is stored twice.

        Where files are hashed, workers share the first tensor that is not finished, so that the bytes of a file come
        nearly in order and are hashed from memory; what cannot be shared is made by its own worker alone.
        """
        job = self._copying.job
        if task == EQUALITY:
            equality.check(job.plan, self._copying.reader, job.share, watch.stopped)
            return None
        own = self._copying.begin(task, self._share)
        units = 0
        try:
            if not own.shared:
                units += self._fill(own, watch, units)
            while own.position < own.tensor.nbytes:
                if watch.stopped():
                    return None
                help_with = self._copying.open_for_all()
                if help_with is not None:
                    units += self._fill(help_with, watch, units)
                elif not own.await_turn(own.tensor.nbytes, watch):
                    return None
        finally:
            self._copying.end(task)
        return None if watch.stopped() and own.position < own.tensor.nbytes else own.done()

    def _fill(self, begun: _Begun, watch: Watch, units: int) -> int:
        """Make strips of a tensor until all are claimed; returns the bytes that were made."""
        job, share, tensor = self._copying.job, self._share, begun.tensor
        out, target, made = self._copying.files[tensor.file], codecs.get(tensor.dtype), 0
        hashes = job.hash_of(tensor)
        claim = begun.claim if begun.shared else None
        with contextlib.closing(LazyFile(job.folder / job.plan.files[tensor.file].name)) as written:
            strips = blocks(job.plan, tensor, self._copying.reader, share, job.compiled, counting=True, claim=claim)
            for block in strips:
                if watch.stopped():
                    return made
                out.write(block.encoded, tensor.offset + block.offset)
                figures = None
                if begun.figures is not None:
                    with share.gil_lock:
                        figures = distance(block.raw, block.source, block.encoded, target, block.scales, precise=True)
                if not begun.await_turn(block.offset, watch):
                    return made
                begun.take(block, figures)
                if hashes is not None:
                    hashes.wrote(block.encoded, tensor.offset + block.offset, written.read)
                begun.pass_to(block.offset + block.encoded.size)
                made += block.encoded.size
                watch.reached(units + made)
        begun.claimed = True
        return made
