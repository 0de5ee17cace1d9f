"""`open`: a path becomes a checkpoint, which is a source with its meaning."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossdock.delivery.reading import ReadOptions
from crossdock.errors import UsageError
from crossdock.formats import registry
from crossdock.formats.hf.config import flattened
from crossdock.formats.hf.source import read_json
from crossdock.formats.megatron.args import args_of_config
from crossdock.formats.stored import Source
from crossdock.io.collection import paused_collection
from crossdock.io.system import documented_errors
from crossdock.layout.rules import layout
from crossdock.options import made, one_of
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.config.describe import describe
from crossdock.planning.config.overrides import Overrides, with_user_config
from crossdock.planning.config.unproven import unproven
from crossdock.planning.merge import kept_apart, merged, merged_by_name
from crossdock.planning.tensors.masters import demand_masters, with_masters
from crossdock.planning.tensors.renames import renamed
from crossdock.planning.tensors.resolve import resolve
from crossdock.planning.tensors.wrappers import unwrapped


@documented_errors()
@paused_collection()
def open(path: str | os.PathLike[str], **options: Any) -> Checkpoint:
    """Open a checkpoint of any format that crossdock reads. Headers only; no tensor data is read.

    path     a file or a folder
    options  `format`, `iteration`, `family`, `config`, `set`, `rename`, `weights`, `base`, `merge`, `norm_eps`,
             `rope_base`: see `ReadOptions`

    Raises NotACheckpointError for a path that holds none, FormatError for a damaged file, UnsafePickleError for a
    pickle that would run code, ConfigError and PlanError for what does not fit, UsageError, EnvironmentProblem.
    """
    asked = made(ReadOptions, options)
    source = registry.open_source(Path(path), format=asked.format, iteration=asked.iteration)
    overrides = overrides_from(
        family=asked.family, config=asked.config, set=asked.settings, rename=asked.rename, weights=asked.weights
    )
    return interpret(source, overrides, None if asked.base is None else Path(asked.base), merge=asked.merge)


def overrides_from(
    *,
    family: str | None = None,
    config: str | os.PathLike[str] | None = None,
    set: Mapping[str, str] | None = None,
    rename: Mapping[str, str] | None = None,
    weights: str = "model",
) -> Overrides:
    """What the user says about the model, with the `--config` file read."""
    weights = one_of("model", "master")(weights)
    if config is None:
        return Overrides(family, dict(set or {}), renames=dict(rename or {}), weights=weights)
    keys, where = read_json(Path(config))
    args = args_of_config(keys)
    if args is not None:
        return Overrides(family, dict(set or {}), args, where, "megatron", dict(rename or {}), weights)
    flat = flattened(keys, where)
    return Overrides(family, dict(set or {}), flat, where, renames=dict(rename or {}), weights=weights)


def interpret(source: Source, overrides: Overrides, base: Path | None = None, *, merge: bool = True) -> Checkpoint:
    """Give a source its meaning: family, configuration, and where every canonical tensor lies.

    base   the model that `source` is an adapter of: the result is that model with the adapter added, or without
           `merge` the adapter alone; `overrides` are about the model
    """
    if base is not None:
        model = interpret(registry.open_source(base), overrides)
        if source.adapter is not None:
            return (merged_by_name if merge else kept_apart)(model, source, source.adapter)
        if not merge:
            raise UsageError(
                "this adapter is read without its model, so --base has no use here",
                fix="add --merge, or leave out --base",
            )
        return merged(model, interpret(source, Overrides()))
    if source.adapter is not None:
        named = f" ({source.adapter.base})" if source.adapter.base else ""
        raise UsageError(
            "this is an adapter, not a model",
            where=str(source.root),
            fix=f"pass its model{named}: --base MODEL --merge, or --base MODEL with --to gguf-lora or --to peft",
            check="adapter-unmerged",
        )
    if overrides.weights == "master":
        source = with_masters(source)
    if source.layout == "hf":
        source = unwrapped(source, source.layout)
    source, notices = renamed(source, overrides.renames, source.layout)
    notices = (*source.notices, *notices)
    stored, asked = source, overrides
    source, overrides = with_user_config(source, overrides)
    reading = describe(source, overrides)
    described = replace(
        reading.described,
        notices=(*notices, *reading.described.notices),
        unproven=unproven(stored, asked, reading),
    )
    reading = replace(reading, described=described)
    rules = layout(source.layout, reading.family)
    resolved = resolve(source, reading.family, reading.described, rules, reading.variables)
    if overrides.weights == "master":
        demand_masters(source, resolved)
    return Checkpoint(source, reading.family, reading.described, reading.variables, rules, resolved)
