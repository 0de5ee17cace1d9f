"""`crossdock scan`: what the pickles of a checkpoint would do."""

from __future__ import annotations

from pathlib import Path

import click

from crossdock.cli import show
from crossdock.cli.options import PATH, json_option
from crossdock.cli.sections import Sectioned, examples
from crossdock.scan import Finding, Report
from crossdock.scan import scan as find

WORST_FIRST = ("call", "import", "refused", "broken")
COLOURS = {"call": "red", "import": "red", "refused": "yellow", "broken": "yellow"}


@click.command(
    cls=Sectioned,
    epilog=examples(
        "crossdock scan runs/iter_0010000",
        "crossdock scan pytorch_model.bin --json",
        "crossdock scan downloads/model.zip",
    ),
)
@click.argument("path", type=PATH)
@json_option
def scan(path: Path, as_json: bool) -> int:
    """List what loading the pickles in PATH would execute.

    Looks into torch.save files, plain pickles, .metadata and the blobs within .distcp files, into zip, tar, gzip, xz,
    bzip2, .npz and .npy, and into what holds a pickle under another name. Nothing is run or imported.

    Exit code 0: everything was read to its end and holds only what torch.load(weights_only=True) builds, and names
    that are known to do nothing. 1: a loader would run or import something else. 3: something could not be read to its
    end; what was read holds nothing of the kind.
    """
    report = find(path)
    if as_json:
        show.print_json({"path": path, "files": report.files, "findings": report.findings})
    else:
        _show(path, report)
    return report.exit_code


def _show(path: Path, report: Report) -> None:
    findings = report.findings
    files = show.counted(max(report.files, len({finding.file for finding in findings})), "file")
    if not findings:
        say = f"no files that can contain a pickle in {path}" if not report.files else f"clean: only data in {files}"
        show.say(click.style(show.clean(say), fg="green" if report.files else None))
        return
    by_file: dict[Path, list[Finding]] = {}
    for finding in findings:
        by_file.setdefault(finding.file, []).append(finding)
    for file, found in by_file.items():
        show.say(click.style(show.clean(file), bold=True))
        for finding in sorted(found, key=lambda one: WORST_FIRST.index(one.severity)):
            at = f"{finding.place}, byte {finding.offset}" if finding.place else f"byte {finding.offset}"
            severity = click.style(f"{finding.severity:8}", fg=COLOURS[finding.severity])
            show.say(f"  {severity} {show.clean(finding.sentence)}")
            if finding.place or finding.offset:
                show.say(click.style(f"           at {show.clean(at)}", dim=True))
    counts = {kind: sum(one.severity == kind for one in findings) for kind in WORST_FIRST}
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    show.say(f"\n{show.counted(len(findings), 'finding')} in {len(by_file)} of {files}: {kinds}")
    if counts["call"] or counts["import"]:
        show.say("Do not open these files with torch.load(weights_only=False) or pickle.")
    else:
        show.say("Not read to the end, so not reported as clean; what was read contains only data.")
