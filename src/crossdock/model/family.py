"""A family: which tensors a kind of decoder has, over which axes, and what its configuration may say.

Closed by default: a field that the family does not name must have its default value (`model.config.FREE` and `IDLE` say
which fields are exempt, and why). `model.families` reads families from their files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crossdock.errors import ConfigError, Problem
from crossdock.model.config import DEFAULTS, FREE, IDLE, ModelConfig
from crossdock.model.expressions import Expression, expression

Table = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class TensorDecl:
    """A canonical tensor: its axes outermost first, in which layers it exists, and under which condition.

    layers   "all", or a set of layers that the family names
    same_as  what it equals where `when` does not hold (a tied head is the embedding), or ""
    """

    name: str
    axes: tuple[str, ...]
    layers: str = "all"
    when: Expression | None = None
    same_as: str = ""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How long axes are: `whole` wherever they are, `by_layer` axis -> layer -> size where layers differ."""

    whole: Mapping[str, int]
    by_layer: Mapping[str, Mapping[int, int]]

    def of(self, axes: Iterable[str], layer: int | None = None) -> dict[str, int]:
        """The sizes of `axes` in `layer`, in their order, without the axis of the layers."""
        inside = (axis for axis in axes if axis != "layer")
        return {
            axis: self.by_layer[axis][layer] if layer is not None and axis in self.by_layer else self.whole[axis]
            for axis in inside
        }

    def elements(self, axes: Sequence[str], layers: Iterable[int] | None) -> int:
        """How many values a tensor of these axes has in all of its layers; None for one outside the layers."""
        if layers is None:
            return math.prod(self.of(axes).values())
        return sum(math.prod(self.of(axes, layer).values()) for layer in layers)


@dataclass(frozen=True, eq=False)
class Family:
    """A kind of decoder.

    where     its file, for messages
    axes      axis -> its size; an expression that names `layer` gives the size in that layer
    layers    name of a set of layers -> their numbers
    requires  field -> the values that it may have; a field that is not named here has its default
    sections  format -> the tables that are laid on the format's layout one after another; the last is the family's own
    like      format -> the family whose section of that format comes before the family's own
    limits    format -> field -> the values that the section of another family covers, where this family may be more
    """

    name: str
    where: str
    axes: Mapping[str, Expression]
    layers: Mapping[str, Expression]
    tensors: Mapping[str, TensorDecl]
    requires: Mapping[str, tuple[Any, ...]]
    sections: Mapping[str, tuple[Table, ...]]
    like: Mapping[str, str]
    limits: Mapping[str, Mapping[str, tuple[Any, ...]]]

    def sizes(self, config: ModelConfig) -> Sizes:
        """The size of every axis under `config`. Raises ConfigError when one is no positive whole number."""
        values = config.as_dict()
        where: dict[str, set[int | None]] = {}
        for decl in self.present(config).values():
            layers = self.layers_of(decl, config) or (None,)
            for axis in decl.axes:
                where.setdefault(axis, set()).update(layers if "layer" in self.axes[axis].names else (None,))
        whole: dict[str, int] = {}
        by_layer: dict[str, dict[int, int]] = {}
        problems: list[Problem] = []
        for axis in self.axes.keys() & where.keys():
            found = {
                layer: _size(axis, self.axes[axis], values if layer is None else {**values, "layer": layer}, problems)
                for layer in where[axis]
            }
            if len(set(found.values())) == 1:
                whole[axis] = next(iter(found.values()))
            else:
                by_layer[axis] = {layer: number for layer, number in found.items() if layer is not None}
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))
        return Sizes(whole, by_layer)

    def present(self, config: ModelConfig) -> dict[str, TensorDecl]:
        """The tensors that a model with this configuration has."""
        values = config.as_dict()
        return {
            name: decl
            for name, decl in self.tensors.items()
            if (decl.when is None or decl.when.evaluate(values)) and self.layers_of(decl, config) != ()
        }

    def layers_of(self, decl: TensorDecl, config: ModelConfig) -> tuple[int, ...] | None:
        """The layers in which `decl` exists, ascending, with those for multi-token prediction; None outside of them."""
        if "layer" not in decl.axes:
            return None
        if decl.layers == "all":
            return tuple(range(config.num_hidden_layers + config.num_nextn_predict_layers))
        return tuple(sorted(set(self.layers[decl.layers].evaluate(config.as_dict()))))

    def misfits(self, config: ModelConfig) -> list[Problem]:
        """A problem for each field whose value this family does not name and that is not the default either."""
        values = config.as_dict()
        return [
            Problem(
                f"family {self.name} does not fit",
                where=field.name,
                expected=_listed(self.requires.get(field.name, (_default(field),))),
                got=repr(values[field.name]),
            )
            for field in dataclasses.fields(config)
            if not (
                is_allowed(values[field.name], self.requires[field.name])
                if field.name in self.requires
                else _rests(field, values)
            )
        ]

    def uncovered(self, format_name: str, config: ModelConfig) -> list[Problem]:
        """A problem for each field whose value the section that this format's is like was not written for."""
        values, like = config.as_dict(), self.like.get(format_name, "")
        return [
            Problem(
                f"[{format_name}] of family {self.name} is like that of {like}, which does not cover this value",
                where=name,
                expected=_listed(allowed),
                got=repr(values[name]),
                fix=f"if the family's own section takes care of it, say so there: holds = [{name!r}]",
            )
            for name, allowed in self.limits.get(format_name, {}).items()
            if not is_allowed(values[name], allowed) and not _idle(name, values)
        ]


def constants(values: Iterable[Any]) -> tuple[Any, ...]:
    """Allowed values of a field; TOML has no word for None and (), so they are written as texts."""
    words = {"None": None, "()": ()}
    return tuple(words.get(value, value) if isinstance(value, str) else value for value in values)


def is_allowed(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a field may have this value: one of those listed, or of a kind.

    "positive" is any number above 0, "fraction" one below 1 besides, "some" any list or table that is not empty.
    """
    if "some" in allowed and isinstance(value, tuple | Mapping) and value:
        return True
    number = isinstance(value, int | float) and value > 0
    return value in allowed or ("positive" in allowed and number) or ("fraction" in allowed and number and value < 1)


def default_of(name: str) -> tuple[Any, ...]:
    """The only value that a field may have in a family that does not name it; nothing for one that is free."""
    return () if name in FREE else (DEFAULTS[name],)


def _rests(field: dataclasses.Field[Any], values: Mapping[str, Any]) -> bool:
    """Whether a field that a family does not name may have its value: it is free, the default, or takes no part."""
    return field.name in FREE or values[field.name] == _default(field) or _idle(field.name, values)


def _idle(name: str, values: Mapping[str, Any]) -> bool:
    return name in IDLE and bool(expression(IDLE[name], f"IDLE {name}").evaluate(values))


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _listed(values: Iterable[Any]) -> str:
    return " or ".join(map(repr, values))


def _size(axis: str, size: Expression, values: Mapping[str, Any], problems: list[Problem]) -> int:
    try:
        number = size.evaluate(values)
    except (ArithmeticError, TypeError, IndexError) as error:
        problems.append(Problem(f"axis {axis!r} = {size.text} has no value: {error}"))
        return 0
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        problems.append(Problem(f"axis {axis!r} = {size.text} is {number}, not a positive whole number"))
        return 0
    return number
