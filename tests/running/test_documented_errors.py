"""Whatever the operating system refuses, and whenever: library calls raise errors of crossdock's own tree."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from llama_files import contents, write_llama

import crossdock
from crossdock.cli import main
from crossdock.errors import EnvironmentProblem
from crossdock.running import publish

CALLS = (
    *("pwrite", "fdatasync", "fsync", "ftruncate", "scandir", "open"),
    *("rename", "replace", "unlink", "pread", "mkdir"),
)
AT = ((1, errno.EIO), (2, errno.EAGAIN), (5, errno.ENOSPC), (12, errno.EIO))


def code_of(call: Callable[[], Any]) -> int:
    """The exit code that the call's error stands for; any other error fails the test."""
    try:
        call()
    except crossdock.CrossdockError as error:
        return error.exit_code
    return 0


def failing(real: Callable[..., Any], at: int, number: int) -> Callable[..., Any]:
    """`real`, whose call `at` (and every one after it) fails."""
    calls = iter(range(1, 1_000_000))

    def call(*args: Any, **flags: Any) -> Any:
        if next(calls) >= at:
            raise OSError(number, os.strerror(number))
        return real(*args, **flags)

    return call


@pytest.mark.parametrize("name", CALLS)
def test_a_run_whose_calls_fail(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_llama(tmp_path / "source")
    plan = crossdock.plan(crossdock.open(source), "hf")
    crossdock.run(plan, tmp_path / "clean" / "out")
    for at, number in AT:
        output = tmp_path / f"{at}-{number}" / "out"
        with monkeypatch.context() as patch:
            patch.setattr(os, name, failing(getattr(os, name), at, number))
            assert code_of(lambda output=output: crossdock.run(plan, output, workers=1)) in (0, 3, 4)  # type: ignore[misc]
        if not output.exists() or not (output.parent / "out.manifest.json").exists():
            crossdock.run(plan, output, force=True)
        assert crossdock.check(output).ok or name in ("unlink", "fsync")


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = crossdock.plan(crossdock.open(write_llama(tmp_path / "source")), "hf")
    monkeypatch.setattr(fcntl, "flock", failing(fcntl.flock, 1, errno.ENOLCK))
    with pytest.raises(EnvironmentProblem, match="cannot lock files"):
        crossdock.run(plan, tmp_path / "out")


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_disk_that_is_full_at_the_last_step(to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest has its room before the output is renamed; the same command ends what was begun."""
    plan = crossdock.plan(crossdock.open(write_llama(tmp_path / "source")), to)
    name = "out" if to == "hf" else "out.gguf"
    crossdock.run(plan, tmp_path / "clean" / name)
    for at in (1, 2):
        output = tmp_path / str(at) / name
        with monkeypatch.context() as patch:
            patch.setattr(publish, "write_new", failing(publish.write_new, at, errno.ENOSPC))
            with pytest.raises(EnvironmentProblem, match="the disk is full") as raised:
                crossdock.run(plan, output)
        assert not output.exists()
        assert Path(raised.value.problems[0].where).exists()
        assert crossdock.run(plan, output).resumed == len(plan.tensors)
        assert contents(output) == contents(tmp_path / "clean" / name)
        assert {path.name for path in output.parent.iterdir()} == {name, f"{name}.manifest.json"}


def test_reading_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_llama(tmp_path / "source")
    crossdock.export(source, tmp_path / "out", "hf")
    verbs: tuple[Callable[[], Any], ...] = (
        lambda: crossdock.open(source),
        lambda: crossdock.verify(tmp_path / "out", source),
        lambda: crossdock.check(tmp_path / "out"),
        lambda: crossdock.diff(source, tmp_path / "out"),
        lambda: crossdock.export(source, tmp_path / "other", "gguf", force=True),
    )
    for name in ("open", "pread", "preadv", "scandir", "stat"):
        for verb in verbs:
            for at in (1, 6):
                with monkeypatch.context() as patch:
                    patch.setattr(os, name, failing(getattr(os, name), at, errno.EACCES))
                    assert code_of(verb) in (0, 3, 4), name


def test_a_source_that_cannot_be_read_is_not_a_matter_of_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    result = CliRunner().invoke(main, ["inspect", str(tmp_path)])
    assert result.exit_code == 4
    assert "Permission denied" in result.stderr
