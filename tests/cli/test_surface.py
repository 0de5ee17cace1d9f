"""The command line is a promise: commands and options are frozen here, a change must be made twice."""

import click
import pytest
from click.testing import CliRunner

from crossdock.cli import main
from crossdock.cli.sections import HEADINGS

SOURCE = {"--format", "--iteration", "--family", "--config", "--set", "--rename", "--base", "--merge",
          "--norm-eps", "--rope-base", "--weights"}  # fmt: skip
TARGET = {"--to", "--dtype", "-q", "--quantize", "--tokenizer", "--pre-tokenizer", "--max-shard-size", "--keep-order",
          "--tp", "--tensor-parallel-size", "--pp", "--pipeline-parallel-size", "--moe-tp", "--moe-ep",
          "--use-parallel-embedding", "--embedding-sharding-dim", "--fp8-kv-cache", "--ops",
          "--allow-overflow", "--name", "--metadata", "--no-mtp", "--mtp-only"}  # fmt: skip
RUNNING = {"--memory", "--workers", "--engine"}

SURFACE = {
    "inspect": (["path"], SOURCE | {"--tensors", "--json"}),
    "scan": (["path"], {"--json"}),
    "plan": (["src"], TARGET | SOURCE | RUNNING | {"-o", "--output", "--save", "--json"}),
    "export": (
        ["src"],
        TARGET
        | SOURCE
        | RUNNING
        | {"-o", "--output", "-f", "--force", "--hash", "--file-hashes", "--fail-on"}
        | {"--dry-run", "--json", "--no-progress"},
    ),
    "verify": (
        ["out"],
        SOURCE
        | RUNNING
        | {"--against", "--tokenizer", "--pre-tokenizer", "--keep-order", "--model", "--tokens", "--logits"}
        | {"--no-mtp", "--mtp-only"}
        | {"--logits-engine", "--reference", "--strict", "--report", "--json", "--no-progress"},
    ),
    "check": (["out"], {"--manifest", "--json", "--no-progress"}),
    "diff": (["a", "b"], RUNNING | {"--family", "--config", "--config-b", "--set", "--json", "--no-progress"}),
    "families": (["name"], {"--show", "--json"}),
    "formats": ([], {"--json"}),
    "split": (
        ["activations"],
        {"-o", "--output", "--capacity", "--vram-budget", "--vram-capacity", "--model", "--ctx"}
        | {"--threshold", "--grain", "--plot", "--json"},
    ),
    "activations": (
        ["model"],
        {"--text", "-o", "--output", "--window", "--drelu", "--json", "--no-progress"},
    ),
}


def test_commands_in_the_order_of_use() -> None:
    assert list(main.commands) == list(SURFACE)
    assert main.list_commands(click.Context(main)) == list(SURFACE)


@pytest.mark.parametrize("name", SURFACE)
def test_options(name: str) -> None:
    arguments, options = SURFACE[name]
    command = main.commands[name]
    params = [
        p
        for p in command.get_params(click.Context(command, help_option_names=["-h", "--help"]))
        if "--help" not in p.opts
    ]
    assert [p.name for p in params if isinstance(p, click.Argument)] == arguments
    found = [o for p in params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)]
    assert set(found) == options
    assert len(found) == len(options)


@pytest.mark.parametrize("name", SURFACE)
def test_help_lists_every_option_and_an_example(name: str) -> None:
    result = CliRunner().invoke(main, [name, "--help"])
    assert result.exit_code == 0
    for option in SURFACE[name][1] | {"-h", "--help"}:
        assert f"{option} " in result.stdout or f"{option}," in result.stdout, option
    assert f"$ crossdock {name} " in result.stdout.split("Examples:")[1]
    assert max(map(len, result.stdout.split("Examples:")[0].splitlines())) <= 80


@pytest.mark.parametrize("name", SURFACE)
def test_help_shows_an_option_on_one_line_under_its_heading(name: str) -> None:
    text = CliRunner().invoke(main, [name, "--help"], terminal_width=100).stdout
    lines = text.split("\nExamples:")[0].split("\nValues of ")[0].splitlines()
    headings = [number for number, line in enumerate(lines) if line.rstrip(":") in HEADINGS and line.endswith(":")]
    options = [line for line in lines[headings[0] :] if line.strip() and line.rstrip(":") not in HEADINGS]
    assert all(line.startswith("  -") for line in options)
    assert max(map(len, options)) <= 100
    outputs = lines[lines.index("Output:") + 1 :]
    allowed = ("--json", "--no-progress", "-h", "--save", "--plot", "--tensors", "--show")
    assert all(line.split()[0].rstrip(",") in allowed for line in outputs if line)


def test_no_arguments_is_the_help() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 0
    assert result.stdout == CliRunner().invoke(main, ["-h"]).stdout
    for name in SURFACE:
        line = next(line for line in result.stdout.splitlines() if line.startswith(f"  {name} "))
        assert not line.endswith("..."), "a summary that is cut off"
