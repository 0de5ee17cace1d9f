"""The command as a process: start-up, pipes that close, odd terminals."""

import os
import pty
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.ggml_training_files import random_file, write

SRC = Path(__file__).parents[2] / "src"
COMMAND = [sys.executable, "-m", "crossdock"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SRC)}
HEAVY = ("numpy", "ml_dtypes", "rich", "numba", "xxhash", "importlib.metadata", "json.decoder")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, crossdock.cli; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert not {name for name in loaded.stdout.split() if name.split(".")[0] in HEAVY or name in HEAVY}


@pytest.fixture
def legacy(tmp_path: Path) -> Path:
    """A training checkpoint of llama.cpp of 2023."""
    (tmp_path / "legacy.ggcp").write_bytes(write(random_file(np.random.default_rng(1), "ggcp", "0", "adam")))
    return tmp_path / "legacy.ggcp"


def started(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`code`, and then the command with these arguments, in a process that need not end well."""
    code += "\nfrom crossdock.__main__ import run\nrun()"
    return subprocess.run([sys.executable, "-c", code, *arguments], env=ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.parametrize("module", ["crossdock.cli", "click", "numpy", "crossdock.planning.plan"])
def test_interrupted_while_it_starts(module: str, legacy: Path) -> None:
    code = f"""
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())"""
    done = started(code, "plan", str(legacy), "--to", "gguf")
    assert done.returncode == 4
    assert done.stderr.strip() == "error: interrupted: run the same command again to go on"
    assert done.stdout == ""


def test_a_reader_that_leaves() -> None:
    child = subprocess.Popen(
        [*COMMAND, "export", "--help"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 1


def test_output_that_cannot_be_encoded(tmp_path: Path) -> None:
    (tmp_path / "шön\udcff.pt").write_bytes(b"cos\nsystem\n(S'x'\ntR.")
    done = subprocess.run(
        [*COMMAND, "scan", str(tmp_path)],
        env={**ENVIRONMENT, "PYTHONIOENCODING": "iso8859-1"},
        capture_output=True,
    )
    assert done.returncode == 1
    assert done.stderr == b""
    assert b"?\xf6n\\udcff.pt" in done.stdout


def test_colours_on_a_terminal_only() -> None:
    assert b"\x1b[31m" in _stderr_on_a_terminal({})
    assert b"\x1b[31m" not in _stderr_on_a_terminal({"NO_COLOR": "1"})


def _stderr_on_a_terminal(more: dict[str, str]) -> bytes:
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in ENVIRONMENT.items() if name != "NO_COLOR"} | more
    subprocess.run([*COMMAND, "scan", "/no/such/path"], env=environment, stderr=theirs, check=False)
    os.close(theirs)
    out = b""
    while select.select([ours], [], [], 0)[0]:
        try:
            out += os.read(ours, 4096)
        except OSError:
            break
    os.close(ours)
    assert b"/no/such/path" in out
    return out
