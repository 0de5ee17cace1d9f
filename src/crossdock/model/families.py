"""The families: which tensors a kind of decoder has, over which axes, and what its configuration must say.

A family is one TOML file in `data/families/`; this module reads them strictly and knows none by name.
Third parties add folders of such files by the entry point group `crossdock.families`.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from crossdock.errors import ConfigError, Problem, UsageError
from crossdock.model.config import FIELDS, ModelConfig
from crossdock.model.expressions import Expression, expression
from crossdock.plugins import folders
from crossdock.wording import nearest

Table = Mapping[str, Any]
_OWN = (
    "axes",
    "layers",
    "tensors",
    "fits",
    "extends",
)  # what a family file says of itself; its other tables are formats


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
    """A kind of decoder. `sections` holds, per format, what the file says about that format.

    axes    axis -> its size; an expression that names `layer` gives the size in that layer
    layers  name of a set of layers -> their numbers
    """

    name: str
    axes: Mapping[str, Expression]
    layers: Mapping[str, Expression]
    tensors: Mapping[str, TensorDecl]
    requires: Mapping[str, tuple[Any, ...]]
    sections: Mapping[str, Table]

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
        """The layers in which `decl` exists, ascending; None for a tensor outside the layers."""
        if "layer" not in decl.axes:
            return None
        if decl.layers == "all":
            return tuple(range(config.num_hidden_layers))
        return tuple(sorted(set(self.layers[decl.layers].evaluate(config.as_dict()))))

    def misfits(self, config: ModelConfig) -> list[Problem]:
        """What the configuration says that this family cannot be."""
        return [
            Problem(
                f"family {self.name} does not fit",
                where=field,
                expected=" or ".join(map(repr, allowed)),
                got=repr(getattr(config, field)),
            )
            for field, allowed in self.requires.items()
            if not is_allowed(getattr(config, field), allowed)
        ]


class FamilyFile:
    """The file of one family, which is read as far as it is asked for."""

    def __init__(self, name: str, file: Any) -> None:
        self.name, self.file = name, file

    @functools.cached_property
    def table(self) -> Table:
        """All of it. Raises ConfigError, as `family` does."""
        return read_toml(self.file, self.where)

    @functools.cached_property
    def family(self) -> Family:
        """The family, with what it extends."""
        return _family(self.name)

    @property
    def where(self) -> str:
        """The file, for messages."""
        return f"families/{self.name}.toml"

    def when(self, format_name: str) -> Expression | None:
        """What tells a source of this format that it is of this family."""
        text = read_toml(self.file, self.where, format_name).get("when")
        return None if text is None else expression(text, self.name)


@functools.cache
def files() -> Mapping[str, FamilyFile]:
    """Every registered family's file, by the family's name."""
    found: dict[str, FamilyFile] = {}
    for file in (file for folder in folders("families") for file in folder.iterdir()):
        name = file.name.removesuffix(".toml")
        if name in found:
            raise ConfigError(f"family {name!r} is defined twice", where=str(file))
        if name != file.name:
            found[name] = FamilyFile(name, file)
    return MappingProxyType(dict(sorted(found.items())))


def families() -> Mapping[str, Family]:
    """Every registered family by name."""
    return {name: file.family for name, file in files().items()}


def family(name: str) -> Family:
    """The family called `name`. Raises UsageError that lists the known ones."""
    known = files()
    if name not in known:
        near = nearest(name, known)
        raise UsageError(
            f"there is no family {name!r}",
            expected=", ".join(known),
            fix=f"did you mean --family {near[0]}?" if near else "give one of these to --family",
        )
    return known[name].family


def merged(base: Table, over: Table, *, keep_removals: bool = False) -> dict[str, Any]:
    """`over` laid on `base`, tables key by key; an empty text in `over` removes the key.

    keep_removals  leave the empty text in place, for a base that comes later (a family's section, laid on a layout)
    """
    out = dict(base)
    for key, value in over.items():
        if value == "" and not keep_removals:
            out.pop(key, None)
        elif _mergeable(value) and isinstance(out.get(key), Mapping):
            out[key] = merged(out[key], value, keep_removals=keep_removals)
        else:
            out.pop(key, None)  # a redefined key moves to the place of the redefinition
            out[key] = value
    return out


def _mergeable(value: Any) -> bool:
    """Whether a table is merged key by key: rules and tensors are replaced whole."""
    return isinstance(value, Mapping) and not {"at", "axes", "value"} & value.keys()


def read_toml(file: Any, where: str, section: str | None = None) -> Table:
    """The table in a data file. Raises ConfigError that names it: broken syntax, a key given twice.

    section  only the table of this name in it, perhaps without the tables within that; empty where there is none
    """
    try:
        text = file.read_text(encoding="utf-8")
        return tomllib.loads(text) if section is None else _section(text, section)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a valid TOML file: {error}", where=where) from None


def _section(text: str, name: str) -> Table:
    """From the line [name] to the next header, where such lines can be told; reading all of a text takes a while."""
    if not re.search("'''|\"\"\"", text):
        for part in re.split(r"^(?=\[)", text, flags=re.MULTILINE):
            if part.startswith(f"[{name}]\n"):
                with contextlib.suppress(tomllib.TOMLDecodeError):  # cut where a list goes on with a list
                    return tomllib.loads(part)[name]  # type: ignore[no-any-return]
    found = tomllib.loads(text).get(name) if name in text else None
    return found if isinstance(found, Mapping) else {}


def checked_tables(table: Table, tables: Mapping[str, tuple[type, ...]], where: str) -> None:
    """Raise ConfigError where a table of `tables` is none, or holds a value of another type than it may."""
    problems = []
    for name, kinds in tables.items():
        content = table.get(name, {})
        if not isinstance(content, Mapping):
            problems.append(Problem(f"[{name}] is no table", where=where, got=repr(content)))
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


def is_allowed(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a field may have this value: one of those listed, or of a kind.

    "positive" is any number above 0, "fraction" one below 1 besides, "some" any list or table that is not empty.
    """
    if "some" in allowed and isinstance(value, tuple | Mapping) and value:
        return True
    number = isinstance(value, int | float) and value > 0
    return value in allowed or ("positive" in allowed and number) or ("fraction" in allowed and number and value < 1)


def constants(values: Iterable[Any]) -> tuple[Any, ...]:
    """Allowed values of a field; TOML has no word for None and (), so they are written as texts."""
    words = {"None": None, "()": ()}
    return tuple(words.get(value, value) if isinstance(value, str) else value for value in values)


def _family(name: str) -> Family:
    where = f"families/{name}.toml"
    table = _inherited(name, ())
    checked_tables(table, {"axes": (str,), "layers": (str,), "tensors": (str, dict), "fits": (list,)}, where)
    layers = {kind: expression(text, where) for kind, text in table.get("layers", {}).items()}
    axes = {axis: expression(text, where) for axis, text in table.get("axes", {}).items()}
    tensors = {key: _decl(key, value, where) for key, value in table.get("tensors", {}).items()}
    problems = [
        Problem(f"tensor {decl.name!r} has the axis {axis!r}, which [axes] does not define", where=where)
        for decl in tensors.values()
        for axis in decl.axes
        if axis not in axes
    ]
    requires = {key: constants(allowed) for key, allowed in table.get("fits", {}).items()}
    problems += [
        Problem(f"[fits] names {key!r}, which is no field", where=where) for key in requires if key not in FIELDS
    ]
    problems += [
        Problem(f"tensor {decl.name!r} is the same as {decl.same_as!r}, which [tensors] does not define", where=where)
        for decl in tensors.values()
        if decl.same_as and decl.same_as not in tensors
    ]
    problems += [
        Problem(f"tensor {decl.name!r}: layers {decl.layers!r}, which [layers] does not define", where=where)
        for decl in tensors.values()
        if decl.layers != "all" and decl.layers not in layers
    ]
    readers = [
        *axes.items(),
        *layers.items(),
        *((decl.name, decl.when) for decl in tensors.values() if decl.when is not None),
    ]
    problems += [
        Problem(f"{key} = {read.text} names {field!r}, which is no field of the configuration", where=where)
        for key, read in readers
        for field in sorted(read.names - set(FIELDS) - ({"layer"} if key in axes else set()))
    ]
    if problems:
        raise ConfigError(problems)
    sections = {k: v for k, v in table.items() if k not in _OWN and isinstance(v, Mapping)}
    odd = [k for k in table if k not in sections and k not in _OWN]
    if odd:
        raise ConfigError(f"unknown keys {', '.join(odd)}", where=where)
    return Family(name, axes, layers, tensors, requires, sections)


def _inherited(name: str, chain: tuple[str, ...]) -> Table:
    if name in chain or name not in files():
        why = "a circle" if name in chain else "there is no such family"
        raise ConfigError(f"extends {name!r}: {why}", where=f"families/{chain[-1]}.toml")
    table = files()[name].table
    if "extends" not in table:
        return table
    parent = _inherited(table["extends"], (*chain, name))
    # `when` decides which family a source is: it is never inherited
    plain = {k: {x: y for x, y in v.items() if x != "when"} if isinstance(v, Mapping) else v for k, v in parent.items()}
    out = merged(plain, table)
    for name, section in table.items():
        if name not in _OWN and isinstance(section, Mapping):
            out[name] = merged(plain.get(name, {}), section, keep_removals=True)
    return out


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


def _decl(name: str, value: Any, where: str) -> TensorDecl:
    table: Table = {"axes": value} if isinstance(value, str) else value
    unknown = set(table) - {"axes", "when", "same_as"}
    if unknown or "axes" not in table:
        raise ConfigError(f"tensor {name!r}: needs axes, may have when and same_as; has {sorted(table)}", where=where)
    axes, layers = [], "all"
    for word in table["axes"].split():
        axis, _, kind = word.partition(":")
        if axis in axes:
            raise ConfigError(f"tensor {name!r} has the axis {axis!r} twice", where=where)
        if kind and axis != "layer":
            raise ConfigError(f"tensor {name!r}: {word!r}, but only the axis layer has kinds", where=where)
        axes.append(axis)
        layers = kind or layers
    when = expression(table["when"], where) if "when" in table else None
    return TensorDecl(name, tuple(axes), layers, when, table.get("same_as", ""))
