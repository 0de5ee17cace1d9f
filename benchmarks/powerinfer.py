"""The split against the official method: the same statistics, the same capacity, time to sort, solve and select.

The official method is rebuilt from its published description (powerinfer-py at d3ebd7c): torch sorts each layer, a
dense integer program with one binary a group and one a layer is built from lists, given to GLPK through cvxopt with a
limit of 30 s, and torch takes the top k of each layer. Both run as they are used: once, in a new process. Reading the
files and importing is in neither time. The capacity is the official default, a tenth of the neurons. Needs `cvxopt` and
`torch`:

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
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from crossdock.powerinfer.choose import choose, hottest, ranked, upper_bound

GRAIN = 256
LIMIT_MS = 30_000
MUCH = -1_000_000  # the official model's bound on a layer's groups
SHARE = 0.1
KINDS = ("power_alike", "power_steeper", "lognormal")


def counts(kind: str, layers: int, width: int) -> list[np.ndarray]:
    """int64 counts: a power law of one steepness for all layers, steeper with the layer, or lognormal."""
    rng = np.random.default_rng(0)
    if kind == "lognormal":
        return [(rng.lognormal(5, 2, width) * 1000).astype(np.int64) for _ in range(layers)]
    out = []
    for layer in range(layers):
        steepness = 0.8 if kind == "power_alike" else 0.3 + 0.6 * layer / layers
        hot = 1e8 * np.arange(1, width + 1) ** -steepness * rng.uniform(0.95, 1.05)
        out.append(hot.astype(np.int64)[rng.permutation(width)])
    return out


def crossdock(layers: Sequence[np.ndarray], capacity: int, threshold: int) -> tuple[float, int]:
    """Seconds and what is covered."""
    start = time.perf_counter()
    gains, least = zip(*(ranked(one, GRAIN) for one in layers), strict=True)
    found = choose(gains, [1] * len(gains), capacity // GRAIN, threshold // GRAIN)
    for one, groups, floors in zip(layers, found.groups, least, strict=True):
        hottest(one, groups * GRAIN, floors[groups - 1] if groups else 0)
    return time.perf_counter() - start, found.gain


def official(layers: Sequence[np.ndarray], capacity: int, threshold: int) -> tuple[float, int]:
    """Seconds and what is covered: 0 when GLPK found nothing within its limit."""
    import torch
    from cvxopt import glpk, matrix

    tensors = [torch.from_numpy(one) for one in layers]
    start = time.perf_counter()
    values: list[float] = []
    for one in tensors:
        values += (torch.sort(one, descending=True)[0] * -1.0).view(-1, GRAIN).sum(dim=1).tolist()
    count, each = len(values), len(values) // len(layers)
    rows, limits = [[1] * count + [0] * len(layers)], [capacity // GRAIN]
    for sign, charge in ((-1, threshold // GRAIN), (1, MUCH)):  # least <= groups of a layer that has any <= much
        for layer in range(len(layers)):
            row = [0] * (count + len(layers))
            row[layer * each : (layer + 1) * each] = [sign] * each
            row[count + layer] = charge
            rows.append(row)
            limits.append(0)
    goal, left, right = (matrix(np.array(one, float)) for one in (values + [0.0] * len(layers), rows, limits))
    options = {"tm_lim": LIMIT_MS, "msg_lev": "GLP_MSG_OFF"}
    _, x = glpk.ilp(goal, left, right, None, None, set(), set(range(count + len(layers))), options=options)
    taken = list(x) if x is not None else [0.0] * count
    gain = 0
    for layer, one in enumerate(tensors):
        neurons = int(sum(taken[layer * each : (layer + 1) * each])) * GRAIN
        indices = torch.topk(one, k=neurons)[1]
        np.sort(indices.numpy().astype(np.int32))
        gain += int(one[indices].sum())
    return time.perf_counter() - start, gain


def once(side: str, case: Sequence[str]) -> tuple[float, int]:
    """One side of one case in a process of its own."""
    command = [sys.executable, __file__, "--once", side, *case]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, gain = done.stdout.split()[-2:]
    return float(seconds), int(gain)


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
    arguments.add_argument("--once", nargs=5, metavar="SIDE KIND LAYERS WIDTH THRESHOLD", help="one side of one case")
    given = arguments.parse_args()
    if given.once:
        side, kind, layers, width, threshold = given.once
        work = {"crossdock": crossdock, "official": official}[side]
        data = counts(kind, int(layers), int(width))
        print(*work(data, int(SHARE * int(layers) * int(width)), int(threshold)))
        return
    cases = [(32, 11008, threshold) for threshold in (0, 2560)] + ([(80, 28672, 0)] if given.big else [])
    for (layers, width, threshold), kind in ((case, kind) for case in cases for kind in KINDS):
        case = [kind, str(layers), str(width), str(threshold)]
        ours = [once("crossdock", case) for _ in range(7)]
        theirs = [once("official", case) for _ in range(1 if threshold else 5)]
        mine, other = (figures.median(seconds for seconds, _ in side) for side in (ours, theirs))
        data, capacity = counts(kind, layers, width), int(SHARE * layers * width)
        gains = [ranked(one, GRAIN)[0] for one in data]
        bound = upper_bound(gains, [1] * layers, capacity // GRAIN, threshold // GRAIN)
        seconds, megabytes = process(data, capacity, threshold)
        line = {
            "layers": layers,
            "width": width,
            "threshold": threshold,
            "counts": kind,
            "crossdock_s": round(mine, 5),
            "official_s": round(other, 3),
            "times": round(other / mine, 1),
            "official_below_optimum": round(1 - theirs[0][1] / ours[0][1], 6),
            "bound_above_optimum": round(bound / ours[0][1] - 1, 8),
            "process_s": round(seconds, 2),
            "process_MB": round(megabytes, 1),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
