"""GGUF files as a source, whole or split: metadata with the architecture's prefix taken off, tensors where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crossdock.errors import CrossdockError, FormatError, NotACheckpointError
from crossdock.formats.gguf.container import KEYS_OF_TENSORS, GgufFile, read_header, read_split
from crossdock.formats.gguf.rope_factors import NAMES
from crossdock.formats.stored import Extent, Source, SourceFile, StoredTensor
from crossdock.io.files import head_of

TOKENS = "tokenizer.ggml.tokens"  # a file that has them brings its vocabulary along
_MOST_LAYERS = 100_000
_MOST_FACTORS = 4096  # of pairs in a head
_KEPT = ("tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.padding_token_id")


def sniff(path: Path) -> bool:
    """A regular file that begins with GGUF."""
    try:
        if not path.is_file():
            return False
        return head_of(path, 4) == b"GGUF" or path.suffix == ".gguf"
    except (OSError, CrossdockError):
        return False


def open_source(path: Path, *, iteration: int | None = None) -> Source:
    """Open a model file. NotACheckpointError for adapters and other kinds, FormatError for broken files."""
    first = read_header(path)
    kind = first.metadata.get("general.type", "model")
    if kind != "model":
        raise NotACheckpointError(
            f"this GGUF is not a model but of type {kind!r}", where=str(path),
            fix="pass the model; merge an adapter into its base model first", check="adapter-unmerged",
        )  # fmt: skip
    return as_source(path, read_split(path) if first.metadata.get("split.count", 1) != 1 else (first,), "gguf")


def as_source(path: Path, parts: tuple[GgufFile, ...], format: str) -> Source:
    """The files of a model as a source of `format`. Raises FormatError when they do not name an architecture."""
    metadata = parts[0].metadata
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise FormatError("the file does not name its architecture", where=str(path), expected="general.architecture")
    tensors: dict[tuple[str, str], StoredTensor] = {}
    for number, part in enumerate(parts):
        for tensor in part.tensors:
            extent = Extent(number, tensor.offset, tensor.nbytes, (0,) * len(tensor.shape), tensor.shape)
            tensors["", tensor.name] = StoredTensor(tensor.name, tensor.shape, tensor.codec, (extent,))
    tensors |= _in_keys(parts[0])
    return Source(
        format=format,
        root=path,
        files=tuple(SourceFile.of(part.path) for part in parts),
        tensors=tensors,
        metadata=_keys(metadata, arch) | _factors(parts),
        metadata_at=str(path),
        notes=_notes(metadata, len(parts), parts[0].version),
        companion_files=(parts[0].path,) if TOKENS in metadata else (),
    )


def _in_keys(part: GgufFile) -> dict[tuple[str, str], StoredTensor]:
    """Arrays of float32 in the header that are weights in other formats, as tensors of the keys' names."""
    out = {}
    for key, kind in part.types.items():
        if key.startswith(KEYS_OF_TENSORS) and kind == "ARRAY[FLOAT32]":
            shape = (part.metadata[key].size,)
            extent = Extent(0, part.ends[key] - 4 * shape[0], 4 * shape[0], (0,), shape)
            out["", key] = StoredTensor(key, shape, "float32", (extent,))
    return out


def _keys(metadata: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """The keys that describe the model, as `data/layouts/gguf.toml` spells them."""
    out = {}
    for key, value in metadata.items():
        if key.startswith(f"{arch}."):
            short = isinstance(value, np.ndarray) and value.size <= _MOST_LAYERS  # a number for each layer
            out[key[len(arch) + 1 :].replace(".", "_").replace("-", "_")] = value.tolist() if short else _meant(value)
        elif key == "general.architecture" or key in _KEPT:
            out[key.replace(".", "_")] = value
    return out


def _factors(parts: tuple[GgufFile, ...]) -> dict[str, list[float]]:
    """Divisors of rope frequencies, which other formats have in their configuration, by the names of the tensors."""
    out = {}
    for part in parts:
        for tensor in part.tensors:
            if tensor.name in NAMES and tensor.codec == "float32" and tensor.nbytes <= 4 * _MOST_FACTORS:
                with part.path.open("rb") as file:
                    file.seek(tensor.offset)
                    values = np.frombuffer(file.read(tensor.nbytes), "<f4")
                out[tensor.name.removesuffix(".weight")] = [_meant(float(value)) for value in values]
    return out


def _meant(value: Any) -> Any:
    """A float32 as the decimal that was written into it: 1e-05, not 9.999999747378752e-06."""
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):
        narrow = np.float32(value)
    return float(str(narrow)) if value == float(narrow) else value


def _notes(metadata: Mapping[str, Any], parts: int, version: int) -> dict[str, str]:
    notes = {"GGUF version": str(version), "files": str(parts)}
    for key in ("general.name", "general.file_type", "tokenizer.ggml.model", "tokenizer.ggml.pre"):
        if key in metadata:
            notes[key] = str(metadata[key])
    tokens = metadata.get(TOKENS)
    if tokens is not None:
        notes["tokens"] = str(len(tokens))
    return notes
