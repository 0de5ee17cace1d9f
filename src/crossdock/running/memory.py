"""How the memory is shared out: bytes for each worker, and how many workers there are. Allocates nothing."""

from __future__ import annotations

from crossdock.codecs import registry as codecs
from crossdock.errors import MemoryPlanError
from crossdock.io.system import cores as usable_cores
from crossdock.planning.plan import Plan

STRIP = 8 << 20  # bytes gathered at once where source rows become target columns: a strip of every row
SMALLEST = 64 << 10  # bytes of one block at least
COMPILED_FROM = 512 << 20  # bytes to encode, at a codec's cost, from which numba's start-up (0.5 s, 110 MB) pays
_BUFFERS = 6  # gathered, encoded, float32 values (2x), hull, scratch of the codec


def share_of(memory: int, workers: int) -> int:
    """Bytes for each worker. Raises MemoryPlanError when a block does not fit."""
    share = memory // workers
    need = _BUFFERS * SMALLEST
    if share < need:
        most = max(1, memory // need)
        raise MemoryPlanError(
            f"one block needs {need >> 10} KiB, --memory is {memory >> 10} KiB over {workers} workers",
            fix=f"use --memory {-(-need * workers >> 20)}MiB" + (f" or --workers {most}" if memory >= need else ""),
        )
    return share


def workers_for(memory: int) -> int:
    """How many workers to have when nobody says: one a core, or two where blocks stay large, since half of the time
    is spent waiting for disks; fewer where the memory has no room for them."""
    cores = usable_cores()
    wanted = max(cores, min(2 * cores, memory // (_BUFFERS * STRIP)))
    return max(1, min(wanted, memory // (_BUFFERS * SMALLEST)))


def compiled_for(plan: Plan, memory: int) -> bool | None:
    """Whether compiled encoders pay: None for wherever they are available, False for numpy."""
    effort = sum(tensor.nbytes * codecs.get(tensor.dtype).cost for tensor in plan.tensors)
    return None if effort > COMPILED_FROM and memory >= 256 << 20 else False
