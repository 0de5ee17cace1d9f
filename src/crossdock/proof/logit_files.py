"""Logits that lie in .npy files until they are compared, a few rows at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crossdock.errors import CheckFailed, EnvironmentProblem
from crossdock.model.layers.layer import Array
from crossdock.proof.engines.ask import ask
from crossdock.proof.engines.registry import Engine
from crossdock.proof.texts import Asked

Rows = Callable[[int, int], Array]  # logits [stop - start, vocab_size] of positions start to stop of a window


@dataclass(slots=True)
class LogitFiles:
    """Logits that an engine wrote, one float32 file [tokens, vocab_size] for each window, in the windows' order."""

    folder: Path
    vocab_size: int
    engine: str
    _next: int = field(default=0, init=False)

    def window(self, ids: Sequence[int]) -> Rows:
        """The logits of the next window, whose tokens are `ids`. Raises CheckFailed."""
        path = self.folder / f"{self._next}.npy"
        self._next += 1
        try:
            with path.open("rb") as file:
                np.lib.format.read_magic(file)
                shape, order, dtype = np.lib.format.read_array_header_1_0(file)
                offset = file.tell()
        except (OSError, ValueError) as error:
            raise CheckFailed(f"{self.engine} wrote no logits", where=path.name, cause=str(error)[:200]) from None
        if shape != (len(ids), self.vocab_size) or order or dtype != np.float32:
            raise CheckFailed(
                f"{self.engine} returned logits of the wrong shape",
                expected=f"{len(ids)} tokens × vocab_size {self.vocab_size}",
                got=" × ".join(map(str, shape)) + f" {dtype}",
            )

        def rows(start: int, stop: int) -> Array:
            skip = offset + 4 * start * self.vocab_size
            got = np.fromfile(path, np.float32, (stop - start) * self.vocab_size, offset=skip)
            return got.reshape(stop - start, self.vocab_size)

        return rows


def logits_by(engine: Engine, model: Path, asked: Asked, vocab_size: int, folder: Path, timeout: float) -> LogitFiles:
    """What `engine` computes of `model`, in the new folder `folder`. Raises CheckFailed, EnvironmentProblem."""
    folder.mkdir()
    room, need = shutil.disk_usage(folder).free, 4 * vocab_size * sum(map(len, asked.windows))
    if need > room:
        raise EnvironmentProblem(
            "not enough disk space for an engine's logits", where=str(folder), expected=f"{need:,} bytes",
            got=f"{room:,}",
            fix="a shorter text, or TMPDIR on another disk",
        )  # fmt: skip
    ask(engine, {"model": os.fspath(model), "windows": asked.windows, "out": os.fspath(folder)}, timeout=timeout)
    return LogitFiles(folder, vocab_size, engine.name)
