"""Small files are written whole or not at all, and nothing but a file is replaced."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crossdock.errors import EnvironmentProblem, UsageError
from crossdock.io.atomic import write_whole
from crossdock.proof.report import page

STATISTICS = Path(__file__).parents[1] / "data" / "powerinfer" / "u4x1024_i64"


def failing() -> Iterator[bytes]:
    yield b"first"
    raise KeyboardInterrupt


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "out"
    assert write_whole(file, [b"one", b"two"]) == 6
    assert file.read_bytes() == b"onetwo"
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, failing())
    with pytest.raises(EnvironmentProblem, match="the picture cannot be written"):
        write_whole(tmp_path, [b"one"], "picture")
    assert [one.name for one in tmp_path.iterdir()] == ["out"]
    assert file.read_bytes() == b"onetwo"


def test_a_pipe_is_not_replaced(crossdock: Callable[..., Any], tmp_path: Path) -> None:
    pipe, index = tmp_path / "pipe", tmp_path / "m.gpuidx"
    os.mkfifo(pipe)
    with pytest.raises(UsageError, match="a device or a pipe"):
        write_whole(pipe, [b"one"])
    with pytest.raises(UsageError, match="a device or a pipe"):
        page.place(pipe)
    for arguments in (["-o", pipe], ["-o", index, "--plot", pipe]):
        said = crossdock("split", STATISTICS, "--capacity", "999", *arguments)
        assert (said.code, "a device or a pipe" in said.stderr) == (2, True)
    assert pipe.is_fifo()
    assert not list(tmp_path.glob("*.partial"))
