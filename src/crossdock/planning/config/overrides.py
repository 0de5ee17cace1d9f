"""What the user says of a model's configuration, and how it is laid over what the checkpoint says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crossdock.errors import UsageError
from crossdock.formats.stored import Source
from crossdock.layout.rules import layout


@dataclass(frozen=True)
class Overrides:
    """What the user says: `--family`, `--set`, `--rename`, and the keys of a `--config` file, in a format's terms.

    weights  "model", or "master": the optimizer's float32 weights where the model's are rounded
    """

    family: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    config_at: str = ""
    terms: str = "hf"
    renames: Mapping[str, str] = field(default_factory=dict)
    weights: str = "model"


def with_user_config(source: Source, overrides: Overrides) -> tuple[Source, Overrides]:
    """`source` with a `--config` in its own format's terms as its configuration, over what it carries itself.

    Keys of either that go by the format's other names are added under its own.

    Raises UsageError when the terms are not those of this format.
    """
    format_name = source.layout
    theirs = overrides.config if overrides.terms != "hf" else None
    if theirs is None and not source.aliased:
        return source, overrides
    if theirs is not None and not format_name.startswith(overrides.terms):
        raise UsageError(
            f"--config is a configuration of {overrides.terms}, but the checkpoint is {source.format}",
            where=overrides.config_at,
            fix="pass the model's Hugging Face config.json",
        )
    stored = {name: tensor for (_, name), tensor in source.tensors.items()}
    keys = {**(source.metadata if source.aliased else {}), **(theirs or {})}
    facts = {
        "tensors": stored.keys(),
        "shapes": {name: tensor.shape for name, tensor in stored.items()},
        "dtypes": {name: tensor.dtype for name, tensor in stored.items()},
    }
    defaults = not source.metadata or source.aliased
    for key, value in layout(format_name).reading.aliases.items():
        found = None if key in keys else value.read({**keys, **facts}, nulls=True)
        if found is not None and (defaults or not found[1] <= facts.keys()):
            keys[key] = found[0]
    source = replace(source, metadata={**source.metadata, **keys})
    if theirs is None:
        return source, overrides
    at = f"{overrides.config_at} over {source.metadata_at}" if source.metadata_at else overrides.config_at
    return replace(source, metadata_at=at), replace(overrides, config=None)
