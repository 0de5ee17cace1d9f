"""The source as data: which module imports which, read from the text. Nothing is imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
PACKAGES = ("crossdock", "crossdock_powerinfer")


@dataclass(frozen=True)
class Import:
    """`module` imports `target` at `line`; `typing`: only for type checkers."""

    module: str
    target: str
    line: int
    typing: bool


@cache
def modules() -> Mapping[str, Path]:
    """Every module by its dotted name; a package by its own."""
    files = [file for package in PACKAGES for file in (SRC / package).rglob("*.py")]
    return {".".join(file.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


@cache
def imports() -> tuple[Import, ...]:
    """Every import of our own modules by another."""
    return tuple(found for name, file in modules().items() for found in _imports(name, file))


def folder(module: str) -> str:
    """The folder below `src/crossdock` that holds the module; of a module that lies beside them its own name."""
    parts = module.split(".")
    return parts[1] if parts[0] == "crossdock" and len(parts) > 1 else parts[0]


def folders() -> set[str]:
    """Every folder below `src/crossdock` with code in it."""
    return {path.name for path in (SRC / "crossdock").iterdir() if path.is_dir() and any(path.glob("*.py"))}


def strings(file: Path) -> Iterator[tuple[int, str]]:
    """Every text in a file but its docstrings, with its line."""
    tree = ast.parse(file.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {id(node.body[0].value) for node in ast.walk(tree)
            if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            yield node.lineno, node.value


def _imports(module: str, file: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text())
    typed = {id(node) for block in ast.walk(tree) if isinstance(block, ast.If) and _is_type_checking(block.test)
             for child in block.body for node in ast.walk(child)}  # fmt: skip
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules() else str(node.module) for name in inner]
        for name in names:
            if name in modules() and name != module:
                yield Import(module, name, node.lineno, id(node) in typed)


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"
