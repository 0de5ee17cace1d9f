"""Everything that holds a pickle is looked into, to its end; what is not is named. Clean is never said of either."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pickle_corpus import call, stack_global

from crossdock.scan import scan

EVIL = call("posix", "system", "touch pwned")
OLD = b"cposix\nsystem\n(S'touch pwned'\ntR."


def npy(objects: bytes) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([None], object), allow_pickle=True)
    return buffer.getvalue()[: 10 + int.from_bytes(buffer.getvalue()[8:10], "little")] + objects


def zipped(data: bytes, name: str = "inner", method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def tarred(data: bytes, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        member = tarfile.TarInfo("inner")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def saved(value: object = None) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)} if value is None else value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


HOLDERS: dict[str, Callable[[bytes], bytes]] = {
    "itself": bytes,
    "npy": npy,
    "npz": lambda data: zipped(npy(data), "a.npy"),
    "npz, compressed": lambda data: zipped(npy(data), "a.npy", zipfile.ZIP_DEFLATED),
    "zip": zipped,
    "zip, deflated": lambda data: zipped(data, "x.dat", zipfile.ZIP_DEFLATED),
    "zip, bzip2": lambda data: zipped(data, "x.dat", zipfile.ZIP_BZIP2),
    "zip in zip": lambda data: zipped(zipped(data), "x.jar"),
    "zip after other bytes": lambda data: b"\0" * 100 + zipped(data),
    "gzip": gzip.compress,
    "gzip, second member": lambda data: gzip.compress(b"") + gzip.compress(data),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zlib": zlib.compress,
    "tar": tarred,
    "tar.gz": lambda data: tarred(data, "w:gz"),
    "zip in gzip in tar": lambda data: tarred(gzip.compress(zipped(data))),
    "after another pickle": lambda data: pickle.dumps([1], 4) + data,
    "after a hundred pickles": lambda data: pickle.dumps([1], 4) * 100 + data,
    "after a torch stream": lambda data: saved() + data,
    "long": lambda data: b"\x80\2" + b"N0" * 1_300_000 + data[2:],
}
NAMES = ["model.pt", "model.bin", "model.ckpt", "weights", "model.npy", "model.safetensors", "notes.txt"]


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_payload_is_found_whatever_holds_it_and_however_it_is_called(holder: str, tmp_path: Path) -> None:
    data = HOLDERS[holder](EVIL)
    for name in NAMES if holder != "long" else NAMES[:2]:
        file = tmp_path / name
        file.write_bytes(data)
        assert scan(file).exit_code == 1, name
        assert scan(tmp_path).exit_code == 1, name
        file.unlink()


@pytest.mark.parametrize("holder", ["itself", "npz", "zip", "gzip", "tar", "after another pickle"])
def test_protocol_0_is_found_too(holder: str, tmp_path: Path) -> None:
    for data in (OLD, b"(lp0\n" + b"I1\na" * 50_000 + OLD[:-1] + b"a."):
        (tmp_path / "weights").write_bytes(HOLDERS[holder](data))
        assert scan(tmp_path).exit_code == 1


CLOSED = {
    "7z": b"7z\xbc\xaf\x27\x1c\0\4",
    "rar": b"Rar!\x1a\x07\x01\0",
    "zstd": b"\x28\xb5\x2f\xfd\4\0",
    "lz4": b"\x04\x22\x4d\x18\4\0",
}


@pytest.mark.parametrize("kind", CLOSED)
def test_containers_that_are_not_read_are_named(kind: str, tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(CLOSED[kind] + bytes(100))
    (finding,) = scan(tmp_path).findings
    assert kind in finding.sentence
    assert scan(tmp_path).exit_code == 3


def encrypted() -> bytes:
    data = bytearray(zipped(b"secret", "a.pkl"))
    for signature, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + at] |= 1
    return bytes(data)


UNREAD = {
    "an encrypted entry": encrypted(),
    "a pickle cut off": pickle.dumps(list(range(1000)), 4)[:-20],
    "compressed data cut off": gzip.compress(bytes(range(256)) * 50)[:-30],
    "a bomb": gzip.compress(bytes(256 << 20)),
    "a bomb of opcodes": gzip.compress(b"\x80\2" + b"N0" * 8_000_000 + b"N."),
    "bytes after the pickle": pickle.dumps([1], 4) + b"\xff\xfe\xfd",
    "storages cut off": saved()[:-6],
    "a legacy tar": tarred(b"x").replace(b"inner", b"pickle"[:5]),
    "nested without end": b"",
}


@pytest.mark.parametrize("kind", UNREAD)
def test_what_is_not_read_to_its_end_is_never_clean(kind: str, tmp_path: Path) -> None:
    data = UNREAD[kind]
    if kind == "nested without end":
        data = EVIL
        for _ in range(12):
            data = zipped(data)
    if kind == "a legacy tar":
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in ("sys_info", "pickle", "storages", "tensors"):
                member = tarfile.TarInfo(name)
                member.size = len(pickle.dumps(1, 2))
                archive.addfile(member, io.BytesIO(pickle.dumps(1, 2)))
        data = buffer.getvalue()
    (tmp_path / "model.pt").write_bytes(data)
    begin = time.process_time()
    assert scan(tmp_path).exit_code == 3
    assert time.process_time() - begin < 12.0


def test_the_cost_is_linear_in_the_file(tmp_path: Path) -> None:
    """Thousands of headers that all ask for the same bytes: twice the file takes twice the time, not four times."""
    seconds = []
    for count in (2000, 4000):
        header = b"PK\3\4" + bytes(14 + 8) + b"\5\0\0\0" + b"a.pkl"
        (tmp_path / "a.distcp").write_bytes(header * count + b"\x80\2" + b"N0" * 20_000)
        begin = time.process_time()
        assert scan(tmp_path).exit_code == 3
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 3 * seconds[0] + 0.5
    assert seconds[1] < 8.0


@pytest.mark.parametrize("kind", ["arrays", "text", "raw", "gguf", "json"])
def test_files_without_pickles_are_quiet(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    if kind == "arrays":
        np.savez_compressed(tmp_path / "a.npz", a=rng.random(100), b=np.array(["x"]))
        np.save(tmp_path / "a.npy", rng.random(100))
    elif kind == "text":
        for word in ("copyright 2026\nall rights\n", "import os\nprint(1)\n", "(a)\nb\n", "I am\nyou\n", "cat\ndog\n"):
            (tmp_path / f"{word[:3]}.txt").write_text(word * 100)
    elif kind == "raw":
        for number in range(300):
            (tmp_path / f"{number}.bin").write_bytes(rng.bytes(2000))
    elif kind == "gguf":
        (tmp_path / "a.gguf").write_bytes(b"GGUF\3\0\0\0" + rng.bytes(1000))
    else:
        (tmp_path / "a.json").write_text('{"a": [1, 2]}')
    assert scan(tmp_path).findings == ()


def test_dotted_names_of_protocol_4_count_as_they_are_pickled(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(stack_global("collections", "OrderedDict.fromkeys"))
    assert scan(tmp_path).exit_code == 1
