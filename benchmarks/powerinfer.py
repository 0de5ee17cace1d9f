"""The split against the official method: the same statistics, the same capacity, time to sort, solve and select.

The official method is rebuilt from powerinfer-py at d3ebd7c (solver.py, export_split.py) step by step: torch sorts each
layer, the integer program is built from lists with one binary a group and one a layer, GLPK solves it through cvxopt
with a limit of 30 s and else its defaults, each layer's neurons are summed up from its answer, and torch takes the top
k of each layer. Each side starts from the counts as its own reader hands them over: tensors of int64, and integers of
32 bits where these hold every count. Reading files and importing is in neither time.

Both sides run by turns, each in a new process. `first` is the first call in it, as the programs are used; `again` the
median of the calls after it, with warm code and memory, for both sides alike. The times are CPU seconds of the process,
so that other work on the machine does not count; both sides use one thread. Where GLPK stops at its limit, which is of
wall time, it is called once. Ratios are of medians; `least` is the lowest ratio of first calls in any one round.

`solve` ends when the number of neurons of each layer is known, `all` when the index is in memory. The capacity is the
official default, a tenth of the neurons. Needs the extra `bench`:

    python benchmarks/powerinfer.py [--big]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics as figures
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossdock_powerinfer.bounds import upper_bound
from crossdock_powerinfer.choose import best
from crossdock_powerinfer.gpuidx import of_buckets
from crossdock_powerinfer.rank import Counts, hottest
from crossdock_powerinfer.statistics import of_arrays

GRAIN = 256
LIMIT_MS = 30_000
MUCH = -1_000_000  # the official model's bound on a layer's groups
SHARE = 0.1
AGAIN = 8  # calls after the first one
KINDS = ("saturated", "power_alike", "power_steeper", "lognormal")
Times = tuple[float, float, int]  # seconds to solve, seconds in all, what is covered


def counts(kind: str, layers: int, width: int) -> list[np.ndarray]:
    """int64 counts of one kind: see below, or a power law of one steepness, one steeper with the layer, or lognormal.

    saturated  the form of the statistics in tests/data: the hottest neurons of a layer are active at every token, the
               others by a power law with some noise, its steepness (0.5 to 1.5) the layer's own
    """
    rng = np.random.default_rng(0)
    if kind == "lognormal":
        return [(rng.lognormal(5, 2, width) * 1000).astype(np.int64) for _ in range(layers)]
    out = []
    rank = np.arange(1, width + 1)
    for layer in range(layers):
        if kind == "saturated":
            steepness, always = rng.uniform(0.5, 1.5), width * rng.uniform(0.005, 0.02)
            hot = 400_000 * np.minimum(1, (always / rank) ** steepness * np.exp(rng.normal(0, 0.1, width)))
        else:
            steepness = 0.8 if kind == "power_alike" else 0.3 + 0.6 * layer / layers
            hot = 1e8 * rank**-steepness * rng.uniform(0.95, 1.05)
        out.append(hot.astype(np.int64)[rng.permutation(width)])
    return out


def crossdock(layers: Sequence[Counts], capacity: int, threshold: int) -> Times:
    """As `crossdock split` does it."""
    start = time.process_time()
    ranked, found = best(layers, GRAIN, [1] * len(layers), capacity // GRAIN, threshold // GRAIN)
    solved = time.process_time()
    chosen = zip(layers, ranked, found.groups, strict=True)
    buckets = [hottest(one, n * GRAIN, ranks.least[n - 1] if n else 0) for one, ranks, n in chosen]
    of_buckets(buckets, [len(one) for one in layers], 0)
    return solved - start, time.process_time() - start, found.gain


def official(tensors, capacity: int, threshold: int) -> Times:  # type: ignore[no-untyped-def]
    """As PowerInfer's module does it; nothing is covered when GLPK found nothing within its limit."""
    import torch
    from cvxopt import glpk, matrix

    start = time.process_time()
    neurons = _solve(tensors, capacity, threshold, glpk.ilp, matrix)
    solved = time.process_time()
    chosen = []
    for one, k in zip(tensors, neurons, strict=True):
        _, indices = torch.topk(one, k=int(k))
        flags = torch.zeros_like(one)
        flags[indices] = 1
        flags.numpy().astype(np.int32)
        np.sort(indices.numpy().astype(np.int32))
        chosen.append(indices)
    end = time.process_time()
    gain = sum(int(one[indices].sum()) for one, indices in zip(tensors, chosen, strict=True))
    more = 0.0 if gain else max(LIMIT_MS / 1e3 - (solved - start), 0)  # the limit is waited for, however busy the CPU
    return solved - start + more, end - start + more, gain


def _solve(tensors, capacity, threshold, ilp, matrix) -> list[float]:  # type: ignore[no-untyped-def]
    """Neurons per layer, with the official module's loops and types."""
    import torch

    layers, each = len(tensors), len(tensors[0]) // GRAIN
    values: list[float] = []
    for one in tensors:
        values += (torch.sort(one, descending=True)[0] * -1.0).view(-1, GRAIN).sum(dim=1).tolist()
    for _ in range(layers):
        values += [0.0]
    goal = matrix(np.array(values, dtype=float))
    row = []
    for _ in range(each * layers):
        row.append(1)
    for _ in range(layers):
        row.append(0)
    rows, limits = [row], [int(capacity / GRAIN)]
    for sign, charge in ((-1, int(threshold / GRAIN)), (1, MUCH)):  # least <= groups of a layer that has any <= much
        for layer in range(layers):
            row = [0] * (each * layers + layers)
            for group in range(each):
                row[layer * each + group] = sign
            row[each * layers + layer] = charge
            rows.append(row)
            limits.append(0)
    left, right = matrix(np.array(rows, dtype=float)), matrix(np.array(limits, dtype=float))
    binary = set(range(each * layers + layers))
    status, x = ilp(goal, left, right, None, None, set(), binary, options={"tm_lim": LIMIT_MS})
    print(f"ILP Status: {status}")
    answer = list(x)
    print(f"Total Activation Units: {sum(answer)}")
    return [sum(answer[layer * each : layer * each + each] * GRAIN) for layer in range(layers)]


def calls(side: str, kind: str, layers: int, width: int, threshold: int) -> list[Times]:
    """One case in this process: the first call, and those after it unless the first took long."""
    made, capacity = counts(kind, layers, width), int(SHARE * layers * width)
    if side == "crossdock":
        work, data = crossdock, list(of_arrays(made).counts)
    else:
        import torch

        work, data = official, [torch.from_numpy(one) for one in made]
    gc.disable()  # as timeit does: when the garbage of other work is collected is chance
    out = [work(data, capacity, threshold)]
    if out[0][1] < 1:
        out += [work(data, capacity, threshold) for _ in range(AGAIN)]
    return out


def once(side: str, case: Sequence[str]) -> list[Times]:
    """`calls` in a process of its own."""
    command = [sys.executable, __file__, "--once", side, *case]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [(solve, whole, gain) for solve, whole, gain in json.loads(done.stdout.splitlines()[-1])]


def process(layers: Sequence[np.ndarray], capacity: int, threshold: int) -> tuple[float, float, float]:
    """Seconds, CPU seconds and MB of `crossdock split` as a whole, from files in PowerInfer's form."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        for number, one in enumerate(layers):
            torch.save(torch.from_numpy(one), Path(folder) / f"activation_{number}.pt")
        command = [sys.executable, "-m", "crossdock", "split", folder, "--capacity", str(capacity), "-o"]
        command += [str(Path(folder) / "out.gpuidx"), "--threshold", str(threshold)]
        # a small process of its own starts it: a child's peak begins at the size of its parent
        code = (
            "import resource, subprocess, sys, time; start = time.perf_counter();"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL);"
            "end = time.perf_counter(); used = resource.getrusage(resource.RUSAGE_CHILDREN);"
            "print(end - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3)"
        )
        out = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True).stdout
    seconds, busy, megabytes = map(float, out.split())
    return seconds, busy, megabytes * 1.024


def milliseconds(runs: Sequence[Sequence[Times]]) -> dict[str, float]:
    """Medians over processes."""
    out = {}
    for at, name in enumerate(("solve", "all")):
        out[f"{name}_first"] = figures.median(run[0][at] for run in runs)
        if len(runs[0]) > 1:
            out[f"{name}_again"] = figures.median(figures.median(one[at] for one in run[1:]) for run in runs)
    return {name: round(1e3 * seconds, 3) for name, seconds in out.items()}


def compare(kind: str, layers: int, width: int, threshold: int, rounds: int) -> dict[str, object]:
    """One case as a record: medians, and how many times faster."""
    case = [kind, str(layers), str(width), str(threshold)]
    ours, theirs = [], []
    for number in range(rounds):
        ours.append(once("crossdock", case))
        if not theirs or theirs[-1][0][1] < 1 or number < 1:
            theirs.append(once("official", case))
    pairs = [(their[0][0], our[0][0]) for our, their in itertools.zip_longest(ours, theirs, fillvalue=theirs[-1])]
    data, capacity = counts(kind, layers, width), int(SHARE * layers * width)
    ranked, _ = best(data, GRAIN, [1] * layers, capacity // GRAIN, threshold // GRAIN)
    bound = upper_bound([one.at_most() for one in ranked], [1] * layers, capacity // GRAIN, threshold // GRAIN)
    seconds, busy, megabytes = process(data, capacity, threshold)
    return {
        "layers": layers,
        "width": width,
        "threshold": threshold,
        "counts": kind,
        "crossdock_ms": (mine := milliseconds(ours)),
        "official_ms": (other := milliseconds(theirs)),
        "times": {name: round(other[name] / mine[name], 1) for name in mine if name in other},
        "least": round(min(their / our for their, our in pairs), 1),
        "official_below_optimum": round(1 - theirs[0][0][2] / ours[0][0][2], 6),
        "bound_above_optimum": round(bound / ours[0][0][2] - 1, 8),
        "process_s": round(seconds, 2),
        "process_cpu_s": round(busy, 2),
        "process_MB": round(megabytes, 1),
    }


def main() -> None:
    """One JSON line a case."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    arguments.add_argument("--big", action="store_true", help="also 80 layers of 28672")
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--once", nargs=5, metavar="SIDE KIND LAYERS WIDTH THRESHOLD", help="one side of one case")
    given = arguments.parse_args()
    if given.once:
        side, kind, layers, width, threshold = given.once
        print(json.dumps(calls(side, kind, int(layers), int(width), int(threshold))))
        return
    from importlib.metadata import version

    print(json.dumps({one: version(one) for one in ("numpy", "torch", "cvxopt")}), flush=True)
    cases = [(32, 11008, threshold) for threshold in (0, 2560)] + ([(80, 28672, 0)] if given.big else [])
    for (layers, width, threshold), kind in ((case, kind) for case in cases for kind in KINDS):
        print(json.dumps(compare(kind, layers, width, threshold, given.rounds)), flush=True)


if __name__ == "__main__":
    main()
