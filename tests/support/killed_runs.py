"""A run in a process of its own that is killed at a chosen write, flush or rename."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# counts what changes the disk, and kills the process before the n-th such call (or says how many there were)
_KILLED = """
import json, os, signal, sys
import crossdock, crossdock.running.engines.threads as threads
threads.SETTLE_SECONDS = 0.0
last, names, source, output, to, options = sys.argv[1:]
options = json.loads(options)
calls = 0
def counted(real):
    def call(*args, **kwargs):
        global calls
        calls += 1
        if calls == int(last):
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
plan = crossdock.plan(crossdock.open(source, **options["open"]), to, **options["plan"])
for name in names.split(","):
    setattr(os, name, counted(getattr(os, name)))
crossdock.run(plan, output, memory=1 << 20, workers=2, force=options["force"])
print(calls)
"""
ALL = "pwrite,replace,rename,unlink,fsync,fdatasync,ftruncate,mkdir,rmdir"


def killed_at(
    last: int,
    names: str,
    source: Path,
    output: Path,
    to: str,
    *,
    open: Mapping[str, Any] | None = None,
    plan: Mapping[str, Any] | None = None,
    force: bool = False,
) -> int:
    """Run until the `last` call of the functions `names` of os; how many calls there were when it is 0.

    open, plan  further arguments of crossdock.open and crossdock.plan
    """
    options = json.dumps({"open": open or {}, "plan": plan or {}, "force": force})
    words = [str(last), names, str(source), str(output), to, options]
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, *words], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == (-signal.SIGKILL if last else 0), done.stderr
    return 0 if last else int(done.stdout)
