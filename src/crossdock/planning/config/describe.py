"""From a format's own configuration keys to the canonical one, by the layout's tables; every field with its origin.

Nothing is guessed: a field comes from the checkpoint's keys, from `--config`, from `--set`, or is a stated default.
All that is missing, contradictory or unknown is collected and raised once.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from crossdock.errors import ConfigError, Problem, UsageError
from crossdock.formats.stored import Source
from crossdock.layout.rules import Layout, family_stated, layout, unheld
from crossdock.layout.values import FACTS
from crossdock.model.config import FIELDS, REQUIRED, ModelConfig, ResolvedConfig
from crossdock.model.expressions import Expression
from crossdock.model.families import family, files
from crossdock.model.family import Family
from crossdock.planning.config.kinds import flag_problems
from crossdock.planning.config.overrides import Overrides
from crossdock.planning.config.unknown_keys import (
    classify,
    only_value_problems,
    readable_keys,
    recognised,
    refusals,
)
from crossdock.planning.config.validate import build, of_kind
from crossdock.planning.tensors.likeness import nearest_family
from crossdock.wording import nearest, short


@dataclass(frozen=True)
class Description:
    """What `describe` found: the family, the configuration with origins, and the layout's numbers."""

    family: Family
    described: ResolvedConfig
    variables: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _FieldValues:
    """Values of canonical fields as they were found, unchecked, and where each is from.

    keys     field -> the keys that its value was made of
    refused  field -> why it has no value, although the configuration says something of it
    """

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    keys: Mapping[str, frozenset[str]]
    refused: Mapping[str, Problem]


def describe(source: Source, overrides: Overrides) -> Description:
    """The canonical configuration of `source`.

    Raises ConfigError with all problems, UsageError for unknown `--set` keys.
    """
    format_name = source.layout
    settings = {key: literal(text) for key, text in overrides.settings.items()}
    chosen = _family(source, format_name, source_keys(source) | settings, overrides)
    rules = layout(format_name, chosen)
    keys, canonical = _split_settings(settings, source_keys(source) | {"settings": settings}, rules)
    ignored, problems = classify(rules, source, settings)
    problems += only_value_problems(rules, keys | settings, source.metadata_at)
    problems += flag_problems(rules, {**source.metadata, **settings}, source.metadata_at)
    keys, roots = completed(rules, keys, absent=bool(source.metadata))
    fields = _read(rules, keys, roots, source.metadata_at, settings)
    if overrides.config is not None:
        from_config, refused = _from_config(source, overrides, chosen)
        fields = _overridden(fields, from_config)
        problems += refused
    fields = _set(fields, canonical)
    problems += refusals(rules, keys, source.metadata_at)
    config = _checked(fields, chosen, rules, source, problems)
    described = ResolvedConfig(
        config, _origins(fields, source, overrides), ignored, _notices(fields, rules, keys, settings, source)
    )
    variables = {name: _number(expr, keys, name) for name, expr in rules.variables.items()}
    return Description(chosen, described, {**config.as_dict(), **variables})


def _checked(
    fields: _FieldValues, chosen: Family, rules: Layout, source: Source, problems: list[Problem]
) -> ModelConfig:
    """The configuration, when there are no `problems` and all values are there, of their kind, and fit each other."""
    clean, wrong = of_kind(fields.values)
    wrong = [replace(p, cause=f"it is from {fields.origins[p.where]}") for p in wrong]
    unusable = frozenset(key for problem in wrong for key in fields.keys.get(problem.where, ()))
    wrong += [
        problem for field, problem in fields.refused.items() if field not in clean and not fields.keys[field] & unusable
    ]
    wrong += _missing(fields, rules, source)
    if wrong:
        raise ConfigError([*problems, *wrong])
    config, wrong = build(chosen.name, clean)
    wrong = [replace(p, cause=p.cause or _from(fields.origins, p.where)) for p in wrong]
    if not wrong:
        fix = "choose another --family, or --set the name if the checkpoint states it wrongly"
        wrong = [replace(p, cause=_from(fields.origins, p.where), fix=fix) for p in chosen.misfits(config)]
    if problems or wrong:
        raise ConfigError([*problems, *wrong])
    return config


def _origins(fields: _FieldValues, source: Source, overrides: Overrides) -> dict[str, str]:
    """Where each field came from, those that nobody told included."""
    defaults = {name: "default" for name in FIELDS if name not in fields.origins}
    family_at = "--family" if overrides.family else f"derived from {overrides.config_at or source.metadata_at}"
    return {**fields.origins, **defaults, "family": family_at}


def _notices(
    fields: _FieldValues, rules: Layout, keys: Mapping[str, Any], settings: Mapping[str, Any], source: Source
) -> tuple[str, ...]:
    """Sentences about keys that are second best, or that may not be what the run computed with; not about --set."""
    read = set(fields.origins.values())
    return tuple(
        notice.sentence
        for notice in rules.reading.notices
        if notice.key not in settings
        and (
            f"{notice.key} in {source.metadata_at}" in read
            if notice.when is None
            else notice.when.evaluate(_Lenient(keys))
        )
    )


def _from(origins: Mapping[str, str], name: str) -> str:
    return f"{name} is from {origins.get(name, 'the default')}"


def _overridden(fields: _FieldValues, config: _FieldValues) -> _FieldValues:
    """The checkpoint's own values with those of `--config` over them; an origin says what it overrides."""
    values, origins = dict(fields.values), dict(fields.origins)
    for name, at in config.origins.items():
        value = config.values[name]
        differs = name in values and values[name] != value
        origins[name] = f"{at}; overrides {values[name]!r} ({origins[name]})" if differs else at
        values[name] = value
    return replace(fields, values=values, origins=origins)


def _set(fields: _FieldValues, canonical: Mapping[str, Any]) -> _FieldValues:
    """`fields` with the canonical fields of `--set` over it."""
    origins = {**fields.origins, **dict.fromkeys(canonical, "--set")}
    return replace(fields, values={**fields.values, **canonical}, origins=origins)


def source_keys(source: Source) -> dict[str, Any]:
    """What layouts and families read: the keys of the configuration, and facts about the stored tensors."""
    return {
        **source.metadata,
        "keys": source.metadata,
        "tensors": frozenset(name for _, name in source.tensors),
        "shapes": {name: tensor.shape for (_, name), tensor in source.tensors.items()},
    }


def literal(text: str) -> Any:
    """The value that a text of `--set` stands for: true, none, a number, a list; else the text itself."""
    lowered = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in lowered:
        return lowered[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text


class _Lenient(dict[str, Any]):
    def __missing__(self, key: str) -> None:
        return None


def _family(source: Source, format_name: str, keys: dict[str, Any], overrides: Overrides) -> Family:
    allowed = () if overrides.family is None else layout(format_name).reading.model_types.get(overrides.family, ())
    if overrides.family is not None and not allowed:
        return family(overrides.family)
    if overrides.config is not None:
        format_name, keys = "hf", dict(overrides.config)
    elif not source.metadata:
        raise ConfigError(
            "the checkpoint has no configuration",
            where=str(source.root),
            fix="pass the model's Hugging Face config: --config FOLDER or --config config.json",
        )
    found = [name for name in fitting_families(format_name, keys) if not allowed or name in allowed]
    if len(found) == 1:
        return family(found[0])
    if overrides.family is not None:
        return family(overrides.family)
    named = (when.names for name, when in recognised(format_name) if not allowed or name in allowed)
    telling = {"architectures", "activation"}.union(*named) - FACTS
    seen = ", ".join(f"{key}={short(keys[key])}" for key in sorted(telling) if keys.get(key) is not None)
    where = overrides.config_at or source.metadata_at or str(source.root)
    if not found:
        unfit = Problem(
            "no supported family fits this model",
            where=where,
            got=seen or "no keys that identify a family",
            cause=nearest_family((name for _, name in source.tensors), source.layout),
            fix="`crossdock families` lists what is supported; a family of your own: --family ./my.toml",
        )
        raise ConfigError([unfit, *only_value_problems(layout(format_name), keys, where)])
    raise ConfigError(f"several families fit: {', '.join(found)}", where=where, got=seen, fix="choose: --family")


def fitting_families(format_name: str, keys: Mapping[str, Any]) -> list[str]:
    """The registered families that `keys` of a source of this format fit; the one that they state, where they do."""
    stated = family_stated(format_name)
    name = None if stated is None else _value(stated, keys)
    if name is not None:
        return [name] if name in files() and unheld(format_name, family(name)) is None else []
    return [name for name, when in recognised(format_name) if _holds(when, keys)]


def _holds(when: Expression, keys: Mapping[str, Any]) -> bool:
    return bool(_value(when, keys))


def _value(one: Expression, keys: Mapping[str, Any]) -> Any:
    """The value over `keys`, of which missing ones are None; None where it has none."""
    try:
        return one.evaluate(_Lenient(keys))
    except (TypeError, ArithmeticError, KeyError):
        return None


def _split_settings(
    settings: Mapping[str, Any], keys: dict[str, Any], rules: Layout
) -> tuple[dict[str, Any], dict[str, Any]]:
    readable = readable_keys(rules)
    canonical, problems = {}, []
    for key, value in settings.items():
        if key in FIELDS and key != "family":
            canonical[key] = value
        elif key in readable or key in keys:
            keys = {**keys, key: value}
        else:
            near = nearest(key, [*FIELDS, *readable], 3)
            problems.append(
                Problem(f"--set {key}: unknown field", expected=" or ".join(near) or "a field that inspect shows")
            )
    if problems:
        raise UsageError(problems)
    return keys, canonical


def completed(
    rules: Layout, keys: Mapping[str, Any], *, absent: bool
) -> tuple[dict[str, Any], dict[str, frozenset[str]]]:
    """`keys` with what a missing key means and with derived values; and from which keys of `keys` each of these is.

    absent  whether the source has a configuration that may lack keys

    Raises ConfigError with every value that cannot be computed.
    """
    out: dict[str, Any] = dict(keys)
    roots: dict[str, frozenset[str]] = {}
    problems: list[Problem] = []
    stated = [*(rules.reading.absent.items() if absent else ()), *rules.reading.derived.items()]
    for key, value in stated:
        try:
            found = value.read(out, nulls=True) if key not in keys else None
        except ConfigError as error:
            problems.append(_refused(key, error, ""))
            continue
        if found is not None:
            out[key] = found[0]
            roots[key] = frozenset(root for name in found[1] for root in roots.get(name, {name})) or frozenset({key})
    if problems:
        raise ConfigError(problems)
    return out, roots


def _read(
    rules: Layout,
    keys: Mapping[str, Any],
    roots: Mapping[str, frozenset[str]],
    where: str,
    settings: Mapping[str, Any],
) -> _FieldValues:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    named: dict[str, frozenset[str]] = {}
    refused: dict[str, Problem] = {}
    for field_name, value in rules.reading.fields.items():
        try:
            found = value.read(keys)
        except ConfigError as error:
            refused[field_name] = _refused(field_name, error, where)
            named[field_name] = value.names - FACTS
            continue
        if found is None:
            continue
        values[field_name] = found[0]
        names = {root for name in found[1] for root in roots.get(name, {name})}
        named[field_name] = frozenset(names - FACTS)
        origins[field_name] = _origin(rules, names - roots.keys(), names & roots.keys(), where, settings)
    return _FieldValues(values, origins, named, refused)


def _refused(name: str, error: ConfigError, where: str) -> Problem:
    """Why the key or field `name` has no value, as a problem of the configuration at `where`."""
    (problem,) = error.problems
    return replace(problem, what=f"{name} could not be determined: {problem.what}", where=where)


def _origin(rules: Layout, names: set[str], lacking: set[str], where: str, settings: Mapping[str, Any]) -> str:
    """Where a value is from that was made of the keys `names`, and of what the keys `lacking` mean when absent."""
    named = ", ".join(sorted(names - FACTS))
    if not named and names:
        return "the stored tensors"
    if not named:
        return f"{', '.join(sorted(lacking))} absent from {where}" if lacking else f"the format ({rules.format})"
    if not names & settings.keys():
        return f"{named} in {where}"
    rest = ", ".join(sorted(names - settings.keys() - FACTS))
    return f"--set {', '.join(sorted(names & settings.keys()))}" + (f", with {rest} in {where}" if rest else "")


def _from_config(source: Source, overrides: Overrides, chosen: Family) -> tuple[_FieldValues, list[Problem]]:
    """What `--config` says in Hugging Face's terms, and what of it is refused: the same as in a source of its own."""
    assert overrides.config is not None
    rules = layout("hf", chosen)
    stated = replace(source, metadata=overrides.config, metadata_at=overrides.config_at)
    _, problems = classify(rules, stated, {})
    problems += only_value_problems(rules, overrides.config, overrides.config_at)
    problems += flag_problems(rules, overrides.config, overrides.config_at)
    keys = {**overrides.config, "keys": overrides.config, "tensors": frozenset(), "shapes": {}}
    keys, roots = completed(rules, keys, absent=True)
    return _read(rules, keys, roots, overrides.config_at, {}), [*problems, *refusals(rules, keys, overrides.config_at)]


def _missing(fields: _FieldValues, rules: Layout, source: Source) -> list[Problem]:
    return [
        Problem(
            f"{name} could not be determined",
            where=source.metadata_at or str(source.root),
            expected=rules.reading.fields[name].text if name in rules.reading.fields else "a value",
            fix=f"--set {name}=VALUE, or --config with the model's Hugging Face config.json",
        )
        for name in REQUIRED
        if name not in fields.values and name not in fields.refused and name != "family"
    ]


def _number(expr: Expression, keys: Mapping[str, Any], name: str) -> Any:
    try:
        return expr.evaluate(_Lenient(keys))
    except (TypeError, ArithmeticError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"variable {name} = {expr.text} has no value: {error}") from None
