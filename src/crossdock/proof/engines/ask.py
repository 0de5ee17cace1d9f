"""Runs an engine's child script and turns everything that can happen to it into an error with its last words.

ggml and torch end their process on input they do not like, hang or run out of memory; here that is a sentence.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from crossdock.errors import CheckFailed, EnvironmentProblem
from crossdock.proof.engines.registry import OTHER_VERSION, Engine

TIMEOUT = 3600.0  # seconds
LINES, CHARACTERS = 6, 600  # of what it said last


def ask(engine: Engine, request: Mapping[str, Any], *, timeout: float = TIMEOUT) -> str:
    """What the script prints on standard output.

    Raises EnvironmentProblem when the engine is not installed or of another version, CheckFailed when it fails.
    """
    engine.needed()
    where = str(request.get("model", ""))
    # -P: the script's own folder must not hide a module of the standard library
    command = [sys.executable, "-P", str(engine.script)]
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, errors="replace", timeout=timeout,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise CheckFailed(f"{engine.name} took more than {timeout:.0f} s", where=where) from None
    if done.returncode == OTHER_VERSION:
        raise EnvironmentProblem(
            f"the installed {engine.packages[0]} is not the version that crossdock knows", fix=engine.command
        )
    if done.returncode:
        raise CheckFailed(
            f"{engine.name} does not take the model: {_ending(done.returncode)}",
            where=where,
            cause=_last_words(done.stderr),
        )
    return done.stdout


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def _last_words(output: str) -> str:
    """The last lines; of a process that ggml aborted, the line of its assertion first."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    asserted = [line for line in lines if "GGML_ASSERT" in line or "GGML_ABORT" in line]
    return "; ".join((asserted or lines)[-LINES:])[-CHARACTERS:]
