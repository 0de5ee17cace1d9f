"""Errors as a user meets them: one text on stderr or one JSON object on stdout, and the exit code.

Never a traceback, unless the environment variable CROSSDOCK_TRACEBACK asks for one. A reader that leaves (`| head`)
ends the command with 141, as a shell shows a process that SIGPIPE ended; a standard output that takes nothing (closed,
or on a full disk) with 4.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import click

from crossdock.cli.guesses import no_such_option
from crossdock.cli.show import clean, print_json
from crossdock.errors import CrossdockError, EnvironmentProblem, Problem
from crossdock.wording import INTERRUPTED


def colour() -> bool | None:
    """False with NO_COLOR set, else None: colours where there is a terminal."""
    return False if os.environ.get("NO_COLOR") else None


BROKEN_PIPE = 141  # 128 + SIGPIPE
CLOSED = Problem(
    "standard output is closed, so the result could not be shown", fix="keep it open, or redirect it: > /dev/null"
)


def guarded(command: Callable[[], Any], *, as_json: bool, closed: bool = False) -> int:
    """Run `command`, print what it raises, and return the exit code. closed: there is no standard output."""
    try:
        try:
            if closed or sys.stdout is None:
                print_problems([CLOSED])
                return EnvironmentProblem.exit_code
            code = command()
            sys.stdout.flush()
            return code if isinstance(code, int) else 0
        except BrokenPipeError:
            raise
        except SystemExit as end:  # outside of its standalone mode, click ends so when a reader has left, and only then
            raise BrokenPipeError from end
        except Exception as error:
            if isinstance(error, OSError) and _of_printing(error):
                raise
            code = report(error, as_json=as_json)
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        _discard_stdout()
        return BROKEN_PIPE
    except OSError as error:  # what there is to say cannot be written
        _discard_stdout()
        with contextlib.suppress(OSError):
            print_problems([Problem(f"standard output cannot be written: {error.strerror or error}")])
        return EnvironmentProblem.exit_code


def _of_printing(error: OSError) -> bool:
    """Whether click raised it while it wrote to a stream, and no file operation did."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and str(frame.tb_frame.f_globals.get("__name__")).startswith("click.")


def _discard_stdout() -> None:
    """What is still buffered must not fail again when the interpreter ends. click may have wrapped the stream."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report(error: Exception, *, as_json: bool) -> int:
    """Print `error` and return the exit code."""
    if os.environ.get("CROSSDOCK_TRACEBACK") and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    name, problems, code = _describe(error)
    if as_json:
        print_json({"error": name, "problems": [problem.as_dict() for problem in problems]})
    else:
        print_problems(problems)
    return code


def print_problems(problems: Sequence[Problem]) -> None:
    """All problems on stderr, the word "error" in red where colours are wanted."""
    word = click.style("error:", fg="red", bold=True)
    lines = [clean(line) for problem in problems for line in problem.lines()]
    if len(problems) > 1:
        lines = [f"{len(problems)} problems", *(f"  {line}" for line in lines)]
    click.echo(f"{word} " + "\n".join(lines), err=True, color=colour())


def _describe(error: Exception) -> tuple[str, Sequence[Problem], int]:
    """The error's name, its problems and the exit code."""
    if isinstance(error, CrossdockError):
        return type(error).__name__, error.problems, error.exit_code
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "crossdock"
        what = error.format_message()
        if isinstance(error, click.NoSuchOption):
            what = no_such_option(error.option_name, error.possibilities or ())
        return "UsageError", [Problem(what, fix=f"see '{path} --help'")], 2
    if isinstance(error, click.Abort) or isinstance(error.__cause__, KeyboardInterrupt):  # while a class was made
        return "Interrupted", [Problem(INTERRUPTED)], EnvironmentProblem.exit_code
    if isinstance(error, (MemoryError, OSError)):
        return "EnvironmentProblem", [_of_machine(error)], EnvironmentProblem.exit_code
    line = str(error).split("\n")[0][:300]
    return (
        type(error).__name__,
        [
            Problem(
                f"this is a bug in crossdock: {type(error).__name__}: {line}",
                fix="please report it with the output of the same command under CROSSDOCK_TRACEBACK=1",
            )
        ],
        3,
    )


def _of_machine(error: MemoryError | OSError) -> Problem:
    if isinstance(error, MemoryError):
        return Problem("out of memory", fix="a smaller --memory, or fewer --workers")
    what = error.strerror or str(error) or type(error).__name__
    return Problem(what, where=str(error.filename or ""))
