"""What a run reports. Data only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdock.codecs.error_stats import ErrorStats
from crossdock.codecs.value_counts import ValueCounts
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
    census: ValueCounts
    alike: tuple[tuple[int, ...], ...] = ()
    figures: ErrorStats | None = None


@dataclass(frozen=True, slots=True)
class FileResult:
    """One file of the output, under its final name (below OUT where that is a folder). sha256: hexadecimal, or
    "" where the run was asked for none."""

    name: str
    nbytes: int
    sha256: str


@dataclass(frozen=True)
class RunReport:
    """What `run` did.

    output    path of the output
    manifest  path of the manifest
    nbytes    bytes of the output
    seconds   wall-clock time
    written   tensors written by this run
    resumed   tensors that an unfinished run had written
    tensors   every tensor with its hash, what was found in its values, and its error
    warnings  sentences to show
    files     every file of the output
    kept      what was in the output's folder besides a model, and still is
    """

    output: Path
    manifest: Path
    nbytes: int
    seconds: float
    written: int
    resumed: int
    tensors: tuple[TensorResult, ...]
    warnings: tuple[str, ...]
    files: tuple[FileResult, ...] = ()
    kept: tuple[str, ...] = ()


def clamped(plan: Plan, tensors: Sequence[TensorResult]) -> list[str]:
    """A sentence when values did not fit the scales that the training had kept for them."""
    lost = [
        one for one, planned in zip(tensors, plan.tensors, strict=True) if planned.static_scales and one.census.overflow
    ]
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
