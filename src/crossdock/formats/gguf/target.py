"""GGUF as a target: encodings, metadata with the tokenizer, one file.

Rules: llama.cpp at 0c1e57098, `conversion/base.py` (what stays float32, file_type) and gguf-py's `constants.py`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossdock.codecs import registry as codecs
from crossdock.errors import TokenizerError
from crossdock.formats.companions import tokenizer_at
from crossdock.formats.gguf.about import about
from crossdock.formats.gguf.container import KEYS_OF_TENSORS, header_bytes, read_header
from crossdock.formats.gguf.mixtures import mixtures, types
from crossdock.formats.gguf.options import GgufOptions
from crossdock.formats.gguf.rope_factors import factors
from crossdock.formats.gguf.vocabulary import NO_VOCABULARY, is_gguf, vocabulary_in, vocabulary_of
from crossdock.formats.target import PLAIN, Assembled, Encoding, Findings, Target, TargetFile, TensorSpec
from crossdock.tokenizers.gguf_metadata import gguf_differences, gguf_metadata, too_few
from crossdock.tokenizers.reading import read as read_tokenizer

_QUANTISATION_VERSION = 2


class GgufTarget(Target[GgufOptions]):
    """The target that writes a model as one GGUF file."""

    name = "gguf"
    layout = "gguf"
    single_file = True
    options_type = GgufOptions
    instead = "export f16 or bf16, and let llama-quantize make the rest"

    @classmethod
    def dtypes(cls) -> tuple[str, ...]:
        """Codecs that have a number in general.file_type, and that can be written."""
        return tuple(name for name in codecs.names() if (one := codecs.get(name)).encodes and one.file_type is not None)

    @classmethod
    def quantizations(cls) -> tuple[str, ...]:
        """Block codecs among them, and mixtures of types as llama-quantize calls them."""
        blocks = (name for name in cls.dtypes() if codecs.get(name).block > 1)
        return tuple(sorted({*blocks, *mixtures().named}, reverse=True))

    def encode(self, tensors: Sequence[TensorSpec], found: Findings) -> list[Encoding]:
        """What was asked for; float32 for what llama.cpp keeps so, float16 where rows are not whole blocks."""
        asked, named = self._asked, self.options.quantize or ""
        mixed = types(named, tensors, found.header) if named in mixtures().named else {}
        return [_encoding(one, mixed.get(one.name, asked or one.dtype), found) for one in tensors]

    def extra(self, tensors: Sequence[TensorSpec], found: Findings) -> Sequence[tuple[TensorSpec, bytes]]:
        """The divisors of frequencies for Llama 3.1 rope scaling and for longrope."""
        return [
            (TensorSpec(name, values.shape, "float32"), values.tobytes())
            for name, values in factors(found.config).items()
        ]

    def assemble(self, tensors: Sequence[TensorSpec], found: Findings) -> Assembled:
        """Header with configuration and tokenizer, then the tensors at multiples of 32 bytes."""
        arch = found.header["general.architecture"][1]
        metadata: list[tuple[str, str, Any]] = []
        for key, (kind, value) in found.header.items():
            full = key if key.startswith(("general.", "tokenizer.", "split.", KEYS_OF_TENSORS)) else f"{arch}.{key}"
            metadata.append((full, kind, value))
        known = {key for key, _, _ in metadata}
        if "general.file_type" not in known:
            metadata.append(("general.file_type", "UINT32", self._file_type(tensors)))
        if self.options.quantize is not None or any(tensor.dtype not in PLAIN for tensor in tensors):
            metadata.append(("general.quantization_version", "UINT32", _QUANTISATION_VERSION))
        tokens, warnings = _tokenizer(self.options, found)
        # what was asked for cannot be seen in a file whose rows fell back to another type
        unseen = ("general.file_type",) if found.fixed else ()
        facts = {key: value for key, _, value in metadata if key not in unseen}
        if _tokenizer_path(self.options, found) is not None:
            facts |= {key: value for key, _, value in tokens}
        metadata += [pair for pair in about(self.options, found) if pair[0] not in known]
        header, offsets, total = header_bytes([*metadata, *tokens], [(t.name, t.shape, t.dtype) for t in tensors])
        places = tuple((0, offset) for offset in offsets)
        return Assembled((TargetFile("model.gguf", total, header),), places, warnings, facts)

    @classmethod
    def next_steps(cls, output: Path, source: Sequence[str]) -> Sequence[str]:
        """How Ollama and llama.cpp take it."""
        metadata = read_header(output).metadata
        if "tokenizer.ggml.model" not in metadata:
            return ()
        file, name = shlex.quote(str(output)), shlex.quote(output.stem.lower())
        line = shlex.quote(f"FROM {output.resolve()}")
        return (f"echo {line} > Modelfile && ollama create {name} -f Modelfile", f"llama-server -m {file}")

    @classmethod
    def facts(cls, output: Path) -> Mapping[str, Any]:
        """The metadata of a GGUF file."""
        return read_header(output).metadata

    @property
    def _asked(self) -> str:
        """The codec that was asked for; "" for what the source has, and for a mixture."""
        options = self.options
        if options.quantize is not None:
            return "" if options.quantize in mixtures().named else options.quantize
        return "" if options.dtype == "auto" else options.dtype

    def _file_type(self, tensors: Sequence[TensorSpec]) -> int:
        """The type that was asked for; else the one that most matrix elements have."""
        named = mixtures().named.get(self.options.quantize or "")
        if named is not None:
            return named.file_type
        counts: dict[str, int] = {}
        for tensor in tensors:
            if len(tensor.shape) > 1:
                counts[tensor.dtype] = counts.get(tensor.dtype, 0) + math.prod(tensor.shape)
        return _number(self._asked or max(counts, key=lambda name: counts[name], default="float32")) or 0


def _encoding(tensor: TensorSpec, wanted: str, found: Findings) -> Encoding:
    fixed = found.fixed.get(tensor.name)
    if fixed is not None:  # llama.cpp's operators on vectors want float32, whatever a file says
        return Encoding("float32" if len(tensor.shape) < 2 else fixed)
    if len(tensor.shape) < 2 or found.is_listed("f32", tensor.name) or _number(wanted) is None:
        return Encoding("float32")
    row = tensor.shape[-1]
    fits = _fitting(wanted, row)
    if fits != wanted:
        kind = "".join("N" if c.isdigit() else c for c in tensor.name)
        block = codecs.get(wanted).block
        return Encoding(fits, f"{kind}: rows of {row} are not whole blocks of {block} ({wanted}); {fits}")
    return Encoding(wanted)


def _number(codec: str) -> int | None:
    """The codec's number in general.file_type; None also for types that can only be listed."""
    return codecs.get(codec).file_type if codec in codecs.names() else None


def _fitting(codec: str, row: int) -> str:
    """The codec, or what llama.cpp takes instead where a row is no whole number of its blocks."""
    if row % codecs.get(codec).block == 0:
        return codec
    instead = mixtures().fallback.get(codec, "")
    return instead if instead and row % codecs.get(instead).block == 0 else "float16"


def _tokenizer_path(options: GgufOptions, found: Findings) -> Path | None:
    return tokenizer_at(options.tokenizer, found) or vocabulary_in(None, found.companions)


def _tokenizer(options: GgufOptions, found: Findings) -> tuple[list[tuple[str, str, Any]], tuple[str, ...]]:
    path = _tokenizer_path(options, found)
    if path is None:
        notice = "the output has no tokenizer; add one with --tokenizer FOLDER"
        return list(NO_VOCABULARY), (notice,)
    if is_gguf(path):
        return vocabulary_of(path, found.config.vocab_size, found.vocab_from), ()

    tokenizer = read_tokenizer(path)
    try:
        metadata = gguf_metadata(
            tokenizer, vocab_size=found.config.vocab_size, pre=options.pre_tokenizer, vocab_from=found.vocab_from
        )
    except TokenizerError as error:
        if options.tokenizer is None:  # the source brought it along: say how to do without
            raise TokenizerError([*error.problems[:-1], _with_hint(error.problems[-1])]) from None
        raise
    differences = gguf_differences(tokenizer, pre=options.pre_tokenizer)
    warnings = tuple("; ".join(problem.lines()) for problem in differences)
    return _typed(metadata), (*too_few(tokenizer, found.config.vocab_size), *warnings)


def _with_hint(problem: Any) -> Any:

    return replace(problem, fix=problem.fix or "choose another with --tokenizer")


def _typed(metadata: Sequence[tuple[str, str, Any]]) -> list[tuple[str, str, Any]]:
    return [(key, kind.upper(), value) for key, kind, value in metadata]
