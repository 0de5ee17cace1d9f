"""What `crossdock verify` and `crossdock inspect` say of a GPU index of PowerInfer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossdock.cli import show
from crossdock_powerinfer import gpuidx
from crossdock_powerinfer.check import check
from crossdock_powerinfer.commands.split import show_layers

if TYPE_CHECKING:
    from crossdock_powerinfer.check import IndexReport

sniff = gpuidx.sniff


def verify(path: Path, against: Path, model: Path | None, *, as_json: bool) -> int:
    """`crossdock verify` of an index: 0 when nothing is wrong, else 1."""

    report = check(path, against, model)
    if as_json:
        show.print_json({"ok": report.ok, **show.plain(report)})
    else:
        _show_report(report, against)
    return 0 if report.ok else 1


def _show_report(report: IndexReport, against: Path) -> None:
    show_layers(report.layers)
    show.say()
    needs = "" if report.nbytes is None else f"{show.nbytes(report.nbytes)} ({report.nbytes:,} bytes)"
    show.facts(
        [
            ("covered", "" if report.coverage is None else f"{100 * report.coverage:.2f}% of all activations"),
            ("VRAM asked for", f"{show.nbytes(report.vram_capacity)} ({report.vram_capacity:,} bytes)"),
            ("VRAM needed", needs),
            *(("note", one) for one in report.notes),
        ]
    )
    if report.problems:
        show.heading(show.counted(len(report.problems), "problem"))
        for problem in report.problems:
            for line in problem.lines():
                show.say(f"  {show.clean(line)}")
    word = click.style("verified", fg="green", bold=True) if report.ok else click.style("WRONG", fg="red", bold=True)
    show.say(f"\n{word}  {show.clean(report.path)} against {show.clean(against)}")


def inspect(path: Path, *, as_json: bool) -> int:
    """`crossdock inspect` of an index. Exit code 1 when flags and buckets do not agree."""
    index = gpuidx.read(path)
    problems = gpuidx.disagreements(index)
    widths = [len(flags) for flags in index.flags]
    if as_json:
        show.print_json(
            {
                "path": path,
                "format": "gpuidx",
                "vram_capacity": index.vram_capacity,
                "layers": [{"neurons": n, "width": width} for n, width in zip(index.neurons, widths, strict=True)],
                "neurons": sum(index.neurons),
                "problems": [problem.as_dict() for problem in problems],
            }
        )
        return 1 if problems else 0
    total = sum(widths)
    show.say(click.style(show.clean(path), bold=True))
    show.facts(
        [
            ("format", "GPU index of PowerInfer, version 3"),
            ("layers", f"{len(widths):,}"),
            ("on the GPU", f"{sum(index.neurons):,} of {total:,} neurons" if total else "nothing"),
            ("VRAM asked for", f"{show.nbytes(index.vram_capacity)} ({index.vram_capacity:,} bytes)"),
        ]
    )
    show.heading("Layers")
    rows = [
        (str(layer), show.number(n), show.number(width), f"{100 * n / width:.1f}%" if width else "")
        for layer, (n, width) in enumerate(zip(index.neurons, widths, strict=True))
    ]
    show.table(("layer", "on GPU", "of", "share"), rows, ">>>>")
    if problems:
        show.heading(show.counted(len(problems), "problem"))
        for problem in problems:
            for line in problem.lines():
                show.say(f"  {show.clean(line)}")
    return 1 if problems else 0
