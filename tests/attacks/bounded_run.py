"""Run in a process of its own: read one file with little memory, and tell what happened and what it cost.

Usage: bounded_run.py MEGABYTES WHAT FILE...; prints a JSON line per file.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from crossdock import torchfile, unpickle
from crossdock.errors import CrossdockError
from crossdock.formats.dcp import metadata as dcp
from crossdock.scan import scan


def attempt(what: str, file: Path) -> str:
    """Read `file` in one of the ways there are; the kind of error, or what came out."""
    try:
        if what == "load":
            return f"value {unpickle.describe(unpickle.load(file.read_bytes(), where=file.name))}"
        if what == "open":
            root = torchfile.open_torch(file).root
            return f"value {len(list(torchfile.state_tensors(root)))}"
        if what == "dcp":
            return f"value {len(dcp.read_metadata(file).tensors)}"
        return "found " + " ".join(sorted({finding.severity for finding in scan(file).findings}))
    except CrossdockError as error:
        return f"{type(error).__name__} {error.text()}"


def main() -> None:
    limit, what, *files = sys.argv[1:]
    resource.setrlimit(resource.RLIMIT_AS, (int(limit) << 20, int(limit) << 20))
    for name in files:
        start = time.process_time()
        answer = attempt(what, Path(name))
        cost = time.process_time() - start
        print(json.dumps({"file": Path(name).name, "answer": answer[:2000], "seconds": cost}), flush=True)


main()
