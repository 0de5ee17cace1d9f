"""A killed run goes on where it was, and the bytes never depend on kills, order, workers or memory."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import crossdock
from crossdock.errors import CrossdockError, UsageError
from crossdock.running.engines.threads import Threads

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "examples" / "tiny-kjv"
TOKENIZER = ROOT / "examples" / "tiny-kjv-tokenizer"
KILLED = """
import os, signal, sys
import crossdock
import crossdock.running.engines.threads as threads
threads.SETTLE_SECONDS = -1.0  # every tensor: the model is small
calls = 0
def progress(done, total, name):
    global calls
    calls += 1
    if calls == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
to, _, quantize = sys.argv[2].partition(" -q ")
plan = crossdock.plan(crossdock.open(sys.argv[1]), to, quantize=quantize or None, tokenizer=sys.argv[5])
crossdock.run(plan, sys.argv[3], memory=1 << 20, workers=1, progress=progress)
"""


def contents(output: Path) -> dict[str, bytes]:
    if output.is_file():
        return {"": output.read_bytes()}
    return {file.name: file.read_bytes() for file in output.iterdir()}


def planned(to: str) -> crossdock.Plan:
    target, _, quantize = to.partition(" -q ")
    return crossdock.plan(crossdock.open(CHECKPOINT), target, quantize=quantize or None, tokenizer=TOKENIZER)


def straight(to: str, output: Path) -> dict[str, bytes]:
    crossdock.run(planned(to), output)
    return contents(output)


@pytest.mark.parametrize("to", ["gguf", "hf", "hf -q fp8"])
def test_killed_at_random_points(to: str, tmp_path: Path) -> None:
    expected = straight(to, tmp_path / "straight")
    output = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    chosen = random.Random(to)
    kills = 0
    for _ in range(3):
        words: list[str | Path] = [CHECKPOINT, to, output, str(chosen.randint(3, 9)), TOKENIZER]
        kills += subprocess.run([sys.executable, "-c", KILLED, *words], env=environment).returncode == -signal.SIGKILL
        assert not output.exists()
    assert kills == 3
    report = crossdock.run(planned(to), output)
    assert report.resumed > 0
    assert contents(output) == expected
    # what was counted and measured before the kills, too
    manifests = [(tmp_path / f"{name}.manifest.json").read_bytes() for name in ("killed", "straight")]
    assert manifests[0].replace(b'"killed', b'"straight') == manifests[1]  # but for the name of the one file
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "killed", "killed.manifest.json", "straight", "straight.manifest.json",
    ]  # fmt: skip


def shuffled(seed: int) -> Callable[[Sequence[int]], Sequence[int]]:
    return lambda tasks: random.Random(seed).sample(list(tasks), len(tasks))


@pytest.mark.parametrize("to", ["gguf", "hf", "hf -q fp8"])
@pytest.mark.parametrize(
    ("order", "workers", "memory"),
    [
        (lambda tasks: tasks[::-1], 1, 256 << 20),
        (shuffled(1), 1, 1 << 20),
        (shuffled(2), 2, 1 << 20),
        (shuffled(3), 5, 64 << 20),
    ],
    ids=["reversed", "shuffled-1", "shuffled-2", "shuffled-5"],
)
def test_any_order_workers_and_memory(to: str, order: Any, workers: int, memory: int, tmp_path: Path) -> None:
    expected = straight(to, tmp_path / "straight")
    plan = planned(to)
    seen: list[list[int]] = []

    class Ordered(Threads):
        def work(self, job: Any, tasks: Any, **more: Any) -> None:
            seen.append(list(order(tasks)))
            super().work(job, seen[-1], **more)

    crossdock.run(plan, tmp_path / "other", workers=workers, memory=memory, engine=Ordered())
    assert contents(tmp_path / "other") == expected
    assert sorted(seen[0]) == list(range(len(plan.tensors))) != seen[0]


def test_an_unfinished_output_of_another_plan_is_not_continued(tmp_path: Path) -> None:
    def stop(done: int, total: int, name: str) -> None:
        raise KeyboardInterrupt

    checkpoint = crossdock.open(CHECKPOINT)
    with pytest.raises((KeyboardInterrupt, CrossdockError)):
        crossdock.run(crossdock.plan(checkpoint, "gguf"), tmp_path / "out", progress=stop)
    with pytest.raises(UsageError, match=r"another|other"):
        crossdock.run(crossdock.plan(checkpoint, "gguf", quantize="q8_0"), tmp_path / "out")


@pytest.mark.parametrize("kind", ["device", "source", "folder", "tokenizer"])
def test_force_deletes_nothing_that_is_no_output(kind: str, tmp_path: Path) -> None:
    straight("hf", tmp_path / "model")
    (tmp_path / "link").symlink_to("model")
    (tmp_path / "home" / "letters").mkdir(parents=True)
    os.mkfifo(tmp_path / "pipe")
    to, output = {"device": ("gguf", "pipe"), "source": ("hf", "model"), "folder": ("hf", "home"),
                  "tokenizer": ("hf", "tok")}[kind]  # fmt: skip
    (tmp_path / "tok").mkdir()
    for file in TOKENIZER.iterdir():
        (tmp_path / "tok" / file.name).write_bytes(file.read_bytes())
    before = sorted(tmp_path.rglob("*"))
    plan = crossdock.plan(crossdock.open(tmp_path / "link"), to, tokenizer=tmp_path / "tok")
    with pytest.raises(
        UsageError, match=r"device or a pipe|overwrite the source|would delete what is not an exported model"
    ):
        crossdock.run(plan, tmp_path / output, force=True)
    assert sorted(tmp_path.rglob("*")) == before
