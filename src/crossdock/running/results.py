"""What a run reports, and what comparing logits and token ids does. Data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdock.codecs.census import Census
from crossdock.codecs.statistics import ErrorFigures
from crossdock.errors import Problem
from crossdock.planning.plan import Move, Plan


@dataclass(frozen=True, slots=True)
class TensorResult:
    """One tensor as it was written. hash: hexadecimal, over the tensor's encoded bytes.

    alike    groups of its experts, by number, that have equal bytes
    figures  its values, read back, against the source's, where values were divided by scales (fp8)
    """

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    hash: str
    census: Census
    alike: tuple[tuple[int, ...], ...] = ()
    figures: ErrorFigures | None = None


@dataclass(frozen=True)
class RunReport:
    """What a run did. written and resumed count tensors."""

    output: Path
    manifest: Path
    nbytes: int
    seconds: float
    written: int
    resumed: int
    tensors: tuple[TensorResult, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PositionCheck:
    """The logits behind one token: how far the output's lie from the source's.

    distance       root mean square difference, over the source's standard deviation
    kl             divergence of the output's distribution from the source's, in nats
    window, index  which window of the text, and the token's place in it
    best_*         the token with the largest logit; top5: how many of the source's best five are the output's
    loss_*         -log of the probability of the token that follows; None for a window's last token
    engine_distance  of the engine's logits from the reference forward's of the same weights, where that was computed
    """

    window: int
    index: int
    token: int
    max_abs: float
    distance: float
    kl: float
    best_source: int
    best_output: int
    top5: int
    loss_source: float | None
    loss_output: float | None
    engine_distance: float | None = None


@dataclass(frozen=True, slots=True)
class EngineCheck:
    """What an engine computes of the output, against the reference forward of the same weights, by the source's config.

    limit_*  the one that counts; why: what it comes from
    """

    max_abs: float
    distance: float
    limit_max_abs: float | None
    limit_distance: float | None
    why: str


@dataclass(frozen=True)
class LogitsReport:
    """Logits of an output against those of its source. Figures are NaN when nothing could be compared.

    engine    what computed the output's: "reference" or an engine's name; reader: what made token ids of the text
    given     tokens of the text, of which `tokens` were used, in `windows` that each start at position 0
    distance  root mean square difference, over the source's standard deviation; with experts, of the middle position
    kl        mean over positions, in nats; top1, top5: shares of 1
    failed    the limits that were broken, as sentences; why: what the limits come from; None: no such limit
    problems  why nothing, or not everything, was compared
    by_engine  the engine against the reference forward of the output's own weights, where rounded weights hide faults
    """

    ok: bool
    engine: str
    reader: str
    tokens: int
    given: int
    windows: int
    why: str
    limit_max_abs: float | None
    limit_distance: float | None
    failed: tuple[str, ...]
    max_abs: float
    distance: float
    kl: float
    top1: float
    top5: float
    perplexity_source: float | None
    perplexity_output: float | None
    positions: tuple[PositionCheck, ...]
    problems: tuple[Problem, ...]
    seconds: float
    by_engine: EngineCheck | None = None


@dataclass(frozen=True, slots=True)
class TokenDifference:
    """A text that the two read differently."""

    text: str
    engine: tuple[int, ...]
    source: tuple[int, ...]


@dataclass(frozen=True)
class TokensReport:
    """Token ids of llama.cpp against the source's own, over `texts` texts. reader: the library and file of the source.

    ties  texts that a Unigram model can cut in two equally likely ways, and the two libraries took one each
    """

    ok: bool
    texts: int
    reader: str
    different: tuple[TokenDifference, ...]
    ties: int = 0


def clamped(plan: Plan, tensors: Sequence[TensorResult]) -> list[str]:
    """A sentence when values did not fit the scales that the training had kept for them."""
    lost = [one for one, planned in zip(tensors, plan.tensors, strict=True) if planned.known and one.census.overflow]
    count = sum(one.census.overflow for one in lost)
    names = _few([one.name for one in lost])
    return [f"{count:,} values were cut to the largest of fp8, their scales are stale: {names}"] if lost else []


def repeated(plan: Plan, tensors: Sequence[TensorResult]) -> list[str]:
    """A sentence for every group of matrices with equal bytes, and one for experts within a matrix: what overwrote each
    other in training or on the way. What the plan itself writes to several places counts once.
    """
    groups: dict[tuple[str, str, int], list[str]] = {}
    holding: list[str] = []
    copied: set[tuple[Move, ...]] = set()
    for tensor, planned in zip(tensors, plan.tensors, strict=True):
        if planned.moves in copied or len(tensor.shape) < 2 or tensor.census.all_zero:
            continue
        copied.add(planned.moves)
        groups.setdefault((tensor.hash, tensor.dtype, tensor.nbytes), []).append(tensor.name)
        holding += [f"{_equal(numbers)} in {tensor.name}" for numbers in tensor.alike]
    sentences = [f"{len(names)} tensors have equal bytes: {_few(names)}" for names in groups.values() if len(names) > 1]
    sentences += [f"experts have equal bytes: {_few(holding)}"] if holding else []
    return [f"{sentence}; was one copied over another?" for sentence in sentences]


def _equal(numbers: Sequence[int]) -> str:
    return " = ".join(map(str, numbers[:3])) + (" ..." if len(numbers) > 3 else "")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
