"""The config half of a layout: what the keys of a format's configuration mean, on the way in and on the way out.

Knows no tensor and no bytes; expressions are evaluated by who plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crossdock.errors import ConfigError, UsageError
from crossdock.layout.values import Alternative, Value, parse_value
from crossdock.model.config import FIELDS
from crossdock.model.expressions import FAILURES, Expression
from crossdock.model.family import constants

Table = Mapping[str, Any]

# the tables of the config half, and the types of the values in them
KEY_TABLES: Mapping[str, tuple[type, ...]] = {
    "read": (str, list, dict), "absent": (str, list, dict), "derived": (str, list, dict), "aliases": (str, list, dict),
    "tables": (dict,), "ignored": (str,), "only_values": (list,), "refused": (dict,), "notices": (str,),
    "model_types": (list,), "write": (str, list, dict), "fits": (list, dict), "needs": (dict,),
    "warn": (dict,),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Statement:
    """A named sentence with its condition: what must hold, what is refused, or when to show it."""

    name: str
    sentence: str
    condition: Expression

    @property
    def never(self) -> bool:
        """Whether the condition is false whatever the model is."""
        return self.condition.text == "False"


@dataclass(frozen=True, slots=True)
class Restriction:
    """The values of a canonical field that a format can hold, and why no others ("" where that is obvious)."""

    field: str
    only: tuple[Any, ...]
    sentence: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence about a key of the format: shown when the condition holds, or a field's value had to come from it."""

    key: str
    sentence: str
    when: Expression | None


@dataclass(frozen=True, slots=True)
class Written:
    """One config key that a format writes: its value, and for each alternative its type where the format has types."""

    key: str
    kinds: tuple[str, ...]
    value: Value

    def evaluate(self, values: Mapping[str, Any]) -> tuple[str, Any] | None:
        """(type, value) of the first alternative whose condition holds; None without. Raises as `Value.written`."""
        for kind, alternative in zip(self.kinds, self.value.alternatives, strict=True):
            found = alternative.evaluate(values)
            if found is not None:
                return kind, found[0]
        return None


@dataclass(frozen=True)
class ReadKeys:
    """How the keys of a format become canonical fields.

    fields       canonical field -> its value over the format's keys
    absent       key -> what versions that lack the key always did; derived: name -> a value that several rules use
    aliases      key -> what it is when the source uses the format's other names
    ignored      keys (globs) that do not change the computation -> the reason
    only_values  keys that would change the computation -> the values that do not
    refused      what the keys may not say; notices: sentences to show about keys
    model_types  name of a kind of model in the format's terms -> families that it may be
    """

    fields: Mapping[str, Value]
    absent: Mapping[str, Value]
    derived: Mapping[str, Value]
    aliases: Mapping[str, Value]
    ignored: Mapping[str, str]
    only_values: Mapping[str, tuple[Any, ...]]
    refused: tuple[Statement, ...]
    notices: tuple[Notice, ...]
    model_types: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class WriteKeys:
    """How canonical fields become the keys of a format, and which models it can hold.

    keys   what the configuration holds, in order; unset: keys that a family has to write, and this one does not
    fits   fields of which the format can hold only some values
    needs  what must hold for a model to be written; warn: sentences to show when their condition holds
    """

    keys: tuple[Written, ...]
    unset: tuple[str, ...]
    fits: tuple[Restriction, ...]
    needs: tuple[Statement, ...]
    warn: tuple[Statement, ...]


def read_keys(table: Table, where: str) -> ReadKeys:
    """The reading half of a layout's table. Raises ConfigError that says where in the file a mistake is."""
    tables = table.get("tables", {})

    def values(name: str) -> dict[str, Value]:
        return {
            key: parse_value(content, tables, f"{where} [{name}] {key}") for key, content in table.get(name, {}).items()
        }

    strange = [f"[read] {key}" for key in table.get("read", {}) if key not in FIELDS]
    if strange:
        raise ConfigError(f"{', '.join(strange)}: not a field of the configuration", where=where)
    return ReadKeys(
        fields=values("read"),
        absent=values("absent"),
        derived=values("derived"),
        aliases=values("aliases"),
        ignored=table.get("ignored", {}),
        only_values={key: tuple(allowed) for key, allowed in table.get("only_values", {}).items()},
        refused=_statements(table, "refused", "when", where),
        notices=tuple(_notice(key, text, where) for key, text in table.get("notices", {}).items()),
        model_types={key: tuple(names) for key, names in table.get("model_types", {}).items()},
    )


def write_keys(table: Table, where: str) -> WriteKeys:
    """The writing half of a layout's table. Raises ConfigError that says where in the file a mistake is."""
    tables = table.get("tables", {})
    needs = _statements(table, "needs", "must", where)
    strange = [f"[fits] {key}" for key in table.get("fits", {}) if key not in FIELDS]
    strange += [f"[needs] {one.name}: {word}" for one in needs for word in sorted(one.condition.names - set(FIELDS))]
    if strange:
        raise ConfigError(f"{', '.join(strange)}: not a field of the configuration", where=where)
    write = table.get("write", {})
    return WriteKeys(
        keys=tuple(_written(key, value, tables, f"{where} [write] {key}") for key, value in write.items() if value),
        unset=tuple(key for key, value in write.items() if not value),
        fits=tuple(_restriction(key, content, where) for key, content in table.get("fits", {}).items()),
        needs=needs,
        warn=_statements(table, "warn", "when", where),
    )


def written(keys: tuple[Written, ...], values: Mapping[str, Any], where: str) -> dict[str, tuple[str, Any]]:
    """Key -> (type, value) of every key whose condition holds. Raises UsageError for one that cannot be computed."""
    out: dict[str, tuple[str, Any]] = {}
    for entry in keys:
        try:
            found = entry.evaluate(values)
        except FAILURES as error:
            raise UsageError(f"the {where} layout cannot write {entry.key} = {entry.value.text}: {error}") from None
        if found is not None:
            out[entry.key] = found
    return out


def _statements(table: Table, name: str, condition: str, where: str) -> tuple[Statement, ...]:
    tables = table.get("tables", {})
    out = []
    for key, content in table.get(name, {}).items():
        place = f"{where} [{name}] {key}"
        if set(content) != {"say", condition}:
            raise ConfigError(f"has {', '.join(sorted(content))}", where=place, expected=f"say and {condition}")
        out.append(Statement(key, content["say"], Expression(content[condition], place, tables)))
    return tuple(out)


def _restriction(key: str, content: Any, where: str) -> Restriction:
    """A field's values: a list, or a table of the list and the reason."""
    table = content if isinstance(content, Mapping) else {"only": content, "say": ""}
    if set(table) != {"only", "say"} or not isinstance(table["only"], list) or not isinstance(table["say"], str):
        raise ConfigError(
            f"has {', '.join(sorted(table))}",
            where=f"{where} [fits] {key}",
            expected="a list of values, or only = such a list and say = a sentence",
        )
    return Restriction(key, constants(table["only"]), table["say"])


def _written(key: str, content: Any, tables: Table, where: str) -> Written:
    """A key with its value: texts may have a type before ` : ` and a condition behind ` @ `."""
    items = content if isinstance(content, list) else [content]
    kinds: list[str] = []
    alternatives: list[Alternative] = []
    for item in items:
        condition, kind = "", ""
        if isinstance(item, str):
            item, _, condition = item.partition(" @ ")
            before, colon, rest = item.partition(" : ")
            if colon:
                kind, item = before.strip(), rest
            item = item.strip()
        parsed = parse_value(item, tables, where).alternatives
        when = Expression(condition.strip(), where, tables) if condition else None
        alternatives += [Alternative(one.value, when or one.when) for one in parsed]
        kinds += [kind] * len(parsed)
    if "" in kinds and any(kinds):
        raise ConfigError("alternatives with and without a type", where=where, got=", ".join(filter(None, kinds)))
    return Written(key, tuple(kinds), Value(tuple(alternatives)))


def _notice(key: str, text: str, where: str) -> Notice:
    sentence, at, condition = text.partition(" @ ")
    return Notice(key, sentence.strip(), Expression(condition.strip(), f"{where} [notices] {key}") if at else None)
