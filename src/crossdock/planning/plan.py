"""The plan: pure data that says, before a byte of a tensor is read, what will be copied where.

Running it takes no model: `described` is for people. A target tensor is filled by `Move`s: strided copies of boxes
between an extent of the source and the target tensor, in elements. It can be written as JSON lines, hashed and pickled.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from crossdock.codecs.scale_blocks import ScaleBlocks
from crossdock.errors import Problem
from crossdock.formats.stored import Extent, SourceFile, StoredScales
from crossdock.formats.target import RankFile, TargetFile
from crossdock.layout.maps import Steps
from crossdock.model.config import ResolvedConfig


@dataclass(frozen=True, slots=True)
class Move:
    """A strided copy of one box. Element offsets and steps; axes outermost first in the target.

    extent  index into `Plan.extents`
    src     first element in the extent's data; dst: first element in the target tensor
    size    elements along each axis; src_step and dst_step: elements between neighbours along each axis
    """

    extent: int
    src: int
    dst: int
    size: tuple[int, ...]
    src_step: tuple[int, ...]
    dst_step: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlannedExtent:
    """A source extent with what is needed to read it: the stored tensor's name, its codec and its scales."""

    at: Extent
    tensor: str
    part: str
    dtype: str
    scaling: StoredScales | None = None


@dataclass(frozen=True, slots=True)
class MappedRange:
    """`steps` are taken by the values of elements start to stop (exclusive) of a target tensor."""

    start: int
    stop: int
    steps: Steps


@dataclass(frozen=True, slots=True)
class Product:
    """What an adapter adds to the elements of a tensor from `start` on, taken for a matrix of `rows` x `columns`:
    value [i, j] grows by scale * the sum over r of left[i, r] * right[j, r].

    left, right  the moves that fill float32 tensors of rows x rank and columns x rank; zeros elsewhere
    magnitudes   moves that fill a float32 vector of rows: rows that they fill are then scaled to these lengths (DoRA)
    """

    rank: int
    rows: int
    columns: int
    left: tuple[Move, ...]
    right: tuple[Move, ...]
    scale: float = 1.0
    start: int = 0
    magnitudes: tuple[Move, ...] = ()

    @property
    def stop(self) -> int:
        """The first element behind those that it adds to."""
        return self.start + self.rows * self.columns


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """One tensor of the target: `nbytes` bytes at `offset` of file `file` (index into `Plan.files`).

    dtype  codec name; shape outermost first; `add`: number added to every value on the way
    maps   what values go through where that is more than a sum
    sum_as_stored  the sum is rounded to the dtype of the source
    scale_blocks  each cell's values are divided by a scale, after `add` (`codecs.scale_blocks`)
    static_scales  the scale of each cell; none: it follows from the values
    is_scale_tensor  the tensor holds the scales of these blocks instead of the values
    products  what is added besides, computed from other stored tensors
    data   the encoded bytes of a computed tensor (rope factors), else None and `moves` fill it
    zeros  elements that no move fills (padding), written as zero
    of     canonical tensors that it holds; `sources`: names of the stored tensors that made it
    part   the rank file, as the target's layout spells it ("" where names are global)
    experts  equal parts of its bytes, one after another, that hold one expert each; 1 where it is not cut so
    """

    name: str
    file: int
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    moves: tuple[Move, ...]
    add: float = 0.0
    sum_as_stored: bool = False
    data: bytes | None = None
    zeros: int = 0
    of: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    part: str = ""
    experts: int = 1
    products: tuple[Product, ...] = ()
    scale_blocks: ScaleBlocks | None = None
    static_scales: tuple[float, ...] = ()
    is_scale_tensor: bool = False
    maps: tuple[MappedRange, ...] = ()

    @property
    def elements(self) -> int:
        """How many values its moves fill: the shape's, or of what it holds the scales of."""
        return self.scale_blocks.elements if self.scale_blocks is not None else math.prod(self.shape)

    @property
    def scaled(self) -> bool:
        """Whether it holds values divided by scales."""
        return self.scale_blocks is not None and not self.is_scale_tensor

    @property
    def sums(self) -> bool:
        """Whether values are computed with on the way: then they pass through float32."""
        return bool(self.add or self.maps or self.products)


@dataclass(frozen=True, slots=True)
class EqualityCheck:
    """Two stored tensors that must hold the same values (a head that is tied to the embedding and stored all the same).

    `one` and `other` fill the same imaginary tensor of `elements` elements in `dtype`, to which both are rounded;
    `on_mismatch` is the problem if not.
    """

    name: str
    like: str
    elements: int
    one: tuple[Move, ...]
    other: tuple[Move, ...]
    on_mismatch: Problem
    dtype: str = "float32"


@dataclass(frozen=True)
class Plan:
    """What `run` does, as data. A target of a single file (GGUF) has exactly one file, and the output is that file.

    source_format    name of the format that is read
    source_root      path of the source
    target_format    name of the format that is written
    single_file      the output is one file, not a folder
    sources          files that are read
    extents          byte ranges of the sources, with what is needed to decode them
    files            files of the output, with their sizes and headers
    tensors          tensors of the output: where each lies, its shape (outermost first), dtype, and its moves
    described        the model's configuration, and where each field came from
    equality_checks  stored tensors that must equal others, such as a tied head
    facts            what the target's headers say, key by key, for `verify`
    warnings         sentences to show
    ignored          source tensors or keys that are left out -> reason
    settings         options of the target, by name
    fail_on          findings in the values for which the output must not come into being
    ranks            what each rank file holds, for people
    parameters       how many numbers the model has
    own_names        names of the source that were renamed, for messages
    iteration        of a Megatron run
    weights          "model", or "master": the optimizer's float32 weights
    tokenizer        files that the tokenizer was read from
    tokenizer_from   where the tokenizer is from, for people
    replaces         whether tensors of an adapter stand in place of the model's own
    """

    source_format: str
    source_root: Path
    target_format: str
    single_file: bool
    sources: tuple[SourceFile, ...]
    extents: tuple[PlannedExtent, ...]
    files: tuple[TargetFile, ...]
    tensors: tuple[TargetTensor, ...]
    described: ResolvedConfig
    equality_checks: tuple[EqualityCheck, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    fail_on: frozenset[str] = frozenset()
    ranks: tuple[RankFile, ...] = ()
    parameters: int = 0
    own_names: tuple[str, ...] = ()
    iteration: int | None = None
    weights: str = "model"
    tokenizer: tuple[SourceFile, ...] = ()
    tokenizer_from: str = ""
    replaces: bool = False

    def __repr__(self) -> str:
        """In one line what it does; the fields have the rest."""
        files = f"{len(self.files)} file{'s' * (len(self.files) != 1)}"
        return (
            f"<Plan {self.source_root}: {self.source_format} to {self.target_format}, {len(self.tensors)} tensors, "
            f"{self.nbytes:,} bytes in {files}>"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the whole target."""
        return sum(file.size for file in self.files)

    def shown(self, tensor: TargetTensor) -> str:
        """A tensor's name for people, with its rank's file where names repeat."""
        return f"{self.files[tensor.file].name}/{tensor.name}" if tensor.part else tensor.name

    def records(self) -> Iterator[dict[str, Any]]:
        """The plan as JSON records, paths relative to the source's root so that a moved checkpoint plans alike."""
        base = self.source_root if self.source_root.is_dir() else self.source_root.parent
        yield {
            "crossdock_plan": 1,
            "source_format": self.source_format,
            "target_format": self.target_format,
            "config": self.described.config.as_dict(),
            "settings": dict(self.settings),
            **({} if self.weights == "model" else {"weights": self.weights}),
            "sources": [[_relative(f.path, base), f.size] for f in self.sources],
        }
        for extent in self.extents:
            at = extent.at
            yield {
                "extent": [at.file, at.offset, at.nbytes, at.wrapping, extent.dtype],
                "tensor": extent.tensor,
                "part": extent.part,
                "origin": at.origin,
                "shape": at.shape,
                "strides": at.strides,
                **({} if at.piece is None else {"piece": at.piece}),
                **({} if extent.scaling is None else {"scaling": _scaling(extent.scaling)}),
            }
        for file in self.files:
            copied = None if file.copy_of is None else [file.copy_of.path.name, file.copy_of.size]
            yield {
                "file": file.name,
                "size": file.size,
                "header": base64.b64encode(file.header).decode(),
                "copy": copied,
            }
        for tensor in self.tensors:
            yield {
                "tensor": tensor.name,
                "file": tensor.file,
                "offset": tensor.offset,
                "shape": tensor.shape,
                "dtype": tensor.dtype,
                "add": tensor.add,
                "zeros": tensor.zeros,
                "of": tensor.of,
                "data": None if tensor.data is None else base64.b64encode(tensor.data).decode(),
                "moves": [list(_fields(m)) for m in tensor.moves],
                **({"sum_as_stored": True} if tensor.sum_as_stored else {}),
                **({"maps": [[m.start, m.stop, m.steps] for m in tensor.maps]} if tensor.maps else {}),
                **_scales(tensor),
                **_products(tensor.products),
            }
        for check in self.equality_checks:
            yield {
                "twin": check.name,
                "like": check.like,
                "elements": check.elements,
                "one": [list(_fields(m)) for m in check.one],
                "other": [list(_fields(m)) for m in check.other],
                **({} if check.dtype == "float32" else {"dtype": check.dtype}),
            }

    def lines(self) -> Iterator[str]:
        """The plan as JSON lines."""
        for record in self.records():
            yield json.dumps(record, separators=(",", ":"))

    @cached_property
    def digest(self) -> str:
        """sha256 over `lines()`: two plans with one digest do the same thing."""
        state = hashlib.sha256()
        for line in self.lines():
            state.update(line.encode())
            state.update(b"\n")
        return state.hexdigest()


def _products(products: tuple[Product, ...]) -> dict[str, Any]:
    return {"products": [list(map(_plain, astuple(one))) for one in products]} if products else {}


def _plain(value: Any) -> Any:
    """Moves of a product as lists of their numbers, other values as they are."""
    return [list(move) for move in value] if isinstance(value, tuple) else value


def _scales(tensor: TargetTensor) -> dict[str, Any]:
    if tensor.scale_blocks is None:
        return {}
    scales = ["holds scales"] if tensor.is_scale_tensor else tensor.static_scales
    return {"cells": [*_scale_blocks(tensor.scale_blocks), *scales]}


def _scale_blocks(scale_blocks: ScaleBlocks) -> tuple[int, ...]:
    return scale_blocks.rows, scale_blocks.columns, scale_blocks.height, scale_blocks.width


def _scaling(scaling: StoredScales) -> list[Any]:
    return [scaling.name, scaling.dtype, scaling.file, scaling.offset, *_scale_blocks(scaling.scale_blocks)]


def _fields(move: Move) -> tuple[Any, ...]:
    return move.extent, move.src, move.dst, move.size, move.src_step, move.dst_step


def _relative(path: Path, base: Path) -> str:
    return str(path.relative_to(base)) if path.is_relative_to(base) else path.name
