"""`crossdock families`: the supported families, and one format's tensor names beside another's."""

from __future__ import annotations

import click

from crossdock import catalogue
from crossdock.cli import show
from crossdock.cli.options import json_option
from crossdock.cli.sections import Sectioned, examples
from crossdock.errors import UsageError


@click.command(
    cls=Sectioned,
    epilog=examples(
        "crossdock families",
        "crossdock families qwen3",
        "crossdock families qwen3 --show megatron hf",
        "crossdock families ./my.toml --show hf gguf --json",
    ),
)
@click.argument("name", required=False)
@click.option("--show", "formats", nargs=2, metavar="A B", help="Show the names of format A beside those of B.")
@json_option
def families(name: str | None, formats: tuple[str, str] | None, as_json: bool) -> None:
    """List the supported model families.

    Sources are the formats in which a family is recognised without --family; a torch DCP folder counts as what its
    names are (hf or megatron). NAME, or the path of a family file, shows one family with what its targets cannot hold.
    """
    if formats is not None:
        if name is None:
            raise UsageError("--show requires the name of a family", fix="crossdock families NAME --show A B")
        _show_names(name, formats, as_json=as_json)
        return
    entries = catalogue.known_families() if name is None else (catalogue.family_entry(name),)
    if as_json:
        show.print_json(entries)
        return
    rows = [(one.name, ", ".join(one.sources), ", ".join(one.targets)) for one in entries]
    show.table(("family", "sources", "targets"), rows, "<<<")
    if name is not None:
        limits = [(target, sentence) for target, sentences in entries[0].limits.items() for sentence in sentences]
        if limits:
            show.heading("Limits")
            show.table((), limits, "<<")


def _show_names(name: str, formats: tuple[str, str], *, as_json: bool) -> None:
    names = catalogue.tensor_names(name, formats)
    if as_json:
        show.print_json(names)
        return
    rows: list[tuple[str, str, str]] = []
    for tensor, by_format in names.items():
        left, right = ([_line(one) for one in by_format[format_name]] for format_name in formats)
        height = max(len(left), len(right), 1)
        first = [tensor, *[""] * (height - 1)]
        rows += zip(first, _filled(left, height), _filled(right, height), strict=True)
    show.table(("tensor", *formats), rows, "<<<")


def _line(one: catalogue.StoredName) -> str:
    return f"{one.name}  if {one.when}" if one.when else one.name


def _filled(lines: list[str], height: int) -> list[str]:
    """`lines` without repetitions, followed by empty ones; a dash where the format has no place for the tensor."""
    own = list(dict.fromkeys(lines)) or ["-"]
    return own + [""] * (height - len(own))
