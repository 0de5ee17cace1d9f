"""What a run reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossdock.codecs.census import Census
from crossdock.planning.plan import Move, Plan


@dataclass(frozen=True, slots=True)
class TensorResult:
    """One tensor as it was written. hash: hexadecimal, over the tensor's encoded bytes."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    hash: str
    census: Census


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


def repeated(plan: Plan, tensors: Sequence[TensorResult]) -> list[str]:
    """A sentence for every group of matrices with equal bytes: experts or layers that overwrote each other in training
    or on the way [experts-duplicated]. Experts that a target stacks into one tensor cannot be told apart here; what
    the plan itself writes to several places counts once.
    """
    groups: dict[tuple[str, str, int], list[str]] = {}
    copied: set[tuple[Move, ...]] = set()
    for tensor, planned in zip(tensors, plan.tensors, strict=True):
        if planned.moves in copied:
            continue
        copied.add(planned.moves)
        if len(tensor.shape) > 1 and not tensor.census.all_zero:
            groups.setdefault((tensor.hash, tensor.dtype, tensor.nbytes), []).append(tensor.name)
    sentences = []
    for names in groups.values():
        if len(names) > 1:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            sentences.append(f"{len(names)} tensors have equal bytes: {shown} [experts-duplicated]")
    return sentences
