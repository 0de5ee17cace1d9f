"""An engine whose workers are other processes: the job goes there once, pickled; tasks follow, results come back.

What a distributed engine is made of, on one machine: nothing is shared with the caller but the files.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any


class _Watch:
    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def stopped(self) -> bool:
        return False  # the caller ends the process

    def reached(self, units: int) -> None:
        self._pipe.send(("units", units))


def _serve(job: bytes, pipe: Connection) -> None:
    """One worker: open the job, do tasks until there are no more."""
    try:
        with pickle.loads(job).open() as opened:
            worker = opened.worker()
            while (task := pipe.recv()) is not None:
                result = worker(task, _Watch(pipe))
                if result is not None:
                    opened.settle([result])
                pipe.send(("done", result))
    except BaseException as error:
        pipe.send(("error", error))


class Processes:
    """Processes instead of threads. See `running.engines.engine.Engine`."""

    def work(
        self,
        job: Any,
        tasks: Sequence[Any],
        *,
        workers: int,
        done: Callable[[Sequence[Any]], None],
        progress: Callable[[int], None],
    ) -> None:
        context = multiprocessing.get_context("spawn")
        shipped, todo, units = pickle.dumps(job), list(tasks), {}
        pipes, processes = [], []
        for number in range(min(workers, len(tasks))):
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_serve, args=(shipped, theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            pipes.append(ours)
            ours.send(todo.pop(0) if todo else None)
            units[number] = [0, 0]
        left, at_work = len(tasks), list(pipes)
        try:
            while left:
                for pipe in wait(at_work, timeout=10):
                    kind, what = pipe.recv()  # type: ignore[union-attr]
                    count = units[pipes.index(pipe)]  # type: ignore[arg-type]
                    if kind == "error":
                        raise what
                    if kind == "units":
                        count[1] = what
                        progress(sum(map(sum, units.values())))
                        continue
                    left -= 1
                    count[:] = [sum(count), 0]
                    if what is not None:
                        done([what])
                    if not todo:
                        at_work.remove(pipe)  # type: ignore[arg-type]  # it closes, and would be found ready for ever
                    pipe.send(todo.pop(0) if todo else None)  # type: ignore[union-attr]
        finally:
            for process in processes:
                process.terminate()
                process.join()
