"""config.json of both generations: read into one set of flat keys, written so that either understands it.

transformers 4 has `torch_dtype`, `rope_theta`, `rope_scaling`; transformers 5 has `dtype` and `rope_parameters`.
The flat keys are dtype, rope_theta, rope_type, rope_scaling (numbers only) and partial_rotary_factor.
Facts: transformers 5.23 `configuration_utils.py` and `modeling_rope_utils.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from crossdock.errors import ConfigError, FormatError, Problem
from crossdock.io.json import CONFIGURATION, parse_json
from crossdock.model.config import ModelConfig

LARGEST = 16 << 20


def parse(data: bytes, where: str) -> dict[str, Any]:
    """JSON object of a configuration. Raises FormatError for anything else."""
    if len(data) > LARGEST:
        raise FormatError("too large for a configuration", where=where, expected=f"at most {LARGEST:,} bytes")
    try:
        found = parse_json(data, CONFIGURATION)
    except ValueError as error:
        raise FormatError(f"invalid JSON: {error}", where=where) from None
    if not isinstance(found, dict):
        raise FormatError("not a JSON object", where=where, got=type(found).__name__)
    return found


def flattened(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of either generation in flat form; others as they are. Raises ConfigError for what contradicts."""
    _agreeing(config, where)
    if "text_config" in config and "num_hidden_layers" not in config and "n_layer" not in config:
        raise ConfigError(
            "this is a multimodal model; crossdock delivers text models", where=where, got="a text_config"
        )
    out = {k: v for k, v in config.items() if k not in ("rope_parameters", "rope_scaling", "torch_dtype", "dtype")}
    dtype = config.get("dtype", config.get("torch_dtype"))
    if isinstance(dtype, str):
        out["dtype"] = dtype.removeprefix("torch.")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ConfigError("rope parameters are not an object", where=where, got=repr(rope)[:80])
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise ConfigError("rope parameters differ by layer type, which crossdock does not carry over", where=where)
    rope = dict(rope)
    kind = rope.pop("rope_type", rope.get("type", "default"))
    rope.pop("type", None)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope:
            out[key] = rope.pop(key)
    if "rope_theta" in out or rope or kind != "default":  # a model with learned positions has none of it
        out["rope_type"] = kind
        out["rope_scaling"] = rope if kind != "default" else {}
    return out


def _agreeing(config: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError where the rope settings of the two generations, both present, say different things.

    Programs differ in which of them they believe: transformers 5 takes rope_scaling before rope_parameters.
    """
    new, old = (config.get(key) for key in ("rope_parameters", "rope_scaling"))
    problems = []
    rope_parameters = new if isinstance(new, Mapping) else {}
    if rope_parameters and old and (not isinstance(old, Mapping) or _numbers(old) != _numbers(rope_parameters)):
        problems.append(
            Problem("differs from rope_parameters", f"{where}: rope_scaling", str(new)[:200], str(old)[:200])
        )
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in rope_parameters and config.get(key) is not None and config[key] != rope_parameters[key]:
            problems.append(
                Problem(
                    f"differs from rope_parameters.{key}",
                    f"{where}: {key}",
                    str(rope_parameters[key])[:80],
                    str(config[key])[:80],
                )
            )
    if problems:
        raise ConfigError(problems)


def _numbers(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings with the formula under one name, without what both generations also have beside them."""
    rest = {k: v for k, v in rope.items() if k not in ("type", "rope_type", "rope_theta", "partial_rotary_factor")}
    return {**rest, "rope_type": rope.get("rope_type", rope.get("type", "default"))}


def config_json(values: Mapping[str, Any]) -> bytes:
    """config.json from flat keys, as transformers 4, transformers 5 and vLLM read it. Keys sorted."""
    out = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    if "dtype" in out:
        out["torch_dtype"] = out["dtype"]
    if "rope_theta" in out:
        kind, scaling = out.pop("rope_type", "default"), dict(out.pop("rope_scaling", {}) or {})
        parameters = {**scaling, "rope_theta": out["rope_theta"], "rope_type": kind}
        if "partial_rotary_factor" in out:
            parameters["partial_rotary_factor"] = out["partial_rotary_factor"]
        out["rope_parameters"] = parameters
        out["rope_scaling"] = {**scaling, "rope_type": kind} if kind != "default" else None
    return json.dumps(out, indent=2, sort_keys=True, default=_plain).encode() + b"\n"


def generation_config_json(config: ModelConfig) -> bytes:
    """generation_config.json with the special ids that are known."""
    ids = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": list(config.eos_token_id) if isinstance(config.eos_token_id, tuple) else config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    known = {key: value for key, value in ids.items() if value is not None}
    return json.dumps({"_from_model_config": True, **known}, indent=2, sort_keys=True).encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} in a configuration")
