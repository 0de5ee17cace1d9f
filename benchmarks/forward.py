"""The reference forward against transformers on the CPU: 64 tokens through the models of `run.py`, same threads.

    python benchmarks/forward.py --work DIR [--memory 64] [--threads 1] [--rounds 3]

Each side runs in a process of its own, one after another within a round. crossdock reads the weights from the page
cache while it computes, so its time is reading and computing together; transformers is charged for computing alone,
with float32 weights in memory, and its loading is shown beside. The goal is about CPU seconds, which other work on the
machine disturbs little. Exit 1 when a goal is missed. Needs torch and transformers, and `run.py`'s sources in DIR.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measure import machine, read_all

TOKENS = 64
MOST_TIMES = 3.0
MOST_BESIDE = 64  # MiB beside the budget
Figures = dict[str, float]


def crossdock(source: Path, memory: int) -> Figures:
    """Opening, and the forward with all its reading."""
    from crossdock import delivery
    from crossdock.model.forward import forward
    from crossdock.running.weights import CheckpointWeights

    start = time.perf_counter()
    checkpoint = delivery.open(source)
    with CheckpointWeights(checkpoint, memory << 20) as weights:
        opened, used = time.perf_counter(), time.process_time()
        forward(checkpoint.config, weights, range(TOKENS))
        used = time.process_time() - used
    return {"load": opened - start, "forward": time.perf_counter() - opened, "cpu": used}


def transformers(source: Path, dtype: str) -> Figures:
    """Loading, and the forward alone: the second one, since the first allocates."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    start = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
    loaded = time.perf_counter()
    with torch.no_grad():
        model(torch.arange(TOKENS)[None])
        warm, used = time.perf_counter(), time.process_time()
        model(torch.arange(TOKENS)[None])
    return {"load": loaded - start, "forward": time.perf_counter() - warm, "cpu": time.process_time() - used}


def once(side: str, source: Path, memory: int, threads: int) -> Figures:
    """One side in a new process: seconds, and its peak memory in MiB."""
    command = [sys.executable, __file__, "--work", str(source), "--memory", str(memory), "--once", side]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    print(f"{side} {source.name}: {figures}", file=sys.stderr, flush=True)
    return figures


def main() -> int:
    """Rounds of every side, the table, the goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with run.py's sources")
    parser.add_argument("--memory", type=int, default=64, help="crossdock's budget in MiB")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        one = crossdock(given.work, given.memory) if given.once == "crossdock" else transformers(given.work, given.once)
        print(json.dumps(one | {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
        return 0
    hf, torch_dist = given.work / "hf", given.work / "torch_dist"
    sides = [("crossdock", hf), ("float32", hf), ("bfloat16", hf), ("crossdock", torch_dist)]
    for source in (hf, torch_dist):
        read_all(source)
    runs: dict[tuple[str, Path], list[Figures]] = {side: [] for side in sides}
    for _ in range(given.rounds):
        for side in sides:
            runs[side].append(once(*side, given.memory, given.threads))
    print("\n".join(f"{key}: {value}" for key, value in machine(given.work).items()), end="\n\n")
    print("| 64 tokens | load s | forward s | CPU s | peak RSS MiB |\n|---|---|---|---|---|")
    for (side, source), every in runs.items():
        keys = ("load", "forward", "cpu", "rss")
        load, forward, cpu, rss = (statistics.median(run[key] for run in every) for key in keys)
        name = side if side == "crossdock" else f"transformers {side}"
        print(f"| {name}, {source.name} | {load:.2f} | {forward:.2f} | {cpu:.2f} | {rss:.0f} |")
    pairs = zip(runs["crossdock", hf], runs["float32", hf], strict=True)
    times = statistics.median(own["cpu"] / theirs["cpu"] for own, theirs in pairs)
    rss = max(run["rss"] for (side, _), every in runs.items() if side == "crossdock" for run in every)
    met = times <= MOST_TIMES and rss <= given.memory + MOST_BESIDE
    print(f"\n{times:.2f} × the CPU seconds of transformers in float32 (at most {MOST_TIMES}), {rss:.0f} MiB at most")
    print(f"with a budget of {given.memory} MiB (at most {given.memory + MOST_BESIDE}): {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
