"""What people look at before they act: families, and the parameters, bytes and memory of a checkpoint or plan."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from crossdock.codecs.codec import encoded_size
from crossdock.codecs.registry import get
from crossdock.formats.stored import StoredTensor
from crossdock.io.atomic import write_whole
from crossdock.options import made
from crossdock.planning.catalogue import FamilyEntry as FamilyEntry
from crossdock.planning.catalogue import StoredName as StoredName
from crossdock.planning.catalogue import catalogue as catalogue
from crossdock.planning.catalogue import family_entry as family_entry
from crossdock.planning.catalogue import tensor_names as tensor_names
from crossdock.planning.estimate import parameters as parameters
from crossdock.planning.estimate import target_sizes as target_sizes
from crossdock.planning.plan import Plan
from crossdock.running.memory import share_of, workers_for
from crossdock.running.options import RunOptions
from crossdock.running.run import check_place as check_place


def stored_bytes(tensor: StoredTensor) -> int:
    """Bytes of a stored tensor's data, without the scales beside it."""
    return encoded_size(get(tensor.dtype), prod(tensor.shape))


def run_needs(options: Mapping[str, Any]) -> tuple[int, int]:
    """(bytes of memory, workers) of a run with these options (`RunOptions`). Raises MemoryPlanError, UsageError."""
    chosen = made(RunOptions, options)
    workers = chosen.workers or workers_for(chosen.memory)
    share_of(chosen.memory, workers)
    return chosen.memory, workers


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> None:
    """Write the plan as JSON lines: the whole file, or nothing. Raises UsageError, EnvironmentProblem."""
    write_whole(Path(path), (f"{line}\n".encode() for line in plan.lines()), "plan")
