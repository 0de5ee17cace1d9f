"""config.json of a TensorRT-LLM checkpoint: the keys that its loader reads, written and read.

The loader only warns about a key that it does not know, so a misspelt key is a silent fault: every key is held against
the tables of `data/trtllm_config.toml`, which says where they are from.
"""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from crossdock.errors import PlanError, Problem
from crossdock.plugins import DATA

ROUTER = ".mlp.router.weight"  # the end of its name; float32 whatever the model's dtype
_FILE = "trtllm_config.toml"


@dataclass(frozen=True, slots=True)
class Keys:
    """Which keys the loader reads.

    common  of every model; nested: a key -> the keys inside it
    models  an architecture -> the keys of its own
    """

    common: frozenset[str]
    nested: Mapping[str, frozenset[str]]
    models: Mapping[str, frozenset[str]]


@functools.cache
def loader_keys() -> Keys:
    """Return the tables of `data/trtllm_config.toml`."""
    data = tomllib.loads((DATA / _FILE).read_text(encoding="utf-8"))
    models = {name: frozenset(entry["keys"]) for entry in data["models"] for name in entry["architectures"]}
    nested = {name: frozenset(keys) for name, keys in data["nested"].items()}
    return Keys(frozenset(data["common"]), MappingProxyType(nested), MappingProxyType(models))


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """config.json from keys with dots ("mapping.tp_size"). Raises PlanError for every key that no loader reads."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        table, dot, inner = key.partition(".")
        if dot:
            out.setdefault(table, {})[inner] = value
        else:
            out[key] = list(value) if isinstance(value, tuple) else value
    architecture, keys = str(out.get("architecture")), loader_keys()
    if architecture not in keys.models:
        raise PlanError("TensorRT-LLM does not support this model", where="architecture", got=architecture)
    unknown = [key for key in out if key not in keys.common | keys.models[architecture]]
    unknown += [
        f"{name}.{key}" for name in out.keys() & keys.nested for key in out[name] if key not in keys.nested[name]
    ]
    if unknown:
        what = f"the loader of {architecture} does not read this key, and would only warn"
        raise PlanError([Problem(what, where=key) for key in unknown])
    return out


def config_json(config: Mapping[str, Any]) -> bytes:
    """The file's bytes; keys as they come."""
    return json.dumps(config, indent=4).encode() + b"\n"


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of ranks and quantisation, under a layout's names. The numbers are not checked."""
    mapping, quantization = config.get("mapping") or {}, config.get("quantization") or {}
    tp = mapping.get("tp_size", config.get("tp_size", 1))
    ep = mapping.get("moe_ep_size", 1)
    return {
        "tensor_parallel": tp,
        "pipeline_parallel": mapping.get("pp_size", config.get("pp_size", 1)),
        "moe_expert_parallel": ep,
        "moe_tensor_parallel": mapping.get("moe_tp_size", tp),
        "use_parallel_embedding": config.get("use_parallel_embedding", False),
        "embedding_sharding_dim": config.get("embedding_sharding_dim", 0),
        "quant_algo": quantization.get("quant_algo"),
        "kv_cache_quant_algo": quantization.get("kv_cache_quant_algo"),
    }
