"""GGUF as a target: encodings, metadata with the tokenizer, one file.

Rules: llama.cpp at 0c1e57098, `conversion/base.py` (what stays float32, file_type) and gguf-py's `constants.py`.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossdock.codecs import registry as codecs
from crossdock.errors import TokenizerError, UsageError
from crossdock.formats.gguf.container import header_bytes, read_header
from crossdock.formats.gguf.mixtures import mixtures, types
from crossdock.formats.gguf.rope_factors import llama3_factors
from crossdock.formats.gguf.vocabulary import NO_VOCABULARY, is_gguf, vocabulary_in, vocabulary_of
from crossdock.formats.stored import Source
from crossdock.formats.target import Assembled, Encoding, Ranks, Request, TargetFile, TensorSpec, no_ranks
from crossdock.layout.rules import Layout
from crossdock.model.config import ModelConfig

FILE_TYPES: Mapping[str, int] = {  # llama_ftype in llama.h
    "float32": 0, "float16": 1, "q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 12,
    "q4_k": 15, "q5_k": 17, "q6_k": 18, "bfloat16": 32,
}  # fmt: skip
_PLAIN = ("float32", "float16", "bfloat16")
_QUANTISATION_VERSION = 2


@dataclass(frozen=True)
class GgufTarget:
    """One GGUF file."""

    name: str = "gguf"
    layout: str = "gguf"
    single_file: bool = True

    @property
    def quantizations(self) -> tuple[str, ...]:
        """Mixtures of types, as llama-quantize calls them."""
        return tuple(mixtures().named)

    def ranks(self, config: ModelConfig, request: Request) -> Ranks:
        """None."""
        return no_ranks(self.name, request)

    def request_from_output(self, request: Request, output: Source) -> Request:
        """Nothing beside the encodings."""
        return request

    def next_steps(self, output: Path, source: Sequence[str]) -> Sequence[str]:
        """None."""
        return ()

    def encoding(self, tensor: TensorSpec, request: Request, rules: Layout) -> Encoding:
        """What was asked for; float32 for what llama.cpp keeps so, float16 where rows are no whole blocks."""
        fixed = request.encodings.get(tensor.name)
        if fixed is not None:  # llama.cpp's operators on vectors want float32, whatever a file says
            return Encoding("float32" if len(tensor.shape) < 2 else fixed)
        wanted = request.mixture.get(tensor.name) or (_asked(request) if _asks(request) else tensor.dtype)
        if wanted not in FILE_TYPES or (_asks(request) and not codecs.get(wanted).encodes):
            if _asks(request):
                raise UsageError(
                    f"gguf cannot be written as {wanted}",
                    expected="f32, f16, bf16, or -q q8_0, q6_k, q5_k_m, q4_k_m, q4_0 and their like",
                    fix="export f16 or bf16, and let llama-quantize make the rest",
                )
            wanted = "float32"
        if len(tensor.shape) < 2 or _stays_float32(tensor.name, rules):
            return Encoding("float32")
        row = tensor.shape[-1]
        fits = _fitting(wanted, row)
        if fits != wanted:
            kind = "".join("N" if c.isdigit() else c for c in tensor.name)
            block = codecs.get(wanted).block
            return Encoding(fits, f"{kind}: rows of {row} are no whole blocks of {block} ({wanted}); {fits}")
        return Encoding(wanted)

    def mixture(
        self, tensors: Sequence[TensorSpec], written: Mapping[str, tuple[str, Any]], request: Request
    ) -> Mapping[str, str]:
        """The types of llama.cpp's mixture that was asked for."""
        if request.quantize is None or request.quantize not in mixtures().named:
            return {}
        return types(request.quantize, tensors, written)

    def computed(
        self, config: ModelConfig, tensors: Sequence[TensorSpec], request: Request
    ) -> Sequence[tuple[TensorSpec, bytes]]:
        """`rope_freqs.weight` for Llama 3.1 rope scaling."""
        if config.rope_type != "llama3":
            return ()
        factors = llama3_factors(config)
        return ((TensorSpec("rope_freqs.weight", factors.shape, "float32"), factors.tobytes()),)

    def assemble(
        self,
        tensors: Sequence[TensorSpec],
        config: ModelConfig,
        written: Mapping[str, tuple[str, Any]],
        request: Request,
    ) -> Assembled:
        """Header with configuration and tokenizer, then the tensors at multiples of 32 bytes."""
        arch = written["general.architecture"][1]
        metadata: list[tuple[str, str, Any]] = []
        for key, (kind, value) in written.items():
            full = key if key.partition(".")[0] in ("general", "tokenizer", "split") else f"{arch}.{key}"
            metadata.append((full, kind, value))
        known = {key for key, _, _ in metadata}
        if "general.file_type" not in known:
            metadata.append(("general.file_type", "UINT32", _file_type(tensors, request)))
        if request.quantize is not None or any(tensor.dtype not in _PLAIN for tensor in tensors):
            metadata.append(("general.quantization_version", "UINT32", _QUANTISATION_VERSION))
        tokens, warnings = _tokenizer(config, request)
        # what was asked for cannot be seen in a file whose rows fell back to another type
        unseen = ("general.file_type",) if request.encodings else ()
        facts = {key: value for key, _, value in metadata if key not in unseen}
        if _tokenizer_path(request) is not None:
            facts |= {key: value for key, _, value in tokens}
        header, offsets, total = header_bytes([*metadata, *tokens], [(t.name, t.shape, t.dtype) for t in tensors])
        places = tuple((0, offset) for offset in offsets)
        return Assembled((TargetFile("model.gguf", total, header),), places, warnings, facts)

    def facts(self, output: Path) -> Mapping[str, Any]:
        """The metadata of a GGUF file."""
        return read_header(output).metadata


def _asks(request: Request) -> bool:
    return request.quantize is not None or request.dtype != "auto"


def _asked(request: Request) -> str:
    return codecs.canonical_name(request.quantize or request.dtype)


def _fitting(codec: str, row: int) -> str:
    """The codec, or what llama.cpp takes instead where a row is no whole number of its blocks."""
    if row % codecs.get(codec).block == 0:
        return codec
    instead = mixtures().fallback.get(codec, "")
    return instead if instead and row % codecs.get(instead).block == 0 else "float16"


def _stays_float32(name: str, rules: Layout) -> bool:
    return any(fnmatch.fnmatchcase(name, glob) for glob in rules.encoding.get("f32", ()))


def _file_type(tensors: Sequence[TensorSpec], request: Request) -> int:
    """The type that was asked for; else the one that most matrix elements have."""
    if request.quantize and request.quantize in mixtures().named:
        return mixtures().named[request.quantize].file_type
    if _asks(request):
        return FILE_TYPES[_asked(request)]
    counts: dict[str, int] = {}
    for tensor in tensors:
        if len(tensor.shape) > 1:
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return FILE_TYPES.get(max(counts, key=lambda name: counts[name], default="float32"), 0)


def _tokenizer_path(request: Request) -> Path | None:
    if request.tokenizer is not None:
        return request.tokenizer
    names = {"tokenizer.json", "tokenizer.model", "vocab.json"}
    folders = (path.parent for path in request.companion_files if path.name in names)
    return next(folders, vocabulary_in(None, request.companion_files))


def _tokenizer(config: ModelConfig, request: Request) -> tuple[list[tuple[str, str, Any]], tuple[str, ...]]:
    path = _tokenizer_path(request)
    if path is None:
        notice = "no tokenizer given: the file computes but cannot read text; add one with --tokenizer FOLDER"
        return list(NO_VOCABULARY), (notice,)
    if is_gguf(path):
        return vocabulary_of(path, config.vocab_size, request.vocab_from), ()
    from crossdock import tokenizers

    tokenizer = tokenizers.read(path)
    try:
        metadata = tokenizers.gguf_metadata(
            tokenizer, vocab_size=config.vocab_size, pre=request.pre_tokenizer, vocab_from=request.vocab_from
        )
    except TokenizerError as error:
        if request.tokenizer is None:  # the source brought it along: say how to do without
            raise TokenizerError([*error.problems[:-1], _with_hint(error.problems[-1])]) from None
        raise
    differences = tokenizers.gguf_differences(tokenizer, pre=request.pre_tokenizer)
    warnings = tuple("; ".join(problem.lines()) for problem in differences)
    return _typed(metadata), (*tokenizers.too_few(tokenizer, config.vocab_size), *warnings)


def _with_hint(problem: Any) -> Any:
    from dataclasses import replace

    return replace(problem, fix=problem.fix or "give another with --tokenizer")


def _typed(metadata: Sequence[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    return [(key, kind.upper(), value) for key, kind, value in metadata]
