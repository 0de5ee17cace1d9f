"""Every way to fail: the text, the exit code, the JSON, and never a traceback."""

import errno
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crossdock.cli import main
from crossdock.errors import CheckFailed, EnvironmentProblem, PlanError, Problem, UsageError

PROBLEMS = [
    Problem(
        "one is missing", where="common.pt", expected="4", got="3", cause="an old save", fix="--set a=4", check="half"
    ),
    Problem("evil \x1b[31mname\n"),
]


def run(monkeypatch: pytest.MonkeyPatch, error: BaseException, *args: str, color: bool = False) -> Result:
    def fail(_: Path) -> None:
        raise error

    monkeypatch.setattr("crossdock.cli.scan.find", fail)
    return CliRunner().invoke(main, ["scan", "x", *args], color=color)


def test_all_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, PlanError(PROBLEMS))
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "error: 2 problems",
        "  common.pt: one is missing",
        "    expected 4, got 3",
        "    likely cause: an old save",
        "    to do: --set a=4",
        r"  evil \x1b[31mname\n",
    ]


def test_one_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, PlanError("no", where="here", fix="do"))
    assert result.stderr == "error: here: no\n  to do: do\n"


def test_json(monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(monkeypatch, PlanError(PROBLEMS), "--json")
    assert result.exit_code == 3
    assert result.stderr == ""
    assert json.loads(result.stdout) == {
        "error": "PlanError",
        "problems": [problem.as_dict() for problem in PROBLEMS],
    }


def test_json_of_a_usage_error() -> None:
    result = CliRunner().invoke(main, ["scan", "--json", "--nope", "x"])
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"] == "UsageError"


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CheckFailed("no"), 1, "error: no\n"),
        (UsageError("no"), 2, "error: no\n"),
        (EnvironmentProblem("no"), 4, "error: no\n"),
        (KeyboardInterrupt(), 4, "interrupted: run the same command again to go on\n"),
        (
            MemoryError(),
            4,
            "error: out of memory\n  to do: a smaller --memory, or fewer --workers\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "/a/b"),
            4,
            "error: /a/b: No space left on device\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 4, "error: x: Permission denied\n"),
    ],
)
def test_codes(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, said: str) -> None:
    result = run(monkeypatch, error)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.endswith(said)
    assert result.stderr.strip().count("\n") == said.strip().count("\n")


@pytest.mark.parametrize("error", [ValueError("first\nsecond"), RecursionError("first"), KeyError("first")])
def test_a_bug(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    result = run(monkeypatch, error)
    assert result.exit_code == 3
    assert result.stderr.startswith(f"error: this is a bug in crossdock: {type(error).__name__}: ")
    assert "first" in result.stderr
    assert "second" not in result.stderr
    assert "CROSSDOCK_TRACEBACK=1" in result.stderr
    assert "Traceback" not in result.stderr


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSDOCK_TRACEBACK", "1")
    result = run(monkeypatch, ValueError("x"))
    assert result.exit_code == 3
    assert "Traceback (most recent call last)" in result.stderr


@pytest.mark.parametrize(("no_color", "red"), [(None, True), ("1", False)])
def test_colour(monkeypatch: pytest.MonkeyPatch, no_color: str | None, red: bool) -> None:
    if no_color is None:
        monkeypatch.delenv("NO_COLOR", raising=False)
    else:
        monkeypatch.setenv("NO_COLOR", no_color)
    result = run(monkeypatch, PlanError("no"), color=True)
    assert ("\x1b[31m" in result.stderr) is red


@pytest.mark.parametrize("command", [["inspect"], ["plan", "--to", "gguf"], ["export", "--to", "hf", "-o", "o"]])
def test_no_such_path(tmp_path: Path, command: list[str]) -> None:
    result = CliRunner().invoke(main, [command[0], str(tmp_path / "nope"), *command[1:]])
    assert result.exit_code == 3
    assert result.stderr.startswith("error: ")
    assert "nope" in result.stderr
    assert "bug" not in result.stderr
