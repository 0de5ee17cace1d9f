"""Layouts: for one format and one family, where every canonical tensor lives and what every config key means.

Reads `data/layouts/FORMAT.toml` and lays the family's own section for that format on it. The tensor rules are here,
the config keys in `layout.keys`. Strict: an unknown key, an axis that is placed twice or not at all, is an error that
names the file. Knows no bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from crossdock.errors import ConfigError, Problem
from crossdock.layout.keys import KEY_TABLES, ReadKeys, WriteKeys, read_keys, write_keys
from crossdock.layout.maps import MAPS, Steps, storing
from crossdock.layout.notation import Pattern, Prefixes, alternatives, parse, prefix_of
from crossdock.model.expressions import Expression, expression
from crossdock.model.families import family as family_called
from crossdock.model.family import Family
from crossdock.model.tables import checked_tables, merged, read_toml
from crossdock.plugins import folders

# what a layout may hold besides the config keys, and the types of the values in it
TENSOR_TABLES: Mapping[str, tuple[type, ...]] = MappingProxyType({
    "parts": (str,), "tensors": (str, list, dict), "skip": (str,), "encoding": (list,), "unsupported": (str,),
    "renames": (list,), "numbers": (str,), "variables": (str,), "lengths": (str,), "prefixes": (list,),
})  # fmt: skip
_SCALARS = ("extends", "families", "family", "padded", "when", "sum_as_stored")
RULE_KEYS = ("at", "map", "scale", "offset", "when", "stage", "part", "copy", "read_only", "key")


@dataclass(frozen=True, slots=True)
class Rule:
    """Where one or more canonical tensors live, as alternatives of which the first is written.

    map     stored value = map(canonical value) * scale + offset, a name of `layout.maps.MAPS`; `scale`: one for all
            tensors, or one for each; several numbers are multiplied one after another
    stage   "first" or "last" pipeline stage only, or "later": copies that later stages have of what the first one
            holds, which are never written
    copy    when a tensor that is the same as another (a tied head) is written all the same
    read_only  another form that sources have, which is never written
    key     the configuration of the format holds it, as the numbers of the key of this name
    """

    tensors: tuple[str, ...]
    patterns: tuple[Pattern, ...]
    part: str
    offset: Expression | None = None
    when: Expression | None = None
    stage: str = ""
    copy: Expression | None = None
    read_only: bool = False
    key: bool = False
    map: str = ""
    scale: tuple[Expression, ...] = ()

    def storing(self, tensor: str, variables: Mapping[str, Any]) -> Steps:
        """How canonical values of `tensor` become stored ones. `variables`: what the rule's numbers may name."""
        scale = self.scale[self.tensors.index(tensor) if len(self.scale) > 1 else 0] if self.scale else None
        factors = () if scale is None else scale.evaluate(variables)
        offset = 0.0 if self.offset is None else float(self.offset.evaluate(variables))
        return storing(self.map, tuple(map(float, factors if isinstance(factors, tuple) else (factors,))), offset)


@dataclass(frozen=True)
class Layout:
    """A format's rules for one family.

    padded       axes that the format may store longer than they are
    lengths      axes that the format stores as long as this number, over canonical fields, where they are shorter
    skip         stored tensors (globs) that are not read, and why
    encoding     what of the stored names (globs) is not of the dtype that was asked for
    unsupported  canonical tensors (globs) that the format has no place for, and the sentence to say so
    sum_as_stored  when sums with offsets are rounded to the source's dtype before they are written
    numbers      name -> the numbers that stand in names for the indices of an axis, in their order
    variables    name -> a number for conditions and offsets
    reading, writing  what the keys of the format's configuration mean
    """

    format: str
    rules: tuple[Rule, ...]
    padded: frozenset[str]
    lengths: Mapping[str, Expression]
    skip: Mapping[str, str]
    encoding: Mapping[str, tuple[str, ...]]
    unsupported: Mapping[str, str]
    sum_as_stored: Expression
    numbers: Mapping[str, Expression]
    variables: Mapping[str, Expression]
    reading: ReadKeys
    writing: WriteKeys

    def numbering(self, variables: Mapping[str, Any]) -> dict[str, dict[int, int]]:
        """Name of a table of numbers -> index of the axis -> the number that stands in a name for it.

        Raises ConfigError for what is not a list of different whole numbers (None: this index has no such name).
        """
        return {name: _numbering(name, numbers, variables, self.format) for name, numbers in self.numbers.items()}


@functools.cache
def layout(format_name: str, family: Family | None = None) -> Layout:
    """The layout of `format_name` for `family`; without a family only its config keys mean anything.

    Raises ConfigError when the data files are wrong, or when the family says nothing about this format.
    """
    return _layout(format_name, family)


@functools.cache
def layout_names() -> tuple[str, ...]:
    """The names of all layouts, in alphabetical order."""
    return tuple(sorted({file.name[:-5] for folder in folders("layouts") for file in folder.iterdir()
                         if file.name.endswith(".toml")}))  # fmt: skip


def extended(format_name: str) -> tuple[str, ...]:
    """The layout that this one extends, and itself: a family's sections for both apply."""
    return _chain(_base(format_name), format_name)


@functools.cache
def family_stated(format_name: str) -> Expression | None:
    """The expression over a format's keys that is the name of the family, where sources may state it; else None."""
    text = _base(format_name).get("family")
    return None if text is None else expression(text, f"layouts/{format_name}.toml")


def unheld(format_name: str, family: Family) -> Problem | None:
    """What is wrong when neither the family has a section for this format nor the layout names the family."""
    table = _base(format_name)
    if family.name in table.get("families", ()) or any(name in family.sections for name in _chain(table, format_name)):
        return None
    return Problem(
        f"family {family.name} does not say how it is stored as {format_name}",
        where=family.where,
        expected=f"a section [{format_name}]",
        fix='write one into the family\'s file; like = "llama" in it takes the section of the family llama',
    )


def _chain(table: Mapping[str, Any], format_name: str) -> tuple[str, ...]:
    """The layout that this one extends, and itself: families have sections for both."""
    return tuple(dict.fromkeys((table.get("extends", format_name), format_name)))


def stored_names(format_name: str) -> Mapping[str, tuple[str, ...]]:
    """What users may call a layout's tensors in a rename -> the stored names that it has for them, as patterns.

    By canonical tensors ("attn_q attn_k attn_v"), and by the names of [renames], each of which stands for its last.
    """
    table = _base(format_name)
    out: dict[str, tuple[str, ...]] = {}
    for key, content in table.get("tensors", {}).items():
        lines = [line for rule in _rules_in(content) for line in _lines(rule)]
        lines = [text for line in lines for text in alternatives(line, table.get("prefixes", {}))]
        names = tuple(text.partition(" : ")[0].strip() for text in lines if text)
        if names:
            out[key] = names
    for key, (*others, name) in table.get("renames", {}).items():
        out |= dict.fromkeys((key, *others), (name,))
    return out


def _base(format_name: str, chain: tuple[str, ...] = ()) -> Mapping[str, Any]:
    for folder in folders("layouts"):
        file = folder / f"{format_name}.toml"
        if file.is_file():
            table = _by_key(read_toml(file, f"layouts/{format_name}.toml"))
            parent = table.get("extends")
            if parent is None:
                return table
            if parent in (*chain, format_name):
                raise ConfigError(f"extends {parent!r}: a circle", where=f"layouts/{format_name}.toml")
            return merged(_base(parent, (*chain, format_name)), table, f"layouts/{format_name}.toml")
    where = f"layouts/{chain[-1]}.toml" if chain else ""
    raise ConfigError(f"no layout for format {format_name!r}", where=where)


def _by_key(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same with [ignored] by key: a reason may be followed by the list of the keys that it holds for."""
    ignored = table.get("ignored")
    if not isinstance(ignored, Mapping):
        return table
    by_key: dict[str, Any] = {}
    for key, content in ignored.items():
        by_key |= dict.fromkeys(content, key) if isinstance(content, list) else {key: content}
    return {**table, "ignored": by_key}


def _layout(format_name: str, family: Family | None) -> Layout:
    table: Mapping[str, Any] = _base(format_name)
    where = f"layouts/{format_name}.toml"
    if family is not None:
        problem = unheld(format_name, family) or _half_like(_chain(table, format_name), family)
        if problem is not None:
            raise ConfigError(problem)
        where += f" with {family.where}"
        strange = sorted(family.sections.keys() - set(layout_names()))
        if strange:
            raise ConfigError(
                f"unknown format {', '.join(f'[{name}]' for name in strange)}",
                where=family.where,
                expected=", ".join(layout_names()),
            )
        for name in _chain(table, format_name):
            for section in family.sections.get(name, ()):
                table = merged(table, _by_key(section), f"{where} [{name}]")
    tables = {**TENSOR_TABLES, **KEY_TABLES}
    unknown = set(table) - set(tables) - set(_SCALARS)
    if unknown:
        raise ConfigError(f"unknown keys {', '.join(sorted(unknown))}", where=where)
    checked_tables(table, tables, where)
    return Layout(
        format=format_name,
        rules=_rules(table, family, where),
        padded=frozenset((*table.get("padded", ()), *table.get("lengths", {}))),
        lengths={key: expression(text, where) for key, text in table.get("lengths", {}).items()},
        skip=table.get("skip", {}),
        encoding={key: tuple(globs) for key, globs in table.get("encoding", {}).items()},
        unsupported=table.get("unsupported", {}),
        sum_as_stored=expression(str(table.get("sum_as_stored", "False")), where),
        numbers={key: expression(text, where) for key, text in table.get("numbers", {}).items()},
        variables={key: expression(text, where) for key, text in table.get("variables", {}).items()},
        reading=read_keys(table, where),
        writing=write_keys(table, where),
    )


def _rules(table: Mapping[str, Any], family: Family | None, where: str) -> tuple[Rule, ...]:
    """The rules for tensors that the family has."""
    parts = {"default": "", **table.get("parts", {})}
    prefixes = table.get("prefixes", {})
    numbers = frozenset(table.get("numbers", {}))
    rules: list[Rule] = []
    for key, content in table.get("tensors", {}).items():
        names = tuple(key.split())
        if family is None or not all(name in family.tensors for name in names):
            continue
        place = f"{where} [tensors] {key}"
        if key != " ".join(names):
            raise ConfigError("extra blanks in a key", where=place, fix="a list of tables holds several rules")
        for rule in _rules_in(content):
            rules.append(_rule(names, rule, parts, prefixes, family, place))
            for pattern in rules[-1].patterns:
                strange = {atom.numbers for atom in pattern.indices} - numbers - {""}
                if strange:
                    raise ConfigError(f"[numbers] does not define {', '.join(strange)}\n  {pattern.text}", where=place)
    return tuple(rules)


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


def _rules_in(content: Any) -> list[Any]:
    """The rules of one key: a list of tables holds several, with conditions; everything else is one."""
    several = isinstance(content, list) and any(isinstance(one, Mapping) for one in content)
    return content if several else [content]


def _lines(rule: Any) -> list[str]:
    """The lines of a rule, however it is written."""
    at = rule.get("at", []) if isinstance(rule, Mapping) else rule
    return at if isinstance(at, list) else [at]


def _rule(
    names: tuple[str, ...], content: Any, parts: Mapping[str, str], prefixes: Prefixes, family: Family, where: str
) -> Rule:
    table: Mapping[str, Any] = content if isinstance(content, Mapping) else {"at": content}
    if set(table) - set(RULE_KEYS) or "at" not in table:
        raise ConfigError(
            f"a rule has `at` and perhaps {', '.join(RULE_KEYS[1:])}; this has {sorted(table)}", where=where
        )
    part, stage = table.get("part", "default"), table.get("stage", "")
    if part not in parts:
        raise ConfigError(f"[parts] does not define {part!r}", where=where, expected=", ".join(parts))
    if stage not in ("", "first", "last", "later"):
        raise ConfigError(f"unknown stage {stage!r}", where=where, expected="first, last or later")
    unknown = {name for line in _lines(table) if (name := prefix_of(line)) and name not in prefixes}
    if unknown:
        raise ConfigError(f"[prefixes] does not define {', '.join(sorted(unknown))}", where=where)
    patterns = tuple(_parsed(text, where) for line in _lines(table) for text in alternatives(line, prefixes))
    if table.get("map", "") not in ("", *MAPS):
        raise ConfigError(f"unknown map {table['map']!r}", where=where, expected=" or ".join(MAPS))
    scales = table.get("scale", [])
    scales = scales if isinstance(scales, list) else [scales]
    if len(scales) not in (0, 1, len(names)):
        raise ConfigError(
            f"{len(scales)} scales for {len(names)} tensors", where=where, expected="one, or one for each"
        )
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
        key=table.get("key", False) is True,
        map=table.get("map", ""),
        scale=tuple(expression(str(text), where) for text in scales),
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


def _numbering(name: str, numbers: Expression, variables: Mapping[str, Any], where: str) -> dict[int, int]:
    found = numbers.evaluate(variables)
    used = [number for number in found if number is not None]
    if not all(type(number) is int and number >= 0 for number in used) or len(set(used)) != len(used):
        raise ConfigError(
            f"[numbers] {name} = {numbers.text} gives {found!r:.80}",
            where=f"layouts/{where}.toml",
            expected="different whole numbers from 0 on, or None for an index without a name",
        )
    return {index: number for index, number in enumerate(found) if number is not None}
