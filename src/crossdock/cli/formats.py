"""`crossdock formats`: what is read, what is written, in which encodings, and which engines there are."""

from __future__ import annotations

import click

from crossdock import catalogue
from crossdock.cli import show
from crossdock.cli.options import json_option
from crossdock.cli.sections import Sectioned, examples


@click.command(cls=Sectioned, epilog=examples("crossdock formats", "crossdock formats --json | jq .targets"))
@json_option
def formats(as_json: bool) -> None:
    """List the formats, encodings and engines.

    Formats of sources are the values of --format, formats of targets those of --to. An encoding is a dtype or a
    quantisation; a mixture such as q4_k_m is a choice of encodings, tensor by tensor. Engines of logits compute what
    verify --logits compares; what other packages register is listed too.
    """
    known = catalogue.known_formats()
    if as_json:
        show.print_json(known)
        return
    show.heading("Sources")
    show.table(("--format", "what is read"), [(one.name, one.what) for one in known.sources], "<<")
    show.heading("Targets")
    rows = [(one.name, ", ".join(one.dtypes), ", ".join(one.quantizations) or "none") for one in known.targets]
    show.table(("--to", "--dtype", "--quantize"), rows, "<<<")
    show.heading("Encodings")
    show.table(
        ("name", "bits", "encoded", "targets"),
        [
            (one.name, f"{one.bits:g}", "yes" if one.encodes else "read or copied", ", ".join(one.targets))
            for one in known.codecs
        ],
        "<><<",
    )
    show.heading("Engines")
    show.facts(
        [
            ("runs plans", ", ".join(known.engines)),
            *(
                (f"logits: {one.name}", f"reads {one.reads}" + ("" if one.installed else "; not installed"))
                for one in known.logits_engines
            ),
        ]
    )
