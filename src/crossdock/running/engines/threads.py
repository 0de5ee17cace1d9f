"""Tasks on threads. pread, pwrite, casts and hashes release the GIL, so threads are enough on one machine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Result = TypeVar("Result")
State = TypeVar("State")


def work(
    tasks: Sequence[int],
    do: Callable[[int, State, threading.Event], Result],
    workers: int,
    state: Callable[[], State],
    patience: float = 0.1,
) -> Iterator[Result | None]:
    """Do all tasks on `workers` threads; yield results as they come, and None after `patience` seconds without one.

    Each thread makes its own `state()`. The first error stops all threads and is raised here; closing the iterator
    stops them too. `do` looks at the event now and then and returns early when it is set.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    for task in tasks:
        todo.put(task)
    done: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()
    stop = threading.Event()

    def loop() -> None:
        try:
            mine = state()
            while not stop.is_set():
                try:
                    task = todo.get_nowait()
                except queue.Empty:
                    return
                done.put((do(task, mine, stop), None))
        except BaseException as error:
            done.put((None, error))

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(min(workers, max(1, len(tasks))))]
    for thread in threads:
        thread.start()
    try:
        left = len(tasks)
        while left:
            try:
                result, error = done.get(timeout=patience)
            except queue.Empty:
                yield None
                continue
            if error is not None:
                raise error
            left -= 1
            yield result
    finally:
        stop.set()
        for thread in threads:
            thread.join()
