"""`run` and `export`: a plan becomes files."""

from __future__ import annotations

import os
from inspect import signature
from typing import Any

from crossdock.delivery.opening import open, overrides_from
from crossdock.formats import registry
from crossdock.io.system import documented_errors
from crossdock.options import made, split
from crossdock.planning.plan import Plan
from crossdock.planning.planner import make_plan
from crossdock.running.destination import local_path
from crossdock.running.options import WriteOptions
from crossdock.running.results import RunReport
from crossdock.running.run import run as run_plan

_OPEN = frozenset((*signature(open).parameters, *signature(overrides_from).parameters)) - {"path", "overrides"}


@documented_errors()
def run(plan: Plan, output: str | os.PathLike[str], **options: Any) -> RunReport:
    """Write a plan's output, or go on with an unfinished one. See `running.run.run` for the errors.

    options  `memory`, `workers`, `engine`, `progress`, `force`, `hash`, `fail_on`: see `running.options.WriteOptions`
    """
    return run_plan(plan, output, made(WriteOptions, options))


@documented_errors()
def export(source: str | os.PathLike[str], output: str | os.PathLike[str], to: str, **options: Any) -> RunReport:
    """Open, plan and run in one call.

    options  all keyword arguments of `open`, `plan` and `run`
    """
    reading = {name: options.pop(name) for name in list(options) if name in _OPEN}
    writing, of_target = split(WriteOptions, options)
    target = registry.made_target(to, of_target)
    local_path(output)
    return run_plan(make_plan(open(source, **reading), target), output, writing)
