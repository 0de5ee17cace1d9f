"""What a Megatron run stores beside its weights: args, the namespace of command-line arguments, and training state.

Turns args into a flat dict of plain values and says what the run was; maps no key and looks at no tensor.
Facts from Megatron-LM d98e8a6 (`megatron/training/checkpointing.py`, `arguments.py`) and megatron-core 0.11 to
0.19.2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from crossdock.errors import ConfigError
from crossdock.unpickle import Global, Instance, attributes, describe, dtype_of, printable

MAX_DEPTH = 8
MAX_VALUES = 200_000
OPTIMIZER = re.compile(r"(chained_\d+\.)?(optimizer|opt_param_scheduler)\b")
SIZES: Mapping[str, tuple[str, ...]] = {
    "tensor": ("tensor_model_parallel_size", "model_parallel_size"),
    "pipeline": ("pipeline_model_parallel_size",),
    "virtual pipeline": ("virtual_pipeline_model_parallel_size",),
    "expert": ("expert_model_parallel_size",),
    "expert tensor": ("expert_tensor_parallel_size",),
    "context": ("context_parallel_size",),
}


def is_weight(name: str) -> bool:
    """False for optimizer and extra state, and for random number generators."""
    return not OPTIMIZER.match(name) and "._extra_state" not in name and not name.startswith("rng_state")


def plain_args(common: object, where: str) -> dict[str, Any]:
    """The args in a checkpoint's common dict as plain values; {} when it has none.

    Numbers, texts, lists and dicts stay; dtypes become codec names ("bfloat16"), enums and other objects a text.
    Raises ConfigError when `common["args"]` is there but holds no attributes, or too much.
    """
    args = common.get("args") if isinstance(common, dict) else None
    if args is None:
        return {}
    if isinstance(args, Instance):
        values: Mapping[Any, object] = attributes(args)
    elif isinstance(args, dict):
        values = args
    else:
        raise ConfigError("args are not a namespace", where=where, got=describe(args))
    left = [MAX_VALUES]
    return {name: plain(value, where, left) for name, value in values.items() if isinstance(name, str)}


def plain(value: object, where: str = "", left: list[int] | None = None, depth: int = 0) -> Any:
    """`value` without stand-ins: what JSON can say, everything else as text.

    `left` counts down the values that may still be looked at: lists that hold each other many times multiply.
    """
    left = [MAX_VALUES] if left is None else left
    left[0] -= 1
    if left[0] < 0:
        raise ConfigError("args hold implausibly many values", where=where, expected=f"at most {MAX_VALUES:,}")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth < MAX_DEPTH and isinstance(value, list | tuple):
        return [plain(item, where, left, depth + 1) for item in value]
    if depth < MAX_DEPTH and isinstance(value, dict):
        named = {str(key): item for key, item in value.items() if isinstance(key, str | int)}
        return {key: plain(item, where, left, depth + 1) for key, item in named.items()}
    if isinstance(value, Global):
        return dtype_of(value) or value.qualified
    if isinstance(value, Instance) and len(value.args) == 1 and isinstance(value.args[0], int | str):
        return value.args[0] if isinstance(value.args[0], str) else f"{value.cls.name}({value.args[0]})"
    return describe(value)


def args_of_config(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The keys of a user's JSON in Megatron's terms: its args, TransformerConfig, or both parts of an exporter's case.

    None when it is in other terms (a Hugging Face config.json).
    """
    parts = [config[name] for name in ("transformer_config", "helper") if isinstance(config.get(name), dict)]
    keys = {key: value for part in parts for key, value in part.items()} if parts else dict(config)
    return keys if "num_layers" in keys and not {"num_hidden_layers", "architectures"} & keys.keys() else None


def run_notes(common: object, args: Mapping[str, Any]) -> dict[str, str]:
    """What the common dict tells about the run: iteration, versions, parallel sizes."""
    found = common if isinstance(common, dict) else {}
    notes: dict[str, str] = {}
    for key, title in (("iteration", "iteration"), ("checkpoint_version", "checkpoint version")):
        if isinstance(found.get(key), int | float | str):
            notes[title] = printable(str(found[key]))
    if isinstance(args.get("megatron_core_version"), str):
        notes["megatron-core"] = printable(args["megatron_core_version"])
    parallel = [f"{title} {size}" for title, size in parallel_sizes(args).items() if size > 1]
    if args:
        notes["parallel"] = ", ".join(parallel) or "one rank"
    return notes


def parallel_sizes(args: Mapping[str, Any]) -> dict[str, int]:
    """How many ranks of every kind the run used; 1 where the args do not say."""
    sizes = {}
    for title, names in SIZES.items():
        count = next((args[name] for name in names if isinstance(args.get(name), int)), 1)
        sizes[title] = max(count, 1)
    return sizes
