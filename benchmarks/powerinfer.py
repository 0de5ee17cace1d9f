"""The split against the official method: the same statistics, the same capacity, time to solve and to select.

The official method is rebuilt from its published description (the model that powerinfer-py states, with its dense
matrix, its bound of a million and its limit of 30 s): an integer program with one binary a group and one a layer,
given to GLPK through cvxopt, then a stable descending sort a layer. Reading files is in neither time. Needs `cvxopt`:

    python benchmarks/powerinfer.py [--big]
"""

from __future__ import annotations

import argparse
import json
import statistics as figures
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from crossdock.powerinfer.choose import choose, group_gains, hottest, upper_bound

GRAIN = 256
LIMIT_MS = 30_000
MUCH = 1_000_000.0  # the official model's bound on a layer's groups


def counts(layers: int, width: int, alike: bool) -> list[np.ndarray]:
    """Power laws in random order, all counts different; `alike`: of one steepness, else steeper with the layer."""
    rng = np.random.default_rng(0)
    out = []
    for layer in range(layers):
        steepness = 0.8 if alike else 0.3 + 0.6 * layer / layers
        hot = 1e8 * np.arange(1, width + 1) ** -steepness * rng.uniform(0.95, 1.05)
        out.append((hot.astype(np.int64) * width + np.arange(width))[rng.permutation(width)])
    return out


def crossdock(layers: Sequence[np.ndarray], capacity: int, threshold: int) -> tuple[list[int], int]:
    """Sort, solve, select."""
    gains = [group_gains(one, GRAIN) for one in layers]
    found = choose(gains, [1] * len(gains), capacity // GRAIN, threshold // GRAIN)
    for one, groups in zip(layers, found.groups, strict=True):
        hottest(one, groups * GRAIN)
    return [groups * GRAIN for groups in found.groups], found.gain


def official(layers: Sequence[np.ndarray], capacity: int, threshold: int) -> tuple[list[int], int]:
    """The same by an integer program in GLPK."""
    from cvxopt import glpk, matrix

    gains = [np.sort(one)[::-1][: len(one) // GRAIN * GRAIN].reshape(-1, GRAIN).sum(axis=1) for one in layers]
    each = np.concatenate(gains).astype(float)
    layer = np.repeat(np.arange(len(gains)), [len(one) for one in gains])
    count, charged = len(each), np.arange(len(gains))
    total = count + len(gains)
    rows = np.zeros((1 + 2 * len(gains), total))
    rows[0, :count] = 1  # all groups within the capacity
    rows[1 + layer, np.arange(count)] = -1  # least * y - groups of the layer <= 0
    rows[1 + charged, count + charged] = threshold // GRAIN
    rows[1 + len(gains) + layer, np.arange(count)] = 1  # groups of the layer - much * y <= 0
    rows[1 + len(gains) + charged, count + charged] = -MUCH
    limits = np.zeros(len(rows))
    limits[0] = capacity // GRAIN
    goal = np.concatenate([-each, np.zeros(len(gains))])
    options = {"msg_lev": "GLP_MSG_OFF", "tm_lim": LIMIT_MS}
    _, x = glpk.ilp(matrix(goal), matrix(rows), matrix(limits), None, None, set(), set(range(total)), options=options)
    if x is None:
        raise SystemExit("GLPK found nothing in 30 s")
    taken = np.array(x).ravel()[:count] > 0.5
    groups = np.bincount(layer[taken], minlength=len(gains))
    for one, n in zip(layers, groups, strict=True):
        np.argsort(-one, kind="stable")[: n * GRAIN]
    return (groups * GRAIN).tolist(), int(sum(one[:n].sum() for one, n in zip(gains, groups, strict=True)))


def timed(work: Callable[[], Any], runs: int) -> tuple[float, Any]:
    """Median seconds and the last result."""
    took = []
    result = None
    for _ in range(runs):
        start = time.perf_counter()
        result = work()
        took.append(time.perf_counter() - start)
    return figures.median(took), result


def process(layers: Sequence[np.ndarray], capacity: int, threshold: int) -> tuple[float, float]:
    """Seconds and MB of `crossdock split` as a whole, from files in PowerInfer's form."""
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
            "print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3)"
        )
        out = subprocess.run([sys.executable, "-c", code, *command], check=True, capture_output=True, text=True).stdout
    seconds, megabytes = map(float, out.split())
    return seconds, megabytes * 1.024


def main() -> None:
    """One JSON line a case."""
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    arguments.add_argument("--big", action="store_true", help="also 80 layers of 28672")
    cases = [
        (32, 11008, threshold, share, alike)
        for threshold, share in ((0, 0.3), (2560, 0.3), (2560, 0.1))
        for alike in (False, True)
    ]
    if arguments.parse_args().big:
        cases += [(80, 28672, 0, 0.3, False), (80, 28672, 0, 0.3, True)]
    for layers, width, threshold, share, alike in cases:
        data = counts(layers, width, alike)
        capacity = int(share * layers * width)
        ours, (mine, gain) = timed(lambda d=data, c=capacity, t=threshold: crossdock(d, c, t), 7)
        theirs, (_, other) = timed(lambda d=data, c=capacity, t=threshold: official(d, c, t), 1)
        bound = upper_bound(
            [group_gains(one, GRAIN) for one in data], [1] * layers, capacity // GRAIN, threshold // GRAIN
        )
        seconds, megabytes = process(data, capacity, threshold)
        line = {
            "layers": layers,
            "width": width,
            "threshold": threshold,
            "share": share,
            "layers_alike": alike,
            "neurons": sum(mine),
            "crossdock_s": round(ours, 5),
            "official_s": round(theirs, 3),
            "times": round(theirs / ours, 1),
            "official_below_optimum": round(1 - other / gain, 6),
            "bound_above_optimum": round(bound / gain - 1, 8),
            "process_s": round(seconds, 2),
            "process_MB": round(megabytes, 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
