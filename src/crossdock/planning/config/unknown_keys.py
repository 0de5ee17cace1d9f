"""What of a checkpoint's configuration nothing reads, and why that may be: a stated reason, or a problem.

Also by which keys the families are recognised, since those are read, too. Knows no source's bytes.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from crossdock.errors import Problem
from crossdock.formats.stored import Source
from crossdock.layout.rules import Layout
from crossdock.model.expressions import FAILURES, Expression, expression
from crossdock.model.families import files
from crossdock.wording import short

_TELLING = (
    "interleave", "layout", "permut", "transpos", "glu", "rope", "rotary", "norm", "attention", "attn", "scal", "bias",
    "softmax", "moe", "expert", "mup", "window", "sink", "softcap", "mamba", "hybrid", "residual", "embedding",
    "act_fn", "activation", "head", "lora", "multiplier", "sparse", "mtp", "parallel_block",
)  # fmt: skip


def readable_keys(rules: Layout) -> set[str]:
    """The keys that fields and variables of `rules` come from."""
    reading = rules.reading
    read = [*reading.fields.values(), *reading.absent.values(), *reading.derived.values()]
    named = [*(value.names for value in read), *(number.names for number in rules.variables.values())]
    return set().union(*named) - reading.derived.keys()


def _known(rules: Layout) -> set[str]:
    named = {name for value in rules.reading.aliases.values() for name in value.names}
    named |= {name for statement in rules.reading.refused for name in statement.condition.names}
    return readable_keys(rules) | named | set(rules.reading.only_values)


def classify(rules: Layout, source: Source, settings: Mapping[str, Any]) -> tuple[dict[str, str], list[Problem]]:
    """Why each key that nothing reads is ignored, and the keys that may not be."""
    known, ignored, problems = _known(rules), {}, []
    selecting = functools.cache(_selecting)  # read for a key that nothing else explains
    for key, value in source.metadata.items():
        if key in known:
            continue
        if key in settings:
            ignored[key] = "set by --set"
            continue
        reason = rules.reading.ignored.get(key) or next(
            (why for glob, why in rules.reading.ignored.items() if fnmatch.fnmatchcase(key, glob)), None
        )
        if reason is not None:
            ignored[key] = reason
        elif key in selecting(rules.format) or _selects_elsewhere(key):
            ignored[key] = "names the family"
        elif value in (None, False, 0, "", "none") or value == [] or value == {} or value == ():
            ignored[key] = "not set"
        elif any(word in key.lower() for word in _TELLING):
            problems.append(
                Problem(
                    f"unknown key {key!r} = {short(value)} may change what the model computes",
                    where=source.metadata_at,
                    cause="probably another architecture than the families that crossdock knows",
                    fix="a family file that reads this key: --family ./my.toml, see docs/notation.md",
                )
            )
        else:
            ignored[key] = "unknown; its name does not suggest that it changes the computation"
    return ignored, problems


def only_value_problems(rules: Layout, keys: Mapping[str, Any], where: str) -> list[Problem]:
    """The keys whose values would change the model in a way that no field holds; a missing key is none of them."""
    problems = []
    for key, allowed in rules.reading.only_values.items():
        value = keys.get(key)
        if value is not None and value not in allowed:
            problems.append(
                Problem(
                    f"{key} = {short(value)} changes the model in a way that crossdock does not support",
                    where=where,
                    expected=" or ".join(repr(a) for a in allowed) or "not set",
                    got=short(value),
                )
            )
    return problems


def refusals(rules: Layout, keys: Mapping[str, Any], where: str) -> list[Problem]:
    """What the layout refuses to read of `keys` with what missing ones mean; what cannot be computed is refused."""
    problems = []
    for statement in rules.reading.refused:
        condition = statement.condition
        if not condition.names <= keys.keys():
            continue
        try:
            holds, cause = condition.evaluate(keys), ""
        except FAILURES as error:
            holds, cause = True, f"{condition.text} cannot be computed: {error}"
        if holds:
            named = sorted(condition.names - {"tensors", "shapes", "dtypes"})
            got = ", ".join(f"{name}={short(keys[name])}" for name in named)
            problems.append(Problem(statement.sentence, where=where, got=got, cause=cause))
    return problems


def recognised(format_name: str) -> Iterator[tuple[str, Expression]]:
    """Families, and what tells that a source of this format is of one."""
    for name, file in files().items():
        when = file.when(format_name)
        if when is None and format_name.startswith("megatron_"):
            when = file.when("megatron")
        if when is not None:
            yield name, when


def _selecting(format_name: str) -> frozenset[str]:
    """What sources of this format are recognised by."""
    return frozenset(name for _, when in recognised(format_name) for name in when.names)


def _selects_elsewhere(key: str) -> bool:
    """Whether sources of any format are recognised by this key."""
    sections = (section for file in files().values() for section in file.table.values() if isinstance(section, Mapping))
    return any("when" in section and key in expression(section["when"]).names for section in sections)
