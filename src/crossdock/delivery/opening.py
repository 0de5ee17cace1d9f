"""`open`: a path becomes a checkpoint, which is a source with its meaning."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from crossdock.formats import registry
from crossdock.formats.hf.config import flattened
from crossdock.formats.hf.source import read_json
from crossdock.formats.megatron.args import args_of_config
from crossdock.formats.stored import Source
from crossdock.io.collection import paused_collection
from crossdock.io.system import documented_errors
from crossdock.layout.rules import layout
from crossdock.options import one_of
from crossdock.planning.checkpoint import Checkpoint
from crossdock.planning.config.describe import describe
from crossdock.planning.config.overrides import Overrides, with_user_config
from crossdock.planning.config.unproven import unproven
from crossdock.planning.merge import merged
from crossdock.planning.tensors.masters import demand_masters, with_masters
from crossdock.planning.tensors.renames import renamed
from crossdock.planning.tensors.resolve import resolve
from crossdock.planning.tensors.wrappers import unwrapped


@documented_errors()
@paused_collection()
def open(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    iteration: int | None = None,
    base: str | os.PathLike[str] | None = None,
    **overrides: Any,
) -> Checkpoint:
    """Open a checkpoint of any format that crossdock reads. Headers only; no tensor data is read.

    path       a file or a folder
    format     name of the source format, one of `crossdock formats`; None: recognised
    iteration  number of the iteration of a Megatron run; None: the latest
    base       the model that `path` is an adapter of: what is opened is that model with the adapter merged into it
    overrides  what replaces or completes the configuration:
        family   name of a family, or the path of a family file, instead of the derived one
        config   path of a config.json (or its folder), or of JSON with Megatron's args or TransformerConfig
        set      field -> text of its value, in canonical or the format's own names: {"rotary_base": "500000"}
        rename   custom tensor names -> those of the format, with `{layer}` where they count
        weights  "model", or "master": of a Megatron run the optimizer's float32 weights

    Raises NotACheckpointError for a path that holds none, FormatError for a damaged file, UnsafePickleError for a
    pickle that would run code, ConfigError and PlanError for what does not fit, UsageError, EnvironmentProblem.
    """
    source = registry.open_source(Path(path), format=format, iteration=iteration)
    return interpret(source, overrides_from(**overrides), None if base is None else Path(base))


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


def interpret(source: Source, overrides: Overrides, base: Path | None = None) -> Checkpoint:
    """Give a source its meaning: family, configuration, and where every canonical tensor lies.

    base  the model that `source` is an adapter of: the result is that model with the adapter added;
          `overrides` are about it
    """
    if base is not None:
        return merged(interpret(registry.open_source(base), overrides), interpret(source, Overrides()))
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
