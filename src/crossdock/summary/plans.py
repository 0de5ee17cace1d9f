"""What running a plan needs, and a plan as a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdock.io.atomic import write_whole
from crossdock.options import made
from crossdock.planning.plan import Plan
from crossdock.running.memory import share_of, workers_for
from crossdock.running.options import RunOptions


def run_needs(options: Mapping[str, Any]) -> tuple[int, int]:
    """(bytes of memory, workers) of a run with these options (`RunOptions`). Raises MemoryPlanError, UsageError."""
    chosen = made(RunOptions, options)
    workers = chosen.workers or workers_for(chosen.memory)
    share_of(chosen.memory, workers)
    return chosen.memory, workers


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write the plan as JSON lines: the whole file, or nothing. Raises UsageError, EnvironmentProblem."""
    write_whole(Path(path), (f"{line}\n".encode() for line in plan.lines()), "plan")
