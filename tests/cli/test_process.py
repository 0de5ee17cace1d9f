"""The command as a process: start-up, pipes that close, odd terminals."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from crossdock.cli.app import COMMANDS, main
from support.ggml_training_files import random_file, write

SRC = Path(__file__).parents[2] / "src"
COMMAND = [sys.executable, "-m", "crossdock"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SRC)}
HEAVY = ("numpy", "ml_dtypes", "rich", "numba", "xxhash", "importlib.metadata")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import atexit, sys; atexit.register(lambda: print(*sys.modules)); from crossdock.cli import main; main(['-h'])"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert "crossdock.cli.app" in loaded
    assert not {name for name in loaded if name.split(".")[0] in HEAVY or name in HEAVY}


def test_the_list_of_commands_says_the_first_sentence_of_each() -> None:
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in COMMANDS}
    shown = {name: command.get_short_help_str(200) for name, command in commands.items() if command is not None}
    assert shown == {name: sentence for name, (_, sentence) in COMMANDS.items()}


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


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_interrupted_while_it_starts_in_json_too(more: list[str], legacy: Path) -> None:
    code = """
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "crossdock.cli":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Interrupting())"""
    done = started(code, "plan", str(legacy), "--to", "gguf", *more)
    assert done.returncode == 4
    if more:
        assert json.loads(done.stdout)["error"] == "Interrupted"
        assert done.stderr == ""
    else:
        assert done.stderr.strip() == "error: interrupted: run the same command again to go on"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_tensors_are_written(number: int, legacy: Path, tmp_path: Path) -> None:
    """Either signal ends the run with 4; the same command goes on afterwards."""
    code = f"""
import os, signal
from crossdock.running import copying
real = copying.Copier.__call__
def call(*args):
    os.kill(os.getpid(), {int(number)})
    return real(*args)
copying.Copier.__call__ = call"""
    words = ["export", str(legacy), "--to", "gguf", "-o", str(tmp_path / "out")]
    done = started(code, *words)
    assert done.returncode == 4
    assert done.stderr.strip().endswith("interrupted: run the same command again to go on")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    assert started("", *words).returncode == 0


def test_an_ignored_signal_stays_ignored(legacy: Path) -> None:
    code = """
import atexit, os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))"""
    assert started(code, "plan", str(legacy), "--to", "gguf").returncode == 0


def shell(line: str, *words: object) -> subprocess.CompletedProcess[bytes]:
    """The command with these words, as `$@` of a line of sh."""
    command = ["sh", "-c", line, "sh", *COMMAND, *map(str, words)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, timeout=60)


def commands(legacy: Path) -> list[list[str]]:
    inspect = ["inspect", str(legacy)]
    return [["export", "--help"], inspect, [*inspect, "--json"], ["inspect", "/no/such/path", "--json"]]


def test_a_reader_that_leaves(legacy: Path) -> None:
    for words in commands(legacy):
        child = subprocess.Popen([*COMMAND, *words], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        assert child.stderr.read() == b""
        child.stderr.close()
        assert child.wait() == 141


def test_a_disk_that_takes_no_output(legacy: Path) -> None:
    for words in commands(legacy):
        done = shell('"$@" >/dev/full', *words)
        assert done.returncode == 4
        assert done.stderr == b"error: standard output cannot be written: No space left on device\n"


def test_no_standard_output(legacy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    for words in [*commands(legacy), ["export", str(legacy), "--to", "gguf", "-o", str(out)]]:
        done = shell('"$@" >&-', *words)
        assert done.returncode == 4
        assert done.stderr.startswith(b"error: standard output is closed")
        assert done.stderr.count(b"\n") == 2
    assert not out.exists()


@pytest.mark.parametrize("line", ['"$@" 2>&-', '"$@" 2>/dev/full', '"$@" <&- 2>&-'])
def test_no_standard_error(line: str, legacy: Path, tmp_path: Path) -> None:
    """What goes there is lost; nothing of it lands in a file that was opened meanwhile."""
    assert shell(line, "inspect", "/no/such/path").returncode in (3, 4)
    out = tmp_path / "out.gguf"
    done = shell(line, "export", str(legacy), "--to", "gguf", "-o", out)
    if "full" not in line:
        assert done.returncode == 0
        assert shell('"$@"', "verify", out, "--against", legacy).returncode == 0


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
