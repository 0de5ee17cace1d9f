"""Start `bounded_run.py` with limits on memory and time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def run_bounded(what: str, files: Iterable[Path], cwd: Path, *, megabytes: int = 768) -> dict[str, dict[str, Any]]:
    """File name -> {"answer", "seconds"} of reading each file in the way `what`, in one process in `cwd`."""
    script = Path(__file__).with_name("bounded_run.py")
    command = [sys.executable, str(script), str(megabytes), what, *map(str, files)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = (json.loads(line) for line in done.stdout.splitlines())
    return {answer["file"]: answer for answer in answers}
