"""Keys that are flags, by how the layout reads them: a text or a list in one is not true, it is a mistake.

A key is a flag when every expression that names it asks only whether it holds (`a if KEY else b`, `not KEY`). Knows no
format; the layouts' expressions say it.
"""

from __future__ import annotations

import ast
import dataclasses
import fnmatch
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from crossdock.errors import Problem
from crossdock.layout.rules import Layout
from crossdock.model.expressions import Expression
from crossdock.wording import short

_WORDS = ("true", "false", "yes", "no", "on", "off")


def flag_problems(rules: Layout, keys: Mapping[str, Any], where: str) -> list[Problem]:
    """A problem for each flag whose value is a text or a list, and for each text that only spells true or false."""
    flags = _flags(tuple(dict.fromkeys(one.text for one in _expressions((rules.reading, rules.variables)))))
    problems = []
    for key, value in keys.items():
        if any(fnmatch.fnmatchcase(key, glob) for glob in rules.reading.ignored):
            continue
        wrong = isinstance(value, str | list | tuple) if key in flags else False
        if wrong or (isinstance(value, str) and value.strip().lower() in _WORDS):
            problems.append(
                Problem(
                    f"{key} is {'a text' if isinstance(value, str) else 'a list'}, not true or false",
                    where=where,
                    expected="true or false",
                    got=short(value),
                    cause="a configuration that was edited, or written by a program that makes texts of its values",
                    fix=f"correct it with --set {key}=true or --set {key}=false",
                )
            )
    return problems


def _expressions(part: Any) -> Iterator[Expression]:
    """Every expression in a part of a layout, conditions and nested tables included."""
    if isinstance(part, Expression):
        yield part
    elif isinstance(part, Mapping):
        yield from (found for value in part.values() for found in _expressions(value))
    elif isinstance(part, list | tuple):
        yield from (found for value in part for found in _expressions(value))
    elif dataclasses.is_dataclass(part):
        yield from (f for one in dataclasses.fields(part) for f in _expressions(getattr(part, one.name)))


@functools.lru_cache(maxsize=64)
def _flags(texts: tuple[str, ...]) -> frozenset[str]:
    """The names that these expressions only test."""
    tested: set[str] = set()
    used: set[str] = set()
    for text in texts:
        tree = ast.parse(text.strip(), mode="eval").body
        atoms = set(_tests(tree))
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        tested |= {node.id for node in names if node in atoms}
        used |= {node.id for node in names if node not in atoms}
    return frozenset(tested - used)


def _tests(tree: ast.expr) -> Iterator[ast.expr]:
    """The nodes of which an expression asks only whether they hold."""
    for node in ast.walk(tree):
        if isinstance(node, ast.IfExp):
            yield from _atoms(node.test)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield from _atoms(node.operand)


def _atoms(test: ast.expr) -> Iterator[ast.expr]:
    if isinstance(test, ast.BoolOp):
        for value in test.values:
            yield from _atoms(value)
    elif isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        yield from _atoms(test.operand)
    else:
        yield test
