"""Output files: every byte where it belongs, past the page cache or through it, and blocks that lie on pages."""

import errno
import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_files import write_llama

import crossdock
from crossdock.errors import FormatError
from crossdock.io.system import PAGE
from crossdock.running.blocks import WorkerBuffers, blocks
from crossdock.running.hashing import Parts
from crossdock.running.memory import workers_for
from crossdock.running.output import OutputFile, WrittenFile, aligned
from crossdock.running.reader import Reader

SIZE = 3_000_001


def direct(flags: int) -> bool:
    return bool(flags & getattr(os, "O_DIRECT", 0))


def refused_when_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, mode: int = 0o777) -> int:
        if direct(flags):
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", refuse)


def pwrite_by(answer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `answer(real, fd, data, offset)` write what goes past the cache."""
    import fcntl

    real = os.pwrite

    def pwrite(fd: int, data: Any, offset: int) -> int:
        if direct(fcntl.fcntl(fd, fcntl.F_GETFL)):
            return int(answer(real, fd, data, offset))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


def refused_when_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    pwrite_by(refuse, monkeypatch)


def written_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite_by(lambda real, fd, data, offset: real(fd, data[:PAGE], offset), monkeypatch)


def written_in_odd_part(monkeypatch: pytest.MonkeyPatch) -> None:
    def part(real: Any, fd: int, data: Any, offset: int) -> int:
        real(fd, data, offset)
        return 4095

    pwrite_by(part, monkeypatch)


@pytest.mark.parametrize(
    "disk", [None, refused_when_opened, refused_when_written, written_in_part, written_in_odd_part]
)
def test_every_byte_arrives(disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if disk is not None:
        disk(monkeypatch)
    rng = np.random.default_rng(1)
    wanted = rng.integers(0, 256, SIZE, np.uint8)
    file = OutputFile(tmp_path / "folder" / "file", SIZE)
    cuts = [0, *np.sort(rng.choice(SIZE // PAGE, 9, replace=False) * PAGE + rng.integers(0, 3, 9)).tolist(), SIZE]
    for low, high in rng.permutation(np.array([cuts[:-1], cuts[1:]]).T).tolist():
        memory = aligned(high - low + PAGE)[low % PAGE :][: high - low]
        memory[:] = wanted[low:high]
        file.write(memory, low)
    file.flush()
    file.close()
    assert (tmp_path / "folder" / "file").read_bytes() == wanted.tobytes()


def test_memory_that_begins_elsewhere_in_a_page(tmp_path: Path) -> None:
    wanted = np.random.default_rng(2).integers(0, 256, SIZE, np.uint8)
    memory = aligned(SIZE + 8)[8:]
    memory[:] = wanted
    file = OutputFile(tmp_path / "file", SIZE)
    file.write(memory, 0)
    file.close()
    assert (tmp_path / "file").read_bytes() == wanted.tobytes()


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    file = OutputFile(tmp_path / "file", SIZE)
    with pytest.raises(OSError, match="No space left"):
        file.write(aligned(SIZE), 0)
    file.close()


@pytest.mark.parametrize(
    ("to", "flags"),
    [
        ("hf", {}),
        ("gguf", {"dtype": "float16"}),
        ("gguf", {"dtype": "float32"}),
        ("gguf", {"quantize": "q8_0"}),
        ("gguf", {"quantize": "q4_k_m"}),
    ],
)
def test_blocks_lie_on_pages(to: str, flags: dict[str, str], tmp_path: Path) -> None:
    plan = crossdock.plan(crossdock.open(write_llama(tmp_path / "source")), to, **flags)
    share = WorkerBuffers(16 * (136 << 10))
    seen = 0
    with Reader(plan) as reader:
        for tensor in plan.tensors:
            end = 0
            for block in blocks(plan, tensor, reader, share):
                place = tensor.offset + block.offset
                assert block.offset == end
                assert block.encoded.ctypes.data % PAGE == place % PAGE
                end += block.encoded.size
                seen += end < tensor.nbytes
                assert end == tensor.nbytes or (place + block.encoded.size) % PAGE == 0
            assert end == tensor.nbytes
    assert seen


@pytest.mark.parametrize(
    ("memory", "cores", "workers"),
    [(256 << 20, 2, 4), (256 << 20, 4, 5), (256 << 20, 16, 16), (8 << 20, 2, 2), (1 << 20, 4, 2), (1, 8, 1)],
)
def test_workers_when_nobody_says(memory: int, cores: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert workers_for(memory) == workers


def test_parts_with_equal_bytes() -> None:
    rng = np.random.default_rng(5)
    parts = [rng.integers(0, 256, 1000, np.uint8).tobytes() for _ in range(5)]
    data = memoryview(b"".join(parts[i] for i in (0, 1, 2, 1, 3, 0, 4, 1)))
    for _ in range(20):
        seen = Parts(1000)
        cuts = [0, *sorted(rng.integers(0, len(data), 9).tolist()), len(data)]
        for low, high in itertools.pairwise(cuts):
            seen.update(data[low:high])
        assert seen.alike() == ((0, 5), (1, 3, 7))


@pytest.mark.parametrize("disk", [None, refused_when_opened])
def test_reading_back(disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if disk is not None:
        disk(monkeypatch)
    rng = np.random.default_rng(4)
    wanted = rng.integers(0, 256, SIZE, np.uint8)
    (tmp_path / "file").write_bytes(wanted.tobytes())
    file = WrittenFile(tmp_path / "file")
    for low, high in [(0, SIZE), (0, 10), (SIZE - 5, SIZE), (PAGE, 3 * PAGE), *rng.integers(0, SIZE, (30, 2)).tolist()]:
        low, high = sorted((low, high))
        assert np.array_equal(file.read(low, high - low), wanted[low:high])
    for low, nbytes in [(SIZE - 5, 6), (0, SIZE + 1), (SIZE + PAGE, 1)]:
        with pytest.raises(FormatError, match="the file is too short"):
            file.read(low, nbytes)
    file.close()
