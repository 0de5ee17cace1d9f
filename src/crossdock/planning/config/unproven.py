"""What the user said of a model against its own configuration: no comparison with the source can prove it.

Source and output are both read by the configuration that the user changed, so both would have the same fault. Only what
something else computes of the source, such as transformers or the training program, can tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossdock.errors import CrossdockError
from crossdock.formats.stored import Source
from crossdock.layout.rules import Layout, layout
from crossdock.model.config import FIELDS, REQUIRED, ModelConfig
from crossdock.planning.config.describe import Description, completed, fitting_families, literal, source_keys
from crossdock.planning.config.overrides import Overrides, with_user_config
from crossdock.planning.config.validate import build, of_kind
from crossdock.wording import short


def unproven(source: Source, overrides: Overrides, found: Description) -> tuple[str, ...]:
    """A sentence for the family, for each key and for each field where the user's word replaced the checkpoint's own.

    source  as it is stored, without the keys of `--config`; a source without a configuration has nothing to contradict
    """
    overriding = overrides.family is not None or overrides.settings or overrides.config is not None
    if not source.metadata or not overriding:
        return ()
    plain, _ = with_user_config(source, Overrides())
    settings = {key: literal(text) for key, text in overrides.settings.items()}
    changed = {
        key: value
        for key, value in settings.items()
        if key in source.metadata and (source.metadata[key] != value or type(source.metadata[key]) is not type(value))
    }
    return (
        *_family(plain, overrides, found),
        *(_key(key, source.metadata[key], value, source.metadata_at) for key, value in changed.items()),
        *_fields(plain, found, changed.keys()),
    )


def _family(source: Source, overrides: Overrides, found: Description) -> tuple[str, ...]:
    if overrides.family is None:
        return ()
    fitting = fitting_families(source.layout, source_keys(source))
    if found.family.name in fitting:
        return ()
    own = f"is of {' or '.join(fitting)}" if fitting else "fits no family that crossdock knows"
    return (f"the family {found.family.name} is from --family; the configuration in {source.metadata_at} {own}",)


def _key(key: str, own: Any, value: Any, where: str) -> str:
    what = "was set aside" if value is None else f"was replaced by {short(value)}"
    return f"{key} = {short(own)} in {where} {what} by --set"


def _fields(source: Source, found: Description, changed: Any) -> tuple[str, ...]:
    """Fields whose values are not those that the checkpoint's own keys give, but for those of keys in `changed`."""
    own, stated, lacking = _own_config(source, found)
    out = []
    for name in FIELDS:
        value, origin = getattr(found.described.config, name), found.described.origins.get(name, "")
        if name == "family" or getattr(own, name) == value or (name not in stated and name in lacking):
            continue
        if any(origin.startswith("--set ") and key in origin for key in changed):
            continue
        own_word = (
            f"the checkpoint has {short(getattr(own, name))}" if name in stated else "the checkpoint does not say it"
        )
        out.append(f"{name} = {short(value)} is from {origin.partition(';')[0]}; {own_word}")
    return tuple(out)


def _own_config(source: Source, found: Description) -> tuple[ModelConfig, frozenset[str], frozenset[str]]:
    """The configuration by the checkpoint's own keys, the fields that these give, and those that they should.

    What it lacks and there is no model without is the user's: that contradicts nothing.
    """
    clean, _ = of_kind(_read(layout(source.layout, found.family), source_keys(source)))
    final = found.described.config
    required = {name: getattr(final, name) for name in REQUIRED if name != "family"}
    config, problems = build(found.family.name, required | clean)
    return config, frozenset(clean), frozenset(required) | {problem.where for problem in problems}


def _read(rules: Layout, keys: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    try:
        keys, _ = completed(rules, keys, absent=True)
    except CrossdockError:  # what does not fit together is one reason to override it
        return values
    for name, value in rules.reading.fields.items():
        try:
            got = value.read(keys)
        except CrossdockError:
            continue
        if got is not None:
            values[name] = got[0]
    return values
