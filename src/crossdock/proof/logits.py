"""Do the source and the output compute the same? Logits against logits, position by position, on the same token ids.

The source goes through the reference forward; the output does too, or through a real engine in a process of its own.
Both sides are streamed: a few rows of logits are held at a time, an engine's lie in a file until they are compared.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossdock.errors import CheckFailed, InputError, Problem, UsageError
from crossdock.formats import registry as formats
from crossdock.model.config import ModelConfig
from crossdock.model.forward import hidden, logits
from crossdock.model.layers.layer import Array
from crossdock.planning.canonical import slots
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.plan import Plan
from crossdock.proof.engines import registry
from crossdock.proof.engines.ask import TIMEOUT
from crossdock.proof.engines.registry import Engine
from crossdock.proof.limits import Limits, limits, losing
from crossdock.proof.logit_files import LogitFiles, Rows, logits_by
from crossdock.proof.references import Reference, Stored, reference_for
from crossdock.proof.texts import Asked, read_asked
from crossdock.running.comparisons import EngineCheck, LogitsReport, PositionCheck
from crossdock.running.options import Progress
from crossdock.running.weights import CheckpointWeights

REFERENCE = "reference"  # the engine's name when the output goes through the reference forward
ROW = 8  # bytes that a logit of a row takes on one side, in parts and whole

ReadReporter = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Question:
    """Token ids, and who computes the output's logits of them. alone: only `engine` reads the output.

    reference  who computed the source's; None: the reference forward does
    """

    asked: Asked
    engine: Engine | None
    output: Path
    alone: bool
    reference: Reference | None = None


def question(
    text_or_ids: str | Sequence[int],
    engine: str | None,
    source: Checkpoint,
    output: Path,
    tokenizer: Path | None,
    reference: str | Path | None = None,
) -> Question:
    """What is asked, checked as far as it can be before anything is computed.

    reference  an engine that computes the source's logits, or a .npy file of them; None: the reference forward
    Raises UsageError, TokenizerError, NotACheckpointError, and EnvironmentProblem for what is not installed.
    """
    by = None if engine is None else registry.engine(engine)
    alone = False
    if by is not None:
        if not by.opens(output):
            raise UsageError(f"{by.name} does not read this output", where=str(output), expected=by.reads)
        by.needed()
        alone = by.format is None and not any(formats.source_format(n).sniff(output) for n in formats.names())
    whose = None if reference is None else reference_for(reference, source)
    whole = whose is not None and whose.file is not None  # the rows of a file are windows, whatever their length
    asked = read_asked(text_or_ids, source, output, tokenizer, whole=whole)
    if whose is not None:
        whose.demand(asked, source.config.vocab_size)
    return Question(asked, by, output, alone, whose)


def answer(
    question: Question,
    source: Checkpoint,
    target: Callable[[], Checkpoint],
    replay: Plan | None,
    *,
    memory: int,
    timeout: float = TIMEOUT,
    progress: Progress | None = None,
) -> LogitsReport:
    """Compare the logits of `source` with those of the output, by the question's engine or of what `target` opens.

    source  where only a file of logits is known of it: the output
    replay  the plan that the output was held against, whose types set the limits; without one the output's types do
    memory  bytes for reading and for logits; an engine takes what it takes
    A failing engine or a broken output is a problem in the report. Raises UsageError for token ids outside the
    vocabulary, MemoryPlanError, EnvironmentProblem.
    """
    asked, engine, reference = question.asked, question.engine, question.reference
    if replay is not None:
        lost, stored = losing(replay), {tensor.dtype for tensor in replay.tensors if len(tensor.shape) > 1}
    else:
        stored = {tensor.dtype for tensor in source.source.tensors.values() if len(tensor.shape) > 1}
        lost = stored - {"float32"} if reference is not None and reference.file is not None else set()
    if reference is not None:
        lost |= reference.types(stored)
    allowed = limits(source.config, lost, stored, engine, reference=reference)
    of_engine = None  # what the engine may add to the reference forward of the output's own weights
    if engine is not None and replay is not None:
        of_engine = limits(source.config, (), stored, engine, "the output")
        of_engine = of_engine if allowed.noise > 1.5 * of_engine.noise else None
    started = time.monotonic()
    positions: list[PositionCheck] = []
    # squared differences, the source's squared distances from its mean, its largest value
    sums = np.zeros(3)
    problems: tuple[Problem, ...] = ()
    vocab_size = source.config.vocab_size
    sides = (2 if engine is None else 1) + (allowed.noise > 0) - (reference is not None and not allowed.noise)
    sides += 0 if of_engine is None else 1 + (of_engine.noise > 0)
    at_once = max(1, memory // 4 // (ROW * (sides + 1) * vocab_size))
    shaken: list[float] = []  # the distance that noise makes at each position
    middle: _Middle | None = None
    report_read = _report_read(
        progress, 4 * len(asked.windows) * sides * sum(slot.elements for slot in slots(source).values())
    )
    try:
        with ExitStack() as stack:
            own = stack.enter_context(CheckpointWeights(source, memory // 8 * 3))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crossdock-")))
            plain = _Reference(own, source.config, report_read)
            ours: _Reference | LogitFiles | Stored = plain
            if reference is not None:
                report_read(0, reference.name)
                ours = reference.logits(asked, vocab_size, folder, timeout)
            noisy = _Reference(own, source.config, report_read, allowed.noise) if allowed.noise else None
            if engine is None:
                theirs = target()
                if theirs.config.vocab_size != vocab_size:
                    raise CheckFailed(
                        "the vocabulary sizes differ, so logits cannot be compared",
                        expected=f"vocab_size {vocab_size}", got=f"{theirs.config.vocab_size}",
                    )  # fmt: skip
                weights = stack.enter_context(CheckpointWeights(theirs, memory // 8 * 3))
                other: _Reference | LogitFiles = _Reference(weights, theirs.config, report_read)
            else:
                report_read(0, engine.name)
                if of_engine is not None and slots(theirs := target()) == slots(source):
                    weights = stack.enter_context(CheckpointWeights(theirs, memory // 8 * 3))
                    middle = _Middle(weights, source.config, report_read, of_engine)
                other = logits_by(engine, question.output, asked, vocab_size, folder / "output", timeout)
            for number, ids in enumerate(asked.windows):
                our, their = ours.window(ids), other.window(ids)
                third = None if noisy is None else noisy.window(ids)
                still = our if third is None or reference is None else plain.window(ids)
                if middle is not None:
                    middle.window(ids)
                for start in range(0, len(ids), at_once):
                    stop = min(len(ids), start + at_once)
                    for at, s, t in zip(range(start, stop), our(start, stop), their(start, stop), strict=True):
                        positions.append(_compare(s, t, number, at, ids, sums))
                    if middle is not None:
                        apart = middle.apart(start, stop, their(start, stop))
                        positions[-len(apart) :] = map(_beside, positions[-len(apart) :], apart)
                    if third is not None:
                        shaken += [_distance(s, n) for s, n in zip(still(start, stop), third(start, stop), strict=True)]
    except (CheckFailed, InputError) as error:
        problems = error.problems
    if shaken:
        allowed = allowed.shaken(shaken)
    report = _report(asked, positions, sums, allowed, problems, engine, time.monotonic() - started)
    report = replace(report, reference=REFERENCE if reference is None else reference.name)
    return report if middle is None or not positions else middle.judged(report)


def _report_read(progress: Progress | None, total: int) -> ReadReporter:
    """What counts bytes of weights, as float32, and says how far that is of `total`."""
    done = 0

    def tell(nbytes: int, name: str) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(min(done, total), total, name)

    return tell


class _Reference:
    """The reference forward over a checkpoint, window by window. It is the `Weights` of that forward, and counts."""

    def __init__(
        self, weights: CheckpointWeights, config: ModelConfig, report_read: ReadReporter, noise: float = 0.0
    ) -> None:
        self._weights, self._config, self._report_read, self._noise = weights, config, report_read, np.float32(noise)
        self._random = np.random.default_rng(0)

    def window(self, ids: Sequence[int]) -> Rows:
        x = hidden(self._config, self, ids)
        return lambda start, stop: logits(self._config, self, x, slice(start, stop))

    def whole(self, name: str, layer: int | None = None) -> Array:
        return self._counted(self._weights.whole(name, layer), name)

    def blocks(self, name: str, layer: int | None = None, expert: int | None = None) -> Iterator[Array]:
        return (self._shaken(self._counted(block, name)) for block in self._weights.blocks(name, layer, expert))

    def rows(self, name: str, numbers: NDArray[np.int64]) -> Array:
        return self._shaken(self._counted(self._weights.rows(name, numbers), name))

    def _shaken(self, values: Array) -> Array:
        if not self._noise:
            return values
        size = self._noise * np.sqrt(np.mean(values * values))
        return np.asarray(values + size * self._random.standard_normal(values.shape, dtype=np.float32))

    def _counted(self, values: Array, name: str) -> Array:
        self._report_read(values.nbytes, name)
        return values


class _Middle:
    """Between source and engine: the reference forward of the output's weights, by the source's configuration."""

    def __init__(
        self, weights: CheckpointWeights, config: ModelConfig, report_read: ReadReporter, allowed: Limits
    ) -> None:
        self._plain = _Reference(weights, config, report_read)
        self._noisy = _Reference(weights, config, report_read, allowed.noise) if allowed.noise else None
        self._allowed, self._largest, self._size = allowed, 0.0, 0.0
        self._distances: list[float] = []
        self._shaken: list[float] = []

    def window(self, ids: Sequence[int]) -> None:
        self._rows = self._plain.window(ids)
        self._noisy_rows = None if self._noisy is None else self._noisy.window(ids)

    def apart(self, start: int, stop: int, theirs: Array) -> Sequence[float]:
        """The distance of `theirs` at each of these positions."""
        ours = self._rows(start, stop)
        found = [_distance(s, t) for s, t in zip(ours, theirs, strict=True)]
        if self._noisy_rows is not None:
            self._shaken += [_distance(s, n) for s, n in zip(ours, self._noisy_rows(start, stop), strict=True)]
        self._distances += found
        self._largest = float(np.max([self._largest, np.abs(theirs - ours).max()]))  # NaN stays NaN
        self._size = max(self._size, float(np.abs(ours).max()))
        return found

    def judged(self, report: LogitsReport) -> LogitsReport:
        """The report with what was found here."""
        allowed = self._allowed.shaken(self._shaken) if self._shaken else self._allowed
        allowed = allowed.scaled(self._size)
        distance = allowed.over(self._distances)
        failed = tuple(f"{report.engine} by itself: {one}" for one in allowed.failed(self._largest, distance))
        check = EngineCheck(self._largest, distance, allowed.max_abs, allowed.distance, allowed.why)
        return replace(report, ok=report.ok and not failed, failed=(*report.failed, *failed), by_engine=check)


def _beside(one: PositionCheck, distance: float) -> PositionCheck:
    return replace(one, engine_distance=distance)


def _compare(
    source: Array, output: Array, window: int, at: int, ids: Sequence[int], sums: NDArray[np.float64]
) -> PositionCheck:
    """One row of logits against another; adds to `sums`. Figures are NaN where a side is not finite."""
    s, t = source.astype(np.float64), output.astype(np.float64)
    with np.errstate(all="ignore"):
        difference = t - s
        squares = float(difference @ difference), float(np.var(s)) * s.size
        sums[:2] += squares
        sums[2] = max(sums[2], float(np.abs(s).max()))
        log_s, log_t = _log_softmax(s), _log_softmax(t)
        kl = float(np.exp(log_s) @ (log_s - log_t))
    after = ids[at + 1] if at + 1 < len(ids) else None
    few = min(5, s.size)
    best, theirs = (set(np.argpartition(-row, few - 1)[:few].tolist()) for row in (s, t))
    return PositionCheck(
        window, at, ids[at], float(np.abs(difference).max()), _ratio(*squares), max(kl, 0.0), int(s.argmax()),
        int(t.argmax()), len(best & theirs), None if after is None else -float(log_s[after]),
        None if after is None else -float(log_t[after]),
    )  # fmt: skip


def _distance(source: Array, other: Array) -> float:
    difference = (other - source).astype(np.float64)
    return _ratio(float(difference @ difference), float(np.var(source)) * source.size)


def _ratio(squares: float, reference: float) -> float:
    return math.sqrt(squares / reference) if reference else (math.inf if squares else 0.0)


def _log_softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = x - x.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _report(
    asked: Asked, positions: Sequence[PositionCheck], sums: NDArray[np.float64], allowed: Limits,
    problems: tuple[Problem, ...], engine: Engine | None, seconds: float,
) -> LogitsReport:  # fmt: skip
    def mean(values: Sequence[float]) -> float:
        return math.fsum(values) / len(values) if values else math.nan

    def perplexity(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        with np.errstate(over="ignore"):  # of a diverged model it is infinite
            return None if not known else float(np.exp(mean(known)))

    largest = float(np.max([one.max_abs for one in positions])) if positions else math.nan  # NaN stays NaN
    distance = _ratio(sums[0], sums[1])
    if allowed.median or not positions:
        distance = float(np.median([one.distance for one in positions])) if positions else math.nan
    kl = mean([one.kl for one in positions])
    allowed = allowed.scaled(float(sums[2]))
    failed = allowed.failed(largest, distance)
    return LogitsReport(
        ok=not problems and not failed,
        engine=engine.name if engine else REFERENCE,
        reader=asked.reader,
        tokens=sum(map(len, asked.windows)),
        total_tokens=asked.total,
        windows=len(asked.windows),
        why=allowed.why,
        limit_max_abs=allowed.max_abs,
        limit_distance=allowed.distance,
        failed=failed,
        max_abs=largest,
        distance=distance,
        kl=kl,
        top1=mean([float(one.best_source == one.best_output) for one in positions]),
        top5=mean([one.top5 / 5 for one in positions]),
        perplexity_source=perplexity([one.loss_source for one in positions]),
        perplexity_output=perplexity([one.loss_output for one in positions]),
        positions=tuple(positions),
        problems=problems,
        seconds=seconds,
    )
