"""Verifying: the plan is replayed with a sink that compares instead of writing.

The plan is made anew from the source with the encodings that the output shows; nothing is taken from the manifest or
the journal. Exact encodings must give equal bytes; lossy ones equal re-encoded bytes, and error figures against the
source.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crossdock.codecs import registry as codecs
from crossdock.codecs.codec import Bytes
from crossdock.codecs.error_stats import ErrorStats
from crossdock.errors import FormatError, Problem
from crossdock.formats import registry as formats
from crossdock.formats.stored import Source
from crossdock.formats.target import TargetFile
from crossdock.planning.plan import Plan
from crossdock.running.blocks import WorkerBuffers, blocks
from crossdock.running.checked import Checked, tokenizer_by_manifest, tokenizer_checked
from crossdock.running.comparisons import LogitsReport, TokensReport
from crossdock.running.engines.engine import Watch
from crossdock.running.engines.registry import engine
from crossdock.running.memory import compiled_for, share_of, workers_for
from crossdock.running.options import RunOptions
from crossdock.running.output import WrittenFile
from crossdock.running.reader import Reader
from crossdock.running.scaling import distance
from crossdock.tokenizers.files import read_json
from crossdock.wording import short

LONGER = 1 << 20  # bytes that a small file may be longer than expected and still be read

Status = Literal["equal", "different", "missing", "unexpected"]


@dataclass(frozen=True, slots=True)
class TensorCheck:
    """One tensor of the output. different: elements (blocks count whole) whose bytes are not those of the replay.

    figures  output values against source values, for encodings that lose something and for differences
    """

    name: str
    dtype: str
    nbytes: int
    status: Status
    different: int = 0
    figures: ErrorStats | None = None


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found.

    ok         nothing that was compared differs; under `strict` also: everything was compared, nothing is unproven
    tensors    every tensor with its status, and how far lossy ones lie from the source
    problems   what is wrong besides tensors: configuration keys, copied files
    nbytes     bytes read of both sides
    seconds    wall-clock time
    logits     what came of comparing logits; None: not asked for
    tokens     what came of comparing token ids; None: not asked for
    checked    what was compared with what, part by part
    unchecked  the parts that were compared with nothing
    unproven   sentences: overrides of the source's own configuration, which the comparison takes for granted
    """

    ok: bool
    tensors: tuple[TensorCheck, ...]
    problems: tuple[Problem, ...]
    nbytes: int
    seconds: float
    logits: LogitsReport | None = None
    tokens: TokensReport | None = None
    checked: Checked = field(default_factory=Checked)
    unchecked: tuple[str, ...] = ()
    unproven: tuple[str, ...] = ()

    @property
    def verdict(self) -> Literal["verified", "not equal", "not proven"]:
        """One word: `not proven` where nothing differs and `strict` asked for more than was compared."""
        wrong = bool(self.problems) or any(one.status != "equal" for one in self.tensors)
        wrong = wrong or any(one is not None and not one.ok for one in (self.logits, self.tokens))
        return "verified" if self.ok else "not equal" if wrong else "not proven"


def verify_plan(plan: Plan, output: Source, facts: Mapping[str, Any], options: RunOptions) -> VerifyReport:
    """Compare `output` with what `plan` would write. `facts`: what the output's own header says, key by key."""
    started = time.monotonic()
    workers = options.workers or workers_for(options.memory)
    share = share_of(options.memory, workers)
    stored = dict(output.tensors)
    checks: dict[str, TensorCheck] = {}
    todo: dict[int, tuple[Path, int]] = {}
    for number, tensor in enumerate(plan.tensors):
        theirs = stored.pop((tensor.part, tensor.name), None)
        name = plan.shown(tensor)
        if theirs is None:
            checks[name] = TensorCheck(name, tensor.dtype, tensor.nbytes, "missing")
        elif theirs.shape != tensor.shape or theirs.dtype != tensor.dtype:
            checks[name] = TensorCheck(name, theirs.dtype, tensor.nbytes, "different", int(np.prod(tensor.shape)))
        else:
            extent = theirs.extents[0]
            todo[number] = output.files[extent.file].path, extent.offset
    for theirs in stored.values():
        if theirs.name in plan.facts:
            continue  # numbers of a key of the header: compared as such
        size = sum(extent.nbytes for extent in theirs.extents)
        file = output.files[theirs.extents[0].file].path.name
        name = f"{file}/{theirs.name}" if theirs.part else theirs.name
        checks[name] = TensorCheck(name, theirs.dtype, size, "unexpected")
    total = sum(plan.tensors[i].nbytes for i in todo)
    report = options.progress or (lambda done, total, what: None)
    engine(options.engine).work(
        VerifyJob(plan, todo, share, compiled_for(plan, options.memory)),
        list(todo),
        workers=workers,
        done=lambda results: checks.update((check.name, check) for check in results),
        progress=lambda units: report(units, total, ""),
    )
    problems = [*_wrong_facts(plan, facts), *_wrong_copies(plan, output)]
    unexpected = tuple(check for check in checks.values() if check.status == "unexpected")
    ordered = tuple(checks[plan.shown(tensor)] for tensor in plan.tensors) + unexpected
    ok = not problems and all(check.status == "equal" for check in ordered)
    checked = Checked("bytes", "keys", tokenizer_checked(plan, output, facts))
    if checked.tokenizer is False:
        how, differing = tokenizer_by_manifest(output.root, output, facts)
        checked, problems = replace(checked, tokenizer=how), [*problems, *differing]
        ok = ok and not differing
    return VerifyReport(ok, ordered, tuple(problems), total, time.monotonic() - started, checked=checked)


@dataclass(frozen=True)
class VerifyJob:
    """Comparing tensors of `plan` with an output: tensor -> the output's file, and the byte where its data starts."""

    plan: Plan
    places: Mapping[int, tuple[Path, int]]
    share: int
    compiled: bool | None

    @contextlib.contextmanager
    def open(self) -> Iterator[_Verifying]:
        """Open the sources in this process; outputs are opened tensor by tensor."""
        with Reader(self.plan) as reader:
            yield _Verifying(self, reader)


class _Verifying:
    """The job in one process."""

    def __init__(self, job: VerifyJob, reader: Reader) -> None:
        self.job, self.reader = job, reader
        self._gil_lock = threading.Lock()

    def worker(self) -> Callable[[int, Watch], TensorCheck | None]:
        """Return what one worker needs."""
        share = WorkerBuffers(self.job.share, self._gil_lock)
        return lambda task, watch: _compare(self, task, share, watch)

    def settle(self, results: Sequence[TensorCheck]) -> None:
        """Do nothing: comparing writes nothing."""


def _compare(verifying: _Verifying, task: int, share: WorkerBuffers, watch: Watch) -> TensorCheck | None:
    job, plan = verifying.job, verifying.job.plan
    tensor, (path, offset) = plan.tensors[task], job.places[task]
    target = codecs.get(tensor.dtype)
    figures = ErrorStats()
    measured = False
    different = 0
    with contextlib.closing(WrittenFile(path)) as written:
        for block in blocks(plan, tensor, verifying.reader, share, job.compiled):
            if watch.stopped():
                return None
            mine = written.read(offset + block.offset, block.encoded.size)
            equal = _equal(mine, block.encoded)
            if not equal:
                rows = (mine != block.encoded).reshape(-1, target.block_bytes)
                different += int(np.count_nonzero(rows.any(axis=1))) * target.block
            if not equal or block.source.name != target.name:
                measured = True
                with share.gil_lock:
                    figures += distance(block.raw, block.source, mine, target, block.scales)
            watch.reached(block.offset + block.encoded.size)
    lossy = measured and (different or figures.max_abs or figures.nonfinite)
    return TensorCheck(
        plan.shown(tensor), tensor.dtype, tensor.nbytes, "different" if different else "equal", different,
        figures if lossy else None,
    )  # fmt: skip


def _equal(one: Bytes, other: Bytes) -> bool:
    """Eight bytes at a time where there are as many: the answers of the comparison take memory too."""
    words = one.size // 8 * 8
    return np.array_equal(one[:words].view(np.uint64), other[:words].view(np.uint64)) and np.array_equal(
        one[words:], other[words:]
    )


def _wrong_facts(plan: Plan, facts: Mapping[str, Any]) -> list[Problem]:
    problems = []
    for key, wanted in plan.facts.items():
        if key not in facts:
            problems.append(Problem("the output lacks this key", where=key, expected=short(wanted, 100)))
        elif not _same(wanted, facts[key]):
            problems.append(
                Problem(
                    "the output has another value", where=key, expected=short(wanted, 100), got=short(facts[key], 100)
                )
            )
    # GGUF's "general" is information, and a tokenizer that nobody named is nothing to compare with
    free = ("general.",) if any(key.startswith("tokenizer.") for key in plan.facts) else ("general.", "tokenizer.")
    for key, value in facts.items():
        if key not in plan.facts and value is not None and not key.startswith(free) and not key.endswith("_token_id"):
            problems.append(Problem("the source does not ask for this key", where=key, got=short(value, 100)))
    return problems


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, bytes):
        return _same(np.frombuffer(one, np.uint8), other)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
    if isinstance(one, float) and isinstance(other, float):
        with np.errstate(over="ignore"):
            same = one == other or bool(np.float32(one) == np.float32(other))
        return same or (math.isnan(one) and math.isnan(other))
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(_same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _wrong_copies(plan: Plan, output: Source) -> list[Problem]:
    problems = []
    for file in plan.files:
        there = output.root / file.name
        if file.copy_of is None:
            problems += _wrong_text(plan, file, there)
            continue
        try:
            equal = there.stat().st_size == file.size and there.read_bytes() == file.copy_of.path.read_bytes()
        except FileNotFoundError:
            what = f"this file of the output is missing; it was copied from {file.copy_of.path}"
            problems.append(Problem(what, where=str(there), fix="copy it again, or export again with --force"))
            continue
        except OSError as error:
            what = f"cannot be compared: {error.strerror}"
            problems.append(Problem(what, where=str(there), fix="check its permissions"))
            continue
        if not equal:
            problems.append(Problem(f"differs from {file.copy_of.path}", where=str(there)))
    return problems


def _wrong_text(plan: Plan, file: TargetFile, there: Path) -> list[Problem]:
    """A small file that the plan writes whole: JSON, such as generation_config.json, by its keys, others by bytes."""
    if len(file.header) != file.size or plan.single_file or file.name.endswith(".safetensors"):
        return []
    if not file.name.endswith(".json"):
        return _wrong_bytes(plan, file, there)
    wanted = json.loads(file.header)
    if plan.facts.keys() <= wanted.keys() or "weight_map" in wanted:
        return []  # asked key by key; followed when the output was opened
    try:
        found = read_json(there)
    except FormatError as error:
        return list(error.problems)
    unnamed = {key for key in found if key not in wanted and key.endswith("_token_id")}  # of a tokenizer, as above
    keys = [key for key in {**wanted, **found} if key not in unnamed and not _same(wanted.get(key), found.get(key))]
    return [
        Problem("the output has another value", where=f"{file.name}: {key}", expected=short(wanted.get(key), 100),
                got=short(found.get(key), 100))
        for key in keys
    ]  # fmt: skip


def _wrong_bytes(plan: Plan, file: TargetFile, there: Path) -> list[Problem]:
    try:
        found = there.read_bytes() if there.stat().st_size <= 2 * file.size + LONGER else b""
    except OSError as error:
        return [Problem(f"cannot be compared: {error.strerror}", where=str(there), fix="export again with --force")]
    if found == file.header:
        return []
    problems = formats.target(plan.target_format).differences(file.name, file.header, found, str(there))
    return [Problem("differs from what the source gives", where=str(there))] if problems is None else list(problems)
