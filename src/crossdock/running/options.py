"""Options of running: how much memory, how many workers, which engine; and those of writing an output."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crossdock.errors import UsageError
from crossdock.options import flag, one_of, option, positive, size, some_of
from crossdock.running.engines import registry

if TYPE_CHECKING:
    from crossdock.running.engines.engine import Engine

Progress = Callable[[int, int, str], None]


def _engine(value: Any) -> Any:
    if isinstance(value, str) and value not in registry.names():
        raise UsageError(f"unknown engine {value!r}; choose one of {', '.join(registry.names())}")
    return value


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a plan is run, for writing and for comparing.

    memory    bytes for all workers' buffers together; workers: None for one or two a core
    engine    name of a registered engine, or an object that is one (`running.engines.engine.Engine`)
    progress  called with units done, units in all, and a name or ""
    """

    memory: int = option(
        "256MiB",
        size,
        "Total memory of all workers, and of planning.",
        "SIZE",
        heading="Running",
    )
    workers: int | None = option(
        None, positive, "Number of workers.  [default: 1 or 2 per core]", "N", heading="Running"
    )
    engine: str | Engine = option(
        "threads", _engine, "Engine that runs the plan.", "NAME", heading="Running", choices=registry.names
    )
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(RunOptions):
    """What an output is held against beside its tensors and keys.

    tokens         also compare llama.cpp's token ids of hard texts with the source's tokenizer's
    logits         a text, "@file", or token ids ("1,2,3", numbers, a .npy file): also compare what both compute on it
    logits_engine  "llama.cpp", "transformers" or "onnxruntime" computes the output's side; None: the reference forward
    reference      who computes the source's side instead of the reference forward: an engine that reads the source, or
                   a .npy file, float [windows, tokens, vocab_size], of what the training program computed
    strict         a part that is held against nothing, and what the user said against the source's own configuration,
                   is a failure
    report         a file to write: the outcome as one page of HTML that needs nothing else
    """

    tokens: bool = False
    logits: str | Sequence[int] | None = None
    logits_engine: str | None = None
    reference: str | os.PathLike[str] | None = None
    strict: bool = False
    report: str | os.PathLike[str] | None = None


@dataclass(frozen=True, kw_only=True)
class WriteOptions(RunOptions):
    """How an output is written.

    force        replace what is at the output's place, once the new one is whole
    hash         of each tensor, for the manifest
    file_hashes  "sha256" of every file, for the manifest; "none": files that hold tensors have no hash of their own,
                 which saves a second of CPU for each 1.6 GB
    fail_on      findings ("nonfinite", "overflow") for which the output must not come into being
    """

    force: bool = option(False, flag, "Replace OUT once the new output is complete.", also=("-f",), heading="Running")
    hash: str = option(
        "xxh3",
        one_of("xxh3", "sha256"),
        "Hash of each tensor: xxh3 or sha256.",
        "NAME",
        heading="Running",
    )
    file_hashes: str = option(
        "sha256",
        one_of("sha256", "none"),
        "Hash of each file: sha256, or none (faster).",
        "NAME",
        heading="Running",
    )
    fail_on: frozenset[str] = option(
        frozenset(),
        some_of("nonfinite", "overflow"),
        "Fail on nonfinite values or overflow.  [repeatable]",
        "WHAT",
        heading="Running",
        many=True,
    )
