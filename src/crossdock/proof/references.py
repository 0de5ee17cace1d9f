"""Who says what the source computes, other than crossdock: an engine that reads the source, or a file of its logits.

The reference forward reads a model by crossdock's own reading of its configuration, so source and output can share a
fault that it does not see. What the training program itself computed does not share it, nor does transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossdock.errors import UsageError
from crossdock.model.layers.layer import Array
from crossdock.planning.checkpoint import Checkpoint
from crossdock.proof import npy
from crossdock.proof.engines import registry
from crossdock.proof.engines.registry import Engine
from crossdock.proof.logit_files import LogitFiles, Rows, logits_by
from crossdock.proof.texts import Asked

CLOSE = 1e-4  # of the largest logit: float32 in another program, as for engines
LOOKED_AT = 1 << 16  # values of a file that tell the type it was rounded to


@dataclass(frozen=True, eq=False)
class Reference:
    """The source's logits from elsewhere. Either `engine` computes them of `model`, or they are in `file`.

    file  [windows, tokens, columns]; a padded vocabulary has more columns than the model has tokens
    """

    name: str
    engine: Engine | None = None
    model: Path | None = None
    file: NDArray[Any] | None = None

    def close(self, activation: str) -> float:
        """How far its float32 may lie from ours, as a share of the largest logit."""
        if self.engine is None:
            return CLOSE
        return self.engine.close.get(activation, self.engine.close[""])

    def types(self, stored: Iterable[str]) -> set[str]:
        """The types that its logits were rounded to on the way, where they are not float32."""
        if self.engine is not None:
            return self.engine.rounded_to(stored)
        return _rounded(self.file) if self.file is not None else set()

    def demand(self, asked: Asked, vocab_size: int) -> None:
        """Raises UsageError where a file does not hold the logits of these windows."""
        if self.file is None:
            return
        rows, columns = [len(window) for window in asked.windows], self.file.shape[2]
        if [self.file.shape[1]] * self.file.shape[0] != rows or columns < vocab_size:
            raise UsageError(
                "the reference has other positions or fewer columns than the tokens and the vocabulary need",
                where=self.name,
                expected=f"[{len(rows)}, {rows[0] if rows else 0}, {vocab_size} or more]",
                got=str(list(self.file.shape)),
                fix="logits of just these tokens, [windows, tokens, vocab_size] or [tokens, vocab_size]",
            )

    def logits(self, asked: Asked, vocab_size: int, folder: Path, timeout: float) -> LogitFiles | Stored:
        """The logits, window by window. Raises CheckFailed, EnvironmentProblem as engines do."""
        if self.engine is None or self.model is None:
            assert self.file is not None
            return Stored(iter(self.file), vocab_size)
        return logits_by(self.engine, self.model, asked, vocab_size, folder / "source", timeout)


@dataclass(frozen=True, slots=True)
class Stored:
    """Logits of a file of the user's, which is mapped into memory."""

    windows: Any
    vocab_size: int

    def window(self, ids: Sequence[int]) -> Rows:
        """The logits of the next window."""
        window = next(self.windows)

        def rows(start: int, stop: int) -> Array:
            return np.asarray(window[start:stop, : self.vocab_size], np.float32)

        return rows


def reference_for(name_or_file: str | Path, source: Checkpoint) -> Reference:
    """The engine of this name, for `source`; or what the .npy file of this path holds. Raises UsageError."""
    text = str(name_or_file)
    if text not in registry.names():
        if not text.endswith(".npy"):
            raise UsageError(
                f"unknown reference {text!r}", expected=f"{', '.join(registry.names())}, or a .npy file of logits"
            )
        return Reference(Path(text).name, file=_load(Path(text)))
    engine, root = registry.engine(text), source.source.root
    model = root if engine.opens(root) or not root.is_file() else root.parent
    if not engine.opens(model):
        raise UsageError(
            f"{engine.name} does not read this source", where=str(root), expected=engine.reads,
            fix="--reference logits.npy, with what the training program computed",
        )  # fmt: skip
    engine.needed()
    return Reference(engine.name, engine, model)


def _load(path: Path) -> NDArray[Any]:
    array = npy.load(path, "logits")
    if array.dtype.kind != "f" or array.ndim not in (2, 3):
        raise UsageError(
            "not logits",
            where=str(path),
            expected="an array of floats, [tokens, vocab_size] or [windows, tokens, vocab_size]",
            got=f"{array.dtype} {list(array.shape)}",
        )
    return array if array.ndim == 3 else array[None]


def _rounded(logits: NDArray[Any]) -> set[str]:
    """The 16 bit type that all values fit, where they do: then the program computed in it."""
    if logits.dtype == np.float16:
        return {"float16"}
    few = np.ascontiguousarray(logits.reshape(-1)[:LOOKED_AT], np.float32)
    if not few.size or not np.any(few):
        return set()
    if not np.any(few.view(np.uint32) & 0xFFFF):
        return {"bfloat16"}
    with np.errstate(over="ignore"):
        return {"float16"} if np.array_equal(few.astype(np.float16).astype(np.float32), few) else set()
