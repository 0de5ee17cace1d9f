"""GGUF training checkpoints as a target: what llama.cpp's trainers of late 2023 resume from.

Tensors, order, keys and types are those of llama.cpp's convert-train-checkpoint-to-gguf.py and
convert-finetune-checkpoint-to-gguf.py (0e76a89, 4760e7c), with the context length, the vocabulary if one is given, and
the optimizer's vectors in the order in which these trainers expect them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crossdock.errors import PlanError
from crossdock.formats.ggml_training import FORMAT, stored_name
from crossdock.formats.ggml_training.optimizer import NAMES
from crossdock.formats.ggml_training.order import Pieces, pieces, recovered_order, trainers_order
from crossdock.formats.gguf.container import header_bytes, read_header
from crossdock.formats.gguf.options import GgufCheckpointOptions
from crossdock.formats.gguf.source import as_source
from crossdock.formats.gguf.vocabulary import is_gguf, vocabulary_of
from crossdock.formats.stored import Source, StoredTensor
from crossdock.formats.target import Assembled, Findings, PassThrough, State, Target, TargetFile, TensorSpec

Proof = tuple[PassThrough, tuple[StoredTensor, ...]]
_VERSION = 2  # read by all trainers since 44c117f
_OWN = ("general", "training", "optimizer", "tokenizer")  # keys that do not begin with the architecture
# vectors of one value per parameter; the official tensors in the official order
_PER_PARAMETER = frozenset(
    ("first_moments", "second_moments", "current_parameters", "previous_parameters", "current_gradients",
     "previous_gradients", "search_direction", "memory_s", "memory_y")
)  # fmt: skip
_KINDS = {
    "type": "STRING", "just_initialized": "BOOL", "parameter_count": "UINT64", "best_loss": "FLOAT32",
    "previous_loss": "FLOAT32", "line_search_step": "FLOAT32", "line_search_j": "INT32", "line_search_k": "INT32",
    "line_search_end": "INT32",
}  # fmt: skip


class GgufCheckpointTarget(Target[GgufCheckpointOptions]):
    """One GGUF file with the weights (or the adapter), the optimizer's vectors and what training counted.

    All in float32: the trainers know nothing else.
    """

    name = "gguf-checkpoint"
    layout = "gguf_checkpoint"
    single_file = True
    options_type = GgufCheckpointOptions

    def state(self, source: Source) -> State:
        """The optimizer's vectors, in the trainers' order where the present one can be told, and all counts."""
        keys = source.metadata
        kind = keys.get("optimizer_type")
        if source.format != FORMAT or kind is None:
            raise PlanError(
                "the source has no training state to resume from",
                where=str(source.root),
                cause="a trainer with --use-lbfgs aborted while it saved" if source.format == FORMAT else "",
                fix="--to gguf or --to hf writes the model",
            )
        names = NAMES["adam" if kind == "adam" else "lbfgs"]
        stored = {end: source.tensors.get(("", stored_name(kind, own))) for own, end in names.items() if end}
        order, warnings, same = ((), (), None) if self.options.keep_order else _order(source, kind)
        carried = tuple(
            PassThrough(f"optimizer.{kind}.{end}", one, (order if end in _PER_PARAMETER else ()) or _all(one))
            for end, one in stored.items()
            if one is not None
        )
        return State(carried, tuple(_keys(keys)), warnings, same)

    def assemble(self, tensors: Sequence[TensorSpec], found: Findings) -> Assembled:
        """One file: keys, then the tensors at multiples of 32 bytes."""
        arch = found.header["general.architecture"][1]
        metadata = [
            (key if key.partition(".")[0] in _OWN else f"{arch}.{key}", kind, value)
            for key, (kind, value) in found.header.items()
        ]
        if self.options.tokenizer is not None:
            metadata += vocabulary_of(self.options.tokenizer, found.config.vocab_size)
        shapes = [(tensor.name, tensor.shape, tensor.dtype) for tensor in tensors]
        header, offsets, total = header_bytes(metadata, shapes, version=_VERSION)
        facts = {key: value for key, _, value in metadata}
        places = tuple((0, offset) for offset in offsets)
        return Assembled((TargetFile("checkpoint.gguf", total, header),), places, (), facts)

    @classmethod
    def facts(cls, output: Path) -> Mapping[str, Any]:
        """The metadata of a GGUF file."""
        return read_header(output).metadata

    @classmethod
    def next_steps(cls, output: Path, source: Sequence[str]) -> Sequence[str]:
        """How the trainers go on with it."""
        return (f"resumes in llama.cpp's trainers of 2023-09-28 and later in 2023: --checkpoint-in {output}",)

    @classmethod
    def reopen(cls, output: Path) -> Source | None:
        """A GGUF file with the keys of a training checkpoint."""
        header = read_header(output) if is_gguf(output) else None
        if header is None or "training.file_version" not in header.metadata:
            return None
        return as_source(output, (header,), cls.name)


def _all(stored: StoredTensor) -> Pieces:
    return ((0, stored.shape[-1]),)


def _order(source: Source, kind: str) -> tuple[Pieces, tuple[str, ...], Proof | None]:
    """How the vectors are rearranged (nothing: not at all), what to say of it, and what proves it."""
    parameters = {name: t for (_, name), t in source.tensors.items() if not name.startswith("optimizer.")}
    copy = source.tensors.get(("", stored_name(kind, "x")))
    if copy is None:
        sentence = (
            "the order of the optimizer's moments is unknown, because its block of version 1 holds no copy of the "
            "parameters: they are copied unchanged, which suits a trainer with the same flags"
        )
        return (), (sentence,), None
    now = recovered_order(source, parameters, copy)
    if not now:
        sentence = (
            f"{copy.name} does not consist of the model's tensors, so the order of the optimizer's vectors is unknown: "
            "they are copied unchanged"
        )
        return (), (sentence,), None
    wanted = trainers_order(parameters)
    if now == wanted:
        return (), (), None
    sentence = (
        "the optimizer's vectors are not in the order that the trainers of late 2023 expect: they are rearranged "
        "(--keep-order copies them unchanged)"
    )
    proof = (PassThrough("", copy, _all(copy)), tuple(parameters[name] for name in now))  # as they lie: read in one go
    return pieces(now, wanted, parameters), (sentence,), proof


def _keys(found: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """The keys of training and optimizer as GGUF's trainers read them, with exactly their types."""
    lora = found["kind"] == "ggcl"
    keys: list[tuple[str, str, Any]] = []
    if "n_ctx" in found:
        keys.append(("context_length", "UINT32", found["n_ctx"]))
    keys += [
        ("training.file_version", "UINT32", 0),
        ("training.type", "STRING", "finetune_lora" if lora else "train_model"),
        ("training.iteration_count", "UINT32", found["train_its"]),
        ("training.sample_count", "UINT32", found["train_samples"]),
        ("training.token_count", "UINT32", found["train_tokens"]),
    ]
    if lora:
        keys += [(f"training.lora.rank.{name}", "UINT32", rank) for name, rank in found["lora_ranks"].items()]
    keys.append(("optimizer.file_version", "UINT32", 0))
    for key, value in found.items():
        name = key.removeprefix("optimizer_")
        if name == key or name == "block_version":
            continue
        family, _, rest = name.partition("_")
        own = family in ("adam", "lbfgs")
        kind = _KINDS.get(rest if own else name, "UINT32")
        full = f"optimizer.{family}.{rest}" if own else f"optimizer.{name}"
        keys.append((full, kind, value & 0xFFFFFFFF if kind == "UINT32" else value))
    return keys
