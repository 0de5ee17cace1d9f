"""What the documents say is true of the program: commands parse, examples run, links and named paths exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from crossdock.cli.app import main
from crossdock.model.config import DEFAULTS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md"), *ROOT.glob("benchmarks/*.md")]
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)")
NAMED = re.compile(r"`((?:tests|scripts|examples|benchmarks|docs|src)/[\w./-]*\w)`")
FLAG = re.compile(r"(?<![\w(-])--[a-z][a-z0-9]*(?:-[a-z0-9]+)*\b(?![-\w]*:)")  # not the variables of a style sheet
OF_OTHERS = {
    "--mtp", "--save-tokenizer-assets",  # convert_hf_to_gguf.py; Megatron-LM
    "--help", "--version",
    "--ckpt-format", "--no-save-optim",  # Megatron
    "--use-lbfgs", "--checkpoint-in", "--allow-requantize",  # llama.cpp
    "--model-path", "--quantization",  # SGLang
    "--include", "--local-dir",  # hf download
    "--backend",  # verl.model_merger
}  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def fenced(path: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(path.read_text()) if language in languages]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `crossdock ...` line, up to a pipe."""
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip().removeprefix("$ ")
        if line.startswith("crossdock "):
            words = shlex.split(line, comments=True)
            stops = [words.index(stop) for stop in ("|", "&&", ">") if stop in words]
            yield words[1 : min(stops, default=len(words))]


def parse(words: list[str]) -> None:
    """What click makes of the arguments, without running the command. Raises UsageError."""
    with main.make_context("crossdock", list(words), resilient_parsing=True) as group:
        name, command, rest = main.resolve_command(group, list(words))
        assert command is not None
        command.make_context(name, rest, parent=group)


def of_documents() -> list[tuple[str, list[str]]]:
    return [(name_of(path), words) for path in DOCUMENTS for body in fenced(path, "sh", "") for words in commands(body)]


def of_help() -> list[tuple[str, list[str]]]:
    epilogs = {"crossdock": main.epilog} | {name: command.epilog for name, command in main.commands.items()}
    return [(name, words) for name, epilog in epilogs.items() for words in commands(epilog or "")]


@pytest.mark.parametrize(("where", "words"), of_documents() + of_help(), ids=lambda part: " ".join(part)[:60])
def test_commands_use_options_that_exist(where: str, words: list[str]) -> None:
    parse(words)


def test_every_command_is_shown_with_an_example() -> None:
    assert {words[0] for name, words in of_help() if name == words[0]} == set(main.commands)


def test_a_wrong_option_would_be_found() -> None:
    with pytest.raises(click.UsageError):
        parse(shlex.split("export a --to gguf --quantise q8_0 -o b"))
    with pytest.raises(click.UsageError):
        parse(shlex.split("export a --to gguf --memory lots -o b"))


def test_messages_name_options_that_exist() -> None:
    commands = main.commands.values()
    known = {flag for one in commands for option in one.get_params(click.Context(one)) for flag in option.opts}
    unknown = {
        f"{name_of(path)}: {flag}"
        for path in (ROOT / "src").rglob("*.py")
        if path.name != "guesses.py"  # it holds the words of others
        for line in path.read_text().splitlines()
        for flag in FLAG.findall(line)
        if flag not in known | OF_OTHERS
    }
    assert not unknown


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_and_named_paths_exist(path: Path) -> None:
    text = path.read_text()
    links = [path.parent / link for link in LINK.findall(text) if "://" not in link]
    named = [ROOT / name for name in NAMED.findall(text)]
    assert [name_of(Path(os.path.normpath(one))) for one in links + named if not one.exists()] == []


@pytest.mark.parametrize("script", ["demo", "test", "check"])
def test_scripts_are_programs_of_sh(script: str) -> None:
    file = ROOT / "scripts" / script
    assert os.access(file, os.X_OK)
    subprocess.run(["sh", "-n", file], check=True)


def test_the_demo_and_the_python_example_run(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    lines = (ROOT / "scripts" / "demo").read_text().splitlines()
    shown = [shlex.split(line)[1:] for line in lines if line.startswith(".venv/bin/crossdock ")]
    assert [words[0] for words in shown] == ["export", "verify"]
    for words in shown:
        subprocess.run(
            [sys.executable, "-m", "crossdock", *words], cwd=tmp_path, env=environment, check=True, timeout=120
        )
    for body in fenced(ROOT / "docs/api.md", "python"):
        out = subprocess.run(
            [sys.executable, "-c", body],
            cwd=tmp_path,
            env=environment,
            check=True,
            timeout=120,
            capture_output=True,
            text=True,
        ).stdout
        assert re.fullmatch(r"\d+ \S+ \w+(:\w+)?\n", out)


def test_every_field_of_the_configuration_stands_in_the_list_with_its_default() -> None:
    lines = (ROOT / "docs/canonical.md").read_text(encoding="utf-8").splitlines()
    listed = {
        cells[1].strip(" `"): cells[2].strip(" `") for line in lines if len(cells := line.split("|")) == 5
    }  # name, default, meaning
    shown = {name: repr(default) for name, default in DEFAULTS.items()}
    assert {name: listed.get(name) for name in shown} == shown
