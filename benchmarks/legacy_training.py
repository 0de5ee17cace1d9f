"""A ggcp of about 1 GB exported, against `cp` of what is written: python benchmarks/legacy_training.py FOLDER [runs]

The file is synthetic (100 MB of weights, Adam of block version 0 in the order of master's default flags). Both sides
end on the disk: an export flushes its output, so `cp` is followed by `sync`. Wall time, CPU time, peak memory: medians.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WIDE, VOCAB, FFN, LAYERS, HEADS = 512, 8000, 1376, 8, 8
LAYER = {
    "attention_norm": [WIDE], "attention.wq": [WIDE, WIDE], "attention.wk": [WIDE, WIDE], "attention.wv": [WIDE, WIDE],
    "attention.wo": [WIDE, WIDE], "ffn_norm": [WIDE], "feed_forward.w1": [WIDE, FFN], "feed_forward.w2": [FFN, WIDE],
    "feed_forward.w3": [WIDE, FFN],
}  # fmt: skip
INNER = [name for name in LAYER if not name.startswith("feed")] + [f"feed_forward.w{n}" for n in (3, 1, 2)]


def make(path: Path) -> None:
    """Write the file."""
    rng = np.random.default_rng(0)
    shapes = {"tok_embeddings": [WIDE, VOCAB], "norm": [WIDE], "output": [WIDE, VOCAB]}
    shapes |= {f"layers.{i}.{name}": ne for i in range(LAYERS) for name, ne in LAYER.items()}
    order = ["tok_embeddings", *(f"layers.{i}.{name}" for i in range(LAYERS) for name in INNER), "norm", "output"]
    values = {name: rng.standard_normal(int(np.prod(ne)), dtype=np.float32) for name, ne in shapes.items()}
    with path.open("wb") as out:

        def record(name: str, ne: list[int], data: bytes) -> None:
            out.write(struct.pack(f"<III{len(ne)}I", len(ne), len(name), 0, *ne) + name.encode())
            out.write(bytes(-out.tell() % 32) + data)

        out.write(b"pcgg" + struct.pack("<10I", 0, 100, 800, 51200, VOCAB, WIDE, 32, HEADS, LAYERS, WIDE // HEADS))
        for name, ne in shapes.items():
            record(f"{name}.weight", ne, values[name].tobytes())
        flat = np.concatenate([values[name] for name in order])
        out.write(struct.pack("<I", 0) + bytes(96) + struct.pack("<qiI", flat.size, 100, 0))
        for factor in range(1, 8):
            record("", [flat.size], (flat * np.float32(factor)).tobytes())
        record("", [], b"")
        out.write(struct.pack("<ffi", 1.0, 1.5, 0))


def measured(command: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds, peak MiB of a process that must succeed."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main(folder: Path, runs: int = 5) -> None:
    """Make the file if it is not there, and print one line a target."""
    source, output, copy = folder / "legacy.ggcp", folder / "out.gguf", folder / "copy.gguf"
    if not source.exists():
        process = multiprocessing.Process(target=make, args=(source,))  # or its memory would count as a child's
        process.start()
        process.join()
    for flags in (["gguf-checkpoint"], ["gguf-checkpoint", "--keep-order"], ["gguf"]):
        found = []
        for _ in range(runs):
            output.unlink(missing_ok=True)
            copy.unlink(missing_ok=True)
            export = [sys.executable, "-m", "crossdock", "export", str(source), "--to", *flags, "-o", str(output)]
            wall, cpu, peak = measured([*export, "--memory", "64MiB", "--no-progress"])
            copied, _, _ = measured(["sh", "-c", f"cp '{output}' '{copy}' && sync '{copy}'"])
            found.append((wall, cpu, peak, copied))
        wall, cpu, peak, copied = (statistics.median(column) for column in zip(*found, strict=True))
        size = output.stat().st_size / 1e6
        print(
            f"{' '.join(flags)}: {size:.0f} MB in {wall:.2f} s (CPU {cpu:.2f} s), {peak:.0f} MiB;"
            f" cp and sync {copied:.2f} s, ratio {wall / copied:.2f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
