"""`check` and `diff`: an output against its manifest, and two checkpoints against each other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from crossdock.delivery.opening import open
from crossdock.io.system import documented_errors
from crossdock.options import made
from crossdock.planning.checkpoint import Checkpoint
from crossdock.running.check import CheckReport, check_output
from crossdock.running.diff import DiffReport, diff_checkpoints
from crossdock.running.options import Progress, RunOptions


@documented_errors()
def check(
    output: str | os.PathLike[str],
    *,
    manifest: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> CheckReport:
    """Compare an output with its manifest, without the source: files, sizes, sha256, and tensors of damaged files.

    output    path of the output
    manifest  path of the manifest; None: `OUT.manifest.json` beside the output
    progress  called with bytes done, bytes in all, and the name of a file

    Raises NotACheckpointError, UsageError for a missing manifest, FormatError for a damaged one,
    EnvironmentProblem.
    """
    return check_output(Path(output), None if manifest is None else Path(manifest), progress)


@documented_errors()
def diff(a: str | os.PathLike[str] | Checkpoint, b: str | os.PathLike[str] | Checkpoint, **options: Any) -> DiffReport:
    """Compare two checkpoints of any formats, in canonical tensors and fields. Nothing is written.

    a        path of a checkpoint, or what `open` returned
    b        the other one
    options  `memory`, `workers`, `engine` and `progress`: the fields of `running.options.RunOptions`

    Raises what `open` raises, and MemoryPlanError.
    """
    one, other = (side if isinstance(side, Checkpoint) else open(side) for side in (a, b))
    return diff_checkpoints(one, other, made(RunOptions, options))
