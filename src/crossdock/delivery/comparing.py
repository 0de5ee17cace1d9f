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
    """Hold an output against its manifest alone: files, sizes, sha256, and the tensors of a damaged file.

    manifest  default: `OUT.manifest.json`, beside the output

    Raises NotACheckpointError, UsageError (there is no manifest), FormatError (a broken one), EnvironmentProblem.
    """
    return check_output(Path(output), None if manifest is None else Path(manifest), progress)


@documented_errors()
def diff(a: str | os.PathLike[str] | Checkpoint, b: str | os.PathLike[str] | Checkpoint, **options: Any) -> DiffReport:
    """Hold two checkpoints of any formats against each other, in canonical tensors and fields. Writes nothing.

    options  `memory`, `workers`, `engine`, `progress`: see `running.options.RunOptions`

    Raises what `open` raises, and MemoryPlanError.
    """
    one, other = (side if isinstance(side, Checkpoint) else open(side) for side in (a, b))
    return diff_checkpoints(one, other, made(RunOptions, options))
