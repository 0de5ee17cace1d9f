"""`crossdock` and `python -m crossdock`: the command as a process. It can be interrupted from its first moment on, and
ends at once when it is done. Knows nothing of what it does.
"""

import sys


def run() -> None:
    """Run the command line of the process, and exit with its code."""
    code: object = 1
    try:
        import gc

        gc.set_threshold(50_000, 20)  # most of what is imported and planned stays: looking through it finds nothing
        from crossdock.cli import main

        main(prog_name="crossdock")
    except SystemExit as ending:
        code = ending.code
    except KeyboardInterrupt:
        from crossdock.wording import INTERRUPTED

        sys.stderr.write(f"error: {INTERRUPTED}\n")
        code = 4
    _end(code if isinstance(code, int) else 1)


def _end(code: int) -> None:
    """Exit without taking the interpreter apart, which takes a tenth of the time of a plan; files are closed by now."""
    if sys.getprofile() is not None or sys.gettrace() is not None:
        sys.exit(code)  # somebody measures, and writes it down at the end
    import contextlib
    import os

    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
