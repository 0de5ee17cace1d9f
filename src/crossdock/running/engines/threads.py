"""Tasks on threads. pread, pwrite, casts and hashes release the GIL, so threads are enough on one machine."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from crossdock.running.engines.engine import Job, Opened, Result, Task

PATIENCE = 0.1  # seconds between two reports
SETTLE_SECONDS = 1.0  # at least, between two calls of `settle`

Answers = queue.SimpleQueue[tuple[Result | None, BaseException | None]]


class _Watch:
    """One thread's progress; `stop` is everybody's."""

    __slots__ = ("_before", "_now", "_stop")

    def __init__(self, stop: threading.Event) -> None:
        self._before, self._now, self._stop = 0, 0, stop

    def stopped(self) -> bool:
        return self._stop.is_set()

    def reached(self, units: int) -> None:
        self._now = units

    def finished(self) -> None:
        """The next task begins at nothing."""
        self._before, self._now = self._before + self._now, 0

    @property
    def units(self) -> int:
        return self._before + self._now


class Threads:
    """Threads of this process. The interpreter's lock is free most of the time."""

    def work(
        self,
        job: Job[Task, Result],
        tasks: Sequence[Task],
        *,
        workers: int,
        done: Callable[[Sequence[Result]], None],
        progress: Callable[[int], None],
    ) -> None:
        """Do all tasks, see `Engine.work`."""
        todo: queue.SimpleQueue[Task] = queue.SimpleQueue()
        for task in tasks:
            todo.put(task)
        answers: Answers[Result] = queue.SimpleQueue()
        stop = threading.Event()
        watches = [_Watch(stop) for _ in range(min(workers, max(1, len(tasks))))]
        with job.open() as opened:
            threads = [threading.Thread(target=_loop, args=(opened, todo, answers, w), daemon=True) for w in watches]
            for thread in threads:
                thread.start()
            waiting: list[Result] = []
            settled = time.monotonic()
            try:
                for _ in _arrivals(answers, len(tasks), waiting):
                    if waiting and time.monotonic() - settled > SETTLE_SECONDS:
                        _hand_over(opened, waiting, done)
                        settled = time.monotonic()
                    progress(sum(watch.units for watch in watches))
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
                while not answers.empty():
                    result, _ = answers.get()
                    waiting += [] if result is None else [result]
                _hand_over(opened, waiting, done)


def _loop(opened: Opened[Task, Result], todo: queue.SimpleQueue[Task], answers: Answers[Result], watch: _Watch) -> None:
    try:
        worker = opened.worker()
        while not watch.stopped():
            try:
                task = todo.get_nowait()
            except queue.Empty:
                return
            answers.put((worker(task, watch), None))
            watch.finished()
    except BaseException as error:
        answers.put((None, error))


def _arrivals(answers: Answers[Result], tasks: int, waiting: list[Result]) -> Iterator[None]:
    """Put results into `waiting`; return to the caller after each, and after `PATIENCE` seconds without one."""
    while tasks:
        try:
            result, error = answers.get(timeout=PATIENCE)
        except queue.Empty:
            yield
            continue
        if error is not None:
            raise error
        tasks -= 1
        if result is not None:
            waiting.append(result)
        yield


def _hand_over(opened: Opened[Task, Result], waiting: list[Result], done: Callable[[Sequence[Result]], None]) -> None:
    if waiting:
        opened.settle(waiting)
        done(tuple(waiting))
        waiting.clear()
