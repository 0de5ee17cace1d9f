"""Values of configuration keys as the data files state them: expressions, alternatives with conditions, nested tables.

    "hidden_size // num_attention_heads"
    ["head_dim", "hidden_size // num_attention_heads"]          the first that has a value
    [{ when = "use_rope_scaling", value = "'llama3'" }, "'default'"]
    { when = "rope_type == 'yarn'", factor = "float(scale)" }   a table; an entry that is None is left out
    { when = "rope_type == 'yarn'", factor = "1", otherwise = "None" }
    { for = "i in range(num_hidden_layers)", width = "widths[i]", nulls = true }   a list of such tables

On the way in an alternative whose keys are missing or None has no value, and the next is tried; on the way out every
name has a value. What cannot be computed is an error in both directions. `docs/notation.md` is the specification.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from crossdock.errors import ConfigError, Problem
from crossdock.model.expressions import FAILURES, Expression
from crossdock.wording import short

FACTS: Final = frozenset({"keys", "tensors", "shapes", "dtypes", "settings"})  # names beside the format's own keys
_EACH = re.compile(r"([a-z_][a-z0-9_]*) in (.+)\Z")
_RESERVED = ("when", "otherwise", "value", "for", "nulls")


@dataclass(frozen=True, slots=True)
class Alternative:
    """One way to state a value: an expression or a nested table, under a condition."""

    value: Expression | Table
    when: Expression | None = None

    @property
    def names(self) -> frozenset[str]:
        """All identifiers that the value and its condition read."""
        return self.value.names | (self.when.names if self.when is not None else frozenset())

    @property
    def text(self) -> str:
        """The value as messages show it."""
        return self.value.text

    def lacks(self, values: Mapping[str, Any]) -> frozenset[str]:
        """The names that `values` lacks for it."""
        return self.names - values.keys()

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether a condition is stated, can be computed and holds."""
        if self.when is None or not self.when.names <= values.keys():
            return False
        try:
            return bool(self.when.evaluate(values))
        except FAILURES:
            return False

    def evaluate(self, values: Mapping[str, Any]) -> tuple[Any] | None:
        """The value in a tuple, or None where the condition does not hold. Raises what `Expression.evaluate` does."""
        if self.when is not None and not self.when.evaluate(values):
            return None
        return (self.value.evaluate(values),)


@dataclass(frozen=True, slots=True)
class Table:
    """A nested table of values; with `each` a list of them, one for every value of a name.

    nulls  entries that are None stay; otherwise they are left out
    """

    entries: Mapping[str, Value]
    each: tuple[str, Expression] | None = None
    nulls: bool = False

    @property
    def names(self) -> frozenset[str]:
        """All identifiers that the entries read, the table's own name aside."""
        inner = frozenset(name for value in self.entries.values() for name in value.names)
        if self.each is None:
            return inner
        return (inner - {self.each[0]}) | self.each[1].names

    @property
    def text(self) -> str:
        """The table's keys as messages show them."""
        return f"a table of {', '.join(self.entries)}"

    def evaluate(self, values: Mapping[str, Any]) -> Any:
        """The table, or the list of tables. Raises what `Expression.evaluate` does."""
        if self.each is None:
            found = {key: held[0] for key, value in self.entries.items() if (held := value.written(values)) is not None}
            return {key: value for key, value in found.items() if self.nulls or value is not None}
        name, over = self.each
        one = Table(self.entries, None, self.nulls)
        return [one.evaluate(ChainMap({name: item}, values)) for item in over.evaluate(values)]  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Value:
    """Alternatives, of which the first that applies counts."""

    alternatives: tuple[Alternative, ...]

    @property
    def names(self) -> frozenset[str]:
        """All identifiers that any alternative reads."""
        return frozenset(name for alternative in self.alternatives for name in alternative.names)

    @property
    def text(self) -> str:
        """The alternatives as messages show them."""
        return " or ".join(alternative.text for alternative in self.alternatives)

    def read(self, values: Mapping[str, Any], *, nulls: bool = False) -> tuple[Any, frozenset[str]] | None:
        """The value of the first alternative that has one, and the names that it came from; None without any.

        An alternative has no value where a key is missing, its own or one of a table that it looks into, or is None;
        where its condition fails; nor, without `nulls`, where the value is None. Raises ConfigError for what cannot
        be computed of the keys that are there, and where no alternative is left for a table whose condition holds.
        """
        lacking: dict[str, None] = {}
        for alternative in self.alternatives:
            missing = alternative.lacks(values)
            if missing:
                if isinstance(alternative.value, Table) and alternative.holds(values):
                    lacking |= dict.fromkeys(sorted(missing))
                continue
            try:
                found = alternative.evaluate(values)
            except KeyError:
                continue
            except FAILURES as error:
                if any(values[name] is None for name in alternative.names):
                    continue
                raise ConfigError(_uncomputed(alternative, values, error)) from None
            if found is not None and (nulls or found[0] is not None):
                return found[0], alternative.names
        if lacking:
            raise ConfigError(f"the configuration lacks {', '.join(lacking)}")
        return None

    def written(self, values: Mapping[str, Any]) -> tuple[Any] | None:
        """The value of the first alternative whose condition holds, in a tuple; None when no condition holds.

        Raises KeyError, TypeError or ArithmeticError for what cannot be computed.
        """
        found = (alternative.evaluate(values) for alternative in self.alternatives)
        return next((value for value in found if value is not None), None)


def _uncomputed(alternative: Alternative, values: Mapping[str, Any], error: Exception) -> Problem:
    seen = ", ".join(f"{name}={short(values[name])}" for name in sorted(alternative.names) if name not in FACTS)
    return Problem(f"{alternative.text} cannot be computed", got=seen, cause=str(error))


def parse_value(content: Any, constants: Mapping[str, Any], where: str) -> Value:
    """A value from what TOML has: a text, a table, or a list of these. Raises ConfigError that says where."""
    items = content if isinstance(content, list) else [content]
    if not items:
        raise ConfigError("an empty list of alternatives", where=where)
    return Value(tuple(one for item in items for one in _alternatives(item, constants, where)))


def _alternatives(item: Any, constants: Mapping[str, Any], where: str) -> list[Alternative]:
    if isinstance(item, str):
        return [Alternative(Expression(item, where, constants))]
    if not isinstance(item, Mapping):
        raise ConfigError(f"{item!r} is not an expression in quotes, nor a table", where=where)
    when = Expression(item["when"], where, constants) if "when" in item else None
    if "value" in item:
        unknown = set(item) - {"value", "when"}
        if unknown:
            raise ConfigError(f"beside `value` there may be `when`, not {', '.join(sorted(unknown))}", where=where)
        return [Alternative(Expression(item["value"], where, constants), when)]
    entries = {
        key: parse_value(value, constants, f"{where}.{key}") for key, value in item.items() if key not in _RESERVED
    }
    if not entries:
        raise ConfigError("a table without `value` and without keys", where=where)
    each = None
    if "for" in item:
        match = _EACH.match(item["for"])
        if match is None:
            raise ConfigError(f"for = {item['for']!r}", where=where, expected="NAME in EXPRESSION")
        each = match[1], Expression(match[2], where, constants)
    table = Alternative(Table(entries, each, item.get("nulls", False) is True), when)
    return [table, *(_alternatives(item["otherwise"], constants, where) if "otherwise" in item else ())]
