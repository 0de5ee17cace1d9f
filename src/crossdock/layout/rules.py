"""Layouts: for one format and one family, where every canonical tensor lives and what every config key means.

Reads `data/layouts/FORMAT.toml` and lays the family's own section for that format on it. Strict: an unknown key, an
axis that is placed twice or not at all, is an error that names the file. Knows no bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from crossdock.errors import ConfigError, Problem
from crossdock.layout.notation import Pattern, parse
from crossdock.model.config import FIELDS
from crossdock.model.expressions import Expression, expression
from crossdock.model.families import family as family_called
from crossdock.model.family import Family, constants
from crossdock.model.tables import checked_tables, merged, read_toml
from crossdock.plugins import folders

# what a layout may hold, and the types of the values in it
_TABLES: Mapping[str, tuple[type, ...]] = MappingProxyType({
    "parts": (str,), "tensors": (str, list, dict), "read": (str, list), "write": (str,), "ignored": (str,),
    "neutral": (list,), "variables": (str,), "skip": (str,), "fits": (list,), "fits_reason": (str,),
    "encoding": (list,), "needs": (str,), "warn": (str,), "notices": (str,), "omitted": (str,),
    "spelled": (str, list), "model_types": (list,), "renames": (list,),
})  # fmt: skip
_SCALARS = ("extends", "families", "padded", "when", "sum_as_stored")


@dataclass(frozen=True, slots=True)
class Rule:
    """Where one or more canonical tensors live, as alternatives of which the first is written.

    offset  stored value = canonical value + offset; stage: "first" or "last" pipeline stage only,
            or "later": copies that later stages have of what the first one holds, which are never written
    copy    when a tensor that is the same as another (a tied head) is written all the same
    read_only  another form that sources have, which is never written
    """

    tensors: tuple[str, ...]
    patterns: tuple[Pattern, ...]
    part: str
    offset: Expression | None = None
    when: Expression | None = None
    stage: str = ""
    copy: Expression | None = None
    read_only: bool = False


@dataclass(frozen=True)
class Written:
    """One config key that a format writes: its type where the format has types, value, and condition."""

    key: str
    kind: str
    value: Expression
    when: Expression | None


@dataclass(frozen=True)
class Notice:
    """A sentence about a key of the format: shown when the condition holds, or a field's value had to come from it."""

    key: str
    sentence: str
    when: Expression | None


@dataclass(frozen=True)
class Layout:
    """A format's rules for one family.

    requires_for_write    sentence -> what must hold for a model to be written; warn: sentence -> when to show it
    sum_as_stored  when sums with offsets are rounded to the source's dtype before they are written
    notices  sentences to show about keys of the format
    unsupported  canonical tensors (globs) that the format has no place for, and the sentence to say so
    unset    keys that a family has to write, and this one does not
    aliases  key -> what it is when a `--config` uses other names; model_types: such a name -> families that it may be
    """

    format: str
    rules: tuple[Rule, ...]
    padded: frozenset[str]
    skip: Mapping[str, str]
    read: Mapping[str, tuple[Expression, ...]]
    write: tuple[Written, ...]
    unset: tuple[str, ...]
    ignored: Mapping[str, str]
    only_values: Mapping[str, tuple[Any, ...]]
    variables: Mapping[str, Expression]
    requires: Mapping[str, tuple[Any, ...]]
    requires_reason: Mapping[str, str]
    encoding: Mapping[str, tuple[str, ...]]
    requires_for_write: Mapping[str, Expression]
    warn: Mapping[str, Expression]
    notices: tuple[Notice, ...]
    sum_as_stored: Expression
    unsupported: Mapping[str, str]
    aliases: Mapping[str, tuple[Expression, ...]]
    model_types: Mapping[str, tuple[str, ...]]


@functools.cache
def layout(format_name: str, family: Family | None = None) -> Layout:
    """The layout of `format_name` for `family`; without a family only its config keys mean anything.

    Raises ConfigError when the data files are wrong, or when the family says nothing about this format.
    """
    return _layout(format_name, family)


def unheld(format_name: str, family: Family) -> Problem | None:
    """What is wrong when neither the family has a section for this format nor the layout names the family."""
    table = _base(format_name)
    if family.name in table.get("families", ()) or any(name in family.sections for name in _lines(table, format_name)):
        return None
    return Problem(
        f"family {family.name} does not say how it is stored as {format_name}",
        where=family.where,
        expected=f"a section [{format_name}]",
        fix='write one into the family\'s file; like = "llama" in it takes the section of the family llama',
    )


def _lines(table: Mapping[str, Any], format_name: str) -> tuple[str, ...]:
    """The layout that this one extends, and itself: families have sections for both."""
    return tuple(dict.fromkeys((table.get("extends", format_name), format_name)))


def stored_names(format_name: str) -> Mapping[str, tuple[str, ...]]:
    """What users may call a layout's tensors in a rename -> the stored names that it has for them, as patterns.

    By canonical tensors ("attn_q attn_k attn_v"), and by the names of [renames], each of which stands for its last.
    """
    table = _base(format_name)
    out: dict[str, tuple[str, ...]] = {}
    for key, value in table.get("tensors", {}).items():
        at = value.get("at", "") if isinstance(value, Mapping) else value
        texts = [text.partition(" : ")[0].strip() for text in (at if isinstance(at, list) else [at]) if text]
        if texts:
            out.setdefault(" ".join(key.split()), tuple(texts))
    for key, (*others, name) in table.get("renames", {}).items():
        out |= dict.fromkeys((key, *others), (name,))
    return out


def _base(format_name: str, chain: tuple[str, ...] = ()) -> Mapping[str, Any]:
    for folder in folders("layouts"):
        file = folder / f"{format_name}.toml"
        if file.is_file():
            table = read_toml(file, f"layouts/{format_name}.toml")
            parent = table.get("extends")
            if parent is None:
                return table
            if parent in (*chain, format_name):
                raise ConfigError(f"extends {parent!r}: a circle", where=f"layouts/{format_name}.toml")
            return merged(_base(parent, (*chain, format_name)), table, f"layouts/{format_name}.toml")
    where = f"layouts/{chain[-1]}.toml" if chain else ""
    raise ConfigError(f"there is no layout for format {format_name!r}", where=where)


def _layout(format_name: str, family: Family | None) -> Layout:
    table: Mapping[str, Any] = _base(format_name)
    where = f"layouts/{format_name}.toml"
    if family is not None:
        problem = unheld(format_name, family) or _half_like(_lines(table, format_name), family)
        if problem is not None:
            raise ConfigError(problem)
        where += f" with {family.where}"
        for name in _lines(table, format_name):
            for section in family.sections.get(name, ()):
                table = merged(table, section, f"{where} [{name}]")
    unknown = set(table) - set(_TABLES) - set(_SCALARS)
    if unknown:
        raise ConfigError(f"unknown keys {', '.join(sorted(unknown))}", where=where)
    checked_tables(table, _TABLES, where)
    strange = [f"[{name}] {key}" for name in ("read", "fits") for key in table.get(name, {}) if key not in FIELDS]
    if strange:
        raise ConfigError(f"{', '.join(strange)}: not a field of the configuration", where=where)
    parts = {"default": "", **table.get("parts", {})}
    rules = []
    for key, value in table.get("tensors", {}).items():
        names = tuple(key.split())
        if family is not None and all(name in family.tensors for name in names):
            rules.append(_rule(names, value, parts, family, where))

    def texts(name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = table.get(name, {})
        return found

    return Layout(
        format=format_name,
        rules=tuple(rules),
        padded=frozenset(table.get("padded", ())),
        skip=texts("skip"),
        read={key: _expressions(value, f"{where} [read] {key}") for key, value in texts("read").items()},
        write=tuple(_written(key, value, f"{where} [write] {key}") for key, value in texts("write").items() if value),
        unset=tuple(key for key, value in texts("write").items() if not value),
        ignored=texts("ignored"),
        only_values={key: tuple(value) for key, value in texts("neutral").items()},
        variables={key: expression(str(value), where) for key, value in texts("variables").items()},
        requires={key: constants(value) for key, value in texts("fits").items()},
        requires_reason=texts("fits_reason"),
        encoding={key: tuple(value) for key, value in texts("encoding").items()},
        requires_for_write={key: expression(value, where) for key, value in texts("needs").items()},
        warn={key: expression(value, where) for key, value in texts("warn").items()},
        notices=tuple(_notice(key, value, f"{where} [notices] {key}") for key, value in texts("notices").items()),
        sum_as_stored=expression(str(table.get("sum_as_stored", "False")), where),
        unsupported=texts("omitted"),
        aliases={key: _expressions(value, f"{where} [spelled] {key}") for key, value in texts("spelled").items()},
        model_types={key: tuple(value) for key, value in texts("model_types").items()},
    )


def _half_like(lines: tuple[str, ...], family: Family) -> Problem | None:
    """What is wrong when the section for the extended layout is another family's, which has one for this layout too."""
    *parents, format_name = lines
    if format_name in family.sections:
        return None
    for parent in parents:
        other = family.like.get(parent)
        if other is not None and format_name in family_called(other).sections:
            return Problem(
                f"[{parent}] is like that of {other}, which has a section [{format_name}] besides",
                where=family.where,
                fix=f'write [{format_name}] with like = "{other}" too, or with rules of its own',
            )
    return None


def _expressions(value: Any, where: str) -> tuple[Expression, ...]:
    return tuple(expression(str(text), where) for text in (value if isinstance(value, list) else [value]))


def _written(key: str, value: str, where: str) -> Written:
    text, at, condition = value.partition(" @ ")
    kind, colon, rest = text.partition(" : ")
    if colon:
        kind, text = kind.strip(), rest
    else:
        kind = ""
    return Written(key, kind, expression(text.strip(), where), expression(condition.strip(), where) if at else None)


def _notice(key: str, value: str, where: str) -> Notice:
    sentence, at, condition = value.partition(" @ ")
    return Notice(key, sentence.strip(), expression(condition.strip(), where) if at else None)


def _rule(names: tuple[str, ...], value: Any, parts: Mapping[str, str], family: Family, where: str) -> Rule:
    table: Mapping[str, Any] = value if isinstance(value, Mapping) else {"at": value}
    where = f"{where} [tensors] {' '.join(names)}"
    unknown = set(table) - {"at", "offset", "when", "stage", "part", "copy", "read_only"}
    if unknown or "at" not in table:
        raise ConfigError(
            f"a rule has `at` and perhaps offset, when, stage, part, copy, read_only; this has {sorted(table)}",
            where=where,
        )
    part, stage = table.get("part", "default"), table.get("stage", "")
    if part not in parts:
        raise ConfigError(f"[parts] does not define {part!r}", where=where, expected=", ".join(parts))
    if stage not in ("", "first", "last", "later"):
        raise ConfigError(f"there is no stage {stage!r}", where=where, expected="first, last or later")
    texts = table["at"] if isinstance(table["at"], list) else [table["at"]]
    patterns = tuple(_parsed(text, where) for text in texts)
    problems = [problem for pattern in patterns for problem in _misplaced(names, pattern, family, where)]
    if problems:
        raise ConfigError(problems)
    return Rule(
        tensors=names,
        patterns=patterns,
        part=parts[part],
        offset=expression(str(table["offset"]), where) if "offset" in table else None,
        when=expression(table["when"], where) if "when" in table else None,
        stage=stage,
        copy=expression(table["copy"], where) if "copy" in table else None,
        read_only=stage == "later" or table.get("read_only", False) is True,
    )


def _parsed(text: str, where: str) -> Pattern:
    try:
        return parse(text)
    except ConfigError as error:
        raise ConfigError([replace(problem, where=where) for problem in error.problems]) from None


def _misplaced(names: tuple[str, ...], pattern: Pattern, family: Family, where: str) -> list[Problem]:
    held = pattern.parts or ("",)
    if (pattern.parts or names) != names and set(pattern.parts) != set(names):
        return [
            Problem(
                f"the bracket holds {' '.join(held)}, the rule is for {' '.join(names)}\n  {pattern.text}", where=where
            )
        ]
    if not pattern.parts and len(names) != 1:
        return [Problem(f"several tensors need a bracket\n  {pattern.text}", where=where)]
    problems = []
    for part in held:
        decl = family.tensors[part or names[0]]
        placed = [atom.axis for atom in pattern.atoms(part)]
        if sorted(placed) != sorted(decl.axes):
            problems.append(
                Problem(
                    f"{decl.name} is not placed whole\n  {pattern.text}",
                    where=where,
                    expected=" ".join(decl.axes),
                    got=" ".join(placed),
                )
            )
    return problems
