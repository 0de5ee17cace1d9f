"""Archives that lie about their entries: refused at once, in little memory."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bounded import run_bounded

from crossdock import torchfile
from crossdock.errors import CrossdockError, FormatError
from crossdock.scan import scan

CENTRAL = b"PK\1\2"
END64 = b"PK\6\6"


def saved(tensor: torch.Tensor | None = None) -> bytearray:
    """A small torch.save archive."""
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(64.0) if tensor is None else tensor}, buffer)
    return bytearray(buffer.getvalue())


def central(data: bytearray, name: bytes) -> int:
    """Where the directory's header for the entry whose name ends with `name` starts."""
    at = data.find(CENTRAL)
    while not data[at + 46 : at + 46 + struct.unpack_from("<H", data, at + 28)[0]].endswith(name):
        at = data.index(CENTRAL, at + 4)
    return at


def lying_sizes(data: bytearray) -> None:
    at = central(data, b"data/0")
    struct.pack_into("<2I", data, at + 20, 0xFFFFFFF0, 0xFFFFFFF0)


def lying_offset(data: bytearray) -> None:
    struct.pack_into("<I", data, central(data, b"data/0") + 42, 0x7FFFFFFF)


def overlapping(data: bytearray) -> None:
    place = struct.unpack_from("<I", data, central(data, b"data.pkl") + 42)[0]
    struct.pack_into("<I", data, central(data, b"data/0") + 42, place)


def compressed(data: bytearray) -> None:
    struct.pack_into("<H", data, central(data, b"data/0") + 10, 8)


def huge_pickle(data: bytearray) -> None:
    struct.pack_into("<2I", data, central(data, b"data.pkl") + 20, 1 << 30, 1 << 30)


def other_local_header(data: bytearray) -> None:
    place = struct.unpack_from("<I", data, central(data, b"data/0") + 42)[0]
    data[place : place + 4] = b"PK\7\7"


def long_local_extra(data: bytearray) -> None:
    place = struct.unpack_from("<I", data, central(data, b"data/0") + 42)[0]
    struct.pack_into("<H", data, place + 28, 0xFFFF)


def many_entries(data: bytearray) -> None:
    struct.pack_into("<2Q", data, data.index(END64) + 24, 1 << 40, 1 << 40)


def directory_elsewhere(data: bytearray) -> None:
    struct.pack_into("<Q", data, data.index(END64) + 48, 1 << 62)


def end_record_elsewhere(data: bytearray) -> None:
    struct.pack_into("<Q", data, data.index(b"PK\6\7") + 8, 1 << 62)


def contradicting_ends(data: bytearray) -> None:
    struct.pack_into("<2H", data, data.rindex(b"PK\5\6") + 8, 1, 1)


def half(data: bytearray) -> None:
    del data[len(data) // 2 :]


LIES: list[Callable[[bytearray], None]] = [
    lying_sizes,
    lying_offset,
    overlapping,
    compressed,
    huge_pickle,
    other_local_header,
    long_local_extra,
    many_entries,
    directory_elsewhere,
    end_record_elsewhere,
    contradicting_ends,
    half,
]


def test_the_archive_itself_is_fine(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(saved())
    root = torchfile.open_torch(tmp_path / "a.pt").root
    assert [name for name, _ in torchfile.state_tensors(root)] == ["a"]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_lies_are_refused(lie: Callable[[bytearray], None], tmp_path: Path) -> None:
    data = saved()
    lie(data)
    file = tmp_path / "a.pt"
    file.write_bytes(data)
    answer = run_bounded("open", [file], tmp_path)["a.pt"]
    assert answer["answer"].startswith(("FormatError", "UnsafePickleError")), answer
    assert "a.pt" in answer["answer"]
    assert answer["seconds"] < 0.5
    assert scan(file).findings, "the scan has nothing to say about it"


def test_a_million_entries(tmp_path: Path) -> None:
    name = b"archive/data/0"
    entry = CENTRAL + bytes(24) + struct.pack("<H", len(name)) + bytes(16) + name
    count = 1_000_000
    directory = entry * count
    data = b"PK\3\4" + bytes(26) + directory
    end64 = END64 + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, count, count, len(directory), 30)
    data += end64 + b"PK\6\7" + struct.pack("<IQI", 0, 30 + len(directory), 1)
    data += b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "million.pt").write_bytes(data)
    answer = run_bounded("open", [tmp_path / "million.pt"], tmp_path)["million.pt"]
    assert answer["answer"].startswith("UnsafePickleError"), answer
    assert "1000000 entries" in answer["answer"]
    assert answer["seconds"] < 1.0


def test_deflated_bomb(tmp_path: Path) -> None:
    """A data.pkl of 200 MB of zeros in 1 MB: refused; the scan inflates no more than 64 MiB of it."""
    file = tmp_path / "deflated.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/data.pkl", bytes(200 << 20))
    answer = run_bounded("open", [file], tmp_path, megabytes=512)["deflated.pt"]
    assert "compressed" in answer["answer"]
    assert answer["seconds"] < 0.5
    assert "refused" in run_bounded("scan", [file], tmp_path, megabytes=512)["deflated.pt"]["answer"]


def test_a_call_in_a_compressed_entry_is_found(tmp_path: Path) -> None:
    """torch's own reader would inflate it and run it."""
    file = tmp_path / "a.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.")
    found = scan(file).findings
    assert {finding.severity for finding in found} == {"import", "call"}
    assert any(finding.name == "posix.system" for finding in found)


def test_a_call_in_an_archive_with_a_lying_directory_is_found(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.")
        archive.writestr("a/version", "3")
    data = bytearray((tmp_path / "a.pt").read_bytes())
    struct.pack_into("<H", data, data.rindex(b"PK\5\6") + 10, 77)
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(FormatError):
        torchfile.open_torch(tmp_path / "a.pt")
    assert "posix.system" in {finding.name for finding in scan(tmp_path).findings}


def test_tensors_may_not_reach_outside_their_storage(tmp_path: Path) -> None:
    """One stride in data.pkl is made larger: the tensor would show bytes of its neighbours."""
    data = saved(torch.zeros(8, 8))
    size_and_stride = b"K\x08K\x08\x86"
    at = data.index(size_and_stride)
    data[at + 1] = 200
    (tmp_path / "a.pt").write_bytes(data)
    with pytest.raises(FormatError, match="reaches to byte 6400 of its storage, which has 256"):
        torchfile.open_torch(tmp_path / "a.pt")


def test_dicts_shared_many_times_end(tmp_path: Path) -> None:
    """62 levels of a dict that holds the next one twice: 2**62 paths."""
    out = bytearray(b"\x80\x02}q\x00")
    for index in range(62):
        reference = b"h%c" % index
        out += b"}q%c(X\x01\x00\x00\x00a" % (index + 1) + reference + b"X\x01\x00\x00\x00b" + reference + b"u"
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("a/data.pkl", bytes(out) + b".")
    answer = run_bounded("open", [tmp_path / "a.pt"], tmp_path)["a.pt"]
    assert "without end" in answer["answer"]
    assert answer["seconds"] < 5.0


@pytest.mark.parametrize("size", [0, 1, 21, 22, 100])
def test_tiny_files(size: int, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"PK\3\4".ljust(size, b"\0")[:size])
    with pytest.raises(CrossdockError, match=r"a\.pt"):
        torchfile.open_torch(tmp_path / "a.pt")
