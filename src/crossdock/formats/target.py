"""What a target format is: it chooses encodings, lays tensors out in files, and writes headers. Never tensor data.

A target module offers one `Target` and the dataclass of its options; the planner calls it with names, shapes and codecs
and gets back files with their exact sizes and first bytes, and the place of every tensor in them.
"""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from crossdock.codecs import registry as codecs
from crossdock.codecs.scale_blocks import ScaleBlocks
from crossdock.errors import PlanError, Problem, UsageError
from crossdock.formats.options import Options
from crossdock.formats.stored import Pair, Source, SourceFile, StoredTensor
from crossdock.layout.lenses import Lens
from crossdock.layout.maps import Steps
from crossdock.layout.partitions import Partitions
from crossdock.model.config import ModelConfig
from crossdock.wording import nearest

OptionsT = TypeVar("OptionsT", bound=Options)
PLAIN = ("float32", "float16", "bfloat16")  # what every engine reads


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
class Ranks:
    """How a target cuts a model over its rank files.

    sizes       rank name of the layout -> how many; partitions: axis -> {ranks: range} where the cut is not even
    settings    names that the layout's expressions may use besides the fields of the configuration
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    partitions: Partitions = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a canonical tensor, or a part of it, lies in a tensor of the target.

    tensor  its canonical name; layer: None for a tensor outside the layers
    sizes   axis -> elements, outermost first as the family declares them, without the layer
    name    of the target's tensor, of `shape`; lens: which elements of it
    steps   from what is stored there to the canonical value
    """

    tensor: str
    layer: int | None
    sizes: Mapping[str, int]
    name: str
    shape: tuple[int, ...]
    lens: Lens
    steps: Steps


@dataclass(frozen=True)
class Findings:
    """What the planner found out about the model and its source; what the user asked for is in the target's options.

    config         the canonical configuration; vocab_from: where its vocab_size comes from, for messages
    companions     files that the source brings along: tokenizer, generation_config.json
    encoding       the layout's [encoding]: what is encoded in its own way -> globs over the format's names
    header         the layout's [write]: key -> (type, value)
    source_dtype   what most of the source's matrices are in
    alphas         of an adapter: the model's tensor -> scale * rank of its pair, as the target has it
    fixed          tensor name -> codec, taken from the output that is being verified
    placed         finds where every canonical tensor lies in the target's tensors
    """

    config: ModelConfig
    vocab_from: str
    companions: tuple[Path, ...]
    encoding: Mapping[str, tuple[str, ...]]
    header: Mapping[str, tuple[str, Any]]
    source_dtype: str
    fixed: Mapping[str, str]
    alphas: Mapping[str, float] = field(default_factory=dict)
    placed: Callable[[], Sequence[Placed]] = tuple

    def is_listed(self, kind: str, name: str) -> bool:
        """Whether the layout's [encoding] lists the tensor `name` under `kind`."""
        return any(fnmatch.fnmatchcase(name, glob) for glob in self.encoding.get(kind, ()))


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


class PairForm(Enum):
    """How a target has the two matrices of a pair on a matrix of the model.

    LINEAR      [rank, in] and [out, rank]
    ROWS_FIRST  of an embedding: [rows, rank] and [columns, rank]; RANK_FIRST: [rank, rows] and [columns, rank]
    """

    LINEAR = "linear"
    ROWS_FIRST = "rows first"
    RANK_FIRST = "rank first"


class Target(ABC, Generic[OptionsT]):
    """One target format with what the user asked of it. The planner calls its methods in the order in which they stand.

    name         as the user calls it; layout: name of its layout table; single_file: OUT is the file, not a folder
    options_type the dataclass of its options
    needs_training_scales   those of `quantizations` that take the scales of fp8 training
    own_names    globs of the files that its outputs may have, where OUT is a folder: `--force` may replace these
    pairs_in     of a target that holds adapters: the layout whose names the model's tensors have in it
    one_alpha    such a target has one alpha for all pairs
    instead      advice where a type is asked for that it does not write
    """

    name: ClassVar[str]
    layout: ClassVar[str]
    single_file: ClassVar[bool] = False
    options_type: ClassVar[type[Options]]
    needs_training_scales: ClassVar[frozenset[str]] = frozenset()
    own_names: ClassVar[tuple[str, ...]] = ()
    instead: ClassVar[str] = ""
    pairs_in: ClassVar[str] = ""
    one_alpha: ClassVar[bool] = False

    def __init__(self, options: OptionsT) -> None:
        """Raises UsageError for a type that the format lacks, and for what `check` refuses."""
        dtype = options.dtype if options.dtype == "auto" else codecs.canonical_name(options.dtype)
        if dtype != "auto" and dtype not in self.dtypes():
            raise UsageError(
                f"{self.name} cannot be written as {dtype}",
                expected=f"--dtype {' or '.join(name for name in self.dtypes() if codecs.get(name).block == 1)}",
                fix=self.instead,
            )
        quantize = None if options.quantize is None else self._quantization(options.quantize)
        self.options: OptionsT = replace(options, dtype=dtype, quantize=quantize)
        self.check()

    @classmethod
    def dtypes(cls) -> tuple[str, ...]:
        """Codecs that --dtype may name."""
        return ("float32",)

    @classmethod
    def quantizations(cls) -> tuple[str, ...]:
        """Names for -q: codecs, and what the format knows by a name of its own."""
        return ()

    def check(self) -> None:
        """Raises UsageError where options do not fit together."""

    def ranks(self, config: ModelConfig) -> Ranks:
        """How the model is cut over rank files. Raises PlanError with all that does not divide."""
        return Ranks()

    def state(self, source: Source) -> State:
        """What of the state of training goes along. May read a few hundred bytes a tensor. Raises PlanError."""
        return State((), ())

    def encode(self, tensors: Sequence[TensorSpec], found: Findings) -> list[Encoding]:
        """The codec of each of `tensors`, whose dtypes are the source's. Raises PlanError with all problems."""
        encodings: list[Encoding] = []
        problems: list[Problem] = []
        for tensor in tensors:
            try:
                encodings.append(self.encoding(tensor, found))
            except PlanError as error:
                problems += error.problems
        if problems:
            raise PlanError(each_once(problems))
        return encodings

    def encoding(self, tensor: TensorSpec, found: Findings) -> Encoding:
        """The codec of one tensor, where it does not depend on the others."""
        return Encoding("float32")

    def extra(self, tensors: Sequence[TensorSpec], found: Findings) -> Sequence[tuple[TensorSpec, bytes]]:
        """Tensors that no source holds, with their encoded bytes. `tensors`: those that it holds, as encoded."""
        return ()

    @abstractmethod
    def assemble(self, tensors: Sequence[TensorSpec], found: Findings) -> Assembled:
        """Files and places for `tensors`."""

    @classmethod
    def demand_place(cls, name: str) -> None:
        """Raises PlanError where the target has no place for a pair on the model's tensor `name`."""

    @classmethod
    def pair_form(cls, name: str) -> PairForm:
        """How the pair on the model's tensor `name` is held."""
        return PairForm.LINEAR

    @classmethod
    def pair_names(cls, name: str) -> tuple[str, str]:
        """What the two matrices of the pair on the model's tensor `name` are called. Raises PlanError."""
        raise PlanError(f"{cls.name} holds models, not adapters", fix="--to gguf-lora or --to peft, or --merge")

    @classmethod
    def reopen(cls, output: Path) -> Source | None:
        """The stored tensors of an output that is not a source of its own, for `verify`; None when `output` is
        something else. Raises FormatError."""
        return None

    @classmethod
    def recorded(cls, output: Source) -> Mapping[str, Any]:
        """Options that an output of this format shows, so that a replay gives the same files."""
        return {}

    @classmethod
    def differences(cls, name: str, wanted: bytes, found: bytes, where: str) -> Sequence[Problem] | None:
        """Where the small file `name` of an output, at `where`, differs from what the plan writes, in the format's own
        terms; none where it says the same in other bytes. None: bytes are all that it is."""
        return None

    @classmethod
    @abstractmethod
    def facts(cls, output: Path) -> Mapping[str, Any]:
        """What an output of this format says about itself, in the terms of `Assembled.facts`."""

    @classmethod
    def next_steps(cls, output: Path, source: Sequence[str]) -> Sequence[str]:
        """Commands and notices that follow an export to `output`. source: the words that name the source in them."""
        return ()

    def _quantization(self, name: str) -> str:
        own = name.strip().lower().replace("-", "_")
        known = self.quantizations()
        if own not in known:
            expected = " or ".join(nearest(own, known, 3) or known)
            raise UsageError(
                f"{self.name} has no quantisation {own}",
                expected=f"-q {expected}" if known else "no -q",
                fix=self.instead,
            )
        return own


def each_once(problems: Sequence[Problem]) -> list[Problem]:
    """Problems that differ only in where they are as one, which names the first place and how many there are."""
    found: dict[Problem, list[str]] = {}
    for problem in problems:
        found.setdefault(replace(problem, where=""), []).append(problem.where)
    return [
        replace(one, where=places[0] + (f" (and {len(places) - 1} more tensors)" if len(places) > 1 else ""))
        for one, places in found.items()
    ]
