"""`run` and `export`: a plan becomes files."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any

from crossdock.delivery.opening import open
from crossdock.delivery.planning import planned
from crossdock.delivery.reading import ReadOptions
from crossdock.formats import registry
from crossdock.io.system import documented_errors
from crossdock.options import made, split
from crossdock.planning.plan import Plan
from crossdock.running.destination import local_path
from crossdock.running.options import WriteOptions
from crossdock.running.results import RunReport
from crossdock.running.run import run as run_plan

_READING = frozenset(one.name for one in fields(ReadOptions))


@documented_errors()
def run(plan: Plan, output: str | os.PathLike[str], **options: Any) -> RunReport:
    """Write what a plan says, or go on with an unfinished run of the same plan. The output appears when it is whole.

    plan     what `plan` returned
    output   path of the file or folder to write; a single file gets a name in an existing folder
    options  `memory` (bytes, or a text such as "1GiB"), `workers`, `engine`, `progress`, `force`, `hash`,
             `file_hashes` and `fail_on`: the fields of `running.options.WriteOptions`

    Raises UsageError for an output that exists, MemoryPlanError for a memory that is too small, FormatError for a
    source that is damaged or changes meanwhile, CheckFailed for what `fail_on` names, EnvironmentProblem for a full
    disk.
    """
    return run_plan(plan, output, made(WriteOptions, options))


@documented_errors()
def export(source: str | os.PathLike[str], output: str | os.PathLike[str], to: str, **options: Any) -> RunReport:
    """Open, plan and run in one call.

    source   path of the checkpoint
    output   path of the file or folder to write
    to       name of the format to write, one of `crossdock formats`
    options  keyword arguments of `open`, `plan` and `run`

    Raises what these three raise.
    """
    reading = {name: options.pop(name) for name in list(options) if name in _READING}
    writing, of_target = split(WriteOptions, options)
    target = registry.made_target(to, of_target)
    local_path(output)
    return run_plan(planned(open(source, **reading), target), output, writing)
