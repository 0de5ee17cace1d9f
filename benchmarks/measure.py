"""Runs commands and measures them: wall time, CPU seconds, peak resident memory; and says on what machine.

Imports the standard library only: a child's peak memory starts at that of the process it was forked from.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Job:
    """A command to time. `output` is deleted before and after every run; `group` shares a source and a
    reference."""

    group: str
    name: str
    command: tuple[str, ...]
    output: Path | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One run: wall and CPU seconds, peak RSS in bytes, bytes of the output."""

    wall: float
    cpu: float
    rss: int
    output_bytes: int


class JobFailed(Exception):
    """A command that was to be timed failed; the message holds the end of its output."""


def tree_size(path: Path) -> int:
    """Bytes of a file or of all files below a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def read_all(folder: Path) -> None:
    """Bring every file of a source into the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def remove(output: Path) -> None:
    """Delete an output with all that lies beside it under the same name (manifest, partial)."""
    for path in output.parent.glob(output.name + "*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def run(job: Job, log: Path) -> Run:
    """Run a job once, with its output gone before and after. Raises JobFailed."""
    if job.output is not None:
        remove(job.output)
    os.sync()  # what earlier jobs wrote shall not be written back at this one's cost
    with log.open("wb") as file:
        start = time.perf_counter()
        child = subprocess.Popen(job.command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        end = log.read_text(errors="replace")[-2000:]
        raise JobFailed(f"{' '.join(job.command)}: exit {child.returncode}\n{end}")
    size = tree_size(job.output) if job.output is not None else 0
    if job.output is not None:
        remove(job.output)
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, size)


def run_rounds(jobs: Sequence[Job], rounds: int, work: Path) -> dict[str, list[Run]]:
    """All jobs one after another, `rounds` times over, so that each round sees the same state of the
    machine."""
    runs: dict[str, list[Run]] = {job.name: [] for job in jobs}
    for number in range(1, rounds + 1):
        for job in jobs:
            done = run(job, work / "job.log")
            runs[job.name].append(done)
            show = f"[{number}/{rounds}] {job.name}: {done.wall:.2f} s wall, {done.cpu:.2f} s CPU"
            print(show, file=sys.stderr, flush=True)
    return runs


def median(runs: Sequence[Run]) -> Run:
    """The median of each figure by itself."""
    return Run(
        statistics.median(r.wall for r in runs),
        statistics.median(r.cpu for r in runs),
        int(statistics.median(r.rss for r in runs)),
        runs[-1].output_bytes,
    )


def ratio(runs: Sequence[Run], reference: Sequence[Run], figure: Literal["wall", "cpu"]) -> float:
    """Median over the rounds of `figure` ("wall" or "cpu") divided by the reference's in the same round."""
    pairs = zip(runs, reference, strict=True)
    if figure == "wall":
        return statistics.median(one.wall / other.wall for one, other in pairs)
    return statistics.median(one.cpu / other.cpu for one, other in pairs)


def machine(work: Path) -> dict[str, str]:
    """The machine in words: processor, cores, memory, file system of `work`, versions, load."""
    processor = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.split(":", 1)[1].strip()
            break
    memory = int(Path("/proc/meminfo").read_text().split()[1]) // 1024
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    inside = [(len(point), kind) for _, point, kind in mounts if work.resolve().is_relative_to(point)]
    return {
        "processor": processor,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory} MiB",
        "file system": max(inside)[1],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }
