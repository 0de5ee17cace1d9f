"""Old training checkpoints of 1 GB and 3 GB exported, against `cp` of what is written:

    python benchmarks/legacy_training.py FOLDER [rounds]

Synthetic files: Adam of block version 0 in the order of master's default flags (of 1 GB, and of 3 GB so that 1 GB is
written), L-BFGS of version 1, and a model without an optimizer. An export flushes its output, so the fair side is `cp`
and `sync`; `cp` alone ends in memory. Start-up is what `plan` takes, which reads and writes no tensor. Sources and
copies are in the page cache on both sides.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from measure import Job, machine, median, ratio, read_all, run, run_rounds

HEADS = 8
INNER = ("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo", "ffn_norm",
         "feed_forward.w1", "feed_forward.w2", "feed_forward.w3")  # fmt: skip
SCRATCH = (*INNER[:6], "feed_forward.w3", "feed_forward.w1", "feed_forward.w2")
SIZES = {"adam": (512, 8000, 1376, 8), "lbfgs": (512, 8000, 1376, 8), "model": (1024, 32000, 2752, 16),
         "adam-3GB": (768, 16000, 2064, 10)}  # fmt: skip
EXPORTS = {
    "adam": (("gguf-checkpoint",), ("gguf-checkpoint", "--keep-order"), ("gguf",)),
    "lbfgs": (("gguf-checkpoint",),),
    "model": (("gguf",), ("hf",)),
    "adam-3GB": (("gguf-checkpoint",), ("gguf-checkpoint", "--keep-order"), ("gguf",)),
}


def shapes(wide: int, vocab: int, ffn: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Every tensor in the file's order, the fastest size first."""
    inner = {name: (wide,) if "norm" in name else (wide, wide) for name in INNER}
    inner |= {"feed_forward.w1": (wide, ffn), "feed_forward.w2": (ffn, wide), "feed_forward.w3": (wide, ffn)}
    outer = {"tok_embeddings": (wide, vocab), "norm": (wide,), "output": (wide, vocab)}
    return outer | {f"layers.{i}.{name}": ne for i in range(layers) for name, ne in inner.items()}


def make(path: Path, kind: str) -> None:
    """Write one of the files, 1.07 or 3.1 GB."""
    wide, vocab, ffn, layers = SIZES[kind]
    tensors = shapes(wide, vocab, ffn, layers)
    order = ["tok_embeddings", *(f"layers.{i}.{name}" for i in range(layers) for name in SCRATCH), "norm", "output"]
    count = sum(int(np.prod(ne)) for ne in tensors.values())

    def values(name: str) -> bytes:
        rng = np.random.default_rng(list(tensors).index(name))
        return rng.standard_normal(int(np.prod(tensors[name])), dtype=np.float32).tobytes()

    with path.open("wb") as out:
        out.write(b"pcgg" + struct.pack("<10I", 0, 100, 800, 51200, vocab, wide, 32, HEADS, layers, wide // HEADS))
        for name, ne in tensors.items():
            record(out, f"{name}.weight", ne, iter([values(name)]))
        if kind.startswith("adam"):
            out.write(struct.pack("<I", 0) + bytes(96) + struct.pack("<qiI", count, 100, 0))
            for _ in range(7):
                record(out, "", (count,), map(values, order))
            record(out, "", (), iter(()))
            out.write(struct.pack("<ffi", 1.0, 1.5, 0))
        elif kind == "lbfgs":
            out.write(struct.pack("<IiiqiI", 1, 0, 1, count, 100, 0))
            for _ in range(5):
                record(out, "", (count,), map(values, order))
            for ne in ((), (1,), (1,)):
                record(out, "", ne, iter([bytes(4 * len(ne))]))
            for _ in range(2):
                record(out, "", (count, 1), map(values, order))
            out.write(struct.pack("<ffiiii", 1.0, 1.5, 0, 0, 0, 0))


def record(out: BinaryIO, name: str, ne: tuple[int, ...], data: Iterator[bytes]) -> None:
    """One tensor; without sizes it is a NULL tensor."""
    out.write(struct.pack(f"<III{len(ne)}I", len(ne), len(name), 0, *ne) + name.encode())
    out.write(bytes(-out.tell() % 32))
    out.writelines(data)


def main(folder: Path, rounds: int = 5) -> None:
    """Make the files that do not exist, and print a table."""
    for what, said in machine(folder).items():
        print(f"{what}: {said}")
    print("| file | target | written MB | s | of it start-up | CPU s | peak MiB | cp and sync s | cp s "
          "| against cp and sync | without start-up | against cp |")  # fmt: skip
    print("|---" * 12 + "|")
    folder.mkdir(parents=True, exist_ok=True)
    for kind, targets in EXPORTS.items():
        source = folder / f"{kind}.ggcp"
        if not source.exists():
            pid = os.fork()  # what it takes to make one must not count as memory of a child of this process
            if pid == 0:
                make(source, kind)
                os._exit(0)
            os.waitpid(pid, 0)
        for flags in targets:
            measured(folder, source, flags, rounds)


def measured(folder: Path, source: Path, flags: tuple[str, ...], rounds: int) -> None:
    """Print one row."""
    kept, output = folder / "kept" / "out", folder / "out"
    shutil.rmtree(kept.parent, ignore_errors=True)
    kept.parent.mkdir()
    command = (sys.executable, "-m", "crossdock")
    export = (*command, "export", str(source), "--to", *flags, "--memory", "64MiB", "--no-progress", "-o")
    run(Job("", "once", (*export, str(kept))), folder / "job.log")
    read_all(folder)
    copy = ("cp", "-r", str(kept), str(output))
    jobs = [
        Job("", "start-up", (*command, "plan", str(source), "--to", *flags)),
        Job("", "export", (*export, str(output)), output),
        Job("", "cp", copy, output),
        Job("", "cp and sync", ("sh", "-c", '"$@" && find "$0" -type f -exec sync {} +', str(output), *copy), output),
    ]
    runs = run_rounds(jobs, rounds, folder)
    one, start, cp, synced = (median(runs[name]) for name in ("export", "start-up", "cp", "cp and sync"))
    copied = [
        type(whole)(whole.wall - begun.wall, whole.cpu, whole.rss, whole.output_bytes)
        for whole, begun in zip(runs["export"], runs["start-up"], strict=True)
    ]
    against = [ratio(side, runs[name], "wall") for side, name in
               ((runs["export"], "cp and sync"), (copied, "cp and sync"), (runs["export"], "cp"))]  # fmt: skip
    print(
        f"| {source.stem} | {' '.join(flags)} | {one.output_bytes / 1e6:.0f} | {one.wall:.2f} | {start.wall:.2f} "
        f"| {one.cpu:.2f} | {one.rss / 2**20:.0f} | {synced.wall:.2f} | {cp.wall:.2f} |"
        + "".join(f" {number:.2f} |" for number in against)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
