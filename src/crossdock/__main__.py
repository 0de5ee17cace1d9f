"""`crossdock` and `python -m crossdock`: the command as a process, which can be interrupted from the first moment.

SIGTERM is an interruption like SIGINT. A standard stream that was closed becomes the null device, so that no file is
opened in its place and written to by mistake; without a standard output nothing is begun.
"""

import os
import signal
import sys
from types import FrameType


def run() -> None:
    """Run the command line of the process, and exit with its code."""
    closed = _opened_streams()
    try:
        if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _interrupt)
        from crossdock.cli import main  # here: an interrupt while it is imported is an interrupt too

        main(prog_name="crossdock", stdout_closed=1 in closed)
    except KeyboardInterrupt:
        sys.exit(_interrupted())


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _opened_streams() -> set[int]:
    """Put the null device where standard input, output or error is closed; returns which of them were."""
    closed = set()
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            closed.add(number)
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115
    return closed


def _interrupted() -> int:
    from crossdock.wording import INTERRUPTED

    if "--json" in sys.argv[1:]:
        import json

        sys.stdout.write(json.dumps({"error": "Interrupted", "problems": [{"what": INTERRUPTED}]}, indent=2) + "\n")
    else:
        sys.stderr.write(f"error: {INTERRUPTED}\n")
    return 4


if __name__ == "__main__":
    run()
