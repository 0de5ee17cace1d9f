"""What a run reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crossdock.codecs.census import Census


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
