"""From values by field name to a `ModelConfig`: kinds, ranges, what must hold between fields. Finds all that is wrong.

Knows no format and no tensor. What rope scaling needs: transformers 5.24, `modeling_rope_utils.py`.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from crossdock.errors import ConfigError, Problem
from crossdock.model.config import ATTENTION, DEFAULTS, FIELDS, LAYER_TYPES, REQUIRED, ModelConfig
from crossdock.wording import short

_MOST = 1 << 31
_MOST_LAYERS = 100_000
_KINDS: Mapping[str, Any] = types.MappingProxyType(typing.get_type_hints(ModelConfig))
_ROPE_NEEDS: Mapping[str, tuple[str, ...]] = types.MappingProxyType({
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    "proportional": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
})  # fmt: skip
_ROPE_KNOWS = frozenset(
    ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "attention_factor",
     "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", "finetuned", "short_factor", "long_factor")
)  # fmt: skip
_NUMBER_FOR_EACH_LAYER = (
    "num_key_value_heads_per_layer", "intermediate_size_per_layer", "num_attention_heads_per_layer",
    "head_dim_per_layer", "rope_theta_per_layer", "activation_sparsity_pattern",
)  # fmt: skip
_SETS_OF_LAYERS = ("moe_layers", "nope_layers", "attn_sink_layers", "k_eq_v_layers", "index_shared_layers")
# sizes that a model without attention, or without an MLP of its own, does not have
_MAY_BE_ZERO = ("intermediate_size",)
_OF_ATTENTION = ("num_attention_heads", "num_key_value_heads", "head_dim")
_LENGTHS: Mapping[str, int] = types.MappingProxyType({"mlp_multipliers": 2, "ssm_multipliers": 5, "time_step_limit": 2})


def of_kind(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """The values in the kinds of the configuration's fields, and a problem for each that is of another kind."""
    clean: dict[str, Any] = {}
    problems = []
    for name, value in values.items():
        if name not in FIELDS:
            raise ConfigError(f"a layout reads {name!r}, which is not a field of the configuration")
        try:
            clean[name] = _coerced(_KINDS[name], value)
        except (TypeError, ValueError, OverflowError):
            problems.append(
                Problem("wrong kind of value", where=name, expected=_kind_text(_KINDS[name]), got=short(value))
            )
    return clean, problems


def build(family: str, clean: Mapping[str, Any]) -> tuple[ModelConfig, list[Problem]]:
    """The configuration, and what is wrong in it. `clean` has every required field, each of the right kind."""
    config = ModelConfig(**{**DEFAULTS, **clean, "family": family})
    problems = _sizes(config)
    if not problems and config.num_attention_heads % (config.num_key_value_heads or 1):
        problems.append(
            Problem(
                "query heads are not a multiple of KV heads",
                where="num_key_value_heads",
                got=f"{config.num_attention_heads} heads over {config.num_key_value_heads}",
            )
        )
    if config.num_experts and not 1 <= config.num_experts_per_tok <= config.num_experts:
        problems.append(
            Problem(
                "num_experts_per_tok is out of range",
                where="num_experts_per_tok",
                expected=f"1 to {config.num_experts}",
                got=str(config.num_experts_per_tok),
            )
        )
    return config, problems + _lists(config) + _layers(config) + _rope(config)


def _sizes(config: ModelConfig) -> list[Problem]:
    problems = []
    for name, value in config.as_dict().items():
        optional = name in _MAY_BE_ZERO or (name in _OF_ATTENTION and not _attends(config))
        least = 1 if name in REQUIRED and not optional else 0
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and _KINDS[name] is int
            and not least <= value < _MOST
        ):
            problems.append(Problem("implausible size", where=name, got=str(value)))
        if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
            problems.append(Problem("implausible number", where=name, got=str(value)))
    if not 0 <= config.norm_eps < 1:
        problems.append(
            Problem("implausible epsilon of a norm", where="norm_eps", expected="below 1", got=str(config.norm_eps))
        )
    if config.num_hidden_layers > _MOST_LAYERS:
        problems.append(
            Problem("implausibly many layers", where="num_hidden_layers", got=str(config.num_hidden_layers))
        )
    return problems


def _attends(config: ModelConfig) -> bool:
    """Whether any layer has attention."""
    return not config.layer_types or not {*ATTENTION, "mamba2_and_attention"}.isdisjoint(config.layer_types)


def _lists(config: ModelConfig) -> list[Problem]:
    """What is wrong in lists of layers, of their types, and of multipliers."""
    count = config.num_hidden_layers
    problems = [
        Problem("layers outside the model", where=name, got=short(getattr(config, name)))
        for name in _SETS_OF_LAYERS
        if any(not 0 <= layer < count for layer in getattr(config, name))
    ]
    problems += [
        Problem("a list of the wrong length", where=name, expected=f"{length} numbers", got=short(numbers))
        for name, length in _LENGTHS.items()
        if (numbers := getattr(config, name)) and len(numbers) != length
    ]
    if config.layer_types and len(config.layer_types) != count:
        got = short(config.layer_types)
        problems.append(Problem("not one type for each layer", where="layer_types", expected=f"{count} types", got=got))
    unknown = sorted(set(config.layer_types) - set(LAYER_TYPES))
    if unknown:
        problems.append(
            Problem(
                "unknown types of layers", where="layer_types", expected=", ".join(LAYER_TYPES), got=", ".join(unknown)
            )
        )
    return problems


def _layers(config: ModelConfig) -> list[Problem]:
    """What is wrong in the fields that differ from layer to layer."""
    count, heads = config.num_hidden_layers, config.num_attention_heads
    problems = [
        Problem("not one number for each layer", where=name, expected=f"{count} numbers", got=short(numbers))
        for name in _NUMBER_FOR_EACH_LAYER
        if (numbers := getattr(config, name)) and (len(numbers) != count or not all(0 <= n < _MOST for n in numbers))
    ]
    own = config.num_key_value_heads_per_layer
    of_layers = config.num_attention_heads_per_layer or (heads,) * len(own)
    if any(n and number % n for number, n in zip(of_layers, own, strict=False)):
        problems.append(
            Problem("query heads are not a multiple of KV heads", where="num_key_value_heads_per_layer", got=short(own))
        )
    for name, numbers in (
        ("linear_attention_layers", own), ("linear_mlp_layers", config.intermediate_size_per_layer),
    ):  # fmt: skip
        linear = getattr(config, name)
        if any(not 0 <= i < count or len(numbers) != count or numbers[i] for i in linear):
            problems.append(Problem("layers that are outside the model, or have both", where=name, got=short(linear)))
    return problems


def _rope(config: ModelConfig) -> list[Problem]:
    """What is wrong in the rope settings: a formula that lacks its numbers, numbers that no formula here knows."""
    problems: list[Problem] = []
    if config.position_embedding != "rope":
        return problems
    if not config.rope_theta > 1:
        problems.append(Problem("the base of rope is missing", where="rope_theta", got=str(config.rope_theta)))
    if config.rope_type == "default":
        return problems
    scaling, where = config.rope_scaling, "rope_scaling"
    lacking = [key for key in _ROPE_NEEDS.get(config.rope_type, ()) if not _is_of_rope(key, scaling.get(key))]
    if lacking:
        problems.append(
            Problem(
                f"rope of type {config.rope_type} needs {', '.join(lacking)}",
                where=where,
                got=short(dict(scaling)),
                cause="a GGUF of llama3 rope holds only divisors, not the numbers they came from"
                if config.rope_type == "llama3" and not scaling
                else "",
                fix="pass the model's Hugging Face config.json with --config",
            )
        )
    unknown = [key for key in scaling if key not in _ROPE_KNOWS]
    if unknown:
        problems.append(Problem(f"unknown rope settings: {', '.join(sorted(unknown))}", where=where))
    if lacking or config.rope_type not in _ROPE_NEEDS:
        return problems  # no family has another type
    if not scaling.get("factor", 1) >= 1:
        problems.append(Problem("rope scaling by less than 1", where=where, got=str(scaling["factor"])))
    if config.rope_type == "llama3" and not 0 < scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        problems.append(Problem("low_freq_factor is not below high_freq_factor", where=where, got=short(dict(scaling))))
    return problems


def _is_of_rope(key: str, value: Any) -> bool:
    """Whether a setting of rope is the number, or the list of numbers, that its name calls for."""
    return isinstance(value, tuple) if key in ("short_factor", "long_factor") else isinstance(value, int | float)


def _coerced(kind: Any, value: Any) -> Any:
    """`value` as `kind`. Raises TypeError when it is something else; no text becomes a number."""
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        for option in arguments:
            try:
                return _coerced(option, value)
            except TypeError:
                continue
        raise TypeError
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(_coerced(arguments[0], item) for item in value)
    if arguments:  # a mapping of numbers, flags and lists of numbers
        if not isinstance(value, Mapping):
            raise TypeError
        return {_coerced(str, key): _setting(item) for key, item in value.items() if item is not None}
    if kind is bool and (isinstance(value, bool) or value in (0, 1)):
        return bool(value)
    if kind is int and isinstance(value, int | float) and not isinstance(value, bool) and value == int(value):
        return int(value)
    if kind is float:
        return float(_number(value))
    if kind in (str, type(None)) and isinstance(value, kind):
        return value
    raise TypeError


def _setting(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_number, value))
    return value if isinstance(value, bool) else _number(value)


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError
    return value


def _kind_text(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "nothing"}
    if isinstance(kind, types.UnionType):
        return " or ".join(_kind_text(option) for option in typing.get_args(kind))
    return words.get(kind, "a list" if typing.get_origin(kind) is tuple else "a table")
