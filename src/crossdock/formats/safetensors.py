"""safetensors: header bytes to tensor places, and the way back. Tensor data is never read or written here.

Rules of https://github.com/huggingface/safetensors (README, "Format"; safetensors/src/tensor.rs, 0.8):
64-bit length, JSON object, then data without holes or overlaps. Stricter in one point: a name given twice
is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from crossdock.errors import FormatError, PlanError, Problem
from crossdock.io.files import read_exact, reading, size_of
from crossdock.io.json import JsonLimits, parse_json

MAX_HEADER = 100_000_000
# Ours: what JSON of 100 MB could make of itself in memory must stay bounded; half a million tensors fit.
_LIMITS = JsonLimits(65_536, 6, 5_000_000, depth=8)  # a tensor has nine values in a hundred bytes
MAX_PROBLEMS = 20
DATA_ALIGNMENT = 64

# name in the header -> (codec, bytes of an element)
DTYPES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "F64": ("float64", 8),
        "F32": ("float32", 4),
        "F16": ("float16", 2),
        "BF16": ("bfloat16", 2),
        "F8_E4M3": ("float8_e4m3fn", 1),
        "F8_E5M2": ("float8_e5m2", 1),
        "F8_E8M0": ("float8_e8m0fnu", 1),
        "I64": ("int64", 8),
        "I32": ("int32", 4),
        "I16": ("int16", 2),
        "I8": ("int8", 1),
        "U64": ("uint64", 8),
        "U32": ("uint32", 4),
        "U16": ("uint16", 2),
        "U8": ("uint8", 1),
        "BOOL": ("bool", 1),
    }
)
_BY_CODEC = {codec: (name, size) for name, (codec, size) in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """A tensor: codec name, shape, and its bytes [begin, end) counted from the start of the file."""

    codec: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A header: tensors by name, the strings of `__metadata__`, and where the data starts and ends."""

    tensors: Mapping[str, SafetensorsTensor]
    metadata: Mapping[str, str]
    data_start: int
    end: int


def read_header(path: Path, offset: int = 0, length: int | None = None) -> SafetensorsHeader:
    """Read and check the header of a file, or of a blob of `length` bytes at `offset` inside one.

    The data must end where the file or blob ends; only a blob without `length` may have bytes after it.
    Raises FormatError with every problem found.
    """
    with reading(path) as fd:
        size = size_of(fd)
        where = f"{path} at byte {offset:,}"
        limit = size if length is None else offset + length
        if not 0 <= offset <= limit <= size or limit - offset < 8:
            raise FormatError(
                "too short for a safetensors header",
                where=where,
                expected="at least 8 bytes",
                got=f"{size - offset:,}",
                cause="an interrupted download or copy",
            )
        header_length = int.from_bytes(read_exact(fd, offset, 8, str(path)), "little")
        room = limit - offset - 8
        if header_length > min(room, MAX_HEADER):
            raise FormatError(
                "not a safetensors header, or a truncated file",
                where=where,
                expected=f"a header of at most {min(room, MAX_HEADER):,} bytes",
                got=f"{header_length:,}",
            )
        text = read_exact(fd, offset + 8, header_length, str(path))
    data_start = offset + 8 + header_length
    entries = _parse(text, f"{path} at byte {offset + 8:,}")
    metadata = _metadata(entries.pop("__metadata__", {}), str(path))
    tensors, end = _place(entries, str(path), data_start, limit)
    if end < limit and not (offset and length is None):
        raise FormatError(
            "bytes follow the last tensor",
            where=f"{path} at byte {end:,}",
            expected=f"the end at byte {end:,}",
            got=f"byte {limit:,}",
        )
    return SafetensorsHeader(tensors, metadata, data_start, end)


def header_bytes(
    tensors: Sequence[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, list[int], int]:
    """The header of a file, the offset of each tensor's data in the order given, and the file's size.

    tensors are (name, codec, shape). Data starts at a multiple of 64 bytes, without padding between tensors:
    dtypes are stored in order of size, largest first, and by the given order within: all are aligned.
    Raises PlanError for names given twice and codecs that safetensors does not know.
    """
    problems = []
    seen = {"__metadata__"}
    for name, codec, _ in tensors:
        if name in seen:
            problems.append(Problem(f"the tensor {name!r} occurs twice, or reserved"))
        if codec not in _BY_CODEC:
            problems.append(Problem(f"safetensors has no dtype for {codec}", name, fix="choose bf16, f16 or f32"))
        seen.add(name)
    if problems:
        raise PlanError(problems)
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    begins, end = [0] * len(tensors), 0
    for index in sorted(range(len(tensors)), key=lambda index: -_BY_CODEC[tensors[index][1]][1]):
        name, codec, shape = tensors[index]
        dtype, size = _BY_CODEC[codec]
        begins[index], end = end, end + prod(shape) * size
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begins[index], end]}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % DATA_ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise PlanError("the safetensors header would be too large", expected="100 MB", got=f"{len(text):,} bytes")
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, [start + begin for begin in begins], start + end


def _parse(text: bytes, where: str) -> dict[str, Any]:
    """The JSON object, with nothing in it that a header cannot have."""
    if not text.startswith(b"{"):
        raise FormatError("the header is not a JSON object", where=where, expected="'{'", got=repr(text[:16]))
    try:
        entries = parse_json(text, _LIMITS, _no_number)
    except ValueError as error:
        raise FormatError(f"the header is not valid: {error}"[:300], where=where) from error
    if not isinstance(entries, dict):
        raise FormatError("the header is not a JSON object", where=where)
    return entries


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is not an integer")


def _metadata(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FormatError("__metadata__ does not map strings to strings", where=where, got=repr(value)[:100])
    return value


def _place(
    entries: Mapping[str, Any], where: str, data_start: int, limit: int
) -> tuple[dict[str, SafetensorsTensor], int]:
    """The tensors with absolute places, and the end of the data. Collects all problems."""
    tensors: dict[str, SafetensorsTensor] = {}
    problems: list[Problem] = []
    for name, entry in entries.items():
        problem = _entry_problem(entry)
        if problem:
            problems.append(Problem(f"tensor {name!r}: {problem}", where, got=repr(entry)[:200]))
            continue
        begin, end = entry["data_offsets"]
        codec, _ = DTYPES[entry["dtype"]]
        tensors[name] = SafetensorsTensor(codec, tuple(entry["shape"]), data_start + begin, data_start + end)
    at = data_start
    if not problems:
        for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
            if tensor.begin != at:
                what = "leaves a gap before itself" if tensor.begin > at else "overlaps another tensor"
                problems.append(Problem(f"tensor {name!r} {what}", where, f"begin {at:,}", f"{tensor.begin:,}"))
            at = tensor.end
        if at > limit:
            problems.append(
                Problem(
                    "the file ends inside its tensors",
                    where,
                    f"{at:,} bytes",
                    f"{limit:,}",
                    "an interrupted download or copy",
                    "fetch the file again",
                )
            )
    if problems:
        raise FormatError(problems[:MAX_PROBLEMS])
    return tensors, at


def _entry_problem(entry: Any) -> str:
    """What is wrong with an entry by itself, or nothing."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "an entry has dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return f"unknown dtype, the known ones are {', '.join(DTYPES)}"
    if not _sizes(shape):
        return "the shape is not a list of sizes"
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        return "data_offsets are not [begin, end]"
    if prod(shape) * DTYPES[dtype][1] != offsets[1] - offsets[0]:
        return f"{dtype} of shape {shape} are not {offsets[1] - offsets[0]:,} bytes"[:200]
    return ""


def _sizes(value: Any) -> bool:
    """A list of integers that fit 63 bits; true and false are not integers here."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in value)
