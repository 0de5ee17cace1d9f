"""`crossdock export` killed with SIGKILL at random moments, and run again: the same bytes, and nothing visible before.

`PYTHONPATH=src:tests python tests/attacks/kills.py --kills 300` kills that many; the test runs a few. Each export is a
child of this process, made by fork, so that a kill costs no start of Python. An export may be killed several times
before it is let through.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crossdock.__main__ import run as command_line
from crossdock.cli import main
from crossdock.running.engines import threads
from support.ggml_training_files import random_file, write

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "examples" / "tiny-kjv"
TOKENIZER = ROOT / "examples" / "tiny-kjv-tokenizer"
SIZES = {"n_vocab": 2000, "n_embd": 128, "n_head": 4, "n_rot": 32, "n_layer": 4, "n_ff": 384}
SECONDS = 60.0  # of one export: more is a hang


@dataclass(frozen=True)
class Case:
    """One export. source: name in the work folder; name: of the output; words: flags."""

    source: str
    name: str
    words: tuple[str, ...]


CASES: Mapping[str, Case] = {
    "torch_dist to hf": Case("kjv", "out", ("--to", "hf", "--tokenizer", str(TOKENIZER))),
    "torch_dist to gguf": Case("kjv", "out.gguf", ("--to", "gguf", "-q", "q8_0", "--tokenizer", str(TOKENIZER))),
    "hf in shards": Case("hf", "out", ("--to", "hf", "--max-shard-size", "1MB")),
    "hf to fp8": Case("hf", "out", ("--to", "hf", "-q", "fp8")),
    "hf to gguf": Case("hf", "out.gguf", ("--to", "gguf", "--dtype", "f16")),
    "hf to trtllm": Case("hf", "out", ("--to", "trtllm", "--tp", "2")),
    "hf to onnx": Case("hf", "out", ("--to", "onnx", "--dtype", "f16")),
    "gguf to hf": Case("f32.gguf", "out", ("--to", "hf")),
    "training to checkpoint": Case("small.ggcp", "out.gguf", ("--to", "gguf-checkpoint")),
}


def make(work: Path) -> None:
    """The sources, of a few MB, so that there is something to interrupt."""
    (work / "kjv").symlink_to(CHECKPOINT)
    rng = np.random.default_rng(3)
    (work / "small.ggcp").write_bytes(write(random_file(rng, "ggcp", "1", "adam", **SIZES)))
    for words in (["small.ggcp", "--to", "hf", "-o", "hf"], ["hf", "--to", "gguf", "--dtype", "f32", "-o", "f32.gguf"]):
        assert ended(started(work, words)) == 0
    for case in CASES.values():  # in this process: every child has the modules and the data files from the start
        with contextlib.suppress(SystemExit), contextlib.chdir(work), contextlib.redirect_stdout(io.StringIO()):
            main.main(["export", case.source, "-o", f"warm/{case.name}", *case.words])
        shutil.rmtree(work / "warm")


def started(work: Path, words: list[str]) -> int:
    """The process of an export in `work`, with a journal that is written as often as it can be."""
    child = os.fork()
    if child:
        return child
    try:
        os.chdir(work)
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 1)
        threads.SETTLE_SECONDS = 0.0  # type: ignore[misc]
        sys.argv = ["crossdock", "export", *words, "--memory", "4MiB", "--workers", "2"]
        command_line()
        os._exit(0)
    except SystemExit as stop:
        os._exit(stop.code if isinstance(stop.code, int) else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(70)


def ended(child: int) -> int:
    """The exit code of the process, negative for a signal."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the export hangs")


def contents(folder: Path) -> dict[str, str]:
    """Every file below `folder` -> sha256."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@dataclass
class Whole:
    """An undisturbed export: what it left, and seconds until its partial folder appeared and until its end."""

    files: dict[str, str]
    begin: float
    end: float


def undisturbed(work: Path, case: Case) -> Whole:
    folder = work / "whole"
    folder.mkdir()
    start, begin = time.monotonic(), None
    child = started(work, [case.source, "-o", f"whole/{case.name}", *case.words])
    while begin is None:
        begin = time.monotonic() - start if (folder / f"{case.name}.partial").exists() else None
        assert time.monotonic() - start < SECONDS
    assert ended(child) == 0
    whole = Whole(contents(folder), begin, time.monotonic() - start)
    shutil.rmtree(folder)
    return whole


def killed(work: Path, case: Case, folder: Path, whole: Whole, rng: random.Random, *, force: bool) -> str:
    """Start the export, kill it at a random moment; where it was: "before", "partial" or "ended"."""
    partial = folder / f"{case.name}.partial"
    span = (whole.end - whole.begin) * 1.2
    anywhere = rng.random() < 0.15
    delay = rng.uniform(0, whole.end) if anywhere else rng.uniform(0, span)
    child = started(work, [case.source, "-o", f"{folder.name}/{case.name}", *case.words, *(["--force"] * force)])
    start = time.monotonic()
    while not anywhere and not partial.exists() and time.monotonic() - start < whole.end:
        time.sleep(0.0002)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), f"exit code {code}"
    return "ended" if code == 0 else "partial" if partial.exists() else "before"


def visible(folder: Path, case: Case) -> dict[str, str]:
    """What a user sees under the output's own name, without what the last step of the placement removes."""
    found = contents(folder)
    kept = {name: value for name, value in found.items() if name.split("/")[0] == case.name}
    return {name: value for name, value in kept.items() if ".crossdock-journal" not in name}


def one(work: Path, name: str, whole: Whole, number: int, rng: random.Random) -> list[str]:
    """One output, killed one to three times and then let through; where it was when it was killed."""
    case, folder = CASES[name], work / f"run{number}"
    folder.mkdir()
    force = rng.random() < 0.3
    old: dict[str, str] = {}
    if force:  # the same model in another form lies at the output's place
        flags = ("--to", "gguf", "--dtype", "f32") if case.name.endswith(".gguf") else ("--to", "hf", "--dtype", "f32")
        assert ended(started(work, ["hf", "-o", f"{folder.name}/{case.name}", *flags])) == 0
        old = visible(folder, case)
    output = {file: value for file, value in whole.files.items() if file.split("/")[0] == case.name}
    places = []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places.append(killed(work, case, folder, whole, rng, force=force))
        seen = visible(folder, case)
        assert seen in ({}, output, old), (
            f"{name}: neither nothing, nor the old output, nor the new one: {sorted(seen)}"
        )
        if places[-1] == "ended" or seen == output:  # a kill after the placement: nothing is left to disturb
            break
    if places[-1] != "ended":
        code = ended(
            started(work, [case.source, "-o", f"{folder.name}/{case.name}", *case.words, *(["--force"] * force)])
        )
        # usage: the output was in its place and whole when the kill came
        assert code == 0 or (code == 2 and visible(folder, case) == output), f"{name}: exit code {code}"
    assert contents(folder) == whole.files, f"{name}: other bytes, or something is left"
    shutil.rmtree(folder)
    return places


def kill_many() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    counts = dict.fromkeys(("before", "partial", "ended"), 0)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make(work)
        wholes = {case: undisturbed(work, CASES[case]) for case in CASES}
        number = 0
        while counts["before"] + counts["partial"] < asked.kills:
            rng = random.Random(f"{asked.seed} {number}")
            case = rng.choice(sorted(CASES))
            try:
                for place in one(work, case, wholes[case], number, rng):
                    counts[place] += 1
            except AssertionError as error:
                raise SystemExit(f"seed {asked.seed}, output {number}: {error}") from error
            number += 1
    print(
        f"{number} outputs, {counts['before']} kills before and {counts['partial']} after OUT.partial came into being"
    )


if __name__ == "__main__":
    kill_many()
