"""Every sentence that users read: gathered from the source code by its syntax, and from the data files by their tables.

A sentence is a text of at least two words. Holes of f-strings are shown as {…}. Left out are docstrings, which are for
developers, and texts that are made for programs: patterns, expressions, HTML.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = Path(__file__).with_name("sentences.txt")
HOLE = "{…}"
WORDS = re.compile(r"[A-Za-z]{2,}[^A-Za-z]*\s.*[A-Za-z]{2,}|[A-Za-z]{2,}.*\s[^A-Za-z]*[A-Za-z]{2,}", re.DOTALL)
# patterns of re, HTML, expressions of the data files, and texts that try tokenizers
FOR_PROGRAMS = re.compile(r"\\[pAZzsd]|<\w|</|\(\?|[!=]= ", re.DOTALL)
TEXTS_TO_TRY = ("hard_texts.py",)
# tables of data files whose values are sentences, and those whose keys are, with a list of what they hold for
SENTENCES = ("ignored", "skip", "unsupported", "notices")


def gathered() -> list[str]:
    """All sentences, sorted, each once."""
    found = {line for path in (ROOT / "src").rglob("*.py") for line in _of_code(path)}
    found |= {line for path in (ROOT / "src").rglob("*.toml") for line in _of_data(path)}
    return sorted(found, key=lambda line: (line.casefold(), line))


def _of_code(path: Path) -> Iterator[str]:
    if path.name in TEXTS_TO_TRY:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    passed_over: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr):
                passed_over.add(first.value)
        elif isinstance(node, ast.JoinedStr):  # its pieces are parts of one sentence
            passed_over.update(node.values)
            passed_over.update(
                inner for value in node.values if isinstance(value, ast.FormattedValue) and value.format_spec
                for inner in ast.walk(value.format_spec)
            )  # fmt: skip
    for node in ast.walk(tree):
        text = None if node in passed_over else _text(node)
        if text is not None and WORDS.search(text) and not FOR_PROGRAMS.search(text):
            yield _line(text)


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(str(piece.value) if isinstance(piece, ast.Constant) else HOLE for piece in node.values)
    return None


def _of_data(path: Path) -> Iterator[str]:
    yield from map(_line, filter(WORDS.search, _sentences(tomllib.loads(path.read_text(encoding="utf-8")))))


def _sentences(table: dict[str, Any]) -> Iterator[str]:
    for key, content in table.items():
        if not isinstance(content, dict):
            if key == "say":
                yield content
        elif key in SENTENCES:
            for name, value in content.items():
                yield name if isinstance(value, list) else value.partition(" @ ")[0]
        else:
            yield from _sentences(content)


def _line(text: str) -> str:
    return " ".join(text.split())
