"""The command line: parse, call the library, print. Nothing is decided here that the library could decide.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a check failed, 2 usage, 3 bad input,
4 the machine (disk, permissions, interrupted).
"""

from crossdock.cli.app import main

__all__ = ["main"]
