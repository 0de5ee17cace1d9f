"""`crossdock export`: open, plan, run, and say what came of it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import crossdock
from crossdock import delivery, summary
from crossdock.cli import show
from crossdock.cli.options import (
    PATH,
    Parsed,
    SourceFlags,
    TargetFlags,
    json_option,
    progress_option,
    source_options,
    target_options,
    writing_options,
)
from crossdock.cli.plan import show_plan, show_warnings
from crossdock.cli.progress import Progress, watching
from crossdock.cli.sections import Sectioned, examples

if TYPE_CHECKING:
    from crossdock import Plan
    from crossdock.running.results import RunReport, TensorResult


def _local(text: str) -> str:
    return delivery.local_path(text)


MOST = 10  # tensors listed for what was found in them


@click.command(
    cls=Sectioned,
    epilog=examples(
        "crossdock export runs/iter_0010000 --to gguf --tokenizer tok/ -o model.gguf",
        "crossdock export runs/iter_0010000 --to gguf -q q8_0 --tokenizer tok/ -o model-q8_0.gguf",
        "crossdock export runs/iter_0010000 --to hf --dtype bf16 -o model-hf/",
        "crossdock export model-hf/ --to gguf -o model.gguf --memory 1GiB --workers 8",
        "crossdock export runs/iter_0010000 --to trtllm --tp 4 --pp 2 --dtype bf16 -o trt/",
    ),
)
@click.argument("src", type=PATH)
@target_options
@click.option(
    "-o",
    "--output",
    type=Parsed(_local),
    metavar="OUT",
    help="File (gguf) or folder to write.  [default: SRC-TYPE]",
)
@source_options
@writing_options
@click.option("--dry-run", is_flag=True, help="Only plan, as `crossdock plan` does.")
@json_option
@progress_option
def export(
    src: Path,
    target: TargetFlags,
    output: str | None,
    source: SourceFlags,
    running: Mapping[str, Any],
    dry_run: bool,
    as_json: bool,
    no_progress: bool,
) -> None:
    """Convert the checkpoint SRC to the format --to.

    SRC is a Megatron checkpoint (torch_dist or rank files), a Hugging Face folder, a GGUF file or a torch
    DCP folder. OUT appears only when it is whole; an interrupted run goes on when the same command is given
    again. A manifest with the hash of every tensor is written beside OUT.
    """
    plan, need = summary.planned(lambda: target.plan(source.open(src)), running)
    if dry_run:
        show_plan(plan, need, as_json=as_json)
        return
    out = delivery.destination(plan, output) if output is not None else delivery.default_output(plan, target.label())
    with watching("export", off=no_progress) as progress:
        report = crossdock.run(
            plan,
            out,
            **{**running, "memory": need.buffers, "workers": need.workers},
            progress=progress if as_json else _after(_header(plan, out), progress),
        )
    if as_json:
        show.print_json(report)
    else:
        _show(report, plan, out)
        _show_next(src, out, source, target)
        for step in target.next_steps(out, [str(src), *source.words(), *target.words()]):
            show.say(f"then: {show.clean(step)}")


def _after(text: str, progress: Progress | None) -> Progress:
    """`progress` that says `text` first, once bytes flow: a run that is refused says nothing but why."""
    lines = iter([text])

    def report(done: int, total: int, name: str) -> None:
        for line in lines:
            show.note(line)
        if progress is not None:
            progress(done, total, name)

    return report


def _header(plan: Plan, output: Path) -> str:
    parameters = show.about(plan.parameters)
    what = f"{show.clean(plan.source_root)} ({plan.source_format}, {parameters} parameters)"
    return f"{what} → {show.clean(output)} ({plan.target_format}, {show.nbytes(plan.nbytes)})"


def _show(report: RunReport, plan: Plan, output: Path) -> None:
    again = f", {report.resumed:,} of them by an earlier run" if report.resumed else ""
    took = f"{show.nbytes(report.nbytes)} in {show.duration(report.seconds)}"
    if not report.resumed:
        took += f", {show.nbytes(report.nbytes / max(report.seconds, 1e-9))}/s"
    show.say(click.style("written", fg="green", bold=True) + f"  {show.clean(output)}")
    show.facts(
        [
            ("tensors", f"{len(report.tensors):,}{again}"),
            ("bytes", took),
            ("kept", ", ".join(show.clean(name) for name in report.kept)),
            ("manifest", str(output.with_name(report.manifest.name))),
            *_errors(report.tensors),
        ]
    )
    _show_census(report.tensors)
    show_warnings(dict.fromkeys((*plan.warnings, *report.warnings)))


def _show_next(src: Path, output: Path, source: SourceFlags, target: TargetFlags) -> None:
    """The command that proves the output."""
    words = ["crossdock", "verify", str(output), "--against", str(src), *source.words(), *target.words()]
    show.say(f"\nnext: {show.clean(shlex.join(words))}")


def _errors(tensors: Sequence[TensorResult]) -> list[tuple[str, str]]:
    """How far values that were divided by scales lie from the source's; every tensor's figures are in the manifest."""
    known = [(one.name, one.figures) for one in tensors if one.figures is not None]
    if not known:
        return []
    total = sum((figures for _, figures in known[1:]), known[0][1])
    name, worst = max(known, key=lambda item: item[1].relative_rms)
    return [
        ("error", f"{100 * total.relative_rms:.3g}%, at most {100 * worst.relative_rms:.3g}% in {show.clean(name)}")
    ]


def _show_census(tensors: Sequence[TensorResult]) -> None:
    """NaN, Inf, overflow, underflow to zero and all-zero tensors, the worst first."""
    odd = [one for one in tensors if _findings(one)]
    if not odd:
        return
    odd.sort(key=lambda one: (-one.census.nonfinite, -one.census.overflow, -one.census.underflow))
    show.heading(f"Values to look at, in {show.counted(len(odd), 'tensor')}")
    show.table((), [(one.name, _findings(one)) for one in odd[:MOST]], "<<")
    if len(odd) > MOST:
        show.say(f"  … {len(odd) - MOST} more, all in the manifest")


def _findings(tensor: TensorResult) -> str:
    census: Any = tensor.census
    counts = (
        (census.nan, "NaN"),
        (census.inf, "Inf"),
        (census.overflow, f"too large for {tensor.dtype}"),
        (census.underflow, f"too small for {tensor.dtype}, now zero"),
    )
    out = [f"{count:,} {what}" for count, what in counts if count]
    if census.all_zero and census.elements:
        out.append("all zero")
    return ", ".join(out)
