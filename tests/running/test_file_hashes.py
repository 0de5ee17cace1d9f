"""sha256 of files that are written in any order: always that of the file, and mostly from memory."""

from __future__ import annotations

import hashlib
import pickle
import random
import threading
from pathlib import Path

import numpy as np
import pytest
from llama_files import tensors, write_llama

import crossdock
from crossdock.codecs.codec import Bytes
from crossdock.running import file_hashes
from crossdock.running.file_hashes import FileHash, FileHashes

HEADER = b"header of odd length"
PLACES = ((32, 700_032), (700_032, 700_040), (700_064, 2_000_000))  # two adjacent, gaps before and after
SIZE = 2_000_100


def whole() -> Bytes:
    data = np.zeros(SIZE, np.uint8)
    data[: len(HEADER)] = np.frombuffer(HEADER, np.uint8)
    for begin, end in PLACES:
        data[begin:end] = np.random.default_rng(begin).integers(0, 256, end - begin, np.uint8)
    return data


def cuts(seed: int) -> list[tuple[int, int]]:
    """Every byte of the tensors, in pieces of many sizes."""
    rng, out = random.Random(seed), []
    for begin, end in PLACES:
        while begin < end:
            stop = min(end, begin + rng.choice((1, 100, 70_000, 200_000)))
            out.append((begin, stop))
            begin = stop
    return out


@pytest.mark.parametrize("order", ["forward", "backward", "shuffled", "nothing"])
@pytest.mark.parametrize("threads", [1, 4])
def test_any_order_gives_the_hash_of_the_file(order: str, threads: int) -> None:
    data = whole()
    pieces = [] if order == "nothing" else cuts(1)
    if order == "backward":
        pieces.reverse()
    if order == "shuffled":
        random.Random(2).shuffle(pieces)
    one = FileHash(SIZE, HEADER, PLACES)
    todo = iter(pieces)
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                piece = next(todo, None)
            if piece is None:
                return
            one.wrote(data[slice(*piece)], piece[0], lambda at, n: data[at : at + n])

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    read: list[int] = []

    def counted(at: int, nbytes: int) -> Bytes:
        read.append(nbytes)
        return data[at : at + nbytes]

    assert one.finish(counted) == hashlib.sha256(data.tobytes()).hexdigest()
    if threads == 1 and order == "forward":
        assert sum(read) == 0
    if order == "nothing":
        assert sum(read) == SIZE - 32


def test_what_an_earlier_run_left_is_read_back() -> None:
    data = whole()
    one = FileHash(SIZE, HEADER, PLACES)
    one.leave(*PLACES[0])
    for begin, end in PLACES[1:]:
        one.wrote(data[begin:end], begin, lambda at, n: data[at : at + n])
    assert one.finish(lambda at, n: data[at : at + n]) == hashlib.sha256(data.tobytes()).hexdigest()


def test_in_another_process_there_is_nobody_to_ask(tmp_path: Path) -> None:
    plan = crossdock.plan(crossdock.open(write_llama(tmp_path / "source")), "hf")
    assert pickle.loads(pickle.dumps(FileHashes(plan))) is None


@pytest.mark.parametrize("workers", [1, 4])
def test_bytes_are_hashed_from_memory(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers share a tensor: what has to be read back is a part of what is written."""
    rng = np.random.default_rng(1)
    large = tensors() | {"lm_head.weight": rng.standard_normal((40_000, 128)).astype(np.float32)}
    large["model.embed_tokens.weight"] = rng.standard_normal((40_000, 128)).astype(np.float32)
    source = write_llama(tmp_path / "source", large, vocab_size=40_000)
    read: list[int] = []
    real = file_hashes.WrittenFile.read

    def counted(self: file_hashes.WrittenFile, offset: int, nbytes: int) -> Bytes:
        read.append(nbytes)
        return real(self, offset, nbytes)

    monkeypatch.setattr(file_hashes.WrittenFile, "read", counted)
    plan = crossdock.plan(crossdock.open(source), "hf")
    report = crossdock.run(plan, tmp_path / "out", workers=workers, memory="16MiB")
    for file in report.files:
        data = (tmp_path / "out" / file.name).read_bytes()
        assert (file.nbytes, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    assert sum(read) < (0.8 if workers > 1 else 0.01) * plan.nbytes
