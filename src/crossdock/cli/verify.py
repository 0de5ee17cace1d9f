"""`crossdock verify`: is the output what the source says, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossdock.cli import show
from crossdock.cli.options import (
    PATH,
    SourceFlags,
    json_option,
    progress_option,
    running_options,
    source_options,
    tokenizer_option,
)
from crossdock.cli.progress import watching
from crossdock.cli.sections import Sectioned, examples

if TYPE_CHECKING:
    from crossdock.codecs.statistics import ErrorFigures
    from crossdock.running.verify import TensorCheck, VerifyReport

MOST = 10  # tensors listed that are not as they should be
WORST = 5  # lossy tensors listed with their error
STATUSES = ("equal", "different", "missing", "unexpected")


@click.command(
    cls=Sectioned,
    epilog=examples(
        "crossdock verify model.gguf --against runs/iter_0010000",
        "crossdock verify model-hf/ --against runs/iter_0010000 --json",
    ),
)
@click.argument("out", type=PATH)
@click.option("--against", required=True, type=PATH, metavar="SRC", help="The checkpoint that OUT was made from.")
@source_options
@tokenizer_option
@running_options
@json_option
@progress_option
def verify(
    out: Path,
    against: Path,
    source: SourceFlags,
    tokenizer: Path | None,
    memory: int,
    workers: int | None,
    as_json: bool,
    no_progress: bool,
) -> int:
    """Hold OUT against the checkpoint SRC, tensor by tensor.

    Plain types must be equal in every element. Quantised tensors must be what quantising the source gives,
    and are shown with how far their values lie from the source's. Exit code 1 if anything differs.
    """
    import crossdock

    checkpoint = source.open(against)
    with watching("verify", off=no_progress) as progress:
        report = crossdock.verify(
            out, checkpoint, tokenizer=tokenizer, memory=memory, workers=workers, progress=progress
        )
    if as_json:
        show.print_json(report)
    else:
        _show(report, out, against)
    return 0 if report.ok else 1


def _show(report: VerifyReport, out: Path, against: Path) -> None:
    _show_statuses(report.tensors)
    _show_errors(report.tensors)
    _show_wrong(report.tensors)
    if report.problems:
        show.heading(show.counted(len(report.problems), "problem"))
        for problem in report.problems:
            for line in problem.lines():
                show.say(f"  {show.clean(line)}")
    word = (
        click.style("verified", fg="green", bold=True) if report.ok else click.style("NOT EQUAL", fg="red", bold=True)
    )
    took = f"{show.nbytes(report.nbytes)} in {show.duration(report.seconds)}"
    show.say(f"\n{word}  {show.clean(out)} against {show.clean(against)}: {took}")


def _show_statuses(tensors: Sequence[TensorCheck]) -> None:
    """Rows of dtype, columns of status."""
    dtypes = dict.fromkeys(one.dtype for one in tensors)
    rows = []
    for dtype in dtypes:
        alike = [one for one in tensors if one.dtype == dtype]
        counts = [sum(one.status == status for one in alike) for status in STATUSES]
        rows.append((dtype, *map(show.number, counts), show.nbytes(sum(one.nbytes for one in alike))))
    show.table(("dtype", *STATUSES, "bytes"), rows, "<>>>>>")


def _show_errors(tensors: Sequence[TensorCheck]) -> None:
    """How far lossy types lie from the source: sums per dtype, then the tensors with the largest error."""
    lossy = [(one, found) for one in tensors if (found := one.figures) and (found.max_abs or found.nonfinite)]
    if not lossy:
        return
    sums: dict[str, ErrorFigures] = {}
    for one, figures in lossy:
        sums[one.dtype] = sums[one.dtype] + figures if one.dtype in sums else figures
    show.heading("Distance from the source's values")
    head = ("dtype", "largest", "rms", "relative")
    show.table(head, [(dtype, *_figures(total)) for dtype, total in sums.items()], "<>>>")
    worst = sorted(lossy, key=lambda pair: -pair[1].relative_rms)[:WORST]
    if len(lossy) > 1:
        show.say()
        rows = [(one.name, one.dtype, *_figures(figures)) for one, figures in worst]
        show.table(("worst tensors", *head), rows, "<<>>>")


def _figures(figures: ErrorFigures) -> tuple[str, str, str]:
    return f"{figures.max_abs:.3g}", f"{figures.rms:.3g}", f"{100 * figures.relative_rms:.3g}%"


def _show_wrong(tensors: Sequence[TensorCheck]) -> None:
    wrong = [one for one in tensors if one.status != "equal"]
    if not wrong:
        return
    show.heading("Not equal")
    rows = [
        (one.name, one.dtype, one.status, f"{one.different:,} elements" if one.different else "")
        for one in wrong[:MOST]
    ]
    show.table((), rows, "<<<<")
    if len(wrong) > MOST:
        show.say(f"  … {len(wrong) - MOST} more; --json lists all")
