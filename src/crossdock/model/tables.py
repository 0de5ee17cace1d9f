"""Data files as tables: read whole, merged key by key, their types checked. Knows neither families nor formats."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdock.errors import ConfigError, Problem, UsageError

Table = Mapping[str, Any]
_MOST = 1 << 20  # characters of a data file


def read_toml(file: Any, where: str) -> Table:
    """The table in a data file: a `Path` or a resource of a package.

    Raises ConfigError that names it: broken syntax, a key that occurs twice, too long; UsageError when it cannot be
    read.
    """
    try:
        if isinstance(file, Path) and file.stat().st_size > _MOST:
            raise ConfigError("too long for a data file", where=where, expected=f"at most {_MOST:,} bytes")
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"this file cannot be read: {error.strerror or error}", where=where) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a valid TOML file: {error}", where=where) from None
    except RecursionError:
        raise ConfigError("not a valid TOML file: nested too deep", where=where) from None


def merged(base: Table, over: Table, where: str) -> dict[str, Any]:
    """`over` laid on `base`, tables key by key; an empty text in `over` removes the key.

    A redefined key moves to the place of its redefinition. Raises ConfigError with every removal that removes nothing.
    """
    lacking: list[str] = []
    out = _merged(base, over, (), lacking)
    if lacking:
        raise ConfigError(
            [
                Problem(f'{name} = "" removes nothing', where=where, fix="delete the line, or correct the name")
                for name in lacking
            ]
        )
    return out


def _merged(base: Table, over: Table, within: tuple[str, ...], lacking: list[str]) -> dict[str, Any]:
    out = dict(base)
    for key, value in over.items():
        old = out.pop(key, None)
        if value == "":
            if old is None:
                lacking.append(" ".join((*(f"[{name}]" for name in within), key)))
        elif isinstance(value, Mapping) and (not within or not _is_rule(value)):
            out[key] = _merged(old if isinstance(old, Mapping) else {}, value, (*within, key), lacking)
        else:
            out[key] = value
    return out


def _is_rule(entry: Table) -> bool:
    """Whether an entry of a table is replaced whole: a rule, a tensor, a value. Tables are merged key by key."""
    return not {"at", "axes", "value"}.isdisjoint(entry)


def checked_tables(table: Table, tables: Mapping[str, tuple[type, ...]], where: str) -> None:
    """Raise ConfigError where a table of `tables` is none, or holds a value of another type than it may."""
    problems = []
    for name, kinds in tables.items():
        content = table.get(name, {})
        if not isinstance(content, Mapping):
            problems.append(Problem(f"[{name}] is not a table", where=where, got=repr(content)))
            continue
        problems += [
            Problem(f"[{name}] {key} is of the wrong type", where=where, expected=_kinds_text(kinds), got=repr(value))
            for key, value in content.items()
            if not isinstance(value, kinds)
        ]
    if problems:
        raise ConfigError(problems)


def _kinds_text(kinds: tuple[type, ...]) -> str:
    words: Mapping[type, str] = {str: "a text", list: "a list", dict: "a table", int: "a number"}
    return " or ".join(words.get(kind, kind.__name__) for kind in kinds)
