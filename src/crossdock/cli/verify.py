"""`crossdock verify`: is the output what the source says, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

import crossdock
from crossdock.cli import show
from crossdock.cli.extensions import foreign_file
from crossdock.cli.logits import show_logits
from crossdock.cli.options import (
    PATH,
    SourceFlags,
    grouped,
    json_option,
    progress_option,
    replay_options,
    running_options,
    source_options,
)
from crossdock.cli.progress import watching
from crossdock.cli.sections import Sectioned, examples
from crossdock.errors import NotACheckpointError, UsageError

if TYPE_CHECKING:
    from crossdock.codecs.error_stats import ErrorStats
    from crossdock.running.comparisons import TokensReport
    from crossdock.running.verify import TensorCheck, VerifyReport

MOST = 10  # tensors listed that are not as they should be
WIDE = 100  # characters shown of a text and of its ids
WORST = 5  # lossy tensors listed with their error
STATUSES = ("equal", "different", "missing", "unexpected")
AGAINST = "give --against SRC"
PARTS: Mapping[str, tuple[str, str]] = MappingProxyType({  # name for people, and what would compare it
    "tensors": ("tensors", AGAINST),
    "configuration": ("configuration", AGAINST),
    "tokenizer": ("tokenizer", "give --tokenizer, the one that OUT was made with"),
    "token_ids": ("token ids", "give --tokens (gguf)"),
    "logits": ("logits", "give --logits"),
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class CheckFlags:
    """What is checked beside the tensors; `model`: that of a PowerInfer index."""

    tokens: bool
    logits: str | None
    logits_engine: str | None
    reference: str | None
    strict: bool
    report: Path | None
    model: Path | None


@click.command(
    cls=Sectioned,
    epilog=examples(
        "crossdock verify model.gguf --against runs/iter_0010000",
        "crossdock verify model-hf/ --against runs/iter_0010000 --json",
        "crossdock verify model.gguf --against runs/iter_0010000 --tokenizer tok/ --tokens",
        'crossdock verify model.gguf --against runs/iter_0010000 --logits "In the beginning" --logits-engine llama.cpp',
        "crossdock verify model.gguf --logits tokens.npy --reference logits.npy",
        "crossdock verify model.gguf --against model-hf/ --logits 1,2,3 --reference transformers",
        "crossdock verify model.gguf --against runs/iter_0010000 --report report.html",
        "crossdock verify model.gguf.generated.gpuidx --against activation/ --model model.gguf",
    ),
)
@click.argument("out", type=PATH)
@click.option("--against", type=PATH, metavar="SRC", help="The checkpoint that OUT was made from.")
@source_options
@replay_options
@grouped(
    (
        click.option("--tokens", is_flag=True, help="Also compare llama.cpp's token ids (gguf)."),
        click.option("--logits", metavar="TEXT", help="Also compare logits: a text, @file, ids: 1,2,3, or ids.npy."),
        click.option("--logits-engine", metavar="NAME", help="Engine for OUT's logits, such as llama.cpp."),
        click.option("--reference", metavar="WHO", help="Computes SRC's: an engine, or logits.npy of the training."),
        click.option("--strict", is_flag=True, help="Exit code 1 for what was not compared, or is not proven."),
        click.option("--report", type=PATH, metavar="HTML", help="Also write an HTML report."),
        click.option("--model", type=PATH, metavar="GGUF", help="The model of a PowerInfer index."),
    ),
    "checks",
    CheckFlags,
)
@running_options
@json_option
@progress_option
def verify(
    out: Path,
    against: Path | None,
    source: SourceFlags,
    replay: Mapping[str, Any],
    checks: CheckFlags,
    running: Mapping[str, Any],
    as_json: bool,
    no_progress: bool,
) -> int:
    """Compare OUT with the checkpoint SRC, tensor by tensor.

    Plain types must be equal in every element. Quantised tensors must be what quantising the source gives,
    and are shown with how far their values lie from the source's. Exit code 1 if anything differs.
    With --logits both sides compute a text, by the reference forward (OUT by --logits-engine, SRC by --reference, if
    these are named), and lie no further apart than OUT's types explain. With --reference logits.npy, which holds what
    the training program computed in float32, SRC is not needed.
    What was held against nothing is listed; with --strict it is a failure.
    A GPU index of PowerInfer is held against the activation statistics in SRC.
    """
    if not out.exists():
        raise NotACheckpointError("path does not exist", where=str(out), fix="check the spelling of OUT")
    if foreign := foreign_file(out):
        if against is None:
            raise UsageError("an index is held against its statistics", fix="--against ACTIVATIONS")
        return foreign.verify(out, against, checks.model, as_json=as_json)
    checkpoint = None if against is None else source.open(against)
    with watching("verify", off=no_progress) as progress:
        found = crossdock.verify(
            out,
            checkpoint,
            tokens=checks.tokens,
            logits=checks.logits,
            logits_engine=checks.logits_engine,
            reference=checks.reference,
            strict=checks.strict,
            report=checks.report,
            progress=progress,
            **replay,
            **running,
        )
    if as_json:
        show.print_json(found)
    else:
        _show(found, out, against)
    return 0 if found.ok else 1


def _show_tokens(read: TokensReport) -> None:
    same = read.texts - len(read.different)
    ties = f", {read.ties} of them in an equally likely way" if read.ties else ""
    show.heading("Token ids")
    show.say(f"  llama.cpp reads {same:,} of {show.counted(read.texts, 'text')} as {show.clean(read.reader)}{ties}")
    for one in read.different[:MOST]:
        show.say(f"\n  {repr(one.text)[:WIDE]}")
        for who, ids in (("llama.cpp", one.engine), ("source", one.source)):
            show.say(f"    {who:9} {' '.join(map(str, ids))[:WIDE]}")
    if len(read.different) > MOST:
        show.say(f"  … {len(read.different) - MOST} more; --json lists all")


def _show(report: VerifyReport, out: Path, against: Path | None) -> None:
    if report.checked.tensors:
        _show_statuses(report.tensors)
    _show_errors(report.tensors)
    _show_wrong(report.tensors)
    if report.problems:
        show.heading(show.counted(len(report.problems), "problem"))
        for problem in report.problems:
            for line in problem.lines():
                show.say(f"  {show.clean(line)}")
    if report.logits is not None:
        show_logits(report.logits)
    if report.tokens is not None:
        _show_tokens(report.tokens)
    _show_checked(report)
    took = f"{show.nbytes(report.nbytes)} in {show.duration(report.seconds)}"
    whom = report.logits.reference if against is None and report.logits is not None else against
    word = report.verdict if report.ok else report.verdict.upper()
    word = click.style(word, fg="green" if report.ok else "red", bold=True)
    left = ", ".join(PARTS[part][0] for part in report.unchecked)
    rest = f"; not compared: {left}" if left else ""
    show.say(f"\n{word}  {show.clean(out)} against {show.clean(whom)}: {took}{rest}")


def _show_checked(report: VerifyReport) -> None:
    """What was held against what, and what nothing was held against."""
    show.heading("Compared")
    rows = []
    for part, (name, advice) in PARTS.items():
        how = getattr(report.checked, part)
        rows.append((name, how or f"NOT compared: {advice if report.checked.tensors else AGAINST}"))
    show.table((), rows, "<<")
    if report.unproven:
        show.heading("Not proven, since both sides take it for granted; --reference tells")
        for sentence in report.unproven:
            show.say(f"  {click.style('!', fg='yellow')} {show.clean(sentence)}")


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
    sums: dict[str, ErrorStats] = {}
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


def _figures(figures: ErrorStats) -> tuple[str, str, str]:
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
