"""Help pages: options under headings, examples at the end."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import click

HEADINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Target": ("to", "output", "dtype", "quantize", "tokenizer", "pre_tokenizer", "max_shard_size"),
        "Source": ("against", "format", "iteration", "family", "config", "set"),
        "Running": ("memory", "workers", "force", "hash", "fail_on", "dry_run"),
        "Output": ("tensors", "save", "as_json", "no_progress"),
    }
)


class Sectioned(click.Command):
    """A command whose help lists its options under `HEADINGS`; the others under "Options"."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        left = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        for heading, names in HEADINGS.items():
            records = [record for name in names if (record := left.pop(name, None))]
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records, col_max=26)
        if rest := [record for record in left.values() if record]:
            with formatter.section("Options"):
                formatter.write_dl(rest, col_max=26)


def examples(*lines: str) -> str:
    """An epilog of commands to copy; click leaves a paragraph that starts with \\b as it is."""
    return "\b\nExamples:\n" + "\n".join(f"  $ {line}" for line in lines)
