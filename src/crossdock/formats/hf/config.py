"""config.json of both generations: read into one set of flat keys, written so that either understands it.

transformers 4 has `torch_dtype`, `rope_theta`, `rope_scaling`; transformers 5 has `dtype` and `rope_parameters`.
The flat keys are dtype, rope_theta, rope_type, rope_scaling (numbers only) and partial_rotary_factor; where rope
differs by layer type, those of full (or indexed) attention, and with sliding_ before them those of sliding layers.
A family that transformers 4 has with such layers says so (`older_generation`): its rope_scaling is then that of full
attention.
Facts: transformers 5.23 `configuration_utils.py` and `modeling_rope_utils.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from crossdock.errors import ConfigError, Problem
from crossdock.formats.hf.composite import text_config
from crossdock.model.config import ModelConfig

# what is beside the numbers of the formula of rope
BESIDE = ("rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")
# rope_theta's defaults in classes of transformers 5 that keep the old field (bailing_hybrid's is the second)
UNUSED_BASES = (10000.0, 6000000.0)
# where rope differs by layer type: the type -> what its flat keys begin with
PREFIXES: Mapping[str, str] = {"full_attention": "", "indexed_attention": "", "sliding_attention": "sliding_"}


def flattened(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of either generation in flat form; others as they are. Raises ConfigError for what contradicts."""
    config = text_config(config)
    _agreeing(config, where)
    out = {k: v for k, v in config.items() if k not in ("rope_parameters", "rope_scaling", "torch_dtype", "dtype")}
    dtype = config.get("dtype", config.get("torch_dtype"))
    if isinstance(dtype, str):
        out["dtype"] = dtype.removeprefix("torch.")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise ConfigError("rope parameters are not an object", where=where, got=repr(rope)[:80])
    if not any(isinstance(value, Mapping) for value in rope.values()):
        return out | _flat_rope(rope, known="rope_theta" in out)
    by_type = {name: value for name, value in rope.items() if value is not None}
    strange = [name for name, value in by_type.items() if name not in PREFIXES or not isinstance(value, Mapping)]
    if strange:
        raise ConfigError(
            f"rope parameters of {', '.join(map(repr, strange))[:200]}, which crossdock does not carry over",
            where=where, expected=f"those of {' and '.join(PREFIXES)}",
        )  # fmt: skip
    for name, value in by_type.items():
        out |= {PREFIXES[name] + key: one for key, one in _flat_rope(value, known=False).items()}
    return out


def _flat_rope(rope: Mapping[str, Any], *, known: bool) -> dict[str, Any]:
    """The flat keys of one set of rope parameters; `known`: the base stands outside of them."""
    rest = dict(rope)
    kind = rest.pop("rope_type", rest.get("type", "default"))
    rest.pop("type", None)
    out: dict[str, Any] = {key: rest.pop(key) for key in BESIDE if key in rest}
    if known or "rope_theta" in out or rest or kind != "default":  # a model with learned positions has none of it
        out["rope_type"] = kind
        out["rope_scaling"] = rest if kind != "default" else {}
    return out


def _agreeing(config: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError where the rope settings of the two generations, both present, say different things.

    Programs differ in which of them they believe: transformers 5 takes rope_scaling before rope_parameters.
    """
    new, old = (config.get(key) for key in ("rope_parameters", "rope_scaling"))
    problems = []
    rope_parameters = new if isinstance(new, Mapping) else {}
    if any(isinstance(value, Mapping) for value in rope_parameters.values()):  # the old ones are of full attention
        own = rope_parameters.get("full_attention", rope_parameters.get("indexed_attention"))
        rope_parameters = own if isinstance(own, Mapping) else {}
    if rope_parameters and old and (not isinstance(old, Mapping) or _numbers(old) != _numbers(rope_parameters)):
        problems.append(
            Problem("differs from rope_parameters", f"{where}: rope_scaling", str(new)[:200], str(old)[:200])
        )
    for key in ("rope_theta", "partial_rotary_factor"):
        if (
            key in rope_parameters
            and config.get(key) not in (None, rope_parameters[key])
            and not _left_over(config, key)
        ):
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


def _left_over(config: Mapping[str, Any], key: str) -> bool:
    """Whether this is the default of a class of transformers 5 that keeps the old field, and does not use it."""
    by_5 = str(config.get("transformers_version")).startswith("5.")
    return key == "rope_theta" and config[key] in UNUSED_BASES and by_5


def _numbers(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Rope settings with the formula under one name, without what both generations also have beside them."""
    rest = {k: v for k, v in rope.items() if k not in ("type", "rope_type", "rope_theta", "partial_rotary_factor")}
    return {**rest, "rope_type": rope.get("rope_type", rope.get("type", "default"))}


def config_json(values: Mapping[str, Any]) -> bytes:
    """config.json from flat keys, as transformers 4, transformers 5 and vLLM read it. Keys sorted."""
    out = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    if "dtype" in out:
        out["torch_dtype"] = out["dtype"]
    if out.pop("bare_rope_theta", False):  # a class of transformers 5 that takes rope_parameters for all layer types
        out.pop("rope_type", None)
        out.pop("rope_scaling", None)
    elif "rope_theta" in out:
        kind, scaling = out.pop("rope_type", "default"), dict(out.pop("rope_scaling", {}) or {})
        parameters = {**scaling, "rope_theta": out["rope_theta"], "rope_type": kind}
        parameters |= {key: out[key] for key in BESIDE if key in out}
        for key in ("mrope_section", "mrope_interleaved"):
            out.pop(key, None)
        out["rope_parameters"] = parameters
        out["rope_scaling"] = {**scaling, "rope_type": kind} if kind != "default" else None
    if "sliding_rope_theta" in out:
        kind, scaling = out.pop("sliding_rope_type", "default"), dict(out.pop("sliding_rope_scaling", {}) or {})
        sliding = {**scaling, "rope_theta": out.pop("sliding_rope_theta"), "rope_type": kind}
        if "sliding_partial_rotary_factor" in out:
            sliding["partial_rotary_factor"] = out.pop("sliding_partial_rotary_factor")
        out["rope_parameters"] = {"full_attention": out["rope_parameters"], "sliding_attention": sliding}
        if not out.pop("older_generation", False) or not out["rope_scaling"]:
            out.pop("rope_scaling", None)  # transformers 5 would take it for the rope of all layers
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
