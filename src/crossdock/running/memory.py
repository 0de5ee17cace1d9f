"""What a run takes, and how it is shared out: bytes for each worker, and how many workers there are. Allocates nothing.

What planning takes is measured, not predicted: when a plan is shown or run, it has been made.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

from crossdock.codecs import registry as codecs
from crossdock.errors import MemoryPlanError
from crossdock.io.system import PAGE, forget_peak, resident
from crossdock.io.system import cores as usable_cores
from crossdock.planning.plan import Plan
from crossdock.wording import memory as shown

STRIP = 8 << 20  # bytes gathered at once where source rows become target columns: a strip of every row
LARGEST = 1 << 20  # bytes of one block: more does not get faster, less stays in the cache
SMALLEST = 64 << 10  # bytes of one block at least
COMPILED_FROM = 512 << 20  # bytes to encode, at a codec's cost, from which numba's start-up (0.5 s, 110 MB) pays
COMPILED_ROOM = 128 << 20  # bytes of buffers from which numba's own memory is worth it
COMPILER = 112 << 20  # bytes that numba takes
DEFAULT = 256 << 20  # bytes of all buffers where nobody says
MODULES = 24 << 20  # bytes of the modules that planning and running import; not counted against --memory
RESULT = 3200  # bytes that a run keeps of each tensor that it wrote: hash, counts, and its part of the manifest
_BUFFERS = 6  # gathered, encoded, float32 values (2x), hull, scratch of the codec


@dataclass(frozen=True, slots=True)
class BufferSizes:
    """Bytes of one worker's buffers. strip: gathered at once; block: encoded at once; hull: read at once."""

    block: int
    strip: int
    hull: int

    @classmethod
    def of(cls, share: int) -> BufferSizes:
        """The sizes for a worker that has `share` bytes."""
        block = min(LARGEST, max(SMALLEST, share // 16) // PAGE * PAGE - PAGE)
        strip = max(block, min(STRIP, (share - 4 * block) // 2 // PAGE * PAGE - PAGE))
        return cls(block, strip, max(strip, min(4 * LARGEST, share - strip - 4 * block)))

    def most(self, share: int) -> int:
        """What the buffers take of `share` when all of them are used: besides those above, float32 values, scratch of
        the codec, and what is counted and compared, each with at most four bytes for a byte of a block."""
        return min(share, self.strip + self.block + self.hull + 12 * self.block)


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes of the process before a source was opened and when its plan was made, and the most there were between."""

    before: int
    after: int
    peak: int


def measured(make: Callable[[], Plan]) -> tuple[Plan, Measured]:
    """The plan that `make` opens a source for and makes, and what that took."""
    forget_peak()
    before, _ = resident()
    plan = make()
    return plan, Measured(before, *resident())


@dataclass(frozen=True, slots=True)
class Need:
    """What a run takes. Bytes.

    buffers   that all workers together may take
    taken     that they take at most: less than `buffers` where blocks are as large as is useful
    planning  the most that opening and planning took, tokenizer and tables included, above the program itself
    peak      of the whole process, planning and running, at most
    """

    buffers: int
    taken: int
    workers: int
    planning: int
    peak: int


def need_of(plan: Plan, memory: int | None, workers: int | None, measured: Measured) -> Need:
    """What running `plan` takes, beside what planning has taken.

    memory   what the user allows for planning and running together, above the program itself; None: whatever planning
             took, and `DEFAULT` for the buffers
    workers  None: as many as the memory has room for

    Raises MemoryPlanError with what is needed and what is allowed.
    """
    planning, held = (max(0, size - measured.before) for size in (measured.peak, measured.after))
    tables = max(0, held - MODULES) + len(plan.tensors) * RESULT
    room = DEFAULT if memory is None else memory - tables
    least = max(planning - MODULES, tables + _BUFFERS * SMALLEST * (workers or 1))
    if memory is not None and memory < least:
        raise MemoryPlanError(
            f"--memory is {shown(memory)}, and this needs {shown(least)}: opening and planning took {shown(planning)}, "
            "tokenizer and tables of tensors included",
            fix=f"use --memory {-(-least >> 20) + 1}MiB",
        )
    compiler = COMPILER if importlib.util.find_spec("numba") and compiled_for(plan, room) is None else 0
    if compiler and memory is not None:
        room = room - compiler if room - compiler >= COMPILED_ROOM else COMPILED_ROOM - 1
    workers = workers or workers_for(room)
    share = share_of(room, workers)
    taken = workers * BufferSizes.of(share).most(share)
    if room < COMPILED_ROOM:
        compiler = 0
    peak = measured.before + max(planning, MODULES + tables + compiler + taken)
    return Need(room, taken, workers, planning, peak)


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
    return None if effort > COMPILED_FROM and memory >= COMPILED_ROOM else False
