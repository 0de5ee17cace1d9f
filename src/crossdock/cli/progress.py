"""How far a run is, on stderr: a bar on a terminal, else one line every 30 seconds.

rich is imported only for a bar.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from crossdock.cli import show

INTERVAL: Final = 30.0  # seconds between lines
NAME = 40  # columns for the name of the tensor at work

Progress = Callable[[int, int, str], None]
Clock = Callable[[], float]


@contextmanager
def watching(verb: str, *, off: bool) -> Iterator[Progress | None]:
    """What to hand to the library as `progress`; None with `off`. `verb`: "export", "verify"."""
    if off:
        yield None
    elif sys.stderr.isatty():
        yield from _bar(verb)
    else:
        yield Lines(verb)


class Lines:
    """Progress as plain lines. May be called from any thread."""

    def __init__(self, verb: str, clock: Clock = time.monotonic) -> None:
        self._verb, self._clock = verb, clock
        self._lock = threading.Lock()
        self._start = self._last = clock()
        self._before: int | None = None

    def __call__(self, done: int, total: int, name: str) -> None:
        """`done` of `total` bytes; what an earlier run did is in the first `done`."""
        with self._lock:
            now = self._clock()
            if self._before is None:
                self._before = done
            if now - self._last < INTERVAL:
                return
            self._last = now
            show.note(f"{self._verb}: {self._line(done, total, now)}")

    def _line(self, done: int, total: int, now: float) -> str:
        share = f"{show.nbytes(done)} of {show.nbytes(total)} ({100 * done // max(total, 1)}%)"
        rate = (done - (self._before or 0)) / max(now - self._start, 1e-9)
        if rate <= 0:
            return share
        return f"{share}, {show.nbytes(rate)}/s, {show.duration((total - done) / rate)} left"


def _bar(verb: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    bar = Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[tensor]}", style="dim", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task(verb, total=None, tensor="")

        def update(done: int, total: int, name: str) -> None:
            text = show.clean(name)
            tensor = text if len(text) <= NAME else f"…{text[1 - NAME :]}"
            bar.update(task, completed=done, total=total, tensor=tensor)

        yield update
