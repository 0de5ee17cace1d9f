"""Text on stdout: sizes, tables, JSON. Names out of files are shown without their control characters.

No column is ever cut; only the last one of a table is wrapped, and only on a terminal.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import click

from crossdock.wording import about as about
from crossdock.wording import clean as clean
from crossdock.wording import counted as counted
from crossdock.wording import duration as duration
from crossdock.wording import memory as memory
from crossdock.wording import nbytes as nbytes
from crossdock.wording import number as number
from crossdock.wording import shape as shape

NARROWEST = 24  # columns that the last column of a table gets at least
LONG = 64  # elements of an array from which on JSON says only what it is


def say(text: str = "") -> None:
    """A line of the result."""
    click.echo(text)


def note(text: str) -> None:
    """A line that is not part of the result."""
    click.echo(text, err=True)


def flush() -> None:
    """Let what was said appear before what follows on stderr."""
    sys.stdout.flush()


def heading(text: str) -> None:
    """An empty line and a title."""
    click.echo("\n" + click.style(text, bold=True))


def _columns() -> int:
    """The width of the terminal in columns."""
    return shutil.get_terminal_size().columns


def table(headers: Sequence[str], rows: Iterable[Sequence[str]], align: str, indent: int = 2) -> None:
    """Print rows in columns. `align`: "<" or ">" per column. Empty `headers`: no head. Nothing if no rows."""
    body = [[clean(cell) for cell in row] for row in rows]
    if not body:
        return
    every = [list(headers), *body] if headers else body
    widths = [max(len(row[i]) for row in every) for i in range(len(align))]
    left = indent + sum(widths[:-1]) + 2 * (len(widths) - 1)
    room = _columns() - left - 1 if sys.stdout.isatty() else 0
    for row in every:
        cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)]
        if 0 < room < len(row[-1]) and align[-1] == "<":
            lines = textwrap.wrap(row[-1], max(room, NARROWEST), break_long_words=False) or [""]
            cells[-1] = ("\n" + " " * left).join(lines)
        line = (" " * indent + "  ".join(cells)).rstrip()
        say(click.style(line, dim=True) if headers and row is every[0] else line)


def facts(pairs: Iterable[tuple[str, str]]) -> None:
    """Two columns without a head; pairs with an empty value are left out."""
    table((), [pair for pair in pairs if pair[1]], "<<")


def reasons(items: Mapping[str, str], *, most: int = 6) -> list[tuple[str, str]]:
    """name -> reason as (names, reason): names with one reason together, the first few spelled out."""
    groups: dict[str, list[str]] = {}
    for name, reason in items.items():
        groups.setdefault(reason, []).append(name)
    out = []
    for reason, names in groups.items():
        shown = names if len(names) <= most else [*names[: most // 2], f"… {len(names) - most // 2} more"]
        out.append((reason, ", ".join(shown)))
    return out


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(plain(value), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """`value` as what JSON has: mappings, lists, numbers, text. Long arrays become a description."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else repr(float(value))
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if hasattr(value, "tolist"):  # numpy
        return plain(value.tolist()) if getattr(value, "size", 0) < LONG else f"{value.dtype} array of {value.size}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return str(value)
