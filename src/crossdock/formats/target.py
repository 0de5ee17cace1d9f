"""What a target format is: it chooses encodings, lays tensors out in files, and writes headers. Never tensor data.

A target module offers one `Target`; the planner calls it with names, shapes and codecs and gets back files with their
exact sizes and first bytes, and the place of every tensor in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from crossdock.codecs.scale_blocks import ScaleBlocks
from crossdock.errors import UsageError
from crossdock.formats.stored import Pair, Source, SourceFile, StoredTensor
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


@dataclass(frozen=True, slots=True)
class Parallel:
    """Over how many ranks a target with rank files is cut, and what each of them holds of the embedding.

    moe_tensor_parallel, moe_expert_parallel   how the tensor-parallel ranks share the experts; 0: what is left over
    use_parallel_embedding    every rank has a part of the embedding: of its rows, or of its columns (sharding dim 1)
    """

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    moe_tensor_parallel: int = 0
    moe_expert_parallel: int = 0
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0


@dataclass(frozen=True, slots=True)
class Ranks:
    """What a target makes of `Parallel`.

    sizes       rank name of the layout -> how many; partitions: axis -> {ranks: range} where the cut is not even
    settings    names that the layout's expressions may use besides the fields of the configuration
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    partitions: Mapping[str, Mapping[tuple[tuple[str, int], ...], tuple[int, int]]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Request:
    """What the user asked of the target.

    source_dtype   what most of the source's matrices are in; the planner fills it in
    dtype          codec name of large tensors, or "auto": as the source has them
    quantize       block codec for matrices, or what the target knows by name, or None
    mixture        tensor name -> codec, of a quantisation that gives tensors different ones; the planner fills it in
    tokenizer      folder or file of the tokenizer; `companion_files`: files that the source brings along
    max_shard_size bytes per file, for formats with shards
    vocab_from     where the model's vocab_size comes from, for messages; the planner knows
    encodings      tensor name -> codec, fixed beforehand (verify takes them from the file it checks)
    parallel       ranks, for formats with rank files; allow_overflow: values too large for the dtype may become inf
    keep_order     leave the optimizer's vectors in the order in which the source has them
    fp8_kv_cache   the engine keeps keys and values in fp8
    """

    dtype: str = "auto"
    quantize: str | None = None
    mixture: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Path | None = None
    pre_tokenizer: str | None = None
    max_shard_size: int = 5_000_000_000
    companion_files: tuple[Path, ...] = ()
    vocab_from: str = ""
    encodings: Mapping[str, str] = field(default_factory=dict)
    keep_order: bool = False
    source_dtype: str = "float32"
    parallel: Parallel = Parallel()
    allow_overflow: bool = False
    fp8_kv_cache: bool = False


class TensorSpec(NamedTuple):
    """A tensor that the target will have. dtype: codec name (of the source when asked for an encoding).

    part    the rank file it belongs to, as the layout spells it ("" where names are global)
    scales  of fp8 training, where the source has them and they are asked for: of the whole, or of each expert
    before  once an encoding is chosen: the dtype that the source has it in
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    part: str = ""
    scales: tuple[Pair, ...] | None = None
    before: str = ""


@dataclass(frozen=True, slots=True)
class RankFile:
    """One rank of a target with rank files, for people: what it holds.

    layers  numbers of the model's layers, first and beyond the last
    vocab_rows   rows of the embedding; head_rows: of the output matrix; both with padding, 0 where there is none
    replicated_kv_heads   KV heads that other ranks of the stage hold too
    """

    name: str
    tensors: int
    nbytes: int
    layers: tuple[int, int]
    vocab_rows: int
    head_rows: int
    replicated_kv_heads: int


class Encoding(NamedTuple):
    """The codec chosen for a tensor, and a sentence when it is not the one that was asked for.

    scale_blocks   each cell's values are divided by a scale before they are encoded
    static_scales   the scale of each cell; none: they follow from the values, and are written as the tensor `scales`
    """

    dtype: str
    notice: str = ""
    scale_blocks: ScaleBlocks | None = None
    static_scales: tuple[float, ...] = ()
    scales: str = ""


@dataclass(frozen=True)
class Assembled:
    """Files, and per tensor (in the order given) the file's index and the byte where its data starts.

    facts    what the headers say, key by key, so that `verify` can ask an output the same
    fail_on  findings in the values ("overflow") for which the output must not come into being
    """

    files: tuple[TargetFile, ...]
    places: tuple[tuple[int, int], ...]
    warnings: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    fail_on: frozenset[str] = frozenset()
    ranks: tuple[RankFile, ...] = ()


def adapter_encoding(request: Request) -> Encoding:
    """float32, in which adapters were trained. Raises UsageError when another type was asked for."""
    if request.quantize is not None or request.dtype not in ("auto", "float32"):
        raise UsageError("an adapter is float32", fix="leave --dtype and --quantize out")
    return Encoding("float32")


def no_ranks(name: str, request: Request) -> Ranks:
    """The ranks of a target without rank files. Raises UsageError when some were asked for."""
    if request.parallel != Parallel():
        raise UsageError(
            f"{name} has no ranks: --tp, --pp and their like are for targets with rank files", fix="--to trtllm has"
        )
    return Ranks()


class Target(Protocol):
    """One target format. `layout` names its layout table; `single_file`: OUT is the file itself, not a folder."""

    @property
    def name(self) -> str: ...
    @property
    def layout(self) -> str: ...
    @property
    def single_file(self) -> bool: ...
    @property
    def quantizations(self) -> tuple[str, ...]:
        """Quantisations beside the codecs that the format knows by name."""
        ...

    def ranks(self, config: ModelConfig, request: Request) -> Ranks:
        """How the model is cut over rank files. Raises PlanError with all that does not divide, UsageError."""
        ...

    def request_from_output(self, request: Request, output: Source) -> Request:
        """`request` with what can be seen in an output of this format, so that a replay gives the same files."""
        ...

    def next_steps(self, output: Path, source: Sequence[str]) -> Sequence[str]:
        """Commands and notices that follow an export to `output`. source: the words that name the source in them."""
        ...

    def encoding(self, tensor: TensorSpec, request: Request, rules: Layout) -> Encoding:
        """The codec for `tensor`, whose dtype is the source's. Raises UsageError for a dtype the format lacks."""
        ...

    def computed(
        self, config: ModelConfig, tensors: Sequence[TensorSpec], request: Request
    ) -> Sequence[tuple[TensorSpec, bytes]]:
        """Tensors that no source holds, with their encoded bytes. `tensors`: those that it holds, as encoded."""
        ...

    def facts(self, output: Path) -> Mapping[str, Any]:
        """What an output of this format says about itself, in the terms of `Assembled.facts`."""
        ...

    def assemble(
        self,
        tensors: Sequence[TensorSpec],
        config: ModelConfig,
        written: Mapping[str, tuple[str, Any]],
        request: Request,
    ) -> Assembled:
        """Files and places for `tensors`. `written`: config key -> (type, value) from the layout's [write]."""
        ...


@dataclass(frozen=True, slots=True)
class PassThrough:
    """A stored tensor that goes along although it is no weight, its last axis perhaps in another order.

    pieces  (first element, count) along the last axis of the source, in the target's order
    """

    name: str
    stored: StoredTensor
    pieces: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class State:
    """What training left beside the weights, as a target takes it.

    keys  (key, type, value) for the header
    same  stored tensors that, one behind the other, must equal `PassThrough` (how its order was found), or nothing
    """

    carried: tuple[PassThrough, ...]
    keys: tuple[tuple[str, str, Any], ...]
    warnings: tuple[str, ...] = ()
    same: tuple[PassThrough, tuple[StoredTensor, ...]] | None = None


@runtime_checkable
class StateTarget(Protocol):
    """A target that takes the state of training along."""

    def state(self, source: Source, request: Request) -> State:
        """What of `source` goes along. May read a few hundred bytes a tensor. Raises PlanError, UsageError."""
        ...


@runtime_checkable
class ScaledTarget(Protocol):
    """A target some of whose `quantizations` take the scales of fp8 training: `needs_training_scales`."""

    @property
    def needs_training_scales(self) -> tuple[str, ...]: ...


@runtime_checkable
class MixingTarget(Protocol):
    """A target with quantisations under which a tensor's type depends on the others, or on the model."""

    def mixture(
        self, tensors: Sequence[TensorSpec], written: Mapping[str, tuple[str, Any]], request: Request
    ) -> Mapping[str, str]:
        """Tensor name -> codec, for all `tensors` or none. written: as for `assemble`, before there are encodings."""
        ...


@runtime_checkable
class ReopeningTarget(Protocol):
    """A target whose outputs are no source of their own; `verify` opens them through it."""

    def reopen(self, output: Path) -> Source | None:
        """The output's stored tensors, None when `output` is something else. Raises FormatError."""
        ...
