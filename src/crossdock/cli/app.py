"""The command `crossdock`: its subcommands, and the one place where errors become text and exit codes.

Starting up imports click and nothing heavier: a command's module is imported when it is asked for, and the library by
the command that needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from io import TextIOWrapper
from types import MappingProxyType
from typing import Any

import click

from crossdock.cli import extensions, failures
from crossdock.cli.guesses import rewritten
from crossdock.cli.sections import WithExamples, examples
from crossdock.version import VERSION
from crossdock.wording import nearest

EXAMPLES = examples(
    "crossdock inspect runs/iter_0010000",
    "crossdock export runs/iter_0010000 --to gguf -q q8_0 --tokenizer tok/ -o model.gguf",
    "crossdock export runs/iter_0010000 --to hf --dtype bf16 -o model-hf/",
    "crossdock verify model.gguf --against runs/iter_0010000",
)

# name -> module, and the sentence in the list of commands, which is the first of the command's own help
COMMANDS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "inspect": ("crossdock.cli.inspect", "Show what is in the checkpoint PATH."),
        "scan": ("crossdock.cli.scan", "List what loading the pickles in PATH would execute."),
        "plan": ("crossdock.cli.plan", "Show what exporting SRC would do."),
        "export": ("crossdock.cli.export", "Convert the checkpoint SRC to the format --to."),
        "verify": ("crossdock.cli.verify", "Compare OUT with the checkpoint SRC, tensor by tensor."),
        "check": ("crossdock.cli.check", "Compare OUT with its manifest, without the source."),
        "diff": ("crossdock.cli.diff", "Compare the checkpoints A and B, tensor by tensor."),
        "families": ("crossdock.cli.families", "List the supported model families."),
        "formats": ("crossdock.cli.formats", "List the formats, encodings and engines."),
        **extensions.COMMANDS,
    }
)


class Commands(Mapping[str, click.Command]):
    """`COMMANDS`, in the order of use, not of the alphabet. Each is what its module calls by its name."""

    def __getitem__(self, name: str) -> click.Command:
        if name not in COMMANDS:
            raise KeyError(name)
        command: click.Command = getattr(import_module(COMMANDS[name][0]), name)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Crossdock(WithExamples, click.Group):
    """A group that suggests the nearest command and ends every error as `failures` says."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        *,
        stdout_closed: bool = False,
        **extra: Any,
    ) -> Any:
        """Run the command line `args` (default: that of the process) and exit with its code.

        stdout_closed  the process began without a standard output
        """
        arguments = rewritten(sys.argv[1:] if args is None else args)
        extra.setdefault("color", failures.colour())
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, TextIOWrapper):  # a terminal that cannot show an arrow gets a question mark
                stream.reconfigure(errors="replace")
        code = failures.guarded(
            lambda: super(Crossdock, self).main(arguments, prog_name, complete_var, False, **extra),
            as_json="--json" in arguments,
            closed=stdout_closed,
        )
        sys.exit(code)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            near = nearest(args[0], COMMANDS, 2, 0.5)
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"unknown command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, for which none is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, sentence) for name, (_, sentence) in COMMANDS.items()])


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        click.echo(f"crossdock {VERSION}")
        ctx.exit()


@click.group(
    "crossdock",
    cls=Crossdock,
    commands=Commands(),
    epilog=EXAMPLES,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
        "max_content_width": 100,
    },
)
@click.option(
    "-V",
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_version,
    help="Print the version and exit.",
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """Deliver trained language-model checkpoints into inference engines.

    One pass over the files, bounded memory, no GPU, and a proof that what arrived is what was trained.
    Nothing in a checkpoint is ever executed.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
