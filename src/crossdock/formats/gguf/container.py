"""GGUF files, versions 2 and 3, little-endian: header bytes to metadata and tensor places, and the way
back.

Tensor data is never read here and the writer writes nothing: it returns the header's bytes. Facts from the
GGUF specification (ggml docs/gguf.md) and from what llama.cpp's loader accepts (ggml/src/gguf.cpp, b11549).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from crossdock.errors import ConfigError, FormatError, PlanError, Problem
from crossdock.formats.gguf.cursor import Cursor
from crossdock.formats.gguf.types import TYPES_BY_CODEC, TYPES_BY_NUMBER, VALUE_NUMBERS, VALUES, GgmlType
from crossdock.io.files import reading

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_DIMENSIONS = 8
KEYS_OF_TENSORS = "xielu."  # begin of keys that hold a number of each layer, which are weights in other formats
MAX_PROBLEMS = 20
# ggml's, for files we write (GGML_MAX_NAME with the final zero, GGML_MAX_DIMS)
MAX_NAME_WRITTEN = 63
MAX_DIMENSIONS_WRITTEN = 4
SPLIT_NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor: `shape` outermost dimension first, `offset` in bytes from the start of the file."""

    name: str
    shape: tuple[int, ...]
    codec: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A header. `types` has a name for each key of `metadata`: "UINT32", "STRING", "ARRAY[STRING]", ...

    Arrays of numbers are numpy arrays, arrays of strings are lists. `ends`: the byte behind the value of each key.
    """

    path: Path
    version: int
    alignment: int
    metadata: Mapping[str, Any]
    types: Mapping[str, str]
    tensors: tuple[GgufTensor, ...]
    data_start: int
    size: int
    ends: Mapping[str, int]


def read_header(path: Path) -> GgufFile:
    """Read and check the header of one file. Raises FormatError with the byte where it goes wrong."""
    with reading(path) as fd:
        cursor = Cursor(fd, str(path))
        version = _read_version(cursor)
        tensor_count, pair_count = cursor.u64("the number of tensors"), cursor.u64("the number of keys")
        cursor.expect_room(pair_count, 13, "keys")
        cursor.expect_room(tensor_count, 24, "tensors")
        metadata, types, ends = _read_metadata(cursor, pair_count)
        alignment = _read_alignment(cursor, metadata, types)
        infos = [_read_info(cursor) for _ in range(tensor_count)]
        data_start = -(-cursor.at // alignment) * alignment
        tensors = _place(str(path), infos, data_start, alignment, cursor.size)
        return GgufFile(path, version, alignment, metadata, types, tensors, data_start, cursor.size, ends)


def read_split(path: Path) -> tuple[GgufFile, ...]:
    """All files of a model, of which `path` is any: one, or as many as "split.count" says, in order.

    Raises FormatError naming every file that is missing or does not belong, and tensors that occur twice.
    """
    first = read_header(path)
    count = _number(first, "split.count", 0)
    if count <= 1:
        return (first,)
    named = SPLIT_NAME.fullmatch(path.name)
    if not named or int(named["count"]) != count:
        raise FormatError(
            "one file of a split model, but its name does not say which",
            where=str(path),
            expected=f"NAME-00001-of-{count:05}.gguf",
            got=path.name,
            cause="parts that were joined into one file, or a part that was renamed",
            fix="download the parts again under their own names, and pass any of them (or: llama-gguf-split --merge)",
        )
    paths = [path.with_name(f"{named['prefix']}-{n:05}-of-{count:05}.gguf") for n in range(1, count + 1)]
    problems = [Problem("this file of a split model is missing", str(p)) for p in paths if not p.is_file()]
    if problems:
        raise FormatError(problems)
    files = tuple(first if other == path else read_header(other) for other in paths)
    seen: dict[str, Path] = {}
    for number, file in enumerate(files):
        stated = _number(file, "split.no", number), _number(file, "split.count", 0)
        if stated != (number, count):
            problems.append(Problem("wrong place in the split", str(file.path), f"{(number, count)}", f"{stated}"))
        for tensor in file.tensors:
            if tensor.name in seen:
                problems.append(Problem(f"tensor {tensor.name!r} is also in {seen[tensor.name].name}", str(file.path)))
            seen[tensor.name] = file.path
    total = _number(first, "split.tensors.count", len(seen))
    if total != len(seen):
        problems.append(Problem("tensors are missing", str(path), f"{total} in all files", str(len(seen))))
    if problems:
        raise FormatError(problems[:MAX_PROBLEMS])
    return files


def _number(file: GgufFile, key: str, default: int) -> int:
    """A count from the metadata, which may hold anything."""
    value = file.metadata.get(key, default)
    if not isinstance(value, int) or value < 0:
        raise FormatError(f"{key} is not a count", where=str(file.path), got=repr(value)[:80])
    return value


def header_bytes(
    metadata: Sequence[tuple[str, str, Any]],
    tensors: Sequence[tuple[str, tuple[int, ...], str]],
    alignment: int = DEFAULT_ALIGNMENT,
    version: int = 3,
) -> tuple[bytes, list[int], int]:
    """The header of a file with its padding, the offset of each tensor's data, and the file's size.

    metadata  (key, type, value) in writing order; types as in `GgufFile.types`
    tensors   (name, shape with the outermost dimension first, codec name) in data order
    version   3, or 2, which is alike in all else
    Every tensor's data is padded with zeros to the alignment, the last one too (ggml reads whole paddings).
    Raises PlanError for names, shapes and codecs, ConfigError for metadata that GGUF cannot hold.
    """
    pairs = list(metadata)
    if alignment != DEFAULT_ALIGNMENT and all(key != "general.alignment" for key, _, _ in pairs):
        pairs.append(("general.alignment", "UINT32", alignment))
    _check_written(pairs, tensors, alignment)
    parts = [MAGIC, _U32.pack(version), _U64.pack(len(tensors)), _U64.pack(len(pairs))]
    for key, kind, value in pairs:
        parts += [_string(key), _value(key, kind, value)]
    starts, end = [], 0
    for name, shape, codec in tensors:
        coding = TYPES_BY_CODEC[codec]
        starts.append(end)
        parts += [
            _string(name),
            struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), coding.number, end),
        ]
        end += -(-prod(shape) // coding.block * coding.block_bytes // alignment) * alignment
    header = b"".join(parts)
    header += bytes(-len(header) % alignment)
    return header, [len(header) + start for start in starts], len(header) + end


def _read_version(cursor: Cursor) -> int:
    magic = cursor.take(4, "the magic number")
    if magic != MAGIC:
        hint = "GGML files older than 2023-08 must be converted again" if magic in (b"tjgg", b"lmgg", b"fmgg") else ""
        raise cursor.error("this is not a GGUF file", 0, expected=repr(MAGIC), got=repr(magic), fix=hint)
    version = cursor.u32("the version")
    if version and not version & 0xFFFF:
        raise cursor.error("a big-endian GGUF file", 4, fix="convert it with gguf-py's gguf_convert_endian")
    if version not in (2, 3):
        raise cursor.error(
                "unsupported GGUF version", 4, expected="2 or 3", got=str(version),
                fix="version 1 is of August 2023: use a newer file, or create it again with llama-quantize",
            )  # fmt: skip
    return version


def _read_metadata(cursor: Cursor, count: int) -> tuple[dict[str, Any], dict[str, str], dict[str, int]]:
    metadata: dict[str, Any] = {}
    types: dict[str, str] = {}
    ends: dict[str, int] = {}
    for index in range(count):
        at = cursor.at
        key = cursor.string(f"key {index}")
        if key in metadata:
            raise cursor.error(f"the key {key!r} occurs twice", at)
        types[key], metadata[key] = cursor.value(cursor.u32(f"the type of {key!r}"), repr(key))
        ends[key] = cursor.at
    return metadata, types, ends


def _read_alignment(cursor: Cursor, metadata: Mapping[str, Any], types: Mapping[str, str]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if types.get("general.alignment", "UINT32") != "UINT32" or alignment < 1 or alignment & (alignment - 1):
        raise cursor.error("general.alignment is not a power of two", expected="UINT32 32", got=repr(alignment))
    return int(alignment)


@dataclass(frozen=True, slots=True)
class _Info:
    """A tensor's entry as it stands in the header, at byte `at`; `start` counts from the data's start."""

    at: int
    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    start: int


def _read_info(cursor: Cursor) -> _Info:
    at = cursor.at
    name = cursor.string("a tensor's name")
    count = cursor.u32(f"the number of dimensions of {name!r}")
    if count > MAX_DIMENSIONS:
        raise cursor.error(
            f"tensor {name!r} has too many dimensions",
            at,
            expected=f"at most {MAX_DIMENSIONS}",
            got=f"{count:,}",
        )
    entry = struct.Struct(f"<{count}QIQ")
    *shape, number, start = entry.unpack(cursor.take(entry.size, f"the entry of {name!r}"))
    if number not in TYPES_BY_NUMBER:
        raise cursor.error(
            f"tensor {name!r} has an unknown type",
            at,
            got=str(number),
            cause="an encoding newer than this crossdock, one removed from ggml, or a damaged file",
        )
    return _Info(at, name, tuple(reversed(shape)), TYPES_BY_NUMBER[number], start)


def _place(where: str, infos: Sequence[_Info], data_start: int, alignment: int, size: int) -> tuple[GgufTensor, ...]:
    """Check names, shapes and places; absolute offsets. Collects all problems."""
    tensors: list[GgufTensor] = []
    problems: list[Problem] = []
    names: set[str] = set()
    beyond: list[tuple[int, int, _Info]] = []

    def refuse(info: _Info, what: str, expected: str = "", got: str = "", cause: str = "") -> None:
        problems.append(Problem(f"tensor {info.name!r} {what}", f"{where} at byte {info.at:,}", expected, got, cause))

    for info in infos:
        if info.name in names:
            refuse(info, "occurs twice")
        names.add(info.name)
        block = info.kind.block
        if block > 1 and (not info.shape or info.shape[-1] % block):
            refuse(info, f"has rows that are not whole {info.kind.codec} blocks of {block}", got=f"{info.shape}")
            continue
        nbytes = prod(info.shape) // block * info.kind.block_bytes
        offset = data_start + info.start
        if info.start % alignment:
            refuse(info, "is not aligned", f"a multiple of {alignment}", f"{info.start:,}")
        if offset + nbytes > size:
            beyond.append((offset, offset + nbytes, info))
        tensors.append(GgufTensor(info.name, info.shape, info.kind.codec, offset, nbytes))
    if beyond:
        _, _, first = min(beyond, key=lambda place: place[:2])
        more = len(beyond) - 1
        refuse(
            first,
            f"and {more:,} behind it reach beyond the end of the file"
            if more
            else "reaches beyond the end of the file",
            f"a file of at least {max(end for _, end, _ in beyond):,} bytes",
            f"{size:,}",
            "an interrupted download or copy",
        )
    end, previous = data_start, ""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.nbytes and tensor.offset < end:
            problems.append(Problem(f"tensors {previous!r} and {tensor.name!r} overlap", where))
        if tensor.nbytes:
            end, previous = max(end, tensor.offset + tensor.nbytes), tensor.name
    if problems:
        more = len(problems) - MAX_PROBLEMS
        rest = [Problem(f"and {more:,} more problems", where)] if more > 0 else []
        raise FormatError([*problems[:MAX_PROBLEMS], *rest])
    return tuple(tensors)


def _check_written(
    pairs: Sequence[tuple[str, str, Any]], tensors: Sequence[tuple[str, tuple[int, ...], str]], alignment: int
) -> None:
    keys, names = [key for key, _, _ in pairs], [name for name, _, _ in tensors]
    wrong = [Problem(f"the GGUF key {key!r} occurs twice") for key in _repeated(keys)]
    stated = dict(zip(keys, (value for _, _, value in pairs), strict=True)).get("general.alignment", alignment)
    if alignment < 8 or alignment & (alignment - 1) or stated != alignment:
        wrong.append(Problem("general.alignment", expected="a power of two, 8 or more", got=f"{stated}, {alignment}"))
    if wrong:
        raise ConfigError(wrong)
    problems = [Problem(f"the tensor {name!r} occurs twice") for name in _repeated(names)]
    for name, shape, codec in tensors:
        kind = TYPES_BY_CODEC.get(codec)
        if kind is None:
            problems.append(Problem(f"GGUF has no type for {codec}", name, fix="choose f32, bf16, f16 or q8_0"))
        elif kind.block > 1 and (not shape or shape[-1] % kind.block):
            problems.append(Problem(f"rows are not whole {codec} blocks of {kind.block}", name, got=f"{shape}"))
        if not 1 <= len(shape) <= MAX_DIMENSIONS_WRITTEN:
            problems.append(Problem("GGUF tensors have 1 to 4 dimensions", name, got=f"{shape}"))
        if len(name.encode()) > MAX_NAME_WRITTEN:
            problems.append(Problem(f"the name is longer than ggml's {MAX_NAME_WRITTEN} bytes", name))
    if problems:
        raise PlanError(problems)


def _repeated(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def _string(text: str) -> bytes:
    encoded = text.encode()
    return _U64.pack(len(encoded)) + encoded


def _value(key: str, kind: str, value: Any) -> bytes:
    """Type number and value. ConfigError when the value is not of that type."""
    try:
        if kind.startswith("ARRAY[") and kind.endswith("]"):
            item = kind[6:-1]
            head = _U32.pack(VALUE_NUMBERS["ARRAY"]) + _U32.pack(VALUE_NUMBERS[item]) + _U64.pack(len(value))
            if item == "STRING":
                return head + b"".join(map(_string, value))
            return head + _numbers(item, value)
        if kind == "STRING":
            return _U32.pack(VALUE_NUMBERS[kind]) + _string(value)
        return _U32.pack(VALUE_NUMBERS[kind]) + _numbers(kind, [value])
    except (struct.error, KeyError, TypeError, AttributeError, UnicodeEncodeError, OverflowError) as error:
        raise ConfigError(
            "the value is not of its GGUF type", where=key, expected=kind, got=repr(value)[:80]
        ) from error


def _numbers(kind: str, values: Sequence[Any]) -> bytes:
    if kind == "BOOL" and any(value not in (0, 1) for value in values):
        raise TypeError("neither true nor false")
    code = "?" if kind == "BOOL" else VALUES[VALUE_NUMBERS[kind]][1]
    if not code:
        raise TypeError(f"no array or value of {kind}")
    return struct.pack(f"<{len(values)}{code}", *values)
