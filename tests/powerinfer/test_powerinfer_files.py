"""Statistics and indexes that are broken, hostile or odd; writing that fails."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from powerinfer_samples import DATA, save

from crossdock.errors import CrossdockError, EnvironmentProblem, FormatError, NotACheckpointError, UnsafePickleError
from crossdock_powerinfer import gpuidx
from crossdock_powerinfer.statistics import read_statistics

OFFICIAL = next((DATA / "out").glob("u4x1024*thr0*"))


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (np.array([1.0, np.nan]), "1 counts are NaN"),
        (np.array([1.0, np.inf], np.float32), "1 counts are infinite"),
        (torch.tensor([70000.0, 1]).half(), "overflow float16"),
        (np.array([1, -1]), "1 counts are negative"),
        (np.ones((2, 3)), "one row of numbers"),
        (np.zeros(0), "one row of numbers"),
        (torch.tensor(3), "one row of numbers"),
        (torch.tensor([1]).expand(1 << 20), "one count stands for many neurons"),
        (torch.tensor([True]), "not counts"),
        (np.array([1 << 62, 1 << 62]), "larger than int64"),
        (np.array([1e300]), "larger than int64"),
    ],
)
def test_counts_that_cannot_be(tmp_path: Path, counts: object, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        read_statistics(save(tmp_path, [counts]))


def test_all_bad_layers_are_named(tmp_path: Path) -> None:
    save(tmp_path, [np.array([-1]), np.array([1]), np.array([np.nan])])
    with pytest.raises(FormatError) as caught:
        read_statistics(tmp_path)
    assert [Path(problem.where).name for problem in caught.value.problems] == ["activation_0.pt", "activation_2.pt"]


def test_the_planted_command_is_named_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickleError, match=r"activation_0\.pt.*posix\.system"):
        read_statistics(DATA / "hostile")
    assert list(tmp_path.iterdir()) == []


def test_layers_are_in_the_order_of_numbers_and_backups_are_none(tmp_path: Path) -> None:
    save(tmp_path, [np.array([number, 1]) for number in range(12)])
    for name in ("activation_3.pt.bak", "activation_99.txt", "activation_03.pt", "notes"):
        (tmp_path / name).write_bytes(b"not a layer")
    assert [int(counts[0]) for counts in read_statistics(tmp_path).counts] == list(range(12))
    (tmp_path / "activation_7.pt").unlink()
    with pytest.raises(FormatError, match=r"no activation_7\.pt"):
        read_statistics(tmp_path)


def test_no_folder_and_no_layers(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(NotACheckpointError):
            read_statistics(path)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64, torch.float16])
def test_whole_counts_of_every_type(tmp_path: Path, dtype: torch.dtype) -> None:
    statistics = read_statistics(
        save(tmp_path, [torch.tensor([3, 0, 1000, 7]).to(dtype), torch.arange(8).to(dtype)[::2]])
    )
    assert [counts.tolist() for counts in statistics.counts] == [[3, 0, 1000, 7], [0, 2, 4, 6]]
    assert statistics.scale == 0


def test_fractions_are_exact_or_said_not_to_be(tmp_path: Path) -> None:
    exact = read_statistics(save(tmp_path / "a", [np.array([0.5, 0.125, 3.0])]))
    assert (exact.scale, exact.exact, exact.counts[0].tolist()) == (3, True, [4, 1, 24])
    fine = read_statistics(save(tmp_path / "b", [np.array([1e9, 1e-9])]))
    assert not fine.exact
    assert fine.amount(int(fine.counts[0][0])) == 1e9


def test_a_broken_index_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    data = OFFICIAL.read_bytes()
    for end in (0, 3, 4, 23, 60, 200, 500, 4000, len(data) - 32):
        file = tmp_path / "cut.gpuidx"
        file.write_bytes(data[:end])
        with pytest.raises(FormatError):
            gpuidx.read(file)


def test_flipped_header_bytes_give_an_error_or_an_index(tmp_path: Path) -> None:
    data = OFFICIAL.read_bytes()
    file = tmp_path / "flipped.gpuidx"
    refused = 0
    for at in range(600):
        for bits in (0x01, 0xFF):
            file.write_bytes(data[:at] + bytes([data[at] ^ bits]) + data[at + 1 :])
            try:
                gpuidx.disagreements(gpuidx.read(file))
            except CrossdockError:
                refused += 1
    assert refused > 900


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"PWRI", b"GGUF", "not a GPU index"),
        (b"PWRI\x03", b"PWRI\x01", "a version that PowerInfer does not load"),
        (b"split.vram_capacity\x0a", b"split.vram_capacity\x0b", "split.vram_capacity"),
        (b"generic.gpu_index\x1d", b"generic.gpu_indey\x1d", "not the architecture"),
        (b"blk.1.gpu_idx", b"blk.9.gpu_idx", "another order"),
        (struct.pack("<QI", 1024, 18), struct.pack("<QI", 1024, 26), "type I32"),
    ],
)
def test_what_the_loader_would_choke_on(tmp_path: Path, old: bytes, new: bytes, words: str) -> None:
    data = OFFICIAL.read_bytes()
    assert old in data
    file = tmp_path / "bad.gpuidx"
    file.write_bytes(data.replace(old, new, 1))
    with pytest.raises(FormatError, match=words):
        gpuidx.read(file)


def test_disagreements_are_all_found() -> None:
    good = gpuidx.of_buckets([np.array([1, 3], np.int32)] * 4, [8] * 4, 0)
    flags = [one.copy() for one in good.flags]
    buckets = [one.copy() for one in good.buckets]
    flags[0][5] = 2
    buckets[1][1] = 8
    buckets[2][:] = buckets[2][::-1]
    flags[3][0] = 1
    found = gpuidx.disagreements(gpuidx.GpuIndex(0, tuple(flags), tuple(buckets)))
    assert [problem.where for problem in found] == ["layer 0", "layer 1", "layer 2", "layer 3"]
    assert gpuidx.disagreements(good) == []


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = gpuidx.read(OFFICIAL)
    out = tmp_path / "m.gpuidx"
    out.write_bytes(b"old")

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EnvironmentProblem, match="No space left"):
        gpuidx.write(out, index)
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.gpuidx"]
    assert out.read_bytes() == b"old"
