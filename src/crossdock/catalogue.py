"""Which families and formats crossdock knows: where each can be read and written, and what tensors are called there.

All of it comes from the data files and the registries: what a user or a package adds is listed like the rest.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from crossdock.codecs import registry as codecs
from crossdock.errors import ConfigError, UsageError
from crossdock.formats import registry
from crossdock.layout.rules import Layout, Rule, extended, family_stated, layout, layout_names, unheld
from crossdock.model.families import families, family
from crossdock.model.family import Family, default_of, is_allowed
from crossdock.options import options_of
from crossdock.proof.engines import registry as logits
from crossdock.running.engines import registry as engines


@dataclass(frozen=True, slots=True)
class FamilyEntry:
    """One line of the list of families.

    sources   formats whose checkpoints are recognised as this family
    targets   formats that it can be written to
    limits    target -> why it cannot be written there, or which of its models cannot, a sentence for each reason
    """

    name: str
    sources: tuple[str, ...]
    targets: tuple[str, ...]
    limits: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """A format that is read: its name for `--format`, and what its checkpoints are."""

    name: str
    what: str


@dataclass(frozen=True, slots=True)
class TargetEntry:
    """A format that is written: its name for `--to`, what it is, values of `--dtype` and of `--quantize`, options."""

    name: str
    what: str
    dtypes: tuple[str, ...]
    quantizations: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CodecEntry:
    """An encoding of values: its name, bits for a value with the scales of its block, and what can be done with it.

    encodes  values can be encoded; otherwise it is only read or copied
    targets  formats that are written in it
    """

    name: str
    bits: float
    encodes: bool
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """A program that computes logits for `verify`: its name, the files that it opens, and whether it is installed."""

    name: str
    reads: str
    installed: bool


@dataclass(frozen=True, slots=True)
class Formats:
    """What is registered: formats that are read and written, encodings, and engines.

    engines         what runs plans, the default first (`--engine`)
    logits_engines  what computes logits of an output (`--logits-engine`)
    """

    sources: tuple[SourceEntry, ...]
    targets: tuple[TargetEntry, ...]
    codecs: tuple[CodecEntry, ...]
    engines: tuple[str, ...]
    logits_engines: tuple[EngineEntry, ...]


@dataclass(frozen=True, slots=True)
class StoredName:
    """What a canonical tensor is called in a format.

    name   the stored name, with axes in braces where the index is part of it
    shape  the stored dimensions, outermost first, in the notation
    when   the condition under which the format uses this name, "" if always
    """

    name: str
    shape: str
    when: str


def known_formats() -> Formats:
    """Everything that is registered by format. Raises EnvironmentProblem for a package that cannot be loaded."""
    targets = tuple(_target(name) for name in registry.targets())
    return Formats(
        tuple(SourceEntry(name, _first_sentence(registry.source_format(name))) for name in registry.names()),
        targets,
        tuple(_codec(name, targets) for name in codecs.names()),
        engines.names(),
        tuple(EngineEntry(name, one.reads, one.installed) for name in logits.names() for one in (logits.engine(name),)),
    )


def known_families() -> tuple[FamilyEntry, ...]:
    """Every registered family, in alphabetical order. Raises ConfigError when a data file is wrong."""
    return tuple(_entry(one) for one in families().values())


def family_entry(name: str) -> FamilyEntry:
    """The line of one family: a registered one, or that of a file. Raises UsageError, ConfigError."""
    return _entry(family(name))


def tensor_names(name: str, formats: Sequence[str]) -> dict[str, dict[str, tuple[StoredName, ...]]]:
    """What the tensors of a family are called in each of `formats`.

    name     of a registered family, or the path of a family file
    formats  names of formats, or of layouts ("megatron_rank")

    Returns canonical tensor -> format -> its names there, the name that is written first; none where the format has
    no place for the tensor. Raises UsageError for an unknown family or format, and for a family that a format does
    not hold; ConfigError when a data file is wrong.
    """
    chosen = family(name)
    rules = {one: _rules(one, chosen) for one in formats}
    return {tensor: {one: tuple(_names(rules[one].rules, tensor)) for one in formats} for tensor in chosen.tensors}


def _first_sentence(documented: object) -> str:
    return (inspect.getdoc(documented) or "").split("\n\n")[0].split(". ")[0].replace("\n", " ").removesuffix(".")


def _target(name: str) -> TargetEntry:
    kind = registry.target(name)
    options = tuple(option.flag for option in options_of(kind.options_type).values())
    return TargetEntry(name, _first_sentence(kind), kind.dtypes(), kind.quantizations(), options)


def _codec(name: str, targets: Sequence[TargetEntry]) -> CodecEntry:
    codec = codecs.get(name)
    written = tuple(one.name for one in targets if name in (*one.dtypes, *one.quantizations))
    return CodecEntry(name, 8 * codec.block_bytes / codec.block, codec.encodes, written)


def _entry(one: Family) -> FamilyEntry:
    targets, limits = [], {}
    for name in registry.targets():
        table = registry.target(name).layout
        if unheld(table, one) is not None:
            continue
        never, sometimes = _limits(layout(table, one), one)
        if not never:
            targets.append(name)
        if never or sometimes:
            limits[name] = tuple(dict.fromkeys(never or sometimes))
    sources = tuple(name for name in registry.names() if _is_read(one, name, targets))
    return FamilyEntry(one.name, sources, tuple(targets), limits)


def _limits(rules: Layout, one: Family) -> tuple[list[str], list[str]]:
    """Why a format holds no model of the family, and which of its models it does not hold."""
    never: list[str] = []
    sometimes: list[str] = []
    for need in rules.writing.needs:
        (never if need.never else sometimes).append(need.sentence)
    for fit in rules.writing.fits:
        allowed = one.requires.get(fit.field, default_of(fit.field))
        if not allowed or not all(value in fit.only for value in allowed):
            sentence = f"{fit.field} is only {' or '.join(map(repr, fit.only))}" + (
                f": {fit.sentence}" * bool(fit.sentence)
            )
            impossible = allowed and not any(is_allowed(value, allowed) for value in fit.only)
            (never if impossible else sometimes).append(sentence)
    for name, values in one.limits.get(rules.format, {}).items():
        sometimes.append(f"{name} is only {' or '.join(map(repr, values))}")
    return never, sometimes


def _is_read(one: Family, name: str, targets: Sequence[str]) -> bool:
    """Whether a source of this format can be recognised as the family."""
    table = _table(name)
    if table not in layout_names() or unheld(table, one) is not None:
        return False
    if family_stated(table) is not None and name in targets:  # what crossdock writes states it
        return True
    sections = [one.sections[part] for part in extended(table) if part in one.sections]
    return not sections or any("when" in part for section in sections for part in section)


def _rules(name: str, chosen: Family) -> Layout:
    table = registry.target(name).layout if name in registry.targets() else _table(name)
    if table not in layout_names():
        raise UsageError(f"unknown format {name!r}", expected=", ".join(layout_names()))
    try:
        return layout(table, chosen)
    except ConfigError as error:
        raise UsageError(error.problems) from None


def _table(name: str) -> str:
    """The layout of the same name as a format."""
    return name.replace("-", "_")


def _names(rules: Iterable[Rule], tensor: str) -> Iterable[StoredName]:
    """The names of a tensor, those that are written before those that are only read."""
    own = [rule for rule in rules if tensor in rule.tensors]
    for rule in sorted(own, key=lambda rule: rule.read_only):
        for pattern in rule.patterns:
            name, _, shape = pattern.text.partition(" : ")
            yield StoredName(name.strip(), shape.strip(), rule.when.text if rule.when is not None else "")
