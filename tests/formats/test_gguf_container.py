"""GGUF headers: gguf-py reads what we write and we read what it writes; damaged ones are refused cleanly."""

from __future__ import annotations

import pickle
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from crossdock.errors import ConfigError, CrossdockError, FormatError, NotACheckpointError, PlanError
from crossdock.formats.gguf import container
from crossdock.formats.gguf.types import TYPES_BY_NUMBER

Pair = tuple[str, str, Any]
Entry = tuple[str, tuple[int, ...], str]
PAIRS: list[Pair] = [
    ("general.architecture", "STRING", "llama"),
    ("a.u8", "UINT8", 255),
    ("a.i8", "INT8", -128),
    ("a.u16", "UINT16", 65535),
    ("a.i16", "INT16", -32768),
    ("a.u32", "UINT32", 2**32 - 1),
    ("a.i32", "INT32", -(2**31)),
    ("a.u64", "UINT64", 2**64 - 1),
    ("a.i64", "INT64", -(2**63)),
    ("a.f32", "FLOAT32", 0.5),
    ("a.f64", "FLOAT64", 0.1),
    ("a.yes", "BOOL", True),
    ("a.no", "BOOL", False),
    ("a.empty", "STRING", ""),
    ("a.text", "STRING", "naïve ☃ 𝄞"),
    ("a.tokens", "ARRAY[STRING]", ["", "▁the", "<0x0A>", "\n", "𝄞"]),
    ("a.scores", "ARRAY[FLOAT32]", [0.0, -1.5]),
    ("a.types", "ARRAY[INT32]", [1, 3, 6]),
    ("a.flags", "ARRAY[BOOL]", [True, False, True]),
]
TENSORS: list[Entry] = [
    ("token_embd.weight", (7, 64), "q8_0"),
    ("norm", (5,), "float32"),
    ("experts", (3, 2, 256), "q4_k"),
    ("half", (3, 3), "float16"),
    ("brain", (2, 3), "bfloat16"),
]


def write(path: Path, pairs: list[Pair] = PAIRS, tensors: list[Entry] = TENSORS, alignment: int = 32) -> bytes:
    """A complete file with random data, and the bytes of its header."""
    header, offsets, total = container.header_bytes(pairs, tensors, alignment)
    data = bytearray(np.random.default_rng(0).integers(0, 256, total, dtype=np.uint8).tobytes())
    data[: len(header)] = header
    assert all(offset % alignment == 0 for offset in offsets)
    path.write_bytes(data)
    return header


def plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("alignment", [32, 8, 4096])
def test_round_trip(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "m.gguf"
    header = write(path, alignment=alignment)
    file = container.read_header(path)
    expected = [*PAIRS, ("general.alignment", "UINT32", alignment)] if alignment != 32 else PAIRS
    read = [(key, file.types[key], plain(value)) for key, value in file.metadata.items()]
    assert read == expected
    assert [(t.name, t.shape, t.codec) for t in file.tensors] == TENSORS
    assert (file.version, file.alignment, file.data_start) == (3, alignment, len(header))
    assert file.size == path.stat().st_size
    again, offsets, total = container.header_bytes(
        [(key, file.types[key], value) for key, value in file.metadata.items()], TENSORS, alignment
    )
    assert (again, offsets, total) == (header, [t.offset for t in file.tensors], file.size)
    assert pickle.loads(pickle.dumps(file)).tensors == file.tensors
    assert [other.tensors for other in container.read_split(path)] == [file.tensors]


def test_gguf_py_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write(path)
    ours, theirs = container.read_header(path), GGUFReader(path)
    for key, _, value in PAIRS:
        assert theirs.fields[key].contents() == value, key
    assert len(theirs.tensors) == len(TENSORS)
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert mine.name == other.name
        assert mine.shape == tuple(reversed(other.shape.tolist()))
        assert (mine.offset, mine.nbytes) == (other.data_offset, other.n_bytes)


def test_we_read_what_gguf_py_writes_and_write_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.eps", 1e-5)
    writer.add_bool("flag", True)
    writer.add_array("tokens", ["a", "é", ""])
    writer.add_array("scores", [1.0, 2.5])
    rng = np.random.default_rng(1)
    arrays = {
        "a": rng.random((3, 5), np.float32),
        "b": rng.random(7).astype(np.float16),
        "c": np.int32([[1], [2]]),
    }
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    blocks = gguf.quants.quantize(rng.random((4, 64), np.float32), GGMLQuantizationType.Q8_0)
    writer.add_tensor("q", blocks, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file, content = container.read_header(path), path.read_bytes()
    for tensor in file.tensors:
        expected = blocks if tensor.name == "q" else arrays[tensor.name]
        assert content[tensor.offset : tensor.offset + tensor.nbytes] == expected.tobytes()
        assert tensor.shape == ((4, 64) if tensor.name == "q" else expected.shape)
    header, _, total = container.header_bytes(
        [(key, file.types[key], value) for key, value in file.metadata.items()],
        [(t.name, t.shape, t.codec) for t in file.tensors],
    )
    assert content[: len(header)] == header
    assert total == len(content)


def test_type_numbers_are_those_of_gguf_py() -> None:
    for number, kind in TYPES_BY_NUMBER.items():
        name = GGMLQuantizationType(number).name.lower()
        plain_names = {"f": "float", "i": "int", "bf": "bfloat"}
        letters = name.rstrip("0123456789")
        spelt = plain_names[letters] + name[len(letters) :] if letters in plain_names else name
        assert kind.codec == spelt
    assert {int(number) for number in GGMLQuantizationType} == TYPES_BY_NUMBER.keys()


def test_a_large_vocabulary_is_read_quickly(tmp_path: Path) -> None:
    tokens = [f"token{i}é" for i in range(150_000)]
    pairs: list[Pair] = [
        ("tokens", "ARRAY[STRING]", tokens),
        ("scores", "ARRAY[FLOAT32]", np.arange(150_000, dtype=np.float32)),
        ("long", "STRING", "x" * 3_000_000),  # longer than the window it is read through
        ("more", "ARRAY[STRING]", ["y" * 2_000_000, "", "z" * 1_100_000]),
    ]
    write(tmp_path / "m.gguf", pairs, [])
    start = time.process_time()
    file = container.read_header(tmp_path / "m.gguf")
    assert time.process_time() - start < 1.0
    assert file.metadata["tokens"] == tokens
    assert np.array_equal(file.metadata["scores"], np.arange(150_000))
    assert file.metadata["long"] == "x" * 3_000_000
    assert file.metadata["more"] == ["y" * 2_000_000, "", "z" * 1_100_000]


def raw_header(*parts: bytes | int | str, version: int = 3, tensors: int = 0, pairs: int = 0) -> bytes:
    """A header by hand: ints as 64 bits, text with its length, bytes as they are."""
    out = b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)
    for part in parts:
        if isinstance(part, str):
            out += struct.pack("<Q", len(part)) + part.encode()
        else:
            out += struct.pack("<Q", part) if isinstance(part, int) else part
    return out + bytes(-len(out) % 32)


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def info(name: str, dims: list[int], kind: int, start: int) -> bytes:
    return raw_header(name)[24 : 32 + len(name)] + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, start)


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the file ends inside the magic number"),
    "another file": (b"PK\x03\x04" + bytes(100), "this is not a GGUF file"),
    "version 1": (raw_header(version=1), "expected 2 or 3, got 1"),
    "version 4": (raw_header(version=4), "expected 2 or 3, got 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian GGUF file"),
    "2**63 keys": (raw_header(pairs=2**63), "the header cannot hold so many keys"),
    "2**40 tensors": (raw_header(tensors=2**40), "the header cannot hold so many tensors"),
    "long key": (raw_header(2**40, pairs=1) + bytes(32), "the file ends inside key 0"),
    "long string": (raw_header("k", u32(8), 2**62, pairs=1) + bytes(32), "the file ends inside 'k'"),
    "long array": (raw_header("k", u32(9), u32(5), 2**62, pairs=1), "cannot hold so many values in 'k'"),
    "many strings": (raw_header("k", u32(9), u32(8), 2**61, pairs=1), "cannot hold so many strings in 'k'"),
    "array of arrays": (
        raw_header("k", u32(9), u32(9), 1, u32(9), pairs=1) + bytes(64),
        "is an array of arrays",
    ),
    "array of nothing": (raw_header("k", u32(9), u32(99), 1, pairs=1) + bytes(64), "undefined type 99"),
    "value of nothing": (raw_header("k", u32(77), pairs=1) + bytes(64), "a type that GGUF does not define"),
    "key not UTF-8": (raw_header(1, b"\xff", u32(4), u32(1), pairs=1), "key 0 is not UTF-8"),
    "token not UTF-8": (
        raw_header("k", u32(9), u32(8), 2, "ok", 1, b"\x80", pairs=1),
        "'k': string 1 is not UTF-8",
    ),
    "neither true nor false": (raw_header("k", u32(7), b"\x02", pairs=1), "neither true nor false"),
    "key twice": (raw_header("k", u32(4), u32(1), "k", u32(4), u32(1), pairs=2), "the key 'k' occurs twice"),
    "alignment 0": (raw_header("general.alignment", u32(4), u32(0), pairs=1), "not a power of two"),
    "alignment 24": (raw_header("general.alignment", u32(4), u32(24), pairs=1), "not a power of two"),
    "alignment as text": (raw_header("general.alignment", u32(8), "32", pairs=1), "not a power of two"),
    "alignment signed": (raw_header("general.alignment", u32(5), u32(32), pairs=1), "not a power of two"),
    "9 dimensions": (raw_header(info("t", [1] * 9, 0, 0), tensors=1), "too many dimensions"),
    "2**32 - 1 dimensions": (raw_header("t", u32(2**32 - 1), tensors=1) + bytes(32), "too many dimensions"),
    "unknown type": (raw_header(info("t", [1], 4, 0), tensors=1), "tensor 't' has an unknown type"),
    "broken rows": (raw_header(info("t", [33], 8, 0), tensors=1) + bytes(64), "are not whole q8_0 blocks of 32"),
    "huge tensor": (raw_header(info("t", [2**63, 2**63], 0, 0), tensors=1), "reaches beyond the end"),
    "offset outside": (raw_header(info("t", [4], 0, 2**40), tensors=1) + bytes(32), "reaches beyond the end"),
    "cut short": (
        raw_header(info("a", [8], 0, 0), info("c", [8], 0, 64), info("b", [8], 0, 32), tensors=3) + bytes(32),
        "tensor 'b' and 1 behind it reach beyond the end of the file",
    ),
    "not aligned": (raw_header(info("t", [4], 0, 8), tensors=1) + bytes(64), "tensor 't' is not aligned"),
    "tensor twice": (
        raw_header(info("t", [4], 0, 0), info("t", [4], 0, 32), tensors=2) + bytes(64),
        "tensor 't' occurs twice",
    ),
    "overlap": (
        raw_header(info("a", [16], 0, 0), info("b", [4], 0, 32), tensors=2) + bytes(64),
        "tensors 'a' and 'b' overlap",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_broken_headers_are_refused(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        container.read_header(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_all_bad_tensors_are_named_at_once(tmp_path: Path) -> None:
    infos = [info(f"t{i}", [4], 0, 8 + 32 * i) for i in range(30)]
    path = tmp_path / "m.gguf"
    path.write_bytes(raw_header(*infos, tensors=30) + bytes(16))
    with pytest.raises(FormatError) as caught:
        container.read_header(path)
    assert len(caught.value.problems) == container.MAX_PROBLEMS + 1
    assert "more problems" in caught.value.problems[-1].what


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(NotACheckpointError):
            container.read_header(path)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    header = write(path)
    content = path.read_bytes()
    last = container.read_header(path).tensors[-1]
    for length in [*range(0, len(header), 7), len(header), last.offset, last.offset + last.nbytes - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(FormatError):
            container.read_header(path)


def test_flipped_bytes_give_a_header_or_a_clean_error(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    header = write(path)
    content, rng = path.read_bytes(), np.random.default_rng(11)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(content)
        for position in rng.integers(0, len(header), rng.integers(1, 4)):
            damaged[position] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        try:
            file = container.read_header(path)
        except CrossdockError:
            refused += 1
        else:
            assert all(0 <= t.offset <= t.offset + t.nbytes <= len(content) for t in file.tensors)
    assert 200 < refused < 1500


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("k", "UINT32", -1)], "expected UINT32, got -1"),
        ([("k", "UINT8", 256)], "expected UINT8, got 256"),
        ([("k", "UINT32", "7")], "expected UINT32"),
        ([("k", "UINT32", 1.5)], "expected UINT32"),
        ([("k", "FLOAT32", 1e39)], "expected FLOAT32"),
        ([("k", "STRING", 7)], "expected STRING"),
        ([("k", "STRING", "\ud800")], "expected STRING"),
        ([("k", "BOOL", 2)], "expected BOOL"),
        ([("k", "TEXT", "x")], "expected TEXT"),
        ([("k", "ARRAY[ARRAY]", [[1]])], "ARRAY[ARRAY]"),
        ([("k", "ARRAY[INT32]", [1, "2"])], "ARRAY[INT32]"),
        ([("k", "UINT32", 1), ("k", "UINT32", 2)], "occurs twice"),
        ([("general.alignment", "UINT32", 64)], "general.alignment"),
    ],
)
def test_metadata_that_gguf_cannot_hold_is_refused(pairs: list[Pair], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        container.header_bytes(pairs, [])
    assert message in str(caught.value)


def test_tensors_that_gguf_cannot_hold_are_all_named() -> None:
    tensors: list[Entry] = [
        ("fp8", (4,), "float8_e4m3fn"),
        ("rows", (4, 33), "q8_0"),
        ("deep", (1, 1, 1, 1, 1), "float32"),
        ("flat", (), "float32"),
        ("n" * 64, (4,), "float32"),
        ("rows", (4,), "float32"),
    ]
    with pytest.raises(PlanError) as caught:
        container.header_bytes([], tensors)
    assert len(caught.value.problems) == 6


def split(folder: Path, change: Callable[[int, list[Pair]], list[Pair]] = lambda number, pairs: pairs) -> list[Path]:
    """A model in three files of two tensors each."""
    paths = [folder / f"m-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for number, path in enumerate(paths):
        pairs: list[Pair] = [
            ("split.no", "UINT16", number),
            ("split.count", "UINT16", 3),
            ("split.tensors.count", "INT32", 6),
        ]
        names = [f"t{2 * number}", f"t{2 * number + 1}"]
        write(path, change(number, pairs), [(name, (4, 32), "q4_0") for name in names])
    return paths


def test_a_split_model_is_read_from_any_of_its_files(tmp_path: Path) -> None:
    paths = split(tmp_path)
    for path in paths:
        files = container.read_split(path)
        assert [file.path for file in files] == paths
        assert [t.name for file in files for t in file.tensors] == [f"t{i}" for i in range(6)]


def test_split_by_gguf_py(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    for number in range(5):
        writer.add_tensor(f"t{number}", np.full((2, 3), number, np.float32))
    writer.write_header_to_file(path=tmp_path / "m.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    files = container.read_split(tmp_path / "m-00002-of-00003.gguf")
    assert [t.name for file in files for t in file.tensors] == [f"t{i}" for i in range(5)]


def test_broken_splits_are_refused(tmp_path: Path) -> None:
    paths = split(tmp_path)
    content = paths[1].read_bytes()
    paths[1].unlink()
    with pytest.raises(FormatError, match="missing"):
        container.read_split(paths[0])
    paths[1].write_bytes(paths[0].read_bytes())
    with pytest.raises(FormatError) as caught:
        container.read_split(paths[0])
    assert [p.what for p in caught.value.problems] == [
        "wrong place in the split",
        "tensor 't0' is also in m-00001-of-00003.gguf",
        "tensor 't1' is also in m-00001-of-00003.gguf",
        "tensors are missing",
    ]
    paths[1].write_bytes(content)
    renamed = tmp_path / "model.gguf"
    renamed.write_bytes(paths[0].read_bytes())
    with pytest.raises(FormatError, match="its name does not say which"):
        container.read_split(renamed)


@pytest.mark.parametrize("count", [("ARRAY[INT32]", [3]), ("STRING", "three"), ("INT32", -1), ("FLOAT32", 2.5)])
def test_a_split_count_that_is_none_is_refused(tmp_path: Path, count: tuple[str, Any]) -> None:
    paths = split(tmp_path, lambda number, pairs: [pairs[0], ("split.count", *count), pairs[2]])
    with pytest.raises(FormatError, match=r"split\.count is not a count"):
        container.read_split(paths[0])


def test_a_split_number_that_is_none_is_refused(tmp_path: Path) -> None:
    paths = split(tmp_path)
    write(paths[2], [("split.no", "ARRAY[INT32]", [2, 2]), ("split.count", "UINT16", 3)], [])
    with pytest.raises(FormatError, match=r"split\.no is not a count"):
        container.read_split(paths[0])
