"""What an engine is: one class with one method that gets tasks done, wherever its workers are.

    caller ── job, tasks ──▶ Engine.work ──▶ job.open() once a process ──▶ worker() once a thread ──▶ worker(task)
      ▲                                                                                                   │
      └── done(results), progress(units) ◀── opened.settle(results) ◀── results ──────────────────────────┘

The caller makes the output's files before and publishes them after; an engine only gets tasks done. A job is data: an
engine of several processes or machines pickles it, once for each, opens it there, and sends tasks to it and results
back. Engines know neither what a task is nor what a result means: today's tasks are tensors, parts of tensors may be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
TaskIn = TypeVar("TaskIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)


class Watch(Protocol):
    """What a worker looks at, and reports to, while it does a task."""

    def stopped(self) -> bool:
        """Whether to return early, without a result: somebody else failed, or the caller had enough."""
        ...

    def reached(self, units: int) -> None:
        """So many units of the task (bytes, or elements) are done."""
        ...


class Worker(Protocol[TaskIn, ResultOut]):
    """Does one task after another, in buffers of its own. Never used by two threads."""

    def __call__(self, task: TaskIn, watch: Watch) -> ResultOut | None:
        """Do a task. None when it was stopped, or where nothing is to be handed over."""
        ...


class Opened(Protocol[TaskIn, Result]):
    """A job in one process: its open files, which the threads share."""

    def worker(self) -> Worker[TaskIn, Result]:
        """A worker for one thread; allocates its buffers."""
        ...

    def settle(self, results: Sequence[Result]) -> None:
        """Return when what the tasks of `results` wrote is durable. Called in the process that did them, before
        they are handed over."""
        ...


class Job(Protocol[TaskIn, Result]):
    """Tasks of one kind as data, which can be pickled. See `running.copying` for the one that copies."""

    def open(self) -> AbstractContextManager[Opened[TaskIn, Result]]:
        """Open it in this process."""
        ...


class Engine(Protocol):
    """Who does tasks. Third parties register a class under the entry point group `crossdock.engines`."""

    def work(
        self,
        job: Job[Task, Result],
        tasks: Sequence[Task],
        *,
        workers: int,
        done: Callable[[Sequence[Result]], None],
        progress: Callable[[int], None],
    ) -> None:
        """Do all tasks on `workers` workers, in any order.

        done      gets results that are settled, in this thread, at least once a second while there are some; also
                  those that were finished before an error
        progress  gets the units that are done so far, in this thread, about ten times a second

        The first error of a worker stops the others and is raised here, as it was; so is what `progress` raises.
        """
        ...
