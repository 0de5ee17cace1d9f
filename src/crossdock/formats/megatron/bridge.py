"""Megatron-Bridge's `run_config.yaml` as the configuration of a checkpoint: TransformerConfig's names, plain values.

Reads the `model` section only. What Bridge would instantiate (`_target_`) stays a name: nothing is imported or called.
Facts from Megatron-Bridge 067f987 (`training/checkpointing.py`, `utils/yaml_utils.py`, `models/gpt/model_config.py`,
`models/gpt_provider.py`) and 217de1a^ (`models/llama/llama_provider.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crossdock.errors import FormatError
from crossdock.formats.megatron.args import plain
from crossdock.io.files import read_exact, reading, size_of

FILE = "run_config.yaml"
LARGEST = 1 << 20  # bytes; Bridge writes some ten thousand


def read_run_config(path: Path) -> dict[str, Any]:
    """The model's keys in `path`: fields of TransformerConfig and of the provider, in one flat dict.

    `model_provider` and `model_builder` name the classes that Bridge would make the model with.
    Raises FormatError when there is no model in it, or YAML that `io.yaml` does not read.
    """

    where = str(path)
    model = read_run_config_section(path, "model")
    if not isinstance(model, dict):
        raise FormatError("the model section is missing", where=where, fix="pass the configuration with --config")
    inner = model.get("transformer")
    flat = {**model, **inner} if isinstance(inner, dict) else model
    keys = {
        str(key): _named(value) for key, value in flat.items() if key not in ("transformer", "_target_", "_builder_")
    }
    keys["model_provider"] = _module(model.get("_target_"))
    keys["model_builder"] = _module(model.get("_builder_"))
    out: dict[str, Any] = plain(keys, where)
    return out


def read_run_config_section(path: Path, name: str) -> Any:
    """One section of `path`, None where there is none. Raises FormatError for YAML that `io.yaml` does not read."""
    from crossdock.io.yaml import read_section  # PyYAML is loaded where there is YAML to read

    where = str(path)
    with reading(path) as fd:
        size = size_of(fd)
        if size > LARGEST:
            raise FormatError("too large for a configuration", where=where, expected=f"at most {LARGEST} bytes")
        data = read_exact(fd, 0, size, where)
    try:
        return read_section(data.decode(), name, where)
    except UnicodeDecodeError:
        raise FormatError("not a text in UTF-8", where=where) from None


def _named(value: Any) -> Any:
    """A value as JSON has it; of something to be instantiated its name: "bfloat16", "torch.nn.functional.silu"."""
    if not isinstance(value, Mapping) or not isinstance(value.get("_target_"), str):
        return value
    target: str = value["_target_"]
    if target.startswith("torch.") and target.count(".") == 1:
        return target.removeprefix("torch.")
    return value["_name_"] if isinstance(value.get("_name_"), str) else target


def _module(target: Any) -> str | None:
    """The module of a class: "gpt_provider" of "megatron.bridge.models.gpt_provider.GPTModelProvider"."""
    return target.split(".")[-2] if isinstance(target, str) and "." in target else None
