"""`crossdock` and `python -m crossdock`: the command as a process, which can be interrupted from the first moment."""

import sys


def run() -> None:
    """Run the command line of the process, and exit with its code."""
    try:
        from crossdock.cli import main  # here: an interrupt while it is imported is an interrupt too

        main(prog_name="crossdock")
    except KeyboardInterrupt:
        from crossdock.wording import INTERRUPTED

        sys.stderr.write(f"error: {INTERRUPTED}\n")
        sys.exit(4)


if __name__ == "__main__":
    run()
