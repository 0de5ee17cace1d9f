"""Help pages: options under headings, examples at the end."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import click

HEADINGS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Target": (
            "to",
            "output",
            "capacity",
            "vram_budget",
            "vram_capacity",
            "threshold",
            "grain",
            "dtype",
            "quantize",
            "tokenizer",
            "pre_tokenizer",
            "max_shard_size",
            "keep_order",
        ),
        "Source": (
            "against",
            "format",
            "iteration",
            "family",
            "config",
            "config_b",
            "set",
            "base",
            "merge",
            "norm_eps",
            "rope_base",
            "model",
            "ctx",
            "text",
            "drelu",
        ),
        "Checks": ("tokens", "logits", "engine", "report"),
        "Running": ("memory", "window", "workers", "force", "hash", "fail_on", "dry_run"),
        "Output": ("tensors", "save", "plot", "as_json", "no_progress"),
    }
)
LAST = "Output"  # what no heading names comes here


class WithExamples(click.Command):
    """A command whose epilog is printed as it is, without wrapping or indentation."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"\n{self.epilog}\n")


class Sectioned(WithExamples):
    """A command whose help lists its options under `HEADINGS`, in aligned columns."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        records = {str(one.name): record for one in options if (record := one.get_help_record(ctx))}
        width = max(len(left) for left, _ in records.values())
        listed = {name for names in HEADINGS.values() for name in names}
        for heading, names in HEADINGS.items():
            if heading == LAST:
                names = (*names, *(name for name in records if name not in listed))
            rows = [(f"{records[name][0]:{width}}", records[name][1]) for name in names if name in records]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def examples(*lines: str) -> str:
    """An epilog of commands to copy."""
    return "Examples:\n" + "\n".join(f"  $ {line}" for line in lines)
