"""What a target format is: it chooses encodings, lays tensors out in files, and writes headers. Never tensor data.

A target module offers one `Target`; the planner calls it with names, shapes and codecs and gets back files with their
exact sizes and first bytes, and the place of every tensor in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from crossdock.formats.stored import SourceFile
from crossdock.layout.rules import Layout
from crossdock.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class TargetFile:
    """One file of the target: its relative name, exact size, and the bytes at its start.

    copy_of  a file that is copied unchanged (tokenizer.json), else None
    """

    name: str
    size: int
    header: bytes
    copy_of: SourceFile | None = None


@dataclass(frozen=True)
class Request:
    """What the user asked of the target.

    source_dtype   what most of the source's matrices are in; the planner fills it in
    dtype          codec name of large tensors, or "auto": as the source has them
    quantize       block codec for matrices, or None
    tokenizer      folder or file of the tokenizer; `travels`: files that the source brings along
    max_shard_size bytes per file, for formats with shards
    vocab_from     where the model's vocab_size comes from, for messages; the planner knows
    encodings      tensor name -> codec, fixed beforehand (verify takes them from the file it checks)
    """

    dtype: str = "auto"
    quantize: str | None = None
    tokenizer: Path | None = None
    pre_tokenizer: str | None = None
    max_shard_size: int = 5_000_000_000
    travels: tuple[Path, ...] = ()
    vocab_from: str = ""
    encodings: Mapping[str, str] = field(default_factory=dict)
    source_dtype: str = "float32"


class Wanted(NamedTuple):
    """A tensor that the target will have. dtype: codec name (of the source when asked for an encoding)."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Encoding(NamedTuple):
    """The codec chosen for a tensor, and a sentence when it is not the one that was asked for."""

    dtype: str
    notice: str = ""


@dataclass(frozen=True)
class Assembled:
    """Files, and per tensor (in the order given) the file's index and the byte where its data starts.

    facts  what the headers say, key by key, so that `verify` can ask an output the same
    """

    files: tuple[TargetFile, ...]
    places: tuple[tuple[int, int], ...]
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class Target(Protocol):
    """One target format. `layout` names its layout table; `single_file`: OUT is the file itself, not a folder."""

    @property
    def name(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def single_file(self) -> bool: ...

    def encoding(self, tensor: Wanted, request: Request, rules: Layout) -> Encoding:
        """The codec for `tensor`, whose dtype is the source's. Raises UsageError for a dtype the format lacks."""
        ...

    def computed(self, config: ModelConfig) -> Sequence[tuple[Wanted, bytes]]:
        """Tensors that no source holds, with their encoded bytes."""
        ...

    def facts(self, output: Path) -> Mapping[str, Any]:
        """What an output of this format says about itself, in the terms of `Assembled.facts`."""
        ...

    def assemble(
        self, tensors: Sequence[Wanted], config: ModelConfig, written: Mapping[str, tuple[str, Any]], request: Request
    ) -> Assembled:
        """Files and places for `tensors`. `written`: config key -> (type, value) from the layout's [write]."""
        ...
