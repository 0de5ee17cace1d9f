"""`crossdock check`: are the bytes of an output those that its manifest records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

import crossdock
from crossdock.cli import show
from crossdock.cli.options import PATH, json_option, progress_option
from crossdock.cli.progress import watching
from crossdock.cli.sections import Sectioned, examples

if TYPE_CHECKING:
    from crossdock.running.check import CheckReport, FileCheck

MOST = 10  # tensors of a damaged file that are listed


@click.command(
    cls=Sectioned,
    epilog=examples(
        "crossdock check model.gguf",
        "crossdock check model-hf/ --json",
        "crossdock check downloads/model.gguf --manifest model.gguf.manifest.json",
    ),
)
@click.argument("out", type=PATH)
@click.option("--manifest", type=PATH, metavar="FILE", help="The manifest.  [default: OUT.manifest.json]")
@json_option
@progress_option
def check(out: Path, manifest: Path | None, as_json: bool, no_progress: bool) -> int:
    """Compare OUT with its manifest, without the source.

    Every file must exist with the size and the sha256 of the manifest, and nothing else; tensors of a damaged
    file are named. Exit code 1 if anything differs.
    """
    with watching("check", off=no_progress) as progress:
        report = crossdock.check(out, manifest=manifest, progress=progress)
    if as_json:
        show.print_json(report)
    else:
        _show(report)
    return 0 if report.ok else 1


def _show(report: CheckReport) -> None:
    wrong = [file for file in report.files if file.status != "equal"]
    if wrong:
        show.heading("Not as written")
        show.table((), [(file.name, file.status, _about(file)) for file in wrong], "<<<")
        for file in wrong:
            for name in file.tensors[:MOST]:
                show.say(f"    {show.clean(file.name)}: tensor {show.clean(name)} differs")
            if len(file.tensors) > MOST:
                show.say(f"    … {len(file.tensors) - MOST} more; --json lists all")
        show.say()
    show.facts(
        [
            ("manifest", f"{report.manifest} (version {report.version})"),
            *(("checked" if i == 0 else "", text) for i, text in enumerate(report.checked)),
            *(("not checked" if i == 0 else "", text) for i, text in enumerate(report.not_checked)),
        ]
    )
    word = click.style("as written", fg="green", bold=True)
    if not report.ok:
        word = click.style("NOT AS WRITTEN", fg="red", bold=True)
    what = f"{show.counted(len(report.files), 'file')} with {show.counted(report.tensors, 'tensor')}"
    took = f"{show.nbytes(report.nbytes)} in {show.duration(report.seconds)}"
    show.say(f"\n{word}  {show.clean(report.output)}: {what}, {took}")


def _about(file: FileCheck) -> str:
    if file.got_nbytes is not None:
        return f"{file.got_nbytes:,} bytes instead of {file.nbytes:,}"
    if file.got_sha256 and not file.why:
        return f"sha256 {file.got_sha256[:16]}… instead of {file.sha256[:16]}…"
    return file.why
