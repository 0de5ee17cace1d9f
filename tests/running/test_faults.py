"""Disks, second runs, changed sources, findings and flipped bytes: the message, the exit code, and no output."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_files import EMBEDDING, contents, tensors, write_llama

import crossdock
from conftest import run_crossdock
from crossdock.errors import CheckFailed, EnvironmentProblem, InputError, UsageError
from crossdock.running.journal import NAME


def plan_of(source: Path, to: str = "hf", **flags: Any) -> crossdock.Plan:
    return crossdock.plan(crossdock.open(source), to, **flags)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_llama(tmp_path / "source")


def stopped(source: Path, output: Path) -> None:
    """An unfinished output: stopped by Ctrl-C at the first report."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crossdock.run(plan_of(source), output, progress=stop)
    assert not output.exists()


def test_two_runs_at_once(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    stopped(source, output)
    with (tmp_path / "out.partial" / NAME).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        answer = run_crossdock("export", source, "--to", "hf", "-o", output)
        assert answer.code == 4
        assert "another run is writing this output" in answer.stderr
        assert not output.exists()
    assert crossdock.run(plan_of(source), output).resumed > 0


WAITING = """
import os, sys
real = os.pwrite
def pwrite(*a):
    if not os.path.exists(sys.argv[-1] + ".go"):
        print("writing", flush=True)
        sys.stdin.readline()
        open(sys.argv[-1] + ".go", "w").close()
    return real(*a)
os.pwrite = pwrite
from crossdock.cli import main
main()
"""


@pytest.mark.parametrize(("to", "name"), [("hf", "out"), ("gguf", "out.gguf")])
def test_two_live_exports_into_one_output(source: Path, tmp_path: Path, to: str, name: str) -> None:
    """The first has begun to write when the second comes: that one is refused, and the first's result is whole."""
    crossdock.run(plan_of(source, to), tmp_path / "alone" / name)
    output = tmp_path / "both" / name
    words = ["export", source, "--to", to, "--workers", "1", "-o", output]
    first = subprocess.Popen(
        [sys.executable, "-c", WAITING, *map(str, words)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert first.stdin is not None
    assert first.stdout is not None
    assert first.stdout.readline() == "writing\n"
    for more in ([], ["--force"]):
        second = run_crossdock(*words, *more)
        assert second.code == 4
        assert "another run is writing this output" in second.stderr
        assert str(output) in second.stderr
        assert not output.exists()
    _, said = first.communicate("\n", timeout=60)
    assert first.returncode == 0, said
    assert contents(output) == contents(tmp_path / "alone" / name)


def test_changed_source_between_two_runs(source: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    stopped(source, output)
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(UsageError, match="the source changed since the unfinished run"):
        crossdock.run(plan_of(source), output)
    assert crossdock.run(plan_of(source), output, force=True).resumed == 0


def test_source_that_changes_while_it_is_read(source: Path, tmp_path: Path) -> None:
    plan = plan_of(source)
    os.utime(source / "model.safetensors", ns=(1, 1))
    with pytest.raises(InputError, match="the source changed"):
        crossdock.run(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_interrupt_from_the_keyboard(source: Path, tmp_path: Path) -> None:
    slow = (
        "import os, signal, crossdock.running.run as r\n"
        "real = os.pwrite\n"
        "def pwrite(*a):\n os.kill(os.getpid(), signal.SIGINT); return real(*a)\n"
        "os.pwrite = pwrite\nimport crossdock.__main__\n"
        "from crossdock.cli import main\nmain()\n"
    )
    words = ["export", str(source), "--to", "hf", "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", slow, *words], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert done.returncode == 4, done.stderr
    assert not (tmp_path / "out").exists()
    run_crossdock(*words).ok()


def test_disk_too_small(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(EnvironmentProblem, match="not enough disk space"):
        crossdock.run(plan_of(source), tmp_path / "out")
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate"])
def test_disk_full_on_the_way(source: Path, tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = getattr(os, call), iter(range(1000))

    def full(*args: Any) -> Any:
        if next(calls) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(EnvironmentProblem, match="the disk is full"):
            crossdock.run(plan_of(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    crossdock.run(plan_of(source), tmp_path / "out")


@pytest.mark.parametrize("name", ["file/out", "x" * 300, "file"])
def test_places_that_cannot_be_written(source: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises((EnvironmentProblem, UsageError)):
        crossdock.run(plan_of(source), tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def test_parent_folder_is_made(source: Path, tmp_path: Path) -> None:
    crossdock.run(plan_of(source), tmp_path / "a" / "b" / "out")
    assert (tmp_path / "a" / "b" / "out" / "config.json").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("quantize", [None, "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_bytes_do_not_depend_on_workers_or_memory(
    source: Path, tmp_path: Path, dtype: str, quantize: str | None
) -> None:
    plan = plan_of(source, "gguf", dtype=dtype, quantize=quantize)
    seen = []
    for workers, memory in [(1, 1 << 20), (2, 256 << 20), (4, 2 << 20)]:
        output = tmp_path / str(workers) / "out.gguf"
        crossdock.run(plan, output, workers=workers, memory=memory)
        seen.append(contents(output))
    assert seen[0] == seen[1] == seen[2]


def test_nonfinite_values(tmp_path: Path) -> None:
    weights = tensors()
    weights[EMBEDDING][3, :2] = np.nan, np.inf
    weights["model.norm.weight"][:] = 0
    source = write_llama(tmp_path / "bad", weights)
    report = crossdock.run(plan_of(source), tmp_path / "out")
    census = {t.name: t.census for t in report.tensors}
    assert (census[EMBEDDING].nan, census[EMBEDDING].inf) == (1, 1)
    assert census["model.norm.weight"].all_zero
    assert not census["lm_head.weight"].all_zero
    with pytest.raises(CheckFailed, match="1 NaN and 1 infinite"):
        crossdock.run(plan_of(source), tmp_path / "other", fail_on=frozenset({"nonfinite"}))
    assert not (tmp_path / "other").exists()
    answer = run_crossdock("export", source, "--to", "hf", "-o", tmp_path / "third", "--fail-on", "nonfinite")
    assert answer.code == 1
    assert EMBEDDING in answer.stderr


def test_overflow_of_float16(tmp_path: Path) -> None:
    weights = tensors()
    weights[EMBEDDING][5, :3] = 1e30
    source = write_llama(tmp_path / "big", weights)
    report = crossdock.run(plan_of(source, dtype="float16"), tmp_path / "out")
    assert {t.name: t.census.overflow for t in report.tensors if t.census.overflow} == {EMBEDDING: 3}


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_verify_names_every_flipped_tensor(source: Path, tmp_path: Path, to: str) -> None:
    output = tmp_path / "out"
    plan = plan_of(source, to)
    crossdock.run(plan, output)
    for tensor in plan.tensors:
        file = output / plan.files[tensor.file].name if to == "hf" else output
        with file.open("r+b") as data:
            data.seek(tensor.offset + tensor.nbytes // 2)
            byte = data.read(1)
            data.seek(-1, os.SEEK_CUR)
            data.write(bytes([byte[0] ^ 1]))
        report = crossdock.verify(output, source)
        assert [c.name for c in report.tensors if c.status != "equal"] == [tensor.name]
        with file.open("r+b") as data:
            data.seek(tensor.offset + tensor.nbytes // 2)
            data.write(byte)
    assert crossdock.verify(output, source).ok


def test_plan_reads_no_tensor_data(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = crossdock.open(source)

    def refuse(*_: Any) -> None:
        raise AssertionError("the plan read tensor data")

    for name in ("pread", "preadv", "readv"):
        monkeypatch.setattr(os, name, refuse)
    for to in ("hf", "gguf"):
        assert crossdock.plan(checkpoint, to).tensors
