"""What a format hands over after reading headers: stored tensors and where their bytes are.

Nothing here knows a model. A `StoredTensor` is a name, a shape, an encoding and one or more extents;
an `Extent` is a box of the tensor that lies in one file. Reading a box means gathering from the extents it meets.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from crossdock.codecs.scale_blocks import ScaleBlocks
from crossdock.errors import InputError
from crossdock.io.files import open_regular
from crossdock.layout.partitions import Partitions

if TYPE_CHECKING:
    from crossdock.formats.adapter import Adapter

Wrapping = Literal["raw", "torch_zip", "safetensors"]


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a checkpoint as it was when it was opened: path, size in bytes, mtime in nanoseconds, inode."""

    path: Path
    size: int
    mtime_ns: int
    inode: int = 0

    @classmethod
    def of(cls, path: Path) -> SourceFile:
        """Describe the file at `path` by its size and time. Raises OSError."""
        stat = path.stat()
        return cls(path, stat.st_size, stat.st_mtime_ns, stat.st_ino)

    def open(self) -> int:
        """A descriptor for reading. Raises InputError when it is another file than it was, or cannot be opened."""
        fd = open_regular(self.path)
        stat = os.fstat(fd)
        if (stat.st_size, stat.st_mtime_ns, stat.st_ino) == (self.size, self.mtime_ns, self.inode or stat.st_ino):
            return fd
        os.close(fd)
        raise InputError(
            "the source changed after it was planned",
            where=str(self.path),
            expected=f"{self.size:,} bytes, modified {self.mtime_ns}",
            got=f"{stat.st_size:,} bytes, modified {stat.st_mtime_ns}",
            cause="another program replaced or modified the file",
            fix="run the command again once the checkpoint no longer changes",
        )


@dataclass(frozen=True, slots=True)
class Extent:
    """A box of a stored tensor in one file.

    file      index into `Source.files`
    offset    byte where the data (wrapping "raw") or the enclosing blob (otherwise) starts in the file
    nbytes    bytes of the data or of the blob
    origin    index of the box's first element in the tensor, one per dimension
    shape     the box's size, one per dimension
    strides   element strides of the data, None when it is C-contiguous
    wrapping  "raw": the data itself at `offset`; "torch_zip": a complete torch.save archive holding exactly one
              tensor; "safetensors": a safetensors blob in which the tensor is looked up by its name
    piece     the box is a run of a blob's elements: how many the blob has, and which is the box's first; None: the
              blob is the box
    """

    file: int
    offset: int
    nbytes: int
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    wrapping: Wrapping = "raw"
    piece: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class StoredScales:
    """What a stored tensor's values are multiplied by: a scale for each of its blocks, stored beside it.

    name, dtype   of the stored scales (their codec); `file` and `offset`: where they lie, in C order
    """

    name: str
    dtype: str
    file: int
    offset: int
    scale_blocks: ScaleBlocks


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a format stores it. `part` is the rank file it belongs to ("" where names are global).

    dtype    a codec name: "float32", "bfloat16", "float16", "q8_0", ...
    scaling  of fp8 weights; such a tensor has one extent, which is all of it in C order
    meant    the codec that the model has it in, where the format demanded another one; "": the same
    rounds_to  of an optimizer's float32 weight the model's own, which it must round to
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    extents: tuple[Extent, ...]
    part: str = ""
    scaling: StoredScales | None = None
    meant: str = ""
    rounds_to: StoredTensor | None = None

    @property
    def values(self) -> str:
        """The codec that holds its values: float32 where they are multiplied by scales."""
        return self.dtype if self.scaling is None else "float32"


Pair = tuple[float, float]  # scale of a layer's input, scale of its weight: factors from fp8 to values


@dataclass(frozen=True, slots=True)
class TrainingScales:
    """Scales of fp8 training.

    of          (part, name) of a weight -> index along its first dimensions -> its pair; () where it has one for all
    unreadable  sentences about those that could not be read
    """

    of: Mapping[tuple[str, str], Mapping[tuple[int, ...], Pair]]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Masters:
    """The float32 weights that an optimizer keeps of a model whose own are rounded.

    of       (part, name) of a weight -> its master: float32, of the same shape; `files`: that their extents index into
    notices  sentences for the user, such as about an order that only Megatron's source code proves
    """

    of: Mapping[tuple[str, str], StoredTensor]
    files: tuple[SourceFile, ...]
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A checkpoint opened by its format: headers only, no tensor data read.

    format       name of the format ("megatron", "megatron_rank", "hf", "gguf", "dcp")
    root         the path that was opened
    files        every file that tensors point into
    tensors      by (part, name)
    metadata     the raw configuration as the format spells it (args, config.json, GGUF keys)
    metadata_at  where `metadata` was read, for messages
    aliased      `metadata` has the format's other names (Megatron's TransformerConfig instead of args)
    ranks        parallel sizes for formats with rank files ({"tp": 2, "pp": 2, ...}), else empty
    partitions   axis ranges where they are not even: {"layer": {(("pp", 0),): (0, 3), ...}}
    skipped      stored things that are not model weights, name -> reason (optimizer state, rng, extra state)
    skipped_bytes  how many bytes of the files those are
    companion_files      files that go along with the model: tokenizer.json, generation_config.json, ...
    scales       reads the scales of fp8 training, where there may be some
    masters      finds the optimizer's float32 weights, where the format may hold them
    layout_of    the format whose names it has, where that is another one (a DCP folder of Hugging Face names)
    adapter      what an adapter changes in its base, where the source is one that needs its base to be understood
    notes        facts worth showing to the user (iteration, writer version, ...), in reading order
    notices      sentences that are shown whatever is done with the checkpoint, such as files that were left aside
    """

    format: str
    root: Path
    files: tuple[SourceFile, ...]
    tensors: Mapping[tuple[str, str], StoredTensor]
    metadata: Mapping[str, Any]
    metadata_at: str
    ranks: Mapping[str, int] = field(default_factory=dict)
    partitions: Partitions = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    skipped_bytes: int = 0
    companion_files: tuple[Path, ...] = ()
    scales: Callable[[], TrainingScales] | None = None
    masters: Callable[[], Masters] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()
    aliased: bool = False
    layout_of: str = ""
    adapter: Adapter | None = None

    @property
    def layout(self) -> str:
        """The layout that says where its tensors are: that of its format, unless it has another's names."""
        return self.layout_of or self.format
