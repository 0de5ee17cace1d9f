"""Times crossdock beside `cp`, torch and llama.cpp's converter on synthetic checkpoints, and prints a table.

    python benchmarks/run.py --work DIR [--converter .../convert_hf_to_gguf.py] [--rounds 5] [--json FILE]

Every round runs all jobs of a group one after another; figures are medians over the rounds, ratios are taken
within a round. Sources are made in DIR once (3.7 GB, and 2.6 GB for cp) and read once before timing, so that all
readers find them in memory.

The converter is not part of this repository. It comes with the source package of llama-cpp-python 0.3.36
(`pip download --no-deps --no-binary :all: llama-cpp-python==0.3.36`, folder `vendor/llama.cpp`); it needs
torch, transformers and sentencepiece. Without `--converter` its rows are left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from measure import Job, JobFailed, Run, machine, median, ratio, read_all, run_rounds, tree_size

HERE = Path(__file__).parent
CROSSDOCK = (sys.executable, "-m", "crossdock")
# the program behind `python -m torch.distributed.checkpoint.format_utils`
DCP = """
import sys
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
dcp_to_torch_save(sys.argv[1], sys.argv[2])
"""
MB = 1_000_000
GROUPS = ("torch_dist", "hf", "trtllm", "onnx", "chunks")


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that must hold."""

    what: str
    measured: float
    limit: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether the figure is within its limit."""
        return self.measured <= self.limit


def make(work: Path, name: str, script: str, *arguments: str) -> Path:
    """The synthetic source `name`, made when it is not there yet."""
    out, done = work / name, work / f"{name}.complete"
    if not done.exists():
        subprocess.run([sys.executable, str(HERE / script), str(out), *arguments], check=True)
        done.touch()
    return out


def export(group: str, source: Path, target: str, kind: str, work: Path) -> Job:
    """`crossdock export` of a source to a target and type."""
    out = work / f"out-{group}-{target}-{kind}{'.gguf' if target == 'gguf' else ''}"
    flag = "-q" if kind.startswith("q") else "--dtype"
    command = (*CROSSDOCK, "export", str(source), "--to", target, "-o", str(out), flag, kind, "--no-progress")
    return Job(group, f"{group} → {target} {kind}", command, out)


def megatron_jobs(work: Path) -> list[Job]:
    """torch_dist → Hugging Face and GGUF, beside cp and torch's own consolidation."""
    root = make(work, "torch_dist", "make_torch_dist.py")
    read_all(root)
    saved = str(root / "iter_0001000")
    group = "torch_dist"
    return [
        Job(group, "cp -r", ("cp", "-r", saved, str(work / "out-cp")), work / "out-cp"),
        Job(
            group,
            "dcp_to_torch_save",
            (sys.executable, "-c", DCP, saved, str(work / "out-dcp")),
            work / "out-dcp",
        ),
        export(group, root, "hf", "bfloat16", work),
        export(group, root, "gguf", "f16", work),
        export(group, root, "gguf", "q8_0", work),
    ]


def converter_jobs(work: Path, converter: Path | None) -> list[Job]:
    """Hugging Face → GGUF, beside llama.cpp's converter."""
    folder = make(work, "hf", "make_hf.py")
    read_all(folder)
    jobs = [export("hf", folder, "gguf", "q4_k_m", work)]
    for kind in ("f16", "bf16", "q8_0"):
        if converter is not None:
            out = work / f"out-converter-{kind}.gguf"
            command = (sys.executable, str(converter), str(folder), "--outfile", str(out), "--outtype", kind)
            jobs.append(Job("hf", f"converter {kind}", command, out))
        jobs.append(export("hf", folder, "gguf", kind, work))
    return jobs


def chunk_jobs(work: Path) -> list[Job]:
    """`inspect` and `plan` of a checkpoint with 100,000 chunks."""
    root = str(make(work, "chunks", "make_torch_dist.py", "--chunks", "100000"))
    return [
        Job("chunks", "inspect, 100,000 chunks", (*CROSSDOCK, "inspect", root, "--json")),
        Job("chunks", "plan → hf, 100,000 chunks", (*CROSSDOCK, "plan", root, "--to", "hf", "--json")),
        Job("chunks", "plan → gguf, 100,000 chunks", (*CROSSDOCK, "plan", root, "--to", "gguf", "--json")),
    ]


def rank_jobs(work: Path) -> list[Job]:
    """Hugging Face → TensorRT-LLM's rank files at TP 4, beside cp of the bytes that are written."""
    folder = make(work, "hf", "make_hf.py")
    done = work / "ranks.complete"
    command = (
        *CROSSDOCK,
        "export",
        str(folder),
        "--to",
        "trtllm",
        "--tp",
        "4",
        "--dtype",
        "bf16",
        "--no-progress",
        "-o",
    )
    if not done.exists():
        subprocess.run([*command, str(work / "ranks"), "--force"], check=True)
        done.touch()
    read_all(folder)
    read_all(work / "ranks")
    out, copy = work / "out-ranks", work / "out-ranks-cp"
    return [
        Job("trtllm", "cp -r of the rank files", ("cp", "-r", str(work / "ranks"), str(copy)), copy),
        Job("trtllm", "hf → trtllm tp 4 bf16", (*command, str(out)), out),
    ]


def onnx_jobs(work: Path) -> list[Job]:
    """Hugging Face → ONNX, beside the same folder without a graph."""
    folder = make(work, "hf", "make_hf.py")
    read_all(folder)
    return [export("onnx", folder, target, "float16", work) for target in ("hf", "onnx")]


def goals_of(runs: dict[str, list[Run]]) -> list[Goal]:
    """The goals that the jobs of this run can be held to."""
    goals = []
    ours = runs.get("torch_dist → hf bfloat16")
    if ours:
        excess = [one.wall - 1.5 * cp.wall for one, cp in zip(ours, runs["cp -r"], strict=True)]
        goals += [
            Goal("torch_dist → hf: wall beyond 1.5 × cp", sorted(excess)[len(excess) // 2], 0.6, "s"),
            Goal(
                "torch_dist → hf: CPU against dcp_to_torch_save",
                ratio(ours, runs["dcp_to_torch_save"], "cpu"),
                0.25,
                "×",
            ),
            Goal("torch_dist → hf: peak RSS", median(ours).rss / MB, 350, "MB"),
        ]
    graph = runs.get("onnx → onnx float16")
    if graph:
        folder = runs["onnx → hf float16"]
        more = [(one.cpu - other.cpu, (one.rss - other.rss) / MB) for one, other in zip(graph, folder, strict=True)]
        goals += [
            Goal(f"hf → onnx: {what} beyond hf → hf", sorted(one[at] for one in more)[len(more) // 2], limit, unit)
            for at, (what, limit, unit) in enumerate((("CPU", 1, "s"), ("peak RSS", 50, "MB")))
        ]
    ranks = runs.get("hf → trtllm tp 4 bf16")
    if ranks:
        goals += [
            Goal(
                "hf → trtllm: wall against cp of the output",
                ratio(ranks, runs["cp -r of the rank files"], "wall"),
                1.5,
                "×",
            ),
            # Megatron's exporter: 1.75 × the model at TP 2 in bfloat16, 3.31 × at TP 4 in float32; a fifth of the least
            Goal("hf → trtllm: peak RSS", median(ranks).rss / MB, 1.75 * 2200 / 5, "MB"),
        ]
    for kind in ("f16", "bf16", "q8_0"):
        theirs = runs.get(f"converter {kind}")
        if theirs:
            own = runs[f"hf → gguf {kind}"]
            goals.append(Goal(f"hf → gguf {kind}: wall against the converter", ratio(own, theirs, "wall"), 0.25, "×"))
    for name in [name for name in runs if name.endswith("100,000 chunks")]:
        goals.append(Goal(f"{name}: CPU", median(runs[name]).cpu, 12, "s"))
        goals.append(Goal(f"{name}: peak RSS", median(runs[name]).rss / MB, 500, "MB"))
    return goals


def table(jobs: list[Job], runs: dict[str, list[Run]], goals: list[Goal]) -> str:
    """The figures as a Markdown table, then the goals."""
    lines = ["| job | wall s | CPU s | peak RSS MB | output MB |", "|---|---|---|---|---|"]
    for job in jobs:
        one = median(runs[job.name])
        walls = sorted(r.wall for r in runs[job.name])
        figures = f"{one.wall:.2f} ({walls[0]:.2f}–{walls[-1]:.2f}) | {one.cpu:.2f} | {one.rss / MB:.0f}"
        lines.append(f"| {job.name} | {figures} | {one.output_bytes / MB:.0f} |")
    lines += ["", "| goal | measured | at most | |", "|---|---|---|---|"]
    for goal in goals:
        verdict = "met" if goal.met else "MISSED"
        lines.append(f"| {goal.what} | {goal.measured:.2f} {goal.unit} | {goal.limit} {goal.unit} | {verdict} |")
    return "\n".join(lines)


def versions() -> dict[str, str]:
    """Versions of the packages that matter for speed; absent ones are left out."""
    found = {}
    for package in ("crossdock", "numpy", "ml_dtypes", "numba", "torch", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> int:
    """Run the groups asked for; exit 1 when a goal is missed, 2 when a job fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for sources and outputs, about 15 GB")
    parser.add_argument("--converter", type=Path, help="llama.cpp's convert_hf_to_gguf.py")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=GROUPS, action="append")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    groups = given.only or GROUPS
    about = machine(given.work) | versions()
    jobs: list[Job] = []
    runs: dict[str, list[Run]] = {}
    for group in groups:
        if group == "torch_dist":
            own = megatron_jobs(given.work)
        elif group == "hf":
            own = converter_jobs(given.work, given.converter)
        elif group == "trtllm":
            own = rank_jobs(given.work)
        elif group == "onnx":
            own = onnx_jobs(given.work)
        else:
            own = chunk_jobs(given.work)
        jobs += own
        try:
            runs |= run_rounds(own, given.rounds, given.work)
        except JobFailed as failed:
            print(failed, file=sys.stderr)
            return 2
    goals = goals_of(runs)
    print("\n".join(f"{key}: {value}" for key, value in about.items()), end="\n\n")
    sources = {name: tree_size(given.work / name) for name in ("torch_dist", "hf") if (given.work / name).exists()}
    print("\n".join(f"source {name}: {size / MB:.0f} MB" for name, size in sources.items()), end="\n\n")
    print(table(jobs, runs, goals))
    if given.json:
        document: dict[str, Any] = {
            "machine": about,
            "sources": sources,
            "runs": {name: [asdict(one) for one in every] for name, every in runs.items()},
            "goals": [asdict(goal) | {"met": goal.met} for goal in goals],
        }
        given.json.write_text(json.dumps(document, indent=2))
    return 0 if all(goal.met for goal in goals) else 1


if __name__ == "__main__":
    raise SystemExit(main())
