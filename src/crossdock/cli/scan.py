"""`crossdock scan`: what the pickles of a checkpoint would do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from crossdock.cli import show
from crossdock.cli.options import PATH, json_option
from crossdock.cli.sections import Sectioned, examples

if TYPE_CHECKING:
    from crossdock.scan import Finding

WORST_FIRST = ("call", "import", "refused", "broken")
COLOURS = {"call": "red", "import": "red", "refused": "yellow", "broken": "yellow"}


@click.command(
    cls=Sectioned,
    epilog=examples(
        "crossdock scan runs/iter_0010000",
        "crossdock scan pytorch_model.bin --json",
        "crossdock scan downloads/ && python load_it.py",
    ),
)
@click.argument("path", type=PATH)
@json_option
def scan(path: Path, as_json: bool) -> int:
    """List what the pickles in PATH would make a loader do.

    Looks into torch.save files, plain pickles, .metadata and the blobs within .distcp files, and into what
    holds a pickle under another name. Nothing is run or imported. Exit code 1 if there is anything beyond
    plain data, 0 if not.
    """
    from crossdock.scan import looked_at
    from crossdock.scan import scan as find

    findings = find(path)
    count = looked_at(path)
    if as_json:
        show.print_json({"path": path, "files": count, "findings": findings})
    else:
        _show(path, findings, count)
    return 1 if findings else 0


def _show(path: Path, findings: list[Finding], looked_at: int) -> None:
    files = show.counted(looked_at, "file")
    if not findings:
        say = f"no file that may hold a pickle in {path}" if not looked_at else f"clean: only data in {files}"
        show.say(click.style(show.clean(say), fg="green" if looked_at else None))
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
    elif path.is_file() and counts["broken"] == len(findings):
        show.say("It may be no pickle at all: GGUF and safetensors files hold none.")
