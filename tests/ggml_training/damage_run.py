"""Run in a process of its own: one file, damaged many times, and what came of it as JSON.

Usage: damage_run.py FILE flips|cuts. It is opened each time; where that works it is exported now and then.
"""

from __future__ import annotations

import json
import random
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import crossdock
from crossdock.errors import CrossdockError
from crossdock.formats import ggml_training

FLIPS = 5_000
MEMORY = 1 << 20


def used() -> int:
    """The most memory that this process ever had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def flipped(path: Path, raw: bytes) -> Iterator[int]:
    """One byte at a time is another one, mostly in what is no tensor data."""
    rng = random.Random(3)
    extents = [extent for tensor in ggml_training.open_source(path).tensors.values() for extent in tensor.extents]
    spans = [(extent.offset, extent.offset + extent.nbytes) for extent in extents]
    outside = [i for i in range(len(raw)) if not any(low <= i < high for low, high in spans)]
    with path.open("r+b", buffering=0) as file:
        for _ in range(FLIPS):
            at = rng.choice(outside) if rng.random() < 0.9 else rng.randrange(len(raw))
            file.seek(at)
            file.write(bytes([raw[at] ^ rng.randrange(1, 256)]))
            yield at
            file.seek(at)
            file.write(raw[at : at + 1])


def cut(path: Path, raw: bytes) -> Iterator[int]:
    """Every size from that of the file down to what the magic number takes."""
    with path.open("r+b") as file:
        for size in range(len(raw) - 1, 3, -1):
            file.truncate(size)
            yield size


def main(path: Path, how: str) -> None:
    """Damage, read, count."""
    raw, output = path.read_bytes(), path.with_name("out.gguf")
    crossdock.run(crossdock.plan(crossdock.open(path), "gguf-checkpoint"), output, memory=MEMORY)  # all is imported
    before = used()
    rounds, opened, exported, mute, unplaced = 0, [], 0, 0, 0
    for at in (flipped if how == "flips" else cut)(path, raw):
        rounds += 1
        try:
            ggml_training.open_source(path)
            opened.append(at)
            if len(opened) % 20 == 1:
                checkpoint = crossdock.open(path)
                plan = crossdock.plan(checkpoint, "gguf-checkpoint" if how == "flips" else "gguf")
                crossdock.run(plan, output, memory=MEMORY, force=True)
                exported += 1
        except CrossdockError as error:
            mute += not error.text()
            unplaced += "at byte" not in error.text()
    answer = {"rounds": rounds, "opened": opened, "exported": exported, "mute": mute, "unplaced": unplaced}
    print(json.dumps(answer | {"growth": used() - before}))


main(Path(sys.argv[1]), sys.argv[2])
