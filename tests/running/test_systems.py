"""Systems that lack what Linux has: the same bytes, by the same commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from llama_files import contents, write_llama

SRC = Path(__file__).parents[2] / "src"
# what Python's documentation of `os` says that macOS does not have, and what comes and goes with the version
LACKING = ("posix_fallocate", "fdatasync", "posix_fadvise", "O_DIRECT", "sched_getaffinity", "copy_file_range")
LACKING_TOO = (*LACKING, "preadv", "pwritev", "sendfile", "memfd_create", "renameat2")

CODE = """
import os, sys
for name in {lacking!r}:
    if hasattr(os, name):
        delattr(os, name)
import ctypes
if not {exchange!r}:
    def nothing(*args, **kwargs):
        raise OSError("no such library")
    ctypes.CDLL = nothing
from crossdock.__main__ import run
run()
"""


def command(lacking: tuple[str, ...], exchange: bool, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", CODE.format(lacking=lacking, exchange=exchange), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(SRC)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.mark.parametrize("lacking", [LACKING, LACKING_TOO], ids=["macOS", "nothing but POSIX"])
def test_a_system_without_these_calls(lacking: tuple[str, ...], tmp_path: Path) -> None:
    source = write_llama(tmp_path / "source")
    (tmp_path / "linux").mkdir()
    (tmp_path / "other").mkdir()
    words = ("export", source, "--to", "hf", "--max-shard-size", "300kB", "-o")
    assert command((), True, *words, tmp_path / "linux" / "out").returncode == 0
    out = tmp_path / "other" / "out"
    for more in ([], ["--force"]):
        done = command(lacking, False, *words, out, *more)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert contents(out) == contents(tmp_path / "linux" / "out")
    for proof in (["verify", out, "--against", source], ["inspect", out], ["scan", source]):
        assert command(lacking, False, *proof).returncode == 0


def test_one_module_alone_asks_for_them() -> None:
    call = re.compile(rf"os\.(?:{'|'.join(LACKING_TOO)})\b")
    found = {file.name for file in (SRC / "crossdock").rglob("*.py") if call.search(file.read_text())}
    assert found == {"system.py", "llama_cpp.py"}  # the second is a script that runs without crossdock
