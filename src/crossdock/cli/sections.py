"""Help pages: options under headings, examples at the end."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import click

HEADINGS = ("Target", "Source", "Checks", "Running", "Output")
LAST = "Output"  # what has no other heading
# options of single commands; the others say their heading themselves
OWN: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("output", "capacity", "vram_budget", "vram_capacity", "threshold", "grain"), "Target")
    | dict.fromkeys(("against", "format", "iteration", "family", "config", "config_b", "set", "rename"), "Source")
    | dict.fromkeys(("base", "merge", "norm_eps", "rope_base", "weights", "model", "ctx", "text", "drelu"), "Source")
    | dict.fromkeys(("tokens", "logits", "logits_engine", "report", "reference", "strict", "manifest"), "Checks")
    | dict.fromkeys(("window", "dry_run"), "Running")
)


class WithExamples(click.Command):
    """A command whose epilog is printed as it is, without wrapping or indentation."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"\n{self.epilog}\n")


class Sectioned(WithExamples):
    """A command whose help lists its options under `HEADINGS`, in aligned columns.

    Options that `cli.options` makes of dataclasses come first, and are made when the command is used.
    """

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's arguments and options, those made late first."""
        late = getattr(self.callback, "late_options", ())
        return [*(option for options in late for option in options()), *super().get_params(ctx)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        rows = [(_heading(option), record) for option in options if (record := option.get_help_record(ctx))]
        width = max(len(left) for _, (left, _) in rows)
        for heading in HEADINGS:
            listed = [(f"{left:{width}}", right) for own, (left, right) in rows if own == heading]
            if listed:
                with formatter.section(heading):
                    formatter.write_dl(listed, col_max=width)
        for option in options:
            values: list[tuple[str, str]] = getattr(option, "listed", list)()
            if values:
                with formatter.section(f"Values of {option.opts[-1]}"):
                    formatter.write_dl(values)


def _heading(option: click.Option) -> str:
    return str(getattr(option, "heading", "")) or OWN.get(str(option.name), LAST)


def examples(*lines: str) -> str:
    """An epilog of commands to copy."""
    return "Examples:\n" + "\n".join(f"  $ {line}" for line in lines)
