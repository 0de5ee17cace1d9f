"""safetensors headers: the safetensors package reads what we write, we read what it writes, strictly."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from crossdock.codecs import registry
from crossdock.errors import CrossdockError, FormatError, NotACheckpointError, PlanError
from crossdock.formats import safetensors as ours

TENSORS = [
    ("a", "bfloat16", (3, 5)),
    ("b", "float32", (7,)),
    ("c", "int8", (3,)),
    ("d.é", "float16", (2, 0, 4)),
    ("e", "int64", ()),
    ("f", "bool", (5,)),
    ("g", "float8_e4m3fn", (2, 3)),
]
METADATA = {"format": "pt", "note": "naïve"}


def write(path: Path) -> tuple[bytes, list[int], dict[str, bytes]]:
    header, offsets, total = ours.header_bytes(TENSORS, METADATA)
    content, data = bytearray(total), {}
    content[: len(header)] = header
    for number, ((name, codec, shape), offset) in enumerate(zip(TENSORS, offsets, strict=True)):
        nbytes = int(np.prod(shape)) * registry.get(codec).block_bytes
        data[name] = bytes([number % 2]) * nbytes
        content[offset : offset + nbytes] = data[name]
    path.write_bytes(content)
    return header, offsets, data


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    header, offsets, _ = write(path)
    read = ours.read_header(path)
    assert {name: (t.codec, t.shape) for name, t in read.tensors.items()} == {n: (c, s) for n, c, s in TENSORS}
    assert [read.tensors[name].begin for name, _, _ in TENSORS] == offsets
    assert read.metadata == METADATA
    assert read.data_start == len(header)
    assert read.data_start % 64 == 0
    assert read.end == path.stat().st_size
    assert pickle.loads(pickle.dumps(read)) == read


def test_every_tensor_is_aligned_to_its_dtype() -> None:
    _, offsets, _ = ours.header_bytes(TENSORS, {})
    for (_, codec, _), offset in zip(TENSORS, offsets, strict=True):
        assert offset % registry.get(codec).block_bytes == 0


def test_the_safetensors_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    _, _, data = write(path)
    theirs = load_file(path)
    assert theirs.keys() == data.keys()
    for name, codec, shape in TENSORS:
        assert tuple(theirs[name].shape) == shape
        assert theirs[name].dtype == getattr(torch, codec)
        assert theirs[name].reshape(-1).view(torch.uint8).numpy().tobytes() == data[name]
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata() == METADATA


def test_we_read_what_the_safetensors_package_writes(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {
        name: torch.arange(int(np.prod(shape))).reshape(shape).to(getattr(torch, codec))
        for name, codec, shape in TENSORS
    }
    save_file(tensors, path, {"format": "pt"})
    read, content = ours.read_header(path), path.read_bytes()
    assert read.metadata == {"format": "pt"}
    assert read.tensors.keys() == tensors.keys()
    for name, codec, shape in TENSORS:
        place = read.tensors[name]
        assert (place.codec, place.shape) == (codec, shape)
        expected = tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert content[place.begin : place.end] == expected


def test_dtypes_have_codecs_of_their_size() -> None:
    for codec, size in ours.DTYPES.values():
        assert registry.get(codec).block_bytes == size
    assert registry.get("float8_e8m0fnu").dtype == np.dtype(ml_dtypes.float8_e8m0fnu)


def test_no_tensors_at_all(tmp_path: Path) -> None:
    header, offsets, total = ours.header_bytes([], {})
    (tmp_path / "m").write_bytes(header)
    assert (offsets, total) == ([], len(header))
    assert ours.read_header(tmp_path / "m").tensors == {}
    assert load_file(tmp_path / "m") == {}


def test_a_blob_inside_a_file(tmp_path: Path) -> None:
    write(tmp_path / "m")
    blob = (tmp_path / "m").read_bytes()
    inside = tmp_path / "inside"
    inside.write_bytes(b"x" * 1325 + blob + b"y" * 99)
    alone = ours.read_header(tmp_path / "m")
    for length in (None, len(blob)):
        read = ours.read_header(inside, 1325, length)
        assert {n: (t.begin - 1325, t.end - 1325) for n, t in read.tensors.items()} == {
            n: (t.begin, t.end) for n, t in alone.tensors.items()
        }
    for offset, length in (
        (1325, len(blob) + 1),
        (1325, len(blob) - 1),
        (1325, 10**9),
        (10**9, None),
        (-1, None),
    ):
        with pytest.raises(FormatError):
            ours.read_header(inside, offset, length)


def raw(header: Any, data: int = 0, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def f32(shape: Any, begin: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too short"),
    "7 bytes": (bytes(7), "too short"),
    "length 2**63": (raw(b"{}", length=2**63), "expected a header of at most 2 bytes"),
    "length beyond the file": (raw(b"{}", length=3), "expected a header of at most 2 bytes"),
    "no header": (raw(b""), "not a JSON object"),
    "a list": (raw(b"[]"), "not a JSON object"),
    "spaces first": (raw(b" {}"), "not a JSON object"),
    "not JSON": (raw(b"{a}"), "the header is not valid"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "the header is not valid"),
    "two objects": (raw(b"{}{}"), "the header is not valid"),
    "deep": (raw(b'{"a":' + b"[" * 200_000), "the header is not valid"),
    "many values": (raw(b'{"a":[' + b"1," * 6_000_000 + b"1]}"), "values or more"),
    "a long number": (raw(b'{"a":' + b"9" * 5000 + b"}"), "the header is not valid"),
    "name twice": (raw(b'{"a":1,"a":2}'), "'a' occurs twice"),
    "key twice inside": (raw(b'{"a":{"dtype":"F32","dtype":"F16"}}'), "'dtype' occurs twice"),
    "a float": (raw(f32([1.0], 0, 4), 4), "is not an integer"),
    "NaN": (raw(b'{"a":NaN}'), "is not an integer"),
    "entry is a number": (raw({"a": 1}), "an entry has dtype, shape and data_offsets"),
    "extra field": (raw({"a": {**f32([1], 0, 4), "x": 1}}, 4), "an entry has dtype, shape and data_offsets"),
    "missing field": (
        raw({"a": {"dtype": "F32", "shape": []}}),
        "an entry has dtype, shape and data_offsets",
    ),
    "unknown dtype": (raw({"a": f32([1], 0, 4, "F31")}, 4), "unknown dtype"),
    "dtype is a list": (raw({"a": f32([1], 0, 4, ["F32"])}, 4), "unknown dtype"),
    "shape is text": (raw({"a": f32("1", 0, 4)}, 4), "the shape is not a list of sizes"),
    "negative size": (raw({"a": f32([-1], 0, 4)}, 4), "the shape is not a list of sizes"),
    "true as size": (raw({"a": f32([True], 0, 4)}, 4), "the shape is not a list of sizes"),
    "huge sizes": (raw({"a": f32([2**62] * 4, 0, 4)}, 4), "are not 4 bytes"),
    "offsets backwards": (raw({"a": f32([1], 4, 0)}, 4), "data_offsets are not [begin, end]"),
    "one offset": (raw({"a": {"dtype": "F32", "shape": [], "data_offsets": [0]}}), "data_offsets are not"),
    "wrong size": (raw({"a": f32([3], 0, 8)}, 8), "are not 8 bytes"),
    "hole at the start": (raw({"a": f32([1], 4, 8)}, 8), "leaves a gap"),
    "hole between": (raw({"a": f32([1], 0, 4), "b": f32([1], 8, 12)}, 12), "leaves a gap"),
    "overlap": (raw({"a": f32([2], 0, 8), "b": f32([1], 4, 8)}, 8), "overlaps another tensor"),
    "same place": (raw({"a": f32([1], 0, 4), "b": f32([1], 0, 4)}, 4), "overlaps another tensor"),
    "truncated data": (raw({"a": f32([4], 0, 16)}, 15), "the file ends inside its tensors"),
    "bytes after the data": (raw({"a": f32([1], 0, 4)}, 5), "bytes follow the last tensor"),
    "metadata is a list": (raw({"__metadata__": []}), "does not map strings to strings"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}), "does not map strings to strings"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_broken_headers_are_refused(tmp_path: Path, case: str) -> None:
    content, message = HOSTILE[case]
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        ours.read_header(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 2000


# the package lets these pass; the first is against its own format description
ONLY_OURS = {"spaces first", "name twice", "key twice inside", "extra field"}


@pytest.mark.parametrize("case", [case for case in HOSTILE if case not in ONLY_OURS])
def test_the_safetensors_package_refuses_them_too(tmp_path: Path, case: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(HOSTILE[case][0])
    with pytest.raises((safetensors.SafetensorError, OSError)):
        load_file(path)


def test_all_bad_tensors_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(raw({f"t{i}": f32([3], 0, 4) for i in range(50)}))
    with pytest.raises(FormatError) as caught:
        ours.read_header(tmp_path / "m")
    assert len(caught.value.problems) == ours.MAX_PROBLEMS


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpointError, match="file does not exist"):
        ours.read_header(tmp_path / "absent")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    write(path)
    content = path.read_bytes()
    for length in range(0, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(FormatError):
            ours.read_header(path)


def test_flipped_bytes_are_accepted_or_refused_as_by_the_package(tmp_path: Path) -> None:
    path = tmp_path / "m"
    header, _, _ = write(path)
    content, rng = path.read_bytes(), np.random.default_rng(12)
    refused = 0
    for _ in range(800):
        damaged = bytearray(content)
        for position in rng.integers(0, len(header), rng.integers(1, 3)):
            damaged[position] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(damaged)
        try:
            read = ours.read_header(path)
        except CrossdockError:
            refused += 1
            continue
        with safetensors.safe_open(path, "np") as file:  # whatever we accept, it accepts
            assert set(file.keys()) == set(read.tensors)
    assert 100 < refused < 800


def test_what_safetensors_cannot_hold_is_refused() -> None:
    with pytest.raises(PlanError) as caught:
        ours.header_bytes([("a", "q8_0", (32,)), ("b", "float32", ()), ("b", "float32", ())], {})
    assert len(caught.value.problems) == 2
    with pytest.raises(PlanError, match="reserved"):
        ours.header_bytes([("__metadata__", "float32", ())], {})
