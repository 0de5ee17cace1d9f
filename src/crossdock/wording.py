"""Numbers and names as a person reads them: sizes, counts, durations, shapes. No layout, no colours."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

INTERRUPTED = "interrupted: run the same command again to go on"


def clean(text: object) -> str:
    """`text` on one line, with what is not printable spelled as an escape."""
    out = str(text)
    if out.isprintable():
        return out
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in out)


def short(value: object, most: int = 80) -> str:
    """A value as messages show it: its `repr`, cut to `most` characters."""
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."


def nearest(text: str, known: Iterable[str], count: int = 1, cutoff: float = 0.6) -> list[str]:
    """Those of `known` that `text` may be meant for, the likeliest first."""
    return difflib.get_close_matches(text, list(known), count, cutoff)


def nbytes(size: float) -> str:
    """Bytes in decimal units, three digits: "1.32 GB"."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if unit == "B" or size >= 99.95 else f"{size:.3g} {unit}"


def memory(size: float) -> str:
    """Bytes in binary units: "256 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.4g} {unit}"


def number(value: int) -> str:
    """Write a whole number with commas between thousands."""
    return f"{value:,}"


def counted(value: int, noun: str) -> str:
    """Write a count with its noun: "1 tensor", "2,000 tensors"."""
    return f"{value:,} {noun}" + ("" if value == 1 else "s")


def about(value: int) -> str:
    """A count of parameters, three digits: "7.62 B"."""
    size, unit = float(value), ""
    for bigger in ("K", "M", "B", "T"):
        if size < 999.5:
            break
        size, unit = size / 1000, f" {bigger}"
    return f"{value}" if not unit else f"{size:.3g}{unit}" if size < 99.95 else f"{size:.0f}{unit}"


def duration(seconds: float) -> str:
    """ "0.42 s", "12 s", "3 min 20 s", "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "0.01 s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def shape(sizes: Sequence[int]) -> str:
    """ "4096 × 128"; a single number is a scalar's 1."""
    return " × ".join(map(str, sizes)) or "1"
