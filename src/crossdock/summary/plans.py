"""What running a plan needs, and a plan as a file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crossdock.io.atomic import write_whole
from crossdock.options import split
from crossdock.planning.plan import Plan
from crossdock.running.memory import Need, measured, need_of
from crossdock.running.options import RunOptions


def planned(make: Callable[[], Plan], options: Mapping[str, Any]) -> tuple[Plan, Need]:
    """The plan that `make` makes, and what it takes to make and run it with the options of `RunOptions` that the user
    chose. Raises MemoryPlanError when `memory` is among them and is too little, UsageError, and what `make` raises."""
    chosen, _ = split(RunOptions, options)
    plan, took = measured(make)
    return plan, need_of(plan, chosen.memory if "memory" in options else None, chosen.workers, took)


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write the plan as JSON lines: the whole file, or nothing. Raises UsageError, EnvironmentProblem."""
    write_whole(Path(path), (f"{line}\n".encode() for line in plan.lines()), "plan")
