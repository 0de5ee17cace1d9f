"""PowerInfer's GPU index (`MODEL.generated.gpuidx`): which FFN neurons of each layer live on the GPU.

The structure of GGUF version 3 under another magic, in one fixed order. A file is written whole or not at all, because
PowerInfer refuses a model beside a broken index. Facts from PowerInfer at d3ebd7c (llama.cpp, powerinfer-py/solver.py)
and from files that its module wrote.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from crossdock.errors import CrossdockError, FormatError, Problem
from crossdock.formats.gguf.cursor import Cursor
from crossdock.io.atomic import write_whole
from crossdock.io.files import head_of, read_exact, reading

MAGIC: Final = b"PWRI"
VERSION: Final = 3
ALIGNMENT: Final = 32
I32: Final = 18  # in PowerInfer's ggml; llama.cpp's own number for it is 26
ARCHITECTURE: Final = "generic.gpu_index"
MAX_PROBLEMS: Final = 20
KEYS: Final = (
    ("general.architecture", "STRING"),
    ("generic.gpu_index.block_count", "UINT32"),
    ("split.vram_capacity", "UINT64"),
)

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class GpuIndex:
    """An index as it stands in a file.

    vram_capacity  bytes that PowerInfer must have left to use it
    flags          per layer int32 [n_ff]: 1 for a neuron on the GPU, 0 for one on the CPU
    buckets        per layer int32 [k]: the numbers of the neurons on the GPU, ascending
    """

    vram_capacity: int
    flags: tuple[Ints, ...]
    buckets: tuple[Ints, ...]

    @property
    def neurons(self) -> tuple[int, ...]:
        """Neurons on the GPU, per layer."""
        return tuple(len(bucket) for bucket in self.buckets)


def sniff(path: Path) -> bool:
    """Whether a file has the index's magic, or is named like one. Never raises."""
    try:
        if not path.is_file():
            return False
        return head_of(path, 4) == MAGIC or path.suffix == ".gpuidx"
    except (OSError, CrossdockError):
        return False


def of_buckets(buckets: Iterable[Ints], widths: Sequence[int], vram_capacity: int) -> GpuIndex:
    """The index of these neurons. `buckets`: ascending numbers below the layer's width, as the choice makes them."""
    chosen = tuple(np.ascontiguousarray(bucket, np.int32) for bucket in buckets)
    flags = []
    for bucket, width in zip(chosen, widths, strict=True):
        flag = np.zeros(width, np.int32)
        flag[bucket] = 1
        flags.append(flag)
    return GpuIndex(vram_capacity, tuple(flags), chosen)


def encode(index: GpuIndex) -> Iterator[bytes]:
    """The file's bytes, in parts."""
    tensors = [
        (f"blk.{layer}.{name}", values)
        for layer, pair in enumerate(zip(index.flags, index.buckets, strict=True))
        for name, values in zip(("gpu_idx", "gpu_bucket"), pair, strict=True)
    ]
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(KEYS))]
    head += [_string(KEYS[0][0]), struct.pack("<I", 8), _string(ARCHITECTURE)]
    head += [_string(KEYS[1][0]), struct.pack("<II", 4, len(index.flags))]
    head += [_string(KEYS[2][0]), struct.pack("<IQ", 10, index.vram_capacity)]
    start = 0
    for name, values in tensors:
        head += [_string(name), struct.pack("<IQIQ", 1, len(values), I32, start)]
        start += _padded(values.nbytes)
    header = b"".join(head)
    yield header.ljust(_padded(len(header)), b"\0")
    for _, values in tensors:
        yield values.astype("<i4").tobytes().ljust(_padded(values.nbytes), b"\0")


def write(path: Path, index: GpuIndex) -> int:
    """Write the file, or leave what was there; returns its bytes. Raises UsageError, EnvironmentProblem."""
    return write_whole(path, encode(index), "index")


def read(path: Path) -> GpuIndex:
    """Read and check the structure: keys, types, names, order, places. Raises FormatError with all problems.

    What the values say (do flags and buckets agree?) is `disagreements`' business.
    """
    with reading(path) as fd:
        cursor = Cursor(fd, str(path))
        magic = cursor.take(4, "the magic number")
        if magic != MAGIC:
            raise cursor.error("this is not a GPU index of PowerInfer", 0, expected=repr(MAGIC), got=repr(magic))
        if (version := cursor.u32("the version")) != VERSION:
            raise cursor.error("a version that PowerInfer does not load", 4, expected=str(VERSION), got=str(version))
        count, pairs = cursor.u64("the number of tensors"), cursor.u64("the number of keys")
        cursor.expect_room(pairs, 13, "keys")
        cursor.expect_room(count, 24, "tensors")
        layers, capacity = _read_keys(cursor, pairs)
        if count != 2 * layers:
            raise cursor.error(
                "an index has two tensors for each layer", 8, expected=f"{2 * layers:,}", got=f"{count:,}"
            )
        places = _read_places(cursor, layers)
        start = _padded(cursor.at)
        problems = [
            Problem(
                f"tensor {name!r} reaches beyond the end of the file",
                str(path),
                f"a file of at least {start + at + 4 * length:,} bytes",
                f"{cursor.size:,}",
                "an interrupted run of PowerInfer's own module",
                "create the index again",
            )
            for name, length, at in places
            if start + at + 4 * length > cursor.size
        ]
        if problems:
            raise FormatError(problems[:MAX_PROBLEMS])
        arrays = [
            np.frombuffer(read_exact(fd, start + at, 4 * length, str(path)), "<i4").astype(np.int32)
            for _, length, at in places
        ]
    return GpuIndex(capacity, tuple(arrays[::2]), tuple(arrays[1::2]))


def disagreements(index: GpuIndex) -> list[Problem]:
    """What PowerInfer would compute wrong logits from without a word: values that cannot be."""
    out = []
    for layer, (flags, bucket) in enumerate(zip(index.flags, index.buckets, strict=True)):
        where = f"layer {layer}"
        odd = int(np.count_nonzero((flags != 0) & (flags != 1)))
        if odd:
            out.append(Problem(f"{odd:,} values of gpu_idx are neither 0 nor 1", where))
        if len(bucket) and (bucket.min() < 0 or bucket.max() >= len(flags)):
            out.append(
                Problem("gpu_bucket names neurons that do not exist", where, f"0 to {len(flags) - 1:,}", _span(bucket))
            )
        elif np.any(np.diff(bucket) <= 0):
            out.append(Problem("gpu_bucket is not ascending, or names a neuron twice", where))
        elif not odd and not np.array_equal(np.flatnonzero(flags), bucket):
            out.append(
                Problem(
                    "gpu_idx and gpu_bucket name different neurons",
                    where,
                    f"{int(flags.sum()):,} neurons by gpu_idx",
                    f"{len(bucket):,} by gpu_bucket",
                )
            )
    return out


def _read_keys(cursor: Cursor, count: int) -> tuple[int, int]:
    """Layers and capacity. PowerInfer wants exactly these keys with exactly these types."""
    found: dict[str, tuple[str, object]] = {}
    for number in range(count):
        at = cursor.at
        key = cursor.string(f"key {number}")
        if key in found:
            raise cursor.error(f"the key {key!r} occurs twice", at)
        found[key] = cursor.value(cursor.u32(f"the type of {key!r}"), repr(key))
    problems = [
        Problem(f"the key {key!r} is missing or of another type", cursor.where, kind, found.get(key, ("nothing",))[0])
        for key, kind in KEYS
        if found.get(key, ("",))[0] != kind
    ]
    if not problems and found[KEYS[0][0]][1] != ARCHITECTURE:
        got = repr(found[KEYS[0][0]][1])[:80]
        problems.append(Problem("not the architecture of an index", cursor.where, repr(ARCHITECTURE), got))
    if problems:
        raise FormatError(problems)
    layers, capacity = (found[key][1] for key, _ in KEYS[1:])
    assert isinstance(layers, int)
    assert isinstance(capacity, int)
    return layers, capacity


def _read_places(cursor: Cursor, layers: int) -> list[tuple[str, int, int]]:
    """(name, length, offset into the data) of each tensor."""
    out, end = [], 0
    for number in range(2 * layers):
        at = cursor.at
        wanted = f"blk.{number // 2}.{'gpu_bucket' if number % 2 else 'gpu_idx'}"
        name = cursor.string("a tensor's name")
        if name != wanted:
            raise cursor.error("tensors in another order or under other names", at, expected=wanted, got=name[:80])
        if (dimensions := cursor.u32(f"the dimensions of {name!r}")) != 1:
            raise cursor.error(f"tensor {name!r} has not one dimension", at, expected="1", got=f"{dimensions:,}")
        length = cursor.u64(f"the length of {name!r}")
        kind, start = cursor.u32(f"the type of {name!r}"), cursor.u64(f"the offset of {name!r}")
        if kind != I32:
            raise cursor.error(f"tensor {name!r} is not of PowerInfer's type I32", at, expected=str(I32), got=str(kind))
        if start != end:
            raise cursor.error(
                f"tensor {name!r} is not where the one before ends", at, expected=f"{end:,}", got=f"{start:,}"
            )
        end += _padded(4 * length)
        out.append((name, length, start))
    return out


def _span(values: Ints) -> str:
    return f"{int(values.min()):,} to {int(values.max()):,}"


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode("ascii")
