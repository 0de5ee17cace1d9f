"""The families: read strictly from their files, with what they extend and whose sections theirs are like.

A family is one TOML file in `data/families/`; this module knows none by name. Third parties add folders of such files
by the entry point group `crossdock.families`; a user names a file by its path.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from crossdock.errors import ConfigError, Problem, UsageError
from crossdock.model.config import FIELDS
from crossdock.model.expressions import Expression, expression
from crossdock.model.family import Family, TensorDecl, constants, default_of, is_allowed
from crossdock.model.tables import Table, checked_tables, merged, read_toml
from crossdock.plugins import folders
from crossdock.wording import nearest

# what a family file says of the model; its other tables are formats
_MODEL: Mapping[str, tuple[type, ...]] = MappingProxyType(
    {"axes": (str,), "layers": (str,), "tensors": (str, dict), "fits": (list,)}
)
_OWN = (*_MODEL, "extends")


@dataclass(frozen=True, slots=True)
class _Section:
    """What a family says about one format: the tables to lay on its layout, whose come first, and its limits."""

    tables: tuple[Table, ...]
    like: str
    limits: Mapping[str, tuple[Any, ...]]


class FamilyFile:
    """The file of one family, which is read as far as it is asked for. `where` is the file, for messages."""

    def __init__(self, name: str, file: Any, where: str) -> None:
        self.name, self.file, self.where = name, file, where

    @functools.cached_property
    def table(self) -> Table:
        """All of it. Raises ConfigError, as `family` does."""
        return read_toml(self.file, self.where)

    @functools.cached_property
    def model(self) -> Table:
        """Axes, layers, tensors and fits, with those of the family that it extends."""
        return _inherited(self, ())

    @functools.cached_property
    def family(self) -> Family:
        """The family, with what it extends."""
        return _family(self)

    @property
    def requires(self) -> Mapping[str, tuple[Any, ...]]:
        """Field -> the values that it may have."""
        checked_tables(self.model, _MODEL, self.where)
        return {key: constants(allowed) for key, allowed in self.model.get("fits", {}).items()}

    def when(self, format_name: str) -> Expression | None:
        """What tells a source of this format that it is of this family."""
        section = self.table.get(format_name)
        text = section.get("when") if isinstance(section, Mapping) else None
        return None if text is None else expression(text, self.where)


@functools.cache
def files() -> Mapping[str, FamilyFile]:
    """Every registered family's file, by the family's name."""
    found: dict[str, FamilyFile] = {}
    for file in (file for folder in folders("families") for file in folder.iterdir()):
        name = file.name.removesuffix(".toml")
        if name in found:
            raise ConfigError(f"family {name!r} is defined twice", where=str(file))
        if name != file.name:
            found[name] = FamilyFile(name, file, f"families/{name}.toml")
    return MappingProxyType(dict(sorted(found.items())))


def families() -> Mapping[str, Family]:
    """Every registered family by name."""
    return {name: file.family for name, file in files().items()}


def family(name: str) -> Family:
    """The registered family called `name`, or the one in the file of this path (with a slash, or ending in .toml).

    Raises UsageError that lists the registered ones, or says that the file cannot be read; ConfigError for what is
    wrong in it.
    """
    if name.endswith(".toml") or os.sep in name:
        try:
            status = os.stat(name)
        except (OSError, ValueError) as error:
            raise UsageError(f"the family file cannot be read: {error}", where=name) from None
        return _from_path(name, status.st_mtime_ns, status.st_size)
    known = files()
    if name not in known:
        near = nearest(name, known)
        raise UsageError(
            f"unknown family {name!r}",
            expected=", ".join(known),
            fix=f"did you mean --family {near[0]}?"
            if near
            else "pass one of these, or the path of a family file, to --family",
        )
    return known[name].family


@functools.lru_cache(maxsize=8)
def _from_path(path: str, changed: int, size: int) -> Family:
    """The family in a file that was last changed then: another version of the file is another family."""
    name = Path(path).name.removesuffix(".toml")
    if name in files():
        raise ConfigError(f"family {name!r} is registered already", where=path, fix="rename the file")
    return FamilyFile(name, Path(path), path).family


def _family(file: FamilyFile) -> Family:
    where, table, requires = file.where, file.model, file.requires
    layers = {kind: expression(text, where) for kind, text in table.get("layers", {}).items()}
    axes = {axis: expression(text, where) for axis, text in table.get("axes", {}).items()}
    tensors = {key: _decl(key, value, where) for key, value in table.get("tensors", {}).items()}
    problems = [
        Problem(f"tensor {decl.name!r} has the axis {axis!r}, which [axes] does not define", where=where)
        for decl in tensors.values()
        for axis in decl.axes
        if axis not in axes
    ]
    problems += [
        Problem(f"[fits] names {key!r}, which is not a field", where=where) for key in requires if key not in FIELDS
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
        Problem(f"{key} = {read.text} names {field!r}, which is not a field of the configuration", where=where)
        for key, read in readers
        for field in sorted(read.names - set(FIELDS) - ({"layer"} if key in axes else set()))
    ]
    named = {key: value for key, value in file.table.items() if key not in _OWN}
    odd = [key for key, value in named.items() if not isinstance(value, Mapping)]
    if odd:
        problems.append(Problem(f"unknown keys {', '.join(odd)}", where=where))
    if problems:
        raise ConfigError(problems)
    sections = {key: _section(key, file, ()) for key in named}
    return Family(
        name=file.name,
        where=where,
        axes=axes,
        layers=layers,
        tensors=tensors,
        requires=requires,
        sections={key: section.tables for key, section in sections.items()},
        like={key: section.like for key, section in sections.items() if section.like},
        limits={key: section.limits for key, section in sections.items()},
    )


def _other(name: Any, file: FamilyFile, key: str, chain: tuple[str, ...]) -> FamilyFile:
    """The family that `key` in `file` names. Raises ConfigError when there is none, or when the names go round."""
    known = files()
    circle = name in (file.name, *chain)
    if circle or not isinstance(name, str) or name not in known:
        why = "a circle" if circle else "unknown family"
        raise ConfigError(f"{key} {name!r}: {why}", where=file.where)
    return known[name]


def _inherited(file: FamilyFile, chain: tuple[str, ...]) -> Table:
    own = {key: value for key, value in file.table.items() if key in _MODEL}
    if "extends" not in file.table:
        return merged({}, own, file.where)
    parent = _other(file.table["extends"], file, "extends", chain)
    return merged(_inherited(parent, (*chain, file.name)), own, file.where)


def _section(format_name: str, file: FamilyFile, chain: tuple[str, ...]) -> _Section:
    """The section of `file` for this format: nothing is inherited but from the family that it is `like`."""
    section = file.table[format_name]
    like, holds = section.get("like", ""), section.get("holds", [])
    where, key = file.where, f"[{format_name}] like"
    if not isinstance(like, str) or not isinstance(holds, list) or not all(isinstance(one, str) for one in holds):
        raise ConfigError(f"{key} is the name of a family, holds a list of fields", where=where)
    own = {name: value for name, value in section.items() if name not in ("like", "holds")}
    if not like:
        if holds:
            raise ConfigError(f"[{format_name}] holds means something beside like only", where=where)
        return _Section((own,), "", {})
    other = _other(like, file, key, chain)
    if not isinstance(other.table.get(format_name), Mapping):
        raise ConfigError(f"{key} {like!r}: {other.where} has no [{format_name}]", where=where)
    base = _section(format_name, other, (*chain, file.name))
    limits = {**_limits(file.requires, other.requires), **base.limits}
    idle = [name for name in holds if name not in limits]
    if idle:
        what = f"[{format_name}] holds {', '.join(map(repr, idle))}: the family does not differ from {like} in it"
        raise ConfigError(what, where=where)
    plain = tuple({name: value for name, value in table.items() if name != "when"} for table in base.tables)
    return _Section((*plain, own), like, {name: value for name, value in limits.items() if name not in holds})


def _limits(fits: Mapping[str, tuple[Any, ...]], theirs: Mapping[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
    """The fields in which a family with these `fits` may be what one with `theirs` may not, and the latter's values."""
    pairs = {name: (allowed, theirs.get(name, default_of(name))) for name, allowed in fits.items() if name in FIELDS}
    return {
        name: others
        for name, (own, others) in pairs.items()
        if others and not all(is_allowed(one, others) for one in own)
    }


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
