"""Which models a graph can express, by `data/onnx_fields.toml`. Closed by default: a field of the configuration that is
not named there must have its default, or the model is refused with what ONNX lacks for it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from crossdock.errors import PlanError, Problem
from crossdock.model.config import ModelConfig
from crossdock.model.tables import read_toml

_FILE = "data/onnx_fields.toml"


@dataclass(frozen=True)
class Fields:
    """The data file. obeyed: whatever their value; values: field -> those that are obeyed; without_effect: fields that
    change no logits; lacking: field or value -> what is missing for it."""

    obeyed: frozenset[str]
    values: Mapping[str, tuple[Any, ...]]
    without_effect: frozenset[str]
    lacking: Mapping[str, str]


@functools.cache
def known_fields() -> Fields:
    """What the data file says."""
    table = read_toml(resources.files("crossdock") / _FILE, _FILE)
    return Fields(
        frozenset(table["obeyed"]),
        {name: tuple(values) for name, values in table["values"].items()},
        frozenset(name for names in table["without_effect"].values() for name in names),
        table["lacking"],
    )


def demand_expressible(config: ModelConfig) -> None:
    """Raises PlanError with every field that the graph does not obey."""
    problems = list(_problems(config))
    if problems:
        raise PlanError(problems)


def _problems(config: ModelConfig) -> Iterator[Problem]:
    known = known_fields()
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        rest = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if name in known.obeyed or name in known.without_effect:
            continue
        if name in known.values:
            strange = [one for one in _each(value) if one not in known.values[name]]
            for one in dict.fromkeys(strange):
                yield _lacking(name, one, " or ".join(map(repr, known.values[name])), known.lacking.get(str(one), ""))
        elif value != rest:
            yield _lacking(name, value, repr(rest), known.lacking.get(name, ""))
    if config.qk_norm_after_rope and config.rope_interleaved and config.qk_norm_type != "unit":
        cause = "RotaryEmbedding leaves neighbours where they are, and the norm behind it counts in halves"
        yield _lacking("qk_norm_after_rope", True, "False", cause)
    if config.num_kv_shared_layers and config.position_embedding == "alibi":
        cause = "keys and values of an earlier layer and ALiBi are not written together"
        yield _lacking("num_kv_shared_layers", config.num_kv_shared_layers, "0", cause)
    if config.attn_sink_layers and config.position_embedding == "alibi":
        yield _lacking("attn_sink_layers", config.attn_sink_layers, "()", "sinks and ALiBi are not written together")
    if config.kv_lora_rank and config.attn_sink_layers:
        yield _lacking("attn_sink_layers", config.attn_sink_layers, "()", "latent attention is written without sinks")


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _lacking(name: str, value: Any, expected: str, cause: str) -> Problem:
    return Problem(
        "the ONNX graph cannot express this model", where=name, expected=expected, got=repr(value)[:120],
        cause=cause or "the layers of the graph do not obey this field",
    )  # fmt: skip
