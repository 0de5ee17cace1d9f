"""Args of a small Megatron model, and what reading them gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crossdock.errors import ConfigError, CrossdockError
from crossdock.formats.stored import Source
from crossdock.model.config import ModelConfig
from crossdock.planning.config.describe import describe
from crossdock.planning.config.overrides import Overrides

Megatron = Callable[[str], Path]
Hf = Callable[[str], Path]
ARGS: dict[str, Any] = {
    "num_layers": 2, "hidden_size": 64, "num_attention_heads": 8, "group_query_attention": True, "num_query_groups": 2,
    "kv_channels": 8, "ffn_hidden_size": 160, "vocab_size": 203, "padded_vocab_size": 256, "norm_epsilon": 1e-5,
    "max_position_embeddings": 96, "normalization": "RMSNorm", "swiglu": True, "position_embedding_type": "rope",
    "rotary_base": 500000, "add_bias_linear": False, "untie_embeddings_and_output_weights": True,
}  # fmt: skip


def source_of(metadata: dict[str, Any], format_name: str = "megatron") -> Source:
    return Source(format_name, Path("/run"), (), {}, metadata, "args of common.pt")


def described(metadata: dict[str, Any], **given: Any) -> tuple[ModelConfig, dict[str, str]]:
    reading = describe(source_of(metadata), Overrides(**given))
    return reading.described.config, dict(reading.described.origins)


def refused(metadata: dict[str, Any], kind: type[CrossdockError] = ConfigError, **given: Any) -> CrossdockError:
    with pytest.raises(kind) as caught:
        describe(source_of(metadata), Overrides(**given))
    return caught.value


def without(*keys: str, **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (ARGS | changes).items() if key not in keys}
