"""`crossdock` and `python -m crossdock`: the command, which can be interrupted from its first moment on."""

import sys


def run() -> None:
    """Run the command line of the process, and exit with its code."""
    try:
        from crossdock.cli import main
    except KeyboardInterrupt:
        sys.exit(4)
    main(prog_name="crossdock")


if __name__ == "__main__":
    run()
