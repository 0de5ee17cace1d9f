"""Imports are at the top of modules. The few within functions are listed here, each with its reason."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from source_tree import modules

OPTIONAL = "of an optional extra"
CHILD = "of the engine that a child process asks; without it the process says so"
# module and function -> why it imports there
REASONS = {
    "crossdock.__main__.run": "an interrupt while the command line is imported is an interrupt too",
    "crossdock.__main__._interrupted": "nothing is imported before interrupts are handled",
    "crossdock.cli.progress._bar": "rich is loaded where there is a terminal",
    "crossdock.formats.gguf.about._of_card": "PyYAML is loaded where there is YAML to read",
    "crossdock.formats.megatron.bridge.read_run_config_section": "PyYAML is loaded where there is YAML to read",
    "crossdock.proof.engines.hf_transformers.main": CHILD,
    "crossdock.formats.onnx.source.open_source": OPTIONAL,
    "crossdock.formats.onnx.target.assemble": OPTIONAL,
    "crossdock.formats.onnx.target.differences": OPTIONAL,
    "crossdock.proof.engines.onnx_genai.main": CHILD,
    "crossdock.proof.engines.onnx_runtime.__init__": CHILD,
    "crossdock_powerinfer.collect._imports": OPTIONAL,
}
MOST = 30


def inner() -> list[tuple[str, int]]:
    """Functions with imports, and how many each has."""
    found = []
    for name, file in modules().items():
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                count = sum(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(function))
                found += [(f"{name}.{function.name}", count)] if count else []
    return found


def test_every_import_within_a_function_has_a_reason() -> None:
    assert {name for name, _ in inner()} == set(REASONS)
    assert sum(count for _, count in inner()) < MOST


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        (["--help"], "numpy yaml importlib.metadata rich"),
        (["diff", "nowhere", "nowhere"], "numpy yaml rich"),
        (["verify", "nowhere", "--against", "nowhere"], "numpy yaml rich"),
        (["inspect", "nowhere"], "yaml rich crossdock.running.run"),
        (["plan", "nowhere", "--to", "gguf"], "yaml rich crossdock.running.run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_command_imports_what_it_needs(arguments: list[str], modules: str) -> None:
    """Before it opens a path, a command has not loaded what it would not use."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "crossdock", *arguments], capture_output=True, text=True, check=False
    )
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "crossdock.cli" in loaded
    assert loaded & set(modules.split()) == set()
